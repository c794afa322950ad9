-- What each prefix may have at most, and what it has: kept with every change of a box, like the loads of workers.

-- NULL: the limit of the prefix '*', which stands for every prefix without a limit of its own; NULL there: no limit.
CREATE TABLE quotas (
    prefix              TEXT PRIMARY KEY,
    boxes               INTEGER,
    running_boxes       INTEGER,
    cpus                INTEGER,
    memory_mib          INTEGER,
    volumes             INTEGER,
    executions          INTEGER,              -- this and what follows: on each worker
    transfers           INTEGER,
    spooled_bytes       INTEGER,
    requests_per_second INTEGER               -- at each coordinator
) STRICT;

ALTER TABLE totals ADD COLUMN active INTEGER NOT NULL DEFAULT 0;      -- boxes that run, or are about to
ALTER TABLE totals ADD COLUMN cpus INTEGER NOT NULL DEFAULT 0;        -- reserved, as in loads
ALTER TABLE totals ADD COLUMN memory_mib INTEGER NOT NULL DEFAULT 0;

-- Whether the box runs or is about to, while it has its room.
ALTER TABLE boxes ADD COLUMN active INTEGER GENERATED ALWAYS AS
    (reserved = 1 AND (desired = 'running' OR status IN ('running', 'stopping', 'paused'))) VIRTUAL;

INSERT INTO totals (prefix, boxes, running, active, cpus, memory_mib)
SELECT prefix, 0, 0, sum(active), sum(cpus * reserved), sum(memory_mib * reserved) FROM boxes WHERE true GROUP BY prefix
ON CONFLICT (prefix) DO UPDATE SET
    active = excluded.active, cpus = excluded.cpus, memory_mib = excluded.memory_mib;

DROP TRIGGER boxes_take;
DROP TRIGGER boxes_give_back;
DROP TRIGGER boxes_change;

CREATE TRIGGER boxes_take AFTER INSERT ON boxes
BEGIN
    INSERT INTO loads (worker_id, cpus, memory_mib, boxes, running)
    SELECT new.worker_id, new.cpus, new.memory_mib, 1, new.status = 'running'
    WHERE new.reserved = 1
    ON CONFLICT (worker_id) DO UPDATE SET
        cpus = cpus + excluded.cpus, memory_mib = memory_mib + excluded.memory_mib,
        boxes = boxes + excluded.boxes, running = running + excluded.running;
    INSERT INTO totals (prefix, boxes, running, active, cpus, memory_mib)
    VALUES (new.prefix, new.status != 'removing', new.status = 'running', new.active,
        new.cpus * new.reserved, new.memory_mib * new.reserved)
    ON CONFLICT (prefix) DO UPDATE SET
        boxes = boxes + excluded.boxes, running = running + excluded.running, active = active + excluded.active,
        cpus = cpus + excluded.cpus, memory_mib = memory_mib + excluded.memory_mib;
END;

CREATE TRIGGER boxes_give_back AFTER DELETE ON boxes
BEGIN
    UPDATE loads SET
        cpus = cpus - old.cpus, memory_mib = memory_mib - old.memory_mib,
        boxes = boxes - 1, running = running - (old.status = 'running')
    WHERE worker_id = old.worker_id AND old.reserved = 1;
    UPDATE totals SET
        boxes = boxes - (old.status != 'removing'), running = running - (old.status = 'running'),
        active = active - old.active, cpus = cpus - old.cpus * old.reserved,
        memory_mib = memory_mib - old.memory_mib * old.reserved
    WHERE prefix = old.prefix;
END;

CREATE TRIGGER boxes_change AFTER UPDATE OF prefix, worker_id, status, cpus, memory_mib, reserved, desired ON boxes
WHEN (old.prefix, old.worker_id, old.status, old.cpus, old.memory_mib, old.reserved, old.desired)
    IS NOT (new.prefix, new.worker_id, new.status, new.cpus, new.memory_mib, new.reserved, new.desired)
BEGIN
    UPDATE loads SET
        cpus = cpus - old.cpus, memory_mib = memory_mib - old.memory_mib,
        boxes = boxes - 1, running = running - (old.status = 'running')
    WHERE worker_id = old.worker_id AND old.reserved = 1;
    INSERT INTO loads (worker_id, cpus, memory_mib, boxes, running)
    SELECT new.worker_id, new.cpus, new.memory_mib, 1, new.status = 'running'
    WHERE new.reserved = 1
    ON CONFLICT (worker_id) DO UPDATE SET
        cpus = cpus + excluded.cpus, memory_mib = memory_mib + excluded.memory_mib,
        boxes = boxes + excluded.boxes, running = running + excluded.running;
    UPDATE totals SET
        boxes = boxes - (old.status != 'removing'), running = running - (old.status = 'running'),
        active = active - old.active, cpus = cpus - old.cpus * old.reserved,
        memory_mib = memory_mib - old.memory_mib * old.reserved
    WHERE prefix = old.prefix;
    INSERT INTO totals (prefix, boxes, running, active, cpus, memory_mib)
    VALUES (new.prefix, new.status != 'removing', new.status = 'running', new.active,
        new.cpus * new.reserved, new.memory_mib * new.reserved)
    ON CONFLICT (prefix) DO UPDATE SET
        boxes = boxes + excluded.boxes, running = running + excluded.running, active = active + excluded.active,
        cpus = cpus + excluded.cpus, memory_mib = memory_mib + excluded.memory_mib;
END;

-- From which repositories a prefix has pulled images that were missing, or that go with credentials of the hosts. An
-- image of a repository without rows was brought by the operator.
CREATE TABLE pulls (
    repository TEXT NOT NULL,
    prefix     TEXT NOT NULL,
    private    INTEGER NOT NULL,              -- 1: its registry got credentials of a host
    held       INTEGER NOT NULL,              -- 0: the prefix has removed its images; the row still tells who brought them
    PRIMARY KEY (repository, prefix)
) STRICT;
