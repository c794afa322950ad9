-- When the coordinator acts on a box by itself. A box has at most one such moment: a running one may be
-- stopped, a stopped one removed.

CREATE TABLE deadlines (
    box_id TEXT PRIMARY KEY REFERENCES boxes (id) ON DELETE CASCADE,
    due_at REAL NOT NULL                      -- Unix seconds
) STRICT;

CREATE INDEX deadlines_by_time ON deadlines (due_at);
