-- normal_id returns the one text for all spellings of an id that a type takes for equal and writes in several ways: 1.0 and 1.00 of
-- numeric, any case of citext. Of other types that write one value in one way (uuid, bigint) the text is the id as it is given.
-- The type is as pg_typeof names it, with its schema where that is not in the search path.
CREATE FUNCTION termgw.normal_id(id text, type text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF type = 'numeric' AND id ~ '^-?[0-9]+(\.[0-9]+)?$' THEN
        RETURN trim_scale(id::numeric)::text;
    ELSIF type ~ '(^|\.)citext$' THEN
        RETURN lower(id);
    END IF;
    RETURN id;
END
$$;
