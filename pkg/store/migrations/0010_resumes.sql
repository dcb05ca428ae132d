-- A session may outlive its connection: how often its person has come back to it, and whether it waits for its person now, as its
-- replica's last heartbeat has noted. Nothing indexes either: heartbeats stay off the indexes.
ALTER TABLE termgw.sessions ADD COLUMN resumes integer NOT NULL DEFAULT 0, ADD COLUMN waiting boolean NOT NULL DEFAULT false;
