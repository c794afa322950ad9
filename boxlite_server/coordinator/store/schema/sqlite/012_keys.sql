-- API keys. Rows stay when a key is revoked; a database that has had a key never serves without one again.

CREATE TABLE keys (
    id            TEXT PRIMARY KEY,           -- shown in the key itself
    name          TEXT NOT NULL,
    prefix        TEXT NOT NULL,              -- the tenant; empty for a key of workers
    scopes        TEXT NOT NULL,              -- JSON array
    secret_sha256 TEXT NOT NULL,
    former_sha256 TEXT,                       -- of the secret before the last rotation
    former_until  REAL,                       -- when the former secret ends; times in Unix seconds
    created_at    REAL NOT NULL,
    expires_at    REAL,
    revoked_at    REAL,
    last_used_at  REAL                        -- to the minute
) STRICT;
