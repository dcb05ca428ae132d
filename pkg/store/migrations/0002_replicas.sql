-- Who gave the order.
ALTER TABLE termgw.revocations ADD COLUMN revoked_by text;

-- When the order was written, not when its transaction began: a ticket issued in between is older than the order.
ALTER TABLE termgw.revocations ALTER COLUMN created_at SET DEFAULT clock_timestamp();

-- Identity values become visible in another order than they are given out, so "id > the last one seen" misses rows. A row
-- that a snapshot does not see has a transaction id of at least the snapshot's xmin: from there the next reader goes on.
ALTER TABLE termgw.revocations ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE INDEX revocations_xid ON termgw.revocations (xid, id);

-- Without a payload: anybody who may connect can notify, so a notification says only that the table is to be read.
CREATE FUNCTION termgw.notify_revocations() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('termgw_revocations', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER revocations_notify AFTER INSERT ON termgw.revocations
    FOR EACH STATEMENT EXECUTE FUNCTION termgw.notify_revocations();

-- over_limit names the limit that one more session would pass, or returns null. Each statement of a volatile function has
-- a snapshot of its own (READ COMMITTED), so the count is taken after the lock was given: it sees what the last holder
-- committed. The locks end with the transaction, after its rows are visible. Always the workspace's first: no deadlock.
-- The keys are two-part, in one database shared with the platform: the first is "tgws" or "tgsu".
CREATE FUNCTION termgw.over_limit(
    this text, workspace text, person text, per_workspace integer, per_subject integer, silence double precision
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    since timestamptz := now() - make_interval(secs => silence);
BEGIN
    IF per_workspace > 0 THEN
        PERFORM pg_advisory_xact_lock(1952937843, hashtext(workspace));
    END IF;
    IF per_subject > 0 THEN
        PERFORM pg_advisory_xact_lock(1952936821, hashtext(person));
    END IF;
    IF per_workspace > 0 AND per_workspace <= (
        SELECT count(*) FROM termgw.sessions s
        WHERE s.workspace_id = workspace AND s.ended_at IS NULL AND s.last_seen_at > since AND s.id <> this
    ) THEN
        RETURN 'workspace';
    END IF;
    IF per_subject > 0 AND per_subject <= (
        SELECT count(*) FROM termgw.sessions s
        WHERE s.subject = person AND s.ended_at IS NULL AND s.last_seen_at > since AND s.id <> this
    ) THEN
        RETURN 'subject';
    END IF;
    RETURN NULL;
END
$$;

-- The tunnels in use, one row each: an endpoint carries few. A row that is not renewed does not count.
CREATE TABLE termgw.tunnels (
    id          text        PRIMARY KEY,
    endpoint    text        NOT NULL,
    instance_id text        NOT NULL,
    replica     text        NOT NULL,
    acquired_at timestamptz NOT NULL DEFAULT now(),
    renewed_at  timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX tunnels_endpoint ON termgw.tunnels (endpoint);

-- acquire_tunnel takes a place, or tells that there is none. Asked again with the same id, because its answer was lost, it
-- says the same. The first part of the lock's key is "tgtu".
CREATE FUNCTION termgw.acquire_tunnel(
    this text, at_endpoint text, to_instance text, by_replica text, most integer, silence double precision
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1952937077, hashtext(at_endpoint));
    IF most <= (
        SELECT count(*) FROM termgw.tunnels t
        WHERE t.endpoint = at_endpoint AND t.renewed_at > now() - make_interval(secs => silence) AND t.id <> this
    ) THEN
        RETURN false;
    END IF;
    INSERT INTO termgw.tunnels (id, endpoint, instance_id, replica)
    VALUES (this, at_endpoint, to_instance, by_replica) ON CONFLICT (id) DO NOTHING;
    RETURN true;
END
$$;

-- The key that an instance showed to the first gateway that reached it. Instance ids are never given twice; after an
-- instance got a new key on purpose, delete its row.
CREATE TABLE termgw.host_keys (
    instance_id text        PRIMARY KEY,
    line        text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
