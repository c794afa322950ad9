-- All of it at once: what SQLite's scripts add up to. Times are Unix seconds, JSON is kept as it was written.
-- Ids and names compare by their bytes, as in SQLite, so that pages and ranges are the same on both.

CREATE TABLE meta (
    key   TEXT COLLATE "C" PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE workers (
    id             TEXT COLLATE "C" PRIMARY KEY,
    name           TEXT COLLATE "C" NOT NULL UNIQUE,
    url            TEXT NOT NULL,
    secret         TEXT NOT NULL,
    status         TEXT NOT NULL CHECK (status IN ('active', 'draining')),
    epoch          TEXT NOT NULL,
    labels         TEXT NOT NULL,                 -- JSON object
    cpus           BIGINT NOT NULL,              -- that the machine has
    memory_mib     BIGINT NOT NULL,
    max_boxes      BIGINT,                       -- NULL: no limit of its own
    version        TEXT NOT NULL,
    engine_version TEXT NOT NULL,
    registered_at  DOUBLE PRECISION NOT NULL,
    last_heartbeat DOUBLE PRECISION NOT NULL,
    cpu_limit      BIGINT,                       -- cpus that may be promised; NULL: no limit of its own
    left_at        DOUBLE PRECISION,              -- when it said goodbye; NULL: it did not
    inventory      TEXT,                          -- digest of the inventory that was taken last
    engine_life    TEXT,                          -- of its engine now; NULL: it does not say
    engine_error   TEXT,                          -- why its engine does not answer; NULL: it does
    started_at     DOUBLE PRECISION               -- this life of its process, by its own clock
) WITH (fillfactor = 50);                         -- heartbeats change rows in place

CREATE TABLE boxes (
    id          TEXT COLLATE "C" PRIMARY KEY,
    prefix      TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C",
    worker_id   TEXT COLLATE "C" NOT NULL REFERENCES workers (id),
    generation  BIGINT NOT NULL,
    -- creating and removing are ours alone: the row outlives a crash in the middle of either
    status      TEXT NOT NULL CHECK (status IN
                ('creating', 'configured', 'running', 'stopping', 'stopped', 'paused', 'failed', 'removing')),
    spec        TEXT NOT NULL,                    -- JSON object: what the client asked for, with defaults filled in
    cpus        BIGINT NOT NULL,                 -- reserved on the worker
    memory_mib  BIGINT NOT NULL,
    labels      TEXT NOT NULL,                    -- JSON object
    pid         BIGINT,
    exit_code   BIGINT,
    error       TEXT,
    created_at  DOUBLE PRECISION NOT NULL,
    updated_at  DOUBLE PRECISION NOT NULL,
    started_at  DOUBLE PRECISION,
    stopped_at  DOUBLE PRECISION,
    published   TEXT NOT NULL DEFAULT '[]',       -- JSON array, while the box runs
    -- What should be, where status is what is. A box that should go has the status removing.
    desired     TEXT NOT NULL DEFAULT 'stopped' CHECK (desired IN ('running', 'stopped')),
    wish        INTEGER NOT NULL DEFAULT 0,       -- how often desired has changed
    engine_life TEXT,                             -- of the engine under which it was last seen running
    request_key TEXT COLLATE "C",                 -- of the request that made it, where that may come again
    restarts    BIGINT NOT NULL DEFAULT 0,        -- by ourselves, since somebody started it
    restarted_at DOUBLE PRECISION,                -- when the last of them was tried
    reserved    INTEGER NOT NULL DEFAULT 0 CHECK (reserved IN (0, 1))  -- its room
);

CREATE UNIQUE INDEX boxes_by_name ON boxes (prefix, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX boxes_by_request ON boxes (request_key) WHERE request_key IS NOT NULL;
CREATE INDEX boxes_by_age ON boxes (prefix, created_at, id);
CREATE INDEX boxes_by_status ON boxes (prefix, status, created_at, id);
CREATE INDEX boxes_by_worker ON boxes (worker_id);
-- Boxes in the middle of an operation, under way or broken off: looked for all the time.
CREATE INDEX boxes_unsettled ON boxes (worker_id)
WHERE status IN ('creating', 'stopping', 'removing') OR (status = 'configured' AND desired = 'running');

-- The rows of snapshots are here, the images at the box's worker.
CREATE TABLE snapshots (
    id                   TEXT COLLATE "C" PRIMARY KEY,
    box_id               TEXT COLLATE "C" NOT NULL REFERENCES boxes (id) ON DELETE CASCADE,
    name                 TEXT COLLATE "C" NOT NULL,
    -- All but ready are ours alone: what a crash leaves in one of them is finished or undone.
    state                TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'restoring', 'removing')),
    created_at           DOUBLE PRECISION NOT NULL,
    container_disk_bytes BIGINT NOT NULL,
    size_bytes           BIGINT NOT NULL,
    UNIQUE (box_id, name)
);

CREATE INDEX snapshots_unfinished ON snapshots (box_id) WHERE state != 'ready';

-- Each on the one worker that holds its data.
CREATE TABLE volumes (
    id         TEXT COLLATE "C" PRIMARY KEY,
    prefix     TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,         -- the id where the client gave none
    worker_id  TEXT COLLATE "C" NOT NULL REFERENCES workers (id),
    -- creating and deleting outlive a crash in the middle of either; both can be deleted again
    state      TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL
);

CREATE UNIQUE INDEX volumes_by_name ON volumes (prefix, name);
CREATE INDEX volumes_by_worker ON volumes (worker_id);

-- When a coordinator acts on a box by itself: a running one may be stopped, a stopped one removed.
CREATE TABLE deadlines (
    box_id TEXT COLLATE "C" PRIMARY KEY REFERENCES boxes (id) ON DELETE CASCADE,
    due_at DOUBLE PRECISION NOT NULL
);

CREATE INDEX deadlines_by_time ON deadlines (due_at);

-- Answers to requests with an Idempotency-Key, for when the request comes again.
CREATE TABLE answers (
    owner       TEXT COLLATE "C" NOT NULL,        -- who asked, and under which prefix
    key         TEXT COLLATE "C" NOT NULL,
    request     TEXT NOT NULL,                    -- method, path and query
    body_size   BIGINT NOT NULL,                  -- how much of the request's body was read
    body_sha256 TEXT NOT NULL,                    -- of that
    body_ended  INTEGER NOT NULL,                 -- 1: that was all of it
    status      INTEGER NOT NULL,
    headers     TEXT NOT NULL,                    -- JSON array of pairs
    body        BYTEA NOT NULL,
    expires_at  DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (owner, key)
);

CREATE INDEX answers_by_age ON answers (expires_at);

-- Who may work on what, for how long. A holder is one life of a coordinator's process.
CREATE TABLE leases (
    name       TEXT COLLATE "C" PRIMARY KEY,
    holder     TEXT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL
);

CREATE INDEX leases_by_age ON leases (expires_at);

-- Counters of each prefix. They never fall, and outlive the boxes that they count.
CREATE TABLE counters (
    prefix            TEXT COLLATE "C" PRIMARY KEY,
    boxes_created     BIGINT NOT NULL DEFAULT 0,
    boxes_failed      BIGINT NOT NULL DEFAULT 0,
    boxes_stopped     BIGINT NOT NULL DEFAULT 0,
    commands_executed BIGINT NOT NULL DEFAULT 0,
    exec_errors       BIGINT NOT NULL DEFAULT 0
);

-- What is reserved on each worker, and how many boxes each prefix has: kept with every change of a box, so that
-- placing one costs the same however many there are.

CREATE TABLE loads (
    worker_id  TEXT COLLATE "C" PRIMARY KEY REFERENCES workers (id) ON DELETE CASCADE,
    cpus       BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    boxes      BIGINT NOT NULL,
    running    BIGINT NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE totals (
    prefix  TEXT COLLATE "C" PRIMARY KEY,
    boxes   BIGINT NOT NULL,                      -- but those that are being removed
    running BIGINT NOT NULL
) WITH (fillfactor = 50);

-- Add a box, or with the sign -1 take it away. Writes of single boxes run beside each other: all of them change
-- first loads, then totals, then counters, so that none waits for another that waits for it.

CREATE FUNCTION add_to_load(box boxes, sign int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF box.reserved = 1 THEN
        INSERT INTO loads (worker_id, cpus, memory_mib, boxes, running) VALUES (
            box.worker_id, sign * box.cpus, sign * box.memory_mib, sign, sign * (box.status = 'running')::int)
        ON CONFLICT (worker_id) DO UPDATE SET
            cpus = loads.cpus + excluded.cpus, memory_mib = loads.memory_mib + excluded.memory_mib,
            boxes = loads.boxes + excluded.boxes, running = loads.running + excluded.running;
    END IF;
END $$;

CREATE FUNCTION add_to_total(box boxes, sign int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF box.status != 'removing' THEN
        INSERT INTO totals (prefix, boxes, running) VALUES (box.prefix, sign, sign * (box.status = 'running')::int)
        ON CONFLICT (prefix) DO UPDATE SET
            boxes = totals.boxes + excluded.boxes, running = totals.running + excluded.running;
    END IF;
END $$;

CREATE FUNCTION boxes_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_load(new, 1);
    PERFORM add_to_total(new, 1);
    RETURN NULL;
END $$;

CREATE FUNCTION boxes_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_load(old, -1);
    PERFORM add_to_total(old, -1);
    RETURN NULL;
END $$;

-- Counted with the change itself: whichever operation makes it, and never without it.
CREATE FUNCTION boxes_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_load(old, -1);
    PERFORM add_to_load(new, 1);
    PERFORM add_to_total(old, -1);
    PERFORM add_to_total(new, 1);
    IF old.status = 'creating' AND new.status IN ('configured', 'running', 'stopped', 'paused') THEN
        INSERT INTO counters (prefix, boxes_created) VALUES (new.prefix, 1)
        ON CONFLICT (prefix) DO UPDATE SET boxes_created = counters.boxes_created + 1;
    END IF;
    IF old.status != 'failed' AND new.status = 'failed' THEN
        INSERT INTO counters (prefix, boxes_failed) VALUES (new.prefix, 1)
        ON CONFLICT (prefix) DO UPDATE SET boxes_failed = counters.boxes_failed + 1;
    END IF;
    IF old.status NOT IN ('creating', 'stopped', 'removing') AND new.status = 'stopped' THEN
        INSERT INTO counters (prefix, boxes_stopped) VALUES (new.prefix, 1)
        ON CONFLICT (prefix) DO UPDATE SET boxes_stopped = counters.boxes_stopped + 1;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER boxes_insert AFTER INSERT ON boxes FOR EACH ROW EXECUTE FUNCTION boxes_inserted();
CREATE TRIGGER boxes_delete AFTER DELETE ON boxes FOR EACH ROW EXECUTE FUNCTION boxes_deleted();
CREATE TRIGGER boxes_change AFTER UPDATE OF prefix, worker_id, status, cpus, memory_mib, reserved ON boxes FOR EACH ROW
WHEN ((old.prefix, old.worker_id, old.status, old.cpus, old.memory_mib, old.reserved)
    IS DISTINCT FROM (new.prefix, new.worker_id, new.status, new.cpus, new.memory_mib, new.reserved))
EXECUTE FUNCTION boxes_changed();
