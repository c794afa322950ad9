-- Counters of each prefix. They never fall, and outlive the boxes that they count.

CREATE TABLE counters (
    prefix            TEXT PRIMARY KEY,
    boxes_created     INTEGER NOT NULL DEFAULT 0,
    boxes_failed      INTEGER NOT NULL DEFAULT 0,
    boxes_stopped     INTEGER NOT NULL DEFAULT 0,
    commands_executed INTEGER NOT NULL DEFAULT 0,
    exec_errors       INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Counted with the change itself: whichever operation makes it, and never without it.

CREATE TRIGGER count_created AFTER UPDATE OF status ON boxes
WHEN old.status = 'creating' AND new.status IN ('configured', 'running', 'stopped', 'paused')
BEGIN
    INSERT INTO counters (prefix, boxes_created) VALUES (new.prefix, 1)
    ON CONFLICT (prefix) DO UPDATE SET boxes_created = boxes_created + 1;
END;

CREATE TRIGGER count_failed AFTER UPDATE OF status ON boxes
WHEN old.status != 'failed' AND new.status = 'failed'
BEGIN
    INSERT INTO counters (prefix, boxes_failed) VALUES (new.prefix, 1)
    ON CONFLICT (prefix) DO UPDATE SET boxes_failed = boxes_failed + 1;
END;

CREATE TRIGGER count_stopped AFTER UPDATE OF status ON boxes
WHEN old.status NOT IN ('creating', 'stopped', 'removing') AND new.status = 'stopped'
BEGIN
    INSERT INTO counters (prefix, boxes_stopped) VALUES (new.prefix, 1)
    ON CONFLICT (prefix) DO UPDATE SET boxes_stopped = boxes_stopped + 1;
END;
