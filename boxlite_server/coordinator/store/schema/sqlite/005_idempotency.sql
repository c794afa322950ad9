-- Answers to requests with an Idempotency-Key, for when the request comes again.

CREATE TABLE answers (
    owner       TEXT NOT NULL,                -- who asked, and under which prefix
    key         TEXT NOT NULL,
    request     TEXT NOT NULL,                -- method, path and query
    body_size   INTEGER NOT NULL,             -- how much of the request's body was read
    body_sha256 TEXT NOT NULL,                -- of that
    body_ended  INTEGER NOT NULL,             -- 1: that was all of it
    status      INTEGER NOT NULL,
    headers     TEXT NOT NULL,                -- JSON array of pairs
    body        BLOB NOT NULL,
    expires_at  REAL NOT NULL,                -- Unix seconds
    PRIMARY KEY (owner, key)
) STRICT;

CREATE INDEX answers_by_age ON answers (expires_at);
