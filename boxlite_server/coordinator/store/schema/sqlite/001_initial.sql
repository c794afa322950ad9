-- The registry: who runs boxes, and which boxes there are. Times are Unix seconds (REAL).

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE workers (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    url            TEXT NOT NULL,
    secret         TEXT NOT NULL,
    status         TEXT NOT NULL CHECK (status IN ('active', 'draining')),
    epoch          TEXT NOT NULL,
    labels         TEXT NOT NULL,             -- JSON object
    cpus           INTEGER NOT NULL,
    memory_mib     INTEGER NOT NULL,
    max_boxes      INTEGER,                   -- NULL: no limit of its own
    version        TEXT NOT NULL,
    engine_version TEXT NOT NULL,
    registered_at  REAL NOT NULL,
    last_heartbeat REAL NOT NULL
) STRICT;

CREATE TABLE boxes (
    id          TEXT PRIMARY KEY,
    prefix      TEXT NOT NULL,
    name        TEXT,
    worker_id   TEXT NOT NULL REFERENCES workers (id),
    generation  INTEGER NOT NULL,
    -- creating and removing are ours alone: the row outlives a crash in the middle of either
    status      TEXT NOT NULL CHECK (status IN
                ('creating', 'configured', 'running', 'stopping', 'stopped', 'paused', 'failed', 'removing')),
    spec        TEXT NOT NULL,                -- JSON object: what the client asked for, with defaults filled in
    cpus        INTEGER NOT NULL,             -- reserved on the worker
    memory_mib  INTEGER NOT NULL,
    labels      TEXT NOT NULL,                -- JSON object
    pid         INTEGER,
    exit_code   INTEGER,
    error       TEXT,
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    started_at  REAL,
    stopped_at  REAL
) STRICT;

CREATE UNIQUE INDEX boxes_by_name ON boxes (prefix, name) WHERE name IS NOT NULL;
CREATE INDEX boxes_by_age ON boxes (prefix, created_at, id);
CREATE INDEX boxes_by_worker ON boxes (worker_id);
