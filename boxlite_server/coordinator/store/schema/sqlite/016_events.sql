-- What has happened to boxes, snapshots, volumes, images and workers. Triggers write most of it: whichever operation
-- makes a change tells of it in the same transaction, and never without it.

CREATE TABLE events (
    id      INTEGER PRIMARY KEY,               -- one more than that of the event before; the newest row is never deleted
    at      REAL NOT NULL,                     -- Unix seconds
    prefix  TEXT NOT NULL,                     -- empty for an event of a worker
    kind    TEXT NOT NULL,
    box_id  TEXT,                              -- NULL: it is about no box
    name    TEXT,                              -- of the box, snapshot, volume, image or worker
    status  TEXT,                              -- of the box from then on, as clients see it; NULL: the box is gone
    worker  TEXT,                              -- name of the worker
    details TEXT NOT NULL                      -- JSON object
) STRICT;
CREATE INDEX events_by_prefix ON events (prefix, id);

-- Up to which id events were deleted; the prefix '*' stands for all.
CREATE TABLE forgotten_events (
    prefix TEXT PRIMARY KEY,
    id     INTEGER NOT NULL
) STRICT;

ALTER TABLE workers ADD COLUMN lost_at REAL;   -- when a coordinator noted that no heartbeats come; NULL: they come

-- Where triggers insert events: it adds the time and the worker's name, and shows the status as clients see it.
CREATE VIEW new_events (prefix, kind, box_id, name, status, worker_id, details) AS
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL;

CREATE TRIGGER new_events_insert INSTEAD OF INSERT ON new_events
BEGIN
    INSERT INTO events (at, prefix, kind, box_id, name, status, worker, details) VALUES (
        (julianday('now') - 2440587.5) * 86400.0, new.prefix, new.kind, new.box_id, new.name,
        CASE new.status WHEN 'creating' THEN 'configured' WHEN 'removing' THEN 'stopping' ELSE new.status END,
        (SELECT name FROM workers WHERE id = new.worker_id), coalesce(new.details, '{}'));
END;

CREATE TRIGGER boxes_tell_insert AFTER INSERT ON boxes WHEN new.prefix != ''
BEGIN
    INSERT INTO new_events VALUES (new.prefix, 'box.placed', new.id, new.name, new.status, new.worker_id,
        json_object('image', json_extract(new.spec, '$.image'), 'cpus', new.cpus, 'memory_mib', new.memory_mib));
END;

CREATE TRIGGER boxes_tell_update AFTER UPDATE OF prefix, worker_id, generation, status, desired ON boxes
WHEN new.prefix != '' AND (old.prefix, old.worker_id, old.generation, old.status, old.desired)
    IS NOT (new.prefix, new.worker_id, new.generation, new.status, new.desired)
BEGIN
    INSERT INTO new_events
    SELECT new.prefix, 'box.placed', new.id, new.name, new.status, new.worker_id,
        json_object('image', json_extract(new.spec, '$.image'), 'cpus', new.cpus, 'memory_mib', new.memory_mib)
    WHERE new.status = 'creating' AND (old.prefix, old.worker_id) IS NOT (new.prefix, new.worker_id);

    INSERT INTO new_events
    SELECT new.prefix, 'box.created', new.id, new.name, 'configured', new.worker_id, NULL
    WHERE old.status = 'creating' AND new.status IN ('configured', 'running', 'stopped', 'paused');

    INSERT INTO new_events
    SELECT new.prefix, 'box.restored', new.id, new.name, new.status, new.worker_id, NULL
    WHERE new.status != 'creating' AND old.generation != new.generation;

    INSERT INTO new_events
    SELECT new.prefix, 'box.out_of_memory', new.id, new.name, new.status, new.worker_id,
        json_object('error_message', substr(new.error, 1, 1000))
    WHERE new.status = 'stopped' AND old.status NOT IN ('stopped', 'removing') AND new.error LIKE 'out of memory:%';

    INSERT INTO new_events
    SELECT new.prefix, kind, new.id, new.name, new.status, new.worker_id,
        CASE kind
            WHEN 'box.stopped' THEN json_object('exit_code', new.exit_code, 'error_message', substr(new.error, 1, 1000))
            WHEN 'box.failed' THEN json_object('error_message', substr(new.error, 1, 1000))
            WHEN 'box.restarting' THEN json_object('error_message', substr(new.error, 1, 1000))
        END
    FROM (SELECT CASE
        WHEN old.status = new.status THEN CASE
            WHEN new.status != 'configured' OR old.desired = new.desired THEN NULL
            WHEN new.desired = 'running' THEN 'box.starting'
            ELSE 'box.not_started'
        END
        WHEN new.status = 'creating' THEN NULL
        WHEN new.status = 'removing' THEN CASE old.status WHEN 'creating' THEN 'box.create_failed' ELSE 'box.removing' END
        WHEN old.status = 'removing' THEN 'box.remove_failed'
        WHEN new.status IN ('stopping', 'stopped', 'failed') THEN 'box.' || new.status
        WHEN old.status = 'stopping' AND new.status IN ('running', 'paused') THEN 'box.stop_failed'
        WHEN new.status = 'paused' THEN 'box.paused'
        WHEN new.status = 'running' THEN CASE old.status WHEN 'paused' THEN 'box.resumed' ELSE 'box.started' END
        WHEN old.status = 'creating' THEN NULL
        WHEN new.desired = 'stopped' THEN 'box.reset'
        WHEN old.desired = 'stopped' THEN 'box.starting'
        ELSE 'box.restarting'
    END AS kind) WHERE kind IS NOT NULL;
END;

CREATE TRIGGER boxes_tell_change AFTER UPDATE OF name, labels, spec, cpus, memory_mib ON boxes
WHEN new.prefix != '' AND old.prefix = new.prefix AND (old.name, old.labels, old.spec, old.cpus, old.memory_mib)
    IS NOT (new.name, new.labels, new.spec, new.cpus, new.memory_mib)
BEGIN
    INSERT INTO new_events VALUES (new.prefix, 'box.updated', new.id, new.name, new.status, new.worker_id, NULL);
END;

CREATE TRIGGER boxes_tell_delete AFTER DELETE ON boxes WHEN old.prefix != ''
BEGIN
    INSERT INTO new_events SELECT old.prefix, 'box.create_failed', old.id, old.name, NULL, old.worker_id, NULL
    WHERE old.status = 'creating';
    INSERT INTO new_events VALUES (old.prefix, 'box.removed', old.id, old.name, NULL, old.worker_id, NULL);
END;

-- Nothing is told of snapshots that go with their box: its row is no longer there.

CREATE TRIGGER snapshots_tell_update AFTER UPDATE OF state ON snapshots
WHEN (old.state = 'creating' AND new.state = 'ready') OR (old.state = 'ready' AND new.state = 'restoring')
BEGIN
    INSERT INTO new_events
    SELECT prefix, CASE new.state WHEN 'ready' THEN 'snapshot.created' ELSE 'snapshot.restoring' END, id, new.name,
        status, worker_id, json_object('snapshot_id', new.id)
    FROM boxes WHERE id = new.box_id;
END;

CREATE TRIGGER snapshots_tell_delete AFTER DELETE ON snapshots WHEN old.state != 'creating'
BEGIN
    INSERT INTO new_events
    SELECT prefix, 'snapshot.removed', id, old.name, status, worker_id, json_object('snapshot_id', old.id)
    FROM boxes WHERE id = old.box_id;
END;

CREATE TRIGGER volumes_tell_update AFTER UPDATE OF state ON volumes WHEN old.state = 'creating' AND new.state = 'ready'
BEGIN
    INSERT INTO new_events VALUES (new.prefix, 'volume.created', NULL, new.name, NULL, new.worker_id,
        json_object('volume_id', new.id));
END;

CREATE TRIGGER volumes_tell_delete AFTER DELETE ON volumes WHEN old.state != 'creating'
BEGIN
    INSERT INTO new_events VALUES (old.prefix, 'volume.removed', NULL, old.name, NULL, old.worker_id,
        json_object('volume_id', old.id));
END;

CREATE TRIGGER workers_tell_insert AFTER INSERT ON workers
BEGIN
    INSERT INTO new_events VALUES ('', 'worker.registered', NULL, new.name, NULL, new.id,
        json_object('worker_id', new.id));
END;

CREATE TRIGGER workers_tell_update AFTER UPDATE OF epoch, status, left_at, engine_error, lost_at ON workers
WHEN (old.epoch, old.status, old.left_at, old.engine_error, old.lost_at)
    IS NOT (new.epoch, new.status, new.left_at, new.engine_error, new.lost_at)
BEGIN
    INSERT INTO new_events
    SELECT '', 'worker.registered', NULL, new.name, NULL, new.id, json_object('worker_id', new.id)
    WHERE old.epoch != new.epoch;

    INSERT INTO new_events
    SELECT '', 'worker.' || new.status, NULL, new.name, NULL, new.id, json_object('worker_id', new.id)
    WHERE old.status != new.status;

    INSERT INTO new_events
    SELECT '', CASE WHEN reason IS NULL THEN 'worker.back' ELSE 'worker.lost' END, NULL, new.name, NULL, new.id,
        CASE WHEN reason IS NULL THEN json_object('worker_id', new.id)
            ELSE json_object('worker_id', new.id, 'error_message', reason) END
    FROM (SELECT CASE
        WHEN new.left_at IS NOT NULL THEN 'it was shut down'
        WHEN new.engine_error != '' THEN 'its engine does not answer: ' || substr(new.engine_error, 1, 1000)
        WHEN new.lost_at IS NOT NULL THEN 'its heartbeats have stopped'
    END AS reason)
    WHERE (reason IS NULL) != (old.left_at IS NULL AND coalesce(old.engine_error, '') = '' AND old.lost_at IS NULL);

    INSERT INTO new_events
    SELECT prefix, CASE WHEN is_back THEN 'box.reachable' ELSE 'box.unreachable' END, id, name,
        CASE WHEN is_back THEN status ELSE 'unknown' END, worker_id, NULL
    FROM boxes,
        (SELECT new.left_at IS NULL AND coalesce(new.engine_error, '') = '' AND new.lost_at IS NULL AS is_back)
    WHERE worker_id = new.id AND prefix != ''
        AND is_back != (old.left_at IS NULL AND coalesce(old.engine_error, '') = '' AND old.lost_at IS NULL);
END;

CREATE TRIGGER workers_tell_delete AFTER DELETE ON workers
BEGIN
    INSERT INTO new_events VALUES ('', 'worker.removed', NULL, old.name, NULL, NULL,
        json_object('worker_id', old.id));
END;
