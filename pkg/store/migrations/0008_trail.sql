-- trail is what others' logs know a session by, sshd's, CloudTrail and the engine's: one flat object of texts, written once, when the
-- shell has started. Nothing indexes it: heartbeats stay off the indexes.
-- NOT VALID: all rows have null, and a scan would lock the table.
ALTER TABLE termgw.sessions ADD COLUMN trail jsonb,
    ADD CONSTRAINT sessions_trail_is_an_object_of_16384_bytes_at_most CHECK (
        jsonb_typeof(trail) = 'object' AND pg_column_size(trail) <= 16384) NOT VALID;

-- A heartbeat writes new versions of all live rows of a replica. In a page that is half empty they all have room beside the old
-- ones, so that no index is written (HOT): of 300 live rows with a trail 100% instead of 73%, at 203 instead of 354 bytes of WAL a
-- row (without a trail 147 instead of 199). It holds for pages that are written from now on.
ALTER TABLE termgw.sessions SET (fillfactor = 50);
