-- A gateway must be able to read every row of these tables, and no row may cost it its memory. So a time lies in the years
-- 1970 to 9999 (Postgres also knows infinity, and the years 4713 BC to 294276), and a text has a greatest length.
-- NOT VALID: rows from before may break the rules. Their times are put right here, because an UPDATE of such a row would
-- fail, and a heartbeat updates all rows of a replica in one statement. Their texts stay as they are.

-- row_id is the id of the workspace's row where workspace_id spells it in another way (ABCDEF01-… for a uuid). Gateways
-- compare the id of the row. The first gateway that reads an order finds it.
ALTER TABLE termgw.revocations ADD COLUMN row_id text;

-- complete_order sets the columns that are not the writer's to choose. Gateways have read up to some xmin and pass over an
-- order with a lower xid; an id that the sequence is yet to give out would make the orders of others fail. Whoever inserts
-- an order needs no right to the sequence: hence SECURITY DEFINER. An order that is changed is read again.
-- An empty name is stored as null: see 0003_empty_names.sql.
CREATE FUNCTION termgw.complete_order() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.workspace_id := NULLIF(NEW.workspace_id, '');
    NEW.subject := NULLIF(NEW.subject, '');
    NEW.session_id := NULLIF(NEW.session_id, '');
    NEW.instance_id := NULLIF(NEW.instance_id, '');
    NEW.xid := pg_current_xact_id();
    IF TG_OP = 'INSERT' THEN
        NEW.id := nextval(pg_get_serial_sequence('termgw.revocations', 'id'));
        NEW.row_id := NULL;
    ELSE
        NEW.id := OLD.id;
        IF NEW.workspace_id IS DISTINCT FROM OLD.workspace_id THEN
            NEW.row_id := NULL;
        END IF;
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER revocations_empty_names ON termgw.revocations;
DROP FUNCTION termgw.empty_names_are_null();
CREATE TRIGGER revocations_complete BEFORE INSERT OR UPDATE ON termgw.revocations
    FOR EACH ROW EXECUTE FUNCTION termgw.complete_order();

DROP TRIGGER revocations_notify ON termgw.revocations;
CREATE TRIGGER revocations_notify AFTER INSERT OR UPDATE ON termgw.revocations
    FOR EACH STATEMENT EXECUTE FUNCTION termgw.notify_revocations();

-- An order of infinity was meant to hold for good, which it does as one of the year 9999, for older gateways too. The
-- trigger renews the xid: an order with one of the future would be read again and again.
UPDATE termgw.revocations SET created_at = least(greatest(created_at, '1970-01-01 00:00:00+00'), '9999-12-31 00:00:00+00')
WHERE NOT created_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)' OR xid > pg_current_xact_id();

ALTER TABLE termgw.revocations
    ADD CONSTRAINT revocations_created_at_is_in_1970_to_9999 CHECK (created_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)') NOT VALID,
    ADD CONSTRAINT revocations_names_have_256_bytes_at_most CHECK (
        octet_length(workspace_id) <= 256 AND octet_length(row_id) <= 256 AND octet_length(subject) <= 256
        AND octet_length(session_id) <= 256 AND octet_length(instance_id) <= 256) NOT VALID,
    ADD CONSTRAINT revocations_reason_and_by_have_4096_bytes_at_most CHECK (
        octet_length(reason) <= 4096 AND octet_length(revoked_by) <= 4096) NOT VALID;

-- Nobody knows the true times of such sessions; from now on they age.
ALTER TABLE termgw.sessions ADD CONSTRAINT sessions_times_are_in_1970_to_9999 CHECK (
    started_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
    AND last_seen_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
    AND ended_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)') NOT VALID;
UPDATE termgw.sessions SET
    started_at = CASE WHEN started_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)' THEN started_at ELSE now() END,
    last_seen_at = CASE WHEN last_seen_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)' THEN last_seen_at ELSE now() END,
    ended_at = CASE WHEN ended_at IS NULL OR ended_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)' THEN ended_at ELSE now() END
WHERE NOT (started_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
    AND last_seen_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
    AND (ended_at IS NULL OR ended_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'));

ALTER TABLE termgw.spent_tickets ADD CONSTRAINT spent_tickets_times_are_in_1970_to_9999 CHECK (
    expires_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
    AND spent_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)') NOT VALID;
UPDATE termgw.spent_tickets SET expires_at = now() + interval '1 day', spent_at = now() -- a ticket lives for a day at most
WHERE NOT (expires_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
    AND spent_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)');

-- No gateway has written these.
DELETE FROM termgw.tunnels
WHERE NOT (acquired_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
    AND renewed_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)');
ALTER TABLE termgw.tunnels
    ADD CONSTRAINT tunnels_times_are_in_1970_to_9999 CHECK (
        acquired_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)'
        AND renewed_at <@ tstzrange '[1970-01-01 00:00:00+00, 10000-01-01 00:00:00+00)') NOT VALID,
    ADD CONSTRAINT tunnels_names_have_256_bytes_at_most CHECK (
        octet_length(id) <= 256 AND octet_length(endpoint) <= 256 AND octet_length(instance_id) <= 256
        AND octet_length(replica) <= 256) NOT VALID;

ALTER TABLE termgw.host_keys
    ADD CONSTRAINT host_keys_line_has_1_to_16384_bytes CHECK (octet_length(line) BETWEEN 1 AND 16384) NOT VALID,
    ADD CONSTRAINT host_keys_instance_id_has_256_bytes_at_most CHECK (octet_length(instance_id) <= 256) NOT VALID;
