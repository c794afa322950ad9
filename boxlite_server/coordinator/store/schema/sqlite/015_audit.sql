-- The audit: one line for each request that has changed something or was refused. The triggers keep the program, and
-- whoever makes a mistake, from changing it; whoever owns the database can drop them.

CREATE TABLE audit (
    id         INTEGER PRIMARY KEY,
    at         REAL NOT NULL,                  -- Unix seconds
    key_id     TEXT NOT NULL,                  -- texts are empty where nothing is known
    prefix     TEXT NOT NULL,
    action     TEXT NOT NULL,                  -- an operationId of openapi.yaml
    target     TEXT NOT NULL,                  -- a path
    status     INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    address    TEXT NOT NULL
) STRICT;
CREATE INDEX audit_at ON audit (at);
CREATE INDEX audit_request ON audit (request_id);

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit is never changed');
END;

CREATE TRIGGER audit_is_kept_for_a_day BEFORE DELETE ON audit
WHEN OLD.at > CAST(strftime('%s', 'now') AS REAL) - 86000
BEGIN
    SELECT RAISE(ABORT, 'lines of the audit are deleted only when they are old');
END;
