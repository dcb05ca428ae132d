-- trail is what others' logs know a session by, sshd's, CloudTrail and the engine's: one flat object of texts, written once, when the
-- shell has started. Nothing indexes it: heartbeats stay off the indexes.
-- NOT VALID: all rows have null, and a scan would lock the table.
ALTER TABLE termgw.sessions ADD COLUMN trail jsonb,
    ADD CONSTRAINT sessions_trail_is_an_object_of_16384_bytes_at_most CHECK (
        jsonb_typeof(trail) = 'object' AND pg_column_size(trail) <= 16384) NOT VALID;
