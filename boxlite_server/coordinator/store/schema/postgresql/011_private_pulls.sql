-- Pulls with credentials of a host that are under way, or whose end nobody has seen. What they bring is nobody's until
-- `pulls` says whose it is.
CREATE TABLE private_pulls (
    id         TEXT PRIMARY KEY,
    repository TEXT NOT NULL,
    prefix     TEXT NOT NULL
);
