-- What each prefix may have at most, and what it has: kept with every change of a box, like the loads of workers.

-- NULL: the limit of the prefix '*', which stands for every prefix without a limit of its own; NULL there: no limit.
CREATE TABLE quotas (
    prefix              TEXT COLLATE "C" PRIMARY KEY,
    boxes               BIGINT,
    running_boxes       BIGINT,
    cpus                BIGINT,
    memory_mib          BIGINT,
    volumes             BIGINT,
    executions          BIGINT,               -- this and what follows: on each worker
    transfers           BIGINT,
    spooled_bytes       BIGINT,
    requests_per_second BIGINT                -- at each coordinator
);

ALTER TABLE totals ADD COLUMN active BIGINT NOT NULL DEFAULT 0;       -- boxes that run, or are about to
ALTER TABLE totals ADD COLUMN cpus BIGINT NOT NULL DEFAULT 0;         -- reserved, as in loads
ALTER TABLE totals ADD COLUMN memory_mib BIGINT NOT NULL DEFAULT 0;

-- Whether the box runs or is about to, while it has its room.
CREATE FUNCTION is_active(box boxes) RETURNS int LANGUAGE sql IMMUTABLE AS $$
    SELECT (box.reserved = 1 AND (box.desired = 'running' OR box.status IN ('running', 'stopping', 'paused')))::int
$$;

INSERT INTO totals (prefix, boxes, running, active, cpus, memory_mib)
SELECT prefix, 0, 0, sum(is_active(boxes)), sum(cpus * reserved), sum(memory_mib * reserved) FROM boxes GROUP BY prefix
ON CONFLICT (prefix) DO UPDATE SET
    active = excluded.active, cpus = excluded.cpus, memory_mib = excluded.memory_mib;

CREATE OR REPLACE FUNCTION add_to_total(box boxes, sign int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO totals (prefix, boxes, running, active, cpus, memory_mib) VALUES (
        box.prefix, sign * (box.status != 'removing')::int, sign * (box.status = 'running')::int,
        sign * is_active(box), sign * box.cpus * box.reserved, sign * box.memory_mib * box.reserved)
    ON CONFLICT (prefix) DO UPDATE SET
        boxes = totals.boxes + excluded.boxes, running = totals.running + excluded.running,
        active = totals.active + excluded.active, cpus = totals.cpus + excluded.cpus,
        memory_mib = totals.memory_mib + excluded.memory_mib;
END $$;

DROP TRIGGER boxes_change ON boxes;
CREATE TRIGGER boxes_change AFTER UPDATE OF prefix, worker_id, status, cpus, memory_mib, reserved, desired ON boxes
FOR EACH ROW
WHEN ((old.prefix, old.worker_id, old.status, old.cpus, old.memory_mib, old.reserved, old.desired)
    IS DISTINCT FROM (new.prefix, new.worker_id, new.status, new.cpus, new.memory_mib, new.reserved, new.desired))
EXECUTE FUNCTION boxes_changed();

-- From which repositories a prefix has pulled images that were missing, or that go with credentials of the hosts. An
-- image of a repository without rows was brought by the operator.
CREATE TABLE pulls (
    repository TEXT COLLATE "C" NOT NULL,
    prefix     TEXT COLLATE "C" NOT NULL,
    private    INTEGER NOT NULL,              -- 1: its registry got credentials of a host
    held       INTEGER NOT NULL,              -- 0: the prefix has removed its images; the row still tells who brought them
    PRIMARY KEY (repository, prefix)
);
