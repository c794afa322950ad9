-- What has happened to boxes, snapshots, volumes, images and workers. Triggers write most of it: whichever operation
-- makes a change tells of it in the same transaction, and never without it.

CREATE TABLE events (
    id      BIGINT PRIMARY KEY,                -- one more than that of the event before; the newest row is never deleted
    at      DOUBLE PRECISION NOT NULL,         -- Unix seconds
    prefix  TEXT COLLATE "C" NOT NULL,         -- empty for an event of a worker
    kind    TEXT NOT NULL,
    box_id  TEXT COLLATE "C",                  -- NULL: it is about no box
    name    TEXT,                              -- of the box, snapshot, volume, image or worker
    status  TEXT,                              -- of the box from then on, as clients see it; NULL: the box is gone
    worker  TEXT,                              -- name of the worker
    details TEXT NOT NULL                      -- JSON object
);
CREATE INDEX events_by_prefix ON events (prefix, id);

-- Up to which id events were deleted; the prefix '*' stands for all.
CREATE TABLE forgotten_events (
    prefix TEXT COLLATE "C" PRIMARY KEY,
    id     BIGINT NOT NULL
);

ALTER TABLE workers ADD COLUMN lost_at DOUBLE PRECISION;  -- when a coordinator noted that no heartbeats come; NULL: they do

-- Add an event. A reader goes on behind the last id that it has seen, so an event must never become visible behind one
-- with a greater id. A sequence gives out ids in another order than that in which transactions end. Therefore whoever
-- adds an event holds a lock from the choice of its id to the end of the transaction. Transactions run one after the
-- other anyway; only single writes, which run beside each other, wait here. All other rows are changed before.
CREATE FUNCTION tell(
    prefix text, kind text, box_id text, name text, status text, worker_id text, details json
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7093020315305209460);
    INSERT INTO events (id, at, prefix, kind, box_id, name, status, worker, details) VALUES (
        (SELECT coalesce(max(events.id), 0) + 1 FROM events),
        extract(epoch FROM clock_timestamp()), tell.prefix, tell.kind, tell.box_id, tell.name,
        CASE tell.status WHEN 'creating' THEN 'configured' WHEN 'removing' THEN 'stopping' ELSE tell.status END,
        (SELECT workers.name FROM workers WHERE workers.id = tell.worker_id), coalesce(tell.details::text, '{}'));
END $$;

CREATE FUNCTION tell_of_box(kind text, status text, box boxes, details json = NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF kind IS NOT NULL THEN
        PERFORM tell(box.prefix, kind, box.id, box.name, status, box.worker_id, details);
    END IF;
END $$;

-- PostgreSQL reads no JSON that spells a NUL, wherever it is.
CREATE FUNCTION tell_of_placement(box boxes) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    spec json = replace(box.spec, '\u0000', '\ufffd');
BEGIN
    PERFORM tell_of_box('box.placed', box.status, box, json_build_object(
        'image', spec -> 'image', 'cpus', box.cpus, 'memory_mib', box.memory_mib));
END $$;

CREATE FUNCTION tell_of_new_box() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell_of_placement(new);
    RETURN NULL;
END $$;

CREATE FUNCTION kind_of_change(old boxes, new boxes) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
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
    END
$$;

CREATE FUNCTION tell_of_changed_box() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    kind text = kind_of_change(old, new);
    message text = left(new.error, 1000);
BEGIN
    IF new.status = 'creating' AND (old.prefix, old.worker_id) IS DISTINCT FROM (new.prefix, new.worker_id) THEN
        PERFORM tell_of_placement(new);
    END IF;
    IF old.status = 'creating' AND new.status IN ('configured', 'running', 'stopped', 'paused') THEN
        PERFORM tell_of_box('box.created', 'configured', new);
    END IF;
    IF new.status != 'creating' AND old.generation != new.generation THEN
        PERFORM tell_of_box('box.restored', new.status, new);
    END IF;
    IF kind = 'box.stopped' AND new.error LIKE 'out of memory:%' THEN
        PERFORM tell_of_box('box.out_of_memory', new.status, new, json_build_object('error_message', message));
    END IF;
    PERFORM tell_of_box(kind, new.status, new, CASE kind
        WHEN 'box.stopped' THEN json_build_object('exit_code', new.exit_code, 'error_message', message)
        WHEN 'box.failed' THEN json_build_object('error_message', message)
        WHEN 'box.restarting' THEN json_build_object('error_message', message)
    END);
    RETURN NULL;
END $$;

CREATE FUNCTION tell_of_updated_box() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell_of_box('box.updated', new.status, new);
    RETURN NULL;
END $$;

CREATE FUNCTION tell_of_removed_box() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF old.status = 'creating' THEN
        PERFORM tell_of_box('box.create_failed', NULL, old);
    END IF;
    PERFORM tell_of_box('box.removed', NULL, old);
    RETURN NULL;
END $$;

-- The names of these triggers come after those of the triggers that count, in whose order PostgreSQL runs them.

CREATE TRIGGER boxes_tell_insert AFTER INSERT ON boxes FOR EACH ROW WHEN (new.prefix != '')
EXECUTE FUNCTION tell_of_new_box();

CREATE TRIGGER boxes_tell_update AFTER UPDATE OF prefix, worker_id, generation, status, desired ON boxes FOR EACH ROW
WHEN (new.prefix != '' AND (old.prefix, old.worker_id, old.generation, old.status, old.desired)
    IS DISTINCT FROM (new.prefix, new.worker_id, new.generation, new.status, new.desired))
EXECUTE FUNCTION tell_of_changed_box();

CREATE TRIGGER boxes_tell_change AFTER UPDATE OF name, labels, spec, cpus, memory_mib ON boxes FOR EACH ROW
WHEN (new.prefix != '' AND old.prefix = new.prefix AND (old.name, old.labels, old.spec, old.cpus, old.memory_mib)
    IS DISTINCT FROM (new.name, new.labels, new.spec, new.cpus, new.memory_mib))
EXECUTE FUNCTION tell_of_updated_box();

CREATE TRIGGER boxes_tell_delete AFTER DELETE ON boxes FOR EACH ROW WHEN (old.prefix != '')
EXECUTE FUNCTION tell_of_removed_box();

-- Nothing is told of snapshots that go with their box: its row is no longer there.

CREATE FUNCTION tell_of_snapshot(kind text, snapshot snapshots) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell(prefix, kind, id, snapshot.name, status, worker_id, json_build_object('snapshot_id', snapshot.id))
    FROM boxes WHERE id = snapshot.box_id;
END $$;

CREATE FUNCTION tell_of_changed_snapshot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell_of_snapshot(CASE new.state WHEN 'ready' THEN 'snapshot.created' ELSE 'snapshot.restoring' END, new);
    RETURN NULL;
END $$;

CREATE FUNCTION tell_of_removed_snapshot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell_of_snapshot('snapshot.removed', old);
    RETURN NULL;
END $$;

CREATE TRIGGER snapshots_tell_update AFTER UPDATE OF state ON snapshots FOR EACH ROW
WHEN ((old.state = 'creating' AND new.state = 'ready') OR (old.state = 'ready' AND new.state = 'restoring'))
EXECUTE FUNCTION tell_of_changed_snapshot();

CREATE TRIGGER snapshots_tell_delete AFTER DELETE ON snapshots FOR EACH ROW WHEN (old.state != 'creating')
EXECUTE FUNCTION tell_of_removed_snapshot();

CREATE FUNCTION tell_of_volume() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    volume volumes = coalesce(new, old);
BEGIN
    PERFORM tell(volume.prefix, CASE TG_OP WHEN 'DELETE' THEN 'volume.removed' ELSE 'volume.created' END, NULL,
        volume.name, NULL, volume.worker_id, json_build_object('volume_id', volume.id));
    RETURN NULL;
END $$;

CREATE TRIGGER volumes_tell_update AFTER UPDATE OF state ON volumes FOR EACH ROW
WHEN (old.state = 'creating' AND new.state = 'ready') EXECUTE FUNCTION tell_of_volume();

CREATE TRIGGER volumes_tell_delete AFTER DELETE ON volumes FOR EACH ROW WHEN (old.state != 'creating')
EXECUTE FUNCTION tell_of_volume();

CREATE FUNCTION why_lost(worker workers) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN worker.left_at IS NOT NULL THEN 'it was shut down'
        WHEN worker.engine_error != '' THEN 'its engine does not answer: ' || left(worker.engine_error, 1000)
        WHEN worker.lost_at IS NOT NULL THEN 'its heartbeats have stopped'
    END
$$;

CREATE FUNCTION tell_of_worker(kind text, worker workers, reason text = NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell('', kind, NULL, worker.name, NULL, worker.id, CASE kind
        WHEN 'worker.lost' THEN json_build_object('worker_id', worker.id, 'error_message', reason)
        ELSE json_build_object('worker_id', worker.id)
    END);
END $$;

CREATE FUNCTION tell_of_new_worker() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell_of_worker('worker.registered', new);
    RETURN NULL;
END $$;

CREATE FUNCTION tell_of_changed_worker() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    reason text = why_lost(new);
BEGIN
    IF old.epoch != new.epoch THEN
        PERFORM tell_of_worker('worker.registered', new);
    END IF;
    IF old.status != new.status THEN
        PERFORM tell_of_worker('worker.' || new.status, new);
    END IF;
    IF (reason IS NULL) != (why_lost(old) IS NULL) THEN
        PERFORM tell_of_worker(CASE WHEN reason IS NULL THEN 'worker.back' ELSE 'worker.lost' END, new, reason);
        PERFORM tell_of_box(
            CASE WHEN reason IS NULL THEN 'box.reachable' ELSE 'box.unreachable' END,
            CASE WHEN reason IS NULL THEN status ELSE 'unknown' END, boxes)
        FROM boxes WHERE worker_id = new.id AND prefix != '';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION tell_of_removed_worker() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell_of_worker('worker.removed', old);
    RETURN NULL;
END $$;

CREATE TRIGGER workers_tell_insert AFTER INSERT ON workers FOR EACH ROW EXECUTE FUNCTION tell_of_new_worker();

CREATE TRIGGER workers_tell_update AFTER UPDATE OF epoch, status, left_at, engine_error, lost_at ON workers FOR EACH ROW
WHEN ((old.epoch, old.status, old.left_at, old.engine_error, old.lost_at)
    IS DISTINCT FROM (new.epoch, new.status, new.left_at, new.engine_error, new.lost_at))
EXECUTE FUNCTION tell_of_changed_worker();

CREATE TRIGGER workers_tell_delete AFTER DELETE ON workers FOR EACH ROW EXECUTE FUNCTION tell_of_removed_worker();
