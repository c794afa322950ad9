-- The audit: one line for each request that has changed something or was refused. The triggers keep the program, and
-- whoever makes a mistake, from changing it; whoever owns the database can drop them.

CREATE TABLE audit (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         DOUBLE PRECISION NOT NULL,      -- Unix seconds
    key_id     TEXT NOT NULL,                  -- texts are empty where nothing is known
    prefix     TEXT NOT NULL,
    action     TEXT NOT NULL,                  -- an operationId of openapi.yaml
    target     TEXT NOT NULL,                  -- a path
    status     INTEGER NOT NULL,
    request_id TEXT COLLATE "C" NOT NULL,
    address    TEXT NOT NULL
);
CREATE INDEX audit_at ON audit (at);
CREATE INDEX audit_request ON audit (request_id);

CREATE FUNCTION audit_is_append_only() RETURNS trigger AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.at <= extract(epoch FROM now()) - 86000 THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'lines of the audit are never changed, and deleted only when they are old';
END
$$ LANGUAGE plpgsql;

CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();

CREATE TRIGGER audit_is_never_truncated BEFORE TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
