-- kind is the name of the kind of place that a session's shell runs in, as `target` in messages and metrics. It is empty in the rows
-- of gateways that did not note it yet: there instance_id tells the two kinds that they had.
ALTER TABLE termgw.sessions ADD COLUMN kind text NOT NULL DEFAULT '';
