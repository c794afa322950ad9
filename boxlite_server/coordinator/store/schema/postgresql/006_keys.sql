-- API keys. Rows stay when a key is revoked; a database that has had a key never serves without one again.

CREATE TABLE keys (
    id            TEXT COLLATE "C" PRIMARY KEY, -- shown in the key itself
    name          TEXT NOT NULL,
    prefix        TEXT NOT NULL,              -- the tenant; empty for a key of workers
    scopes        TEXT NOT NULL,              -- JSON array
    secret_sha256 TEXT NOT NULL,
    former_sha256 TEXT,                       -- of the secret before the last rotation
    former_until  DOUBLE PRECISION,                       -- when the former secret ends; times in Unix seconds
    created_at    DOUBLE PRECISION NOT NULL,
    expires_at    DOUBLE PRECISION,
    revoked_at    DOUBLE PRECISION,
    last_used_at  DOUBLE PRECISION                        -- to the minute
);
