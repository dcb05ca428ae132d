-- Where other replicas reach the one that holds a session, and what they prove to it that they are replicas by: a key of the session's
-- own, which no client learns. Empty: nobody passes a connection on.
ALTER TABLE termgw.sessions ADD COLUMN holder_url text NOT NULL DEFAULT '', ADD COLUMN holder_key text NOT NULL DEFAULT '';

-- A session to which its person could not come back, since its replica was not reached, counts no more until that replica's next
-- heartbeat: else it would take the place of the shell that is opened instead.
ALTER TABLE termgw.sessions ADD COLUMN unreached boolean NOT NULL DEFAULT false;

-- As in 0005_locks.sql, but for unreached.
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
        WHERE s.workspace_id = workspace AND s.ended_at IS NULL AND s.last_seen_at > since AND s.id <> this AND NOT s.unreached
    ) THEN
        RETURN 'workspace';
    END IF;
    IF per_subject > 0 AND per_subject <= (
        SELECT count(*) FROM termgw.sessions s
        WHERE s.subject = person AND s.ended_at IS NULL AND s.last_seen_at > since AND s.id <> this AND NOT s.unreached
    ) THEN
        RETURN 'subject';
    END IF;
    RETURN NULL;
END
$$;
