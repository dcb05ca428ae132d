-- Row locks instead of advisory locks: whoever may connect to the database can hold an advisory lock, and its keys are public;
-- a row is locked by roles that may update its table. A locked row gets no new version: the table never grows.
CREATE TABLE termgw.locks (
    -- 0 to 1023: limits and tunnels, by hash (lock_slots). -1: the purge of old rows.
    slot integer PRIMARY KEY
);
INSERT INTO termgw.locks SELECT generate_series(-1, 1023);

-- Gateways that run now go on: whoever may update the sessions may lock.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'termgw.sessions'::regclass AND a.privilege_type = 'UPDATE'
    LOOP
        EXECUTE 'GRANT SELECT, UPDATE ON termgw.locks TO ' || grantee;
    END LOOP;
END
$$;

-- lock_slots holds the rows of some names until the transaction ends, always the lowest slot's first: no deadlock. Names that
-- share a slot wait for each other.
CREATE FUNCTION termgw.lock_slots(VARIADIC names text[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM termgw.locks WHERE slot = ANY (ARRAY(SELECT hashtext(name) & 1023 FROM unnest(names) name)) ORDER BY slot FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'termgw.locks has no row for %', names;
    END IF;
END
$$;

-- As in 0002_replicas.sql, but for the locks.
CREATE OR REPLACE FUNCTION termgw.over_limit(
    this text, workspace text, person text, per_workspace integer, per_subject integer, silence double precision
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    since timestamptz := now() - make_interval(secs => silence);
BEGIN
    IF per_workspace > 0 AND per_subject > 0 THEN
        PERFORM termgw.lock_slots('workspace ' || workspace, 'subject ' || person);
    ELSIF per_workspace > 0 THEN
        PERFORM termgw.lock_slots('workspace ' || workspace);
    ELSIF per_subject > 0 THEN
        PERFORM termgw.lock_slots('subject ' || person);
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

CREATE OR REPLACE FUNCTION termgw.acquire_tunnel(
    this text, at_endpoint text, to_instance text, by_replica text, most integer, silence double precision
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM termgw.lock_slots('endpoint ' || at_endpoint);
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

-- A session's row that is out of bounds (0004_bounds.sql) would make every statement fail that changes it among others: a
-- replica's heartbeat, the end of what was abandoned. Such a row is put right when it is changed. A change that itself
-- passes the bounds is refused as ever.
CREATE FUNCTION termgw.bound_session() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    years CONSTANT tstzrange := '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)';
BEGIN
    IF NEW.started_at = OLD.started_at AND NOT NEW.started_at <@ years THEN
        NEW.started_at := now();
    END IF;
    IF NEW.last_seen_at = OLD.last_seen_at AND NOT NEW.last_seen_at <@ years THEN
        NEW.last_seen_at := now();
    END IF;
    IF NEW.ended_at = OLD.ended_at AND NOT NEW.ended_at <@ years THEN
        NEW.ended_at := now();
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER sessions_bound BEFORE UPDATE ON termgw.sessions FOR EACH ROW
    WHEN (NOT (OLD.started_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
        AND OLD.last_seen_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
        AND (OLD.ended_at IS NULL OR OLD.ended_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)')))
    EXECUTE FUNCTION termgw.bound_session();
