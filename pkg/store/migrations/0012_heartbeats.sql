-- One heartbeat a process, whatever the number of its sessions. A session is live as of the later of its own last_seen_at and the
-- heartbeat of its process.
CREATE TABLE termgw.heartbeats (
    process text        PRIMARY KEY, -- random, one for each process; empty: gateways from before this migration, see below
    replica text        NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT heartbeats_seen_at_is_in_1970_to_9999 CHECK (seen_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'),
    CONSTRAINT heartbeats_names_have_256_bytes_at_most CHECK (octet_length(process) <= 256 AND octet_length(replica) <= 256)
) WITH (fillfactor = 10); -- new versions of a row find room in its page, so that no index is written (HOT)

-- process is written by the first heartbeat after the redemption: a row whose redemption nobody heard the answer of has none, and
-- goes silent. A session does not count while unreached_at is later than its last sign of life: the next heartbeat ends that.
ALTER TABLE termgw.sessions ADD COLUMN process text, ADD COLUMN unreached_at timestamptz;

-- What a look for silent processes reads: the live sessions of those, and the sessions without a process.
CREATE INDEX sessions_live_process ON termgw.sessions (process) WHERE ended_at IS NULL;
-- What a replica's heartbeat reads: sessions that others took for lost.
CREATE INDEX sessions_lost ON termgw.sessions (replica) WHERE end_reason = 'replica_lost';

-- Gateways that run now go on: whoever may update the sessions may beat.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'termgw.sessions'::regclass AND a.privilege_type = 'UPDATE'
    LOOP
        EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON termgw.heartbeats TO ' || grantee;
        EXECUTE 'GRANT SELECT ON termgw.schema_migrations TO ' || grantee;
    END LOOP;
END
$$;

-- Gateways from before this migration know last_seen_at alone. While one of them runs, the others write last_seen_at of all their
-- sessions too. An old gateway tells of itself by its heartbeat, the one statement in which it sets unreached to false, every 10 s and
-- also without sessions; and it judges by last_seen_at only after 30 s of heartbeats.
INSERT INTO termgw.heartbeats (process, replica) VALUES ('', '');

CREATE FUNCTION termgw.note_old_gateway() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE termgw.heartbeats SET seen_at = now() WHERE process IN (
        SELECT process FROM termgw.heartbeats WHERE process = '' AND seen_at < now() - interval '5 seconds' FOR UPDATE SKIP LOCKED);
    RETURN NULL;
END
$$;
CREATE TRIGGER sessions_note_old_gateway BEFORE UPDATE OF unreached ON termgw.sessions
    FOR EACH STATEMENT EXECUTE FUNCTION termgw.note_old_gateway();

CREATE FUNCTION termgw.time_unreached() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.unreached_at := now();
    RETURN NEW;
END
$$;
CREATE TRIGGER sessions_time_unreached BEFORE UPDATE OF unreached ON termgw.sessions
    FOR EACH ROW WHEN (NEW.unreached) EXECUTE FUNCTION termgw.time_unreached();
UPDATE termgw.sessions SET unreached = true WHERE unreached AND ended_at IS NULL;

-- As in 0011_holders.sql, but for heartbeats.
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
        SELECT count(*) FROM termgw.sessions s LEFT JOIN termgw.heartbeats h ON h.process = s.process
        WHERE s.workspace_id = workspace AND s.ended_at IS NULL AND s.id <> this
            AND greatest(s.last_seen_at, h.seen_at) > greatest(since, s.unreached_at)
    ) THEN
        RETURN 'workspace';
    END IF;
    IF per_subject > 0 AND per_subject <= (
        SELECT count(*) FROM termgw.sessions s LEFT JOIN termgw.heartbeats h ON h.process = s.process
        WHERE s.subject = person AND s.ended_at IS NULL AND s.id <> this
            AND greatest(s.last_seen_at, h.seen_at) > greatest(since, s.unreached_at)
    ) THEN
        RETURN 'subject';
    END IF;
    RETURN NULL;
END
$$;
