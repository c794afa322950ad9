-- What several coordinators, dead workers and restarts of anything take. Times are Unix seconds.

-- Who may work on what, for how long. A holder is one life of a coordinator's process.
CREATE TABLE leases (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    expires_at REAL NOT NULL
) STRICT;

CREATE INDEX leases_by_age ON leases (expires_at);

ALTER TABLE workers ADD COLUMN cpu_limit INTEGER;     -- cpus that may be promised; NULL: no limit of its own
ALTER TABLE workers ADD COLUMN left_at REAL;          -- when it said goodbye; NULL: it did not
ALTER TABLE workers ADD COLUMN inventory TEXT;        -- digest of the inventory that was taken last
ALTER TABLE workers ADD COLUMN engine_life TEXT;      -- of its engine now; NULL: it does not say
ALTER TABLE workers ADD COLUMN engine_error TEXT;     -- why its engine does not answer; NULL: it does
ALTER TABLE workers ADD COLUMN started_at REAL;       -- this life of its process, by its own clock

-- What should be, where status is what is. A box that should go has the status removing.
ALTER TABLE boxes ADD COLUMN desired TEXT NOT NULL DEFAULT 'stopped' CHECK (desired IN ('running', 'stopped'));
ALTER TABLE boxes ADD COLUMN engine_life TEXT;        -- of the engine under which it was last seen running
ALTER TABLE boxes ADD COLUMN request_key TEXT;        -- of the request that made it, where that may come again
ALTER TABLE boxes ADD COLUMN wish INTEGER NOT NULL DEFAULT 0;  -- how often desired has changed
ALTER TABLE boxes ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved IN (0, 1));  -- its room
ALTER TABLE boxes ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;  -- by ourselves, since somebody started it
ALTER TABLE boxes ADD COLUMN restarted_at REAL;       -- when the last of them was tried

UPDATE boxes SET desired = 'running' WHERE status IN ('running', 'paused');
UPDATE boxes SET reserved = 1 WHERE status IN ('creating', 'configured', 'running', 'stopping', 'paused');

CREATE UNIQUE INDEX boxes_by_request ON boxes (request_key) WHERE request_key IS NOT NULL;
CREATE INDEX boxes_by_status ON boxes (prefix, status, created_at, id);
CREATE INDEX snapshots_unfinished ON snapshots (box_id) WHERE state != 'ready';

-- Boxes in the middle of an operation, under way or broken off: looked for all the time.
CREATE INDEX boxes_unsettled ON boxes (worker_id)
WHERE status IN ('creating', 'stopping', 'removing') OR (status = 'configured' AND desired = 'running');

-- What is reserved on each worker, and how many boxes each prefix has: kept with every change of a box, so that
-- placing one costs the same however many there are.

CREATE TABLE loads (
    worker_id  TEXT PRIMARY KEY REFERENCES workers (id) ON DELETE CASCADE,
    cpus       INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    boxes      INTEGER NOT NULL,
    running    INTEGER NOT NULL
) STRICT;

CREATE TABLE totals (
    prefix  TEXT PRIMARY KEY,
    boxes   INTEGER NOT NULL,                         -- but those that are being removed
    running INTEGER NOT NULL
) STRICT;

INSERT INTO loads (worker_id, cpus, memory_mib, boxes, running)
SELECT worker_id, sum(cpus), sum(memory_mib), count(*), count(*) FILTER (WHERE status = 'running') FROM boxes
WHERE reserved = 1 GROUP BY worker_id;

INSERT INTO totals (prefix, boxes, running)
SELECT prefix, count(*), count(*) FILTER (WHERE status = 'running') FROM boxes
WHERE status != 'removing' GROUP BY prefix;

CREATE TRIGGER boxes_take AFTER INSERT ON boxes
BEGIN
    INSERT INTO loads (worker_id, cpus, memory_mib, boxes, running)
    SELECT new.worker_id, new.cpus, new.memory_mib, 1, new.status = 'running'
    WHERE new.reserved = 1
    ON CONFLICT (worker_id) DO UPDATE SET
        cpus = cpus + excluded.cpus, memory_mib = memory_mib + excluded.memory_mib,
        boxes = boxes + excluded.boxes, running = running + excluded.running;
    INSERT INTO totals (prefix, boxes, running)
    SELECT new.prefix, 1, new.status = 'running' WHERE new.status != 'removing'
    ON CONFLICT (prefix) DO UPDATE SET boxes = boxes + excluded.boxes, running = running + excluded.running;
END;

CREATE TRIGGER boxes_give_back AFTER DELETE ON boxes
BEGIN
    UPDATE loads SET
        cpus = cpus - old.cpus, memory_mib = memory_mib - old.memory_mib,
        boxes = boxes - 1, running = running - (old.status = 'running')
    WHERE worker_id = old.worker_id AND old.reserved = 1;
    UPDATE totals SET boxes = boxes - 1, running = running - (old.status = 'running')
    WHERE prefix = old.prefix AND old.status != 'removing';
END;

CREATE TRIGGER boxes_change AFTER UPDATE OF prefix, worker_id, status, cpus, memory_mib, reserved ON boxes
WHEN (old.prefix, old.worker_id, old.status, old.cpus, old.memory_mib, old.reserved)
    IS NOT (new.prefix, new.worker_id, new.status, new.cpus, new.memory_mib, new.reserved)
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
    UPDATE totals SET boxes = boxes - 1, running = running - (old.status = 'running')
    WHERE prefix = old.prefix AND old.status != 'removing';
    INSERT INTO totals (prefix, boxes, running)
    SELECT new.prefix, 1, new.status = 'running' WHERE new.status != 'removing'
    ON CONFLICT (prefix) DO UPDATE SET boxes = boxes + excluded.boxes, running = running + excluded.running;
END;
