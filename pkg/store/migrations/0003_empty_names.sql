-- An empty string in an order means the same as null, whoever writes it: a column that names nobody in particular. It is
-- stored as null, so that every reader sees one thing, and before the CHECK, which so refuses an order of empty strings.
CREATE FUNCTION termgw.empty_names_are_null() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.workspace_id := NULLIF(NEW.workspace_id, '');
    NEW.subject := NULLIF(NEW.subject, '');
    NEW.session_id := NULLIF(NEW.session_id, '');
    NEW.instance_id := NULLIF(NEW.instance_id, '');
    RETURN NEW;
END
$$;

-- First of all: from here to the commit nobody else can write an order.
CREATE TRIGGER revocations_empty_names BEFORE INSERT OR UPDATE ON termgw.revocations
    FOR EACH ROW EXECUTE FUNCTION termgw.empty_names_are_null();

DELETE FROM termgw.revocations
WHERE COALESCE(NULLIF(workspace_id, ''), NULLIF(subject, ''), NULLIF(session_id, ''), NULLIF(instance_id, '')) IS NULL;
-- It changes nothing itself: the trigger does.
UPDATE termgw.revocations SET subject = subject
WHERE '' IN (workspace_id, subject, session_id, instance_id);
