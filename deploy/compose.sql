-- What a platform has: its workspaces, and a role for the gateway that reads them and makes the schema `termgw`.

CREATE TABLE workspaces (
    id          text PRIMARY KEY,
    name        text NOT NULL,
    instance_id text -- none: a container of this host
);

INSERT INTO workspaces (id, name) VALUES ('demo', 'Demo');

CREATE ROLE termgw LOGIN;
GRANT SELECT ON workspaces TO termgw;
GRANT CREATE ON DATABASE platform TO termgw;
