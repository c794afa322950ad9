-- Workers that sign their heartbeats, and the secrets of workers that were removed.

ALTER TABLE workers ADD COLUMN heartbeats BIGINT;   -- the number of the last one; NULL: the worker does not sign them

-- Whoever registers with the id of a removed worker has to know its secret.
CREATE TABLE removed_workers (
    id     TEXT PRIMARY KEY,
    secret TEXT NOT NULL
);
