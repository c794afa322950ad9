-- Snapshots of boxes: the rows are here, the images at the box's worker.

CREATE TABLE snapshots (
    id                   TEXT PRIMARY KEY,
    box_id               TEXT NOT NULL REFERENCES boxes (id) ON DELETE CASCADE,
    name                 TEXT NOT NULL,
    -- All but ready are ours alone: what a crash leaves in one of them is finished or undone.
    state                TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'restoring', 'removing')),
    created_at           REAL NOT NULL,
    container_disk_bytes INTEGER NOT NULL,
    size_bytes           INTEGER NOT NULL,
    UNIQUE (box_id, name)
) STRICT;
