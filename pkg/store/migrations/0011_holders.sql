-- Where other replicas reach the one that holds a session, and what they prove to it that they are replicas by: a key of the session's
-- own, which no client learns. Empty: nobody passes a connection on.
ALTER TABLE termgw.sessions ADD COLUMN holder_url text NOT NULL DEFAULT '', ADD COLUMN holder_key text NOT NULL DEFAULT '';
