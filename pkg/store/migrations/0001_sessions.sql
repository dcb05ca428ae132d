-- One row for each ticket that was presented, until nobody could accept it any more.
CREATE TABLE termgw.spent_tickets (
    issuer     text        NOT NULL,
    jti        text        NOT NULL,
    -- Random, one for each redemption: a statement that is repeated after a lost connection finds its own row and goes
    -- on, instead of taking itself for a replay.
    attempt    text        NOT NULL,
    expires_at timestamptz NOT NULL,
    spent_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer, jti)
);

CREATE INDEX spent_tickets_expires_at ON termgw.spent_tickets (expires_at);

-- The audit trail: one row a session, written before its shell starts.
CREATE TABLE termgw.sessions (
    id           text        PRIMARY KEY,
    workspace_id text        NOT NULL,
    subject      text        NOT NULL,
    issuer       text        NOT NULL,
    jti          text        NOT NULL,
    mode         text        NOT NULL,
    instance_id  text        NOT NULL,
    replica      text        NOT NULL,
    client_addr  text        NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    ended_at     timestamptz,
    end_reason   text,
    exit_code    integer,
    bytes_in     bigint      NOT NULL DEFAULT 0,
    bytes_out    bigint      NOT NULL DEFAULT 0
);

CREATE INDEX sessions_live_workspace ON termgw.sessions (workspace_id) WHERE ended_at IS NULL;
CREATE INDEX sessions_live_subject ON termgw.sessions (subject) WHERE ended_at IS NULL;
CREATE INDEX sessions_started_at ON termgw.sessions (started_at);

-- A row is an order: what matches all of its columns that are not null is to be cut, and tickets issued no later than
-- created_at are refused.
CREATE TABLE termgw.revocations (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id text,
    subject      text,
    session_id   text,
    instance_id  text,
    reason       text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    -- A row of nulls would match everybody.
    CONSTRAINT revocations_names_something CHECK (num_nonnulls(workspace_id, subject, session_id, instance_id) > 0)
);

CREATE INDEX revocations_created_at ON termgw.revocations (created_at);
