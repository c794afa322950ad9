-- Volumes, each on the one worker that holds its data; and the ports of boxes as the engine published them.

CREATE TABLE volumes (
    id         TEXT PRIMARY KEY,
    prefix     TEXT NOT NULL,
    name       TEXT NOT NULL,                 -- the id where the client gave none
    worker_id  TEXT NOT NULL REFERENCES workers (id),
    -- creating and deleting outlive a crash in the middle of either; both can be deleted again
    state      TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
) STRICT;

CREATE UNIQUE INDEX volumes_by_name ON volumes (prefix, name);
CREATE INDEX volumes_by_worker ON volumes (worker_id);

ALTER TABLE boxes ADD COLUMN published TEXT NOT NULL DEFAULT '[]';  -- JSON array, while the box runs
