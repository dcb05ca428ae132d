package store

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// DefaultWorkspaceQuery reads the platform's own table.
const DefaultWorkspaceQuery = `SELECT id::text AS id, COALESCE(instance_id,'') AS instance_id, COALESCE(name,'') AS name FROM workspaces WHERE id = $1`

// operatorsSQL begins each statement that asks the operator's query. In a FROM Postgres takes nothing that writes.
const operatorsSQL = `WITH termgw_ws AS (SELECT * FROM (
%s
) AS termgw_query), `

// redeemSQL is one statement, and so one transaction and one round trip: either all of it happened or nothing.
//
//   - The operator's query (operatorsSQL) comes first, so that no name of ours can shadow one of its tables, and owns $1, so
//     that Postgres infers the parameter's type from it (uuid, text, bigint). The id goes into the session as $6 again.
//   - Its columns are read through jsonb, by name: which ones are there, and their types, is the operator's choice. The
//     `.*` makes it the row, whatever the columns are called.
//   - One row is found by several spellings of its id: ABCDEF01-… for a uuid, 01 for a bigint, any case for citext. So what
//     is counted, recorded and compared with orders is the row's own id: the column id or, where the query returns none, the
//     parameter as its type writes it (0006_normal_ids.sql). char(n) pads with blanks. An order may also name the spelling that was presented.
//   - A value that is too long for any use is refused here, before it costs the gateway its memory.
//   - Two redemptions of one ticket meet at the primary key: the second waits for the first to commit, finds another
//     attempt's row, and gets none. That reasoning is READ COMMITTED's, which the connection sets.
//   - The limits are counted in a function, because this statement's own snapshot is older than the lock that makes the
//     count exact. It is called once the ticket is spent, so that redemptions wait for each other in one order: first at
//     the ticket, then at the locks.
//   - A ticket is as old as its iat, in whole seconds of the platform's clock, and an order as its created_at, by the
//     database's. They are compared without leeway, for a ticket that is minted after an order has to open.
//   - Data-modifying WITH parts run whether or not they are read: the ticket is spent also when what follows refuses.
//   - A probe (probeSQL) is the same statement, which spends nothing and runs nothing of the operator's: Postgres checks
//     the same queries, tables and rights.
const redeemSQL = `found AS (
  %s
), spent AS (
  INSERT INTO termgw.spent_tickets AS t (issuer, jti, attempt, expires_at)
  SELECT $2::text, $3::text, $4::text, $5::timestamptz WHERE %t
  ON CONFLICT (issuer, jti) DO UPDATE SET attempt = t.attempt WHERE t.attempt = excluded.attempt
  RETURNING true
), own AS (
  SELECT COALESCE(NULLIF(rtrim(found.j->>'id', ' '), ''), termgw.normal_id($1::text, pg_typeof($1)::text)) AS id,
    COALESCE(greatest(octet_length(found.j->>'name'), octet_length(found.j->>'instance_id'), octet_length(found.j->>'container'),
      octet_length(found.j->>'region'), octet_length(found.j->>'os_user'), octet_length(found.j->>'host_key'),
      octet_length(found.j->>'remote_target'), octet_length(found.j->>'role_arn'), octet_length(found.j->>'endpoint_id'),
      octet_length(found.j->>'source_identity')) <= 16384, true) AS fits
  FROM found
), verdict AS MATERIALIZED (
  SELECT found.n, own.id, own.fits AND octet_length(own.id) <= 256 AS fits,
    CASE WHEN own.fits THEN found.j END AS j,
    EXISTS (SELECT FROM spent) AS first,
    COALESCE(found.j ?& ARRAY['instance_id', 'name'], true) AS complete,
    EXISTS (
      SELECT FROM termgw.revocations r
      WHERE r.created_at >= $7::timestamptz
        AND (r.workspace_id IS NULL OR r.workspace_id IN ($6::text, own.id) OR r.row_id = own.id)
        AND (r.subject IS NULL OR r.subject = $8::text)
        AND (r.session_id IS NULL OR r.session_id = $9::text)
        AND (r.instance_id IS NULL OR r.instance_id = COALESCE(found.j->>'instance_id', ''))
    ) AS revoked
  FROM found, own
), judged AS (
  SELECT verdict.*, CASE WHEN first AND n = 1 AND complete AND fits AND NOT revoked AND ($13::integer > 0 OR $14::integer > 0)
    THEN termgw.over_limit($9::text, id, $8::text, $13::integer, $14::integer, $15::double precision + ` + strangeSQL + `) END AS over
  FROM verdict
), opened AS (
  INSERT INTO termgw.sessions AS s (id, workspace_id, subject, issuer, jti, mode, instance_id, kind, replica, client_addr, holder_url, holder_key)
  SELECT $9::text, judged.id, $8::text, $2::text, $3::text, $10::text, COALESCE(j->>'instance_id', ''), ` + kindSQL + `, $11::text, $12::text, $18::text, $19::text
  FROM judged WHERE first AND n = 1 AND complete AND fits AND NOT revoked AND over IS NULL
  ON CONFLICT (id) DO UPDATE SET id = s.id WHERE s.issuer = excluded.issuer AND s.jti = excluded.jti
  RETURNING true
)
SELECT complete, COALESCE(j ? 'id', true), first, n, fits, revoked, COALESCE(over, ''), EXISTS (SELECT FROM opened), now(), id,
  ` + attributesSQL + `
FROM judged`

// kindSQL is the name of the first of the kinds, $17, whose column the row has, or that takes any.
const kindSQL = `COALESCE((SELECT kind->>'Name' FROM jsonb_array_elements($17::jsonb) WITH ORDINALITY AS kinds(kind, n)
    WHERE kind->>'Column' = '' OR ` + attributesSQL + `::jsonb ? (kind->>'Column') ORDER BY n LIMIT 1), '')`

// attributesSQL is a row's columns as Workspace.Attributes has them. Of those that termgw does not know, which may be anything in
// the operator's tables, the long ones are left out.
const attributesSQL = `COALESCE((SELECT jsonb_object_agg(key, value) FROM jsonb_each_text(j) WHERE value <> '' AND key <> 'id'
    AND (octet_length(value) <= 1024 OR key IN ('name', 'instance_id', 'container', 'region', 'os_user', 'host_key', 'remote_target',
      'role_arn', 'endpoint_id', 'source_identity'))), '{}')::text`

// strangeSQL is how many seconds more a session or tunnel may be silent where the server is not the one, $16, that the last
// heartbeat reached: a standby that was promoted has the times of the old primary, of minutes ago, and its own clock.
const strangeSQL = `CASE WHEN $16::text IN ('', ` + serverSQL + `) THEN 0 ELSE 300 END`

// foundSQL and probeSQL are the first part of redeemSQL: the rows, two at most, and how many; or one whose columns are all
// null, of no row and of the tables that only other statements use.
const (
	foundSQL = `SELECT count(*) AS n, (array_agg(r.j))[1] AS j
  FROM (SELECT to_jsonb(termgw_ws.*) AS j FROM termgw_ws LIMIT 2) r`
	probeSQL = `SELECT 0::bigint AS n, to_jsonb(r.*) AS j FROM (
    SELECT w.* FROM (VALUES (1)) AS one LEFT JOIN (
      SELECT termgw_ws.* FROM termgw_ws, (SELECT tunnels.wanted_at FROM termgw.tunnels) AS tunnels, termgw.host_keys, termgw.locks, termgw.heartbeats, (SELECT sessions.trail, sessions.waiting, sessions.holder_url, sessions.unreached_at FROM termgw.sessions) AS sessions LIMIT 0
    ) w ON true
  ) r`
)

// rowIDSQL returns the id that a workspace has in its own row, as redeemSQL does, and whether there is a row. Where there is
// none any more, and the type writes one value in several ways, it is the id that a live session has.
const rowIDSQL = `w AS MATERIALIZED (
  SELECT to_jsonb(termgw_ws.*)->>'id' AS id FROM termgw_ws LIMIT 1
)
SELECT COALESCE((SELECT NULLIF(rtrim(id, ' '), '') FROM w), (
    SELECT s.workspace_id FROM termgw.sessions s
    WHERE pg_typeof($1)::text ~ '^numeric$|(^|\.)citext$' AND s.ended_at IS NULL
      AND termgw.normal_id(s.workspace_id, pg_typeof($1)::text) = termgw.normal_id($1::text, pg_typeof($1)::text) LIMIT 1
  ), termgw.normal_id($1::text, pg_typeof($1)::text)), EXISTS (SELECT FROM w)`

// purgeSQL deletes one batch of each table if this replica gets the lock (0005_locks.sql), which ends with the statement. Batches, because
// a backlog (a gateway that was away for a month) must not run into the statement's deadline every time anew. The earlier of two
// clocks decides, the database's and the gateway's ($5): a server that has taken over with a wrong one deletes nothing too soon.
const purgeSQL = `WITH lock AS MATERIALIZED (
  SELECT true AS held FROM termgw.locks WHERE slot = -1 FOR UPDATE SKIP LOCKED
), clock AS MATERIALIZED (
  SELECT least(now(), $5::timestamptz) AS t
), t AS (
  DELETE FROM termgw.spent_tickets WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.spent_tickets WHERE expires_at < (SELECT t FROM clock) - make_interval(secs => $1) LIMIT $3)) RETURNING 1
), s AS (
  DELETE FROM termgw.sessions WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.sessions WHERE started_at < (SELECT t FROM clock) - make_interval(secs => $2) AND $2 > 0 LIMIT $3)) RETURNING 1
), r AS (
  DELETE FROM termgw.revocations WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.revocations WHERE created_at < (SELECT t FROM clock) - make_interval(secs => $2) AND $2 > 0 LIMIT $3)) RETURNING 1
), u AS (
  DELETE FROM termgw.tunnels WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.tunnels WHERE renewed_at < (SELECT t FROM clock) - make_interval(secs => $4) LIMIT $3)) RETURNING 1
), h AS (
  DELETE FROM termgw.heartbeats WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.heartbeats h WHERE h.seen_at < (SELECT t FROM clock) - make_interval(secs => $4) AND h.process <> ''
      AND NOT EXISTS (SELECT FROM termgw.sessions s WHERE s.process = h.process AND s.ended_at IS NULL) LIMIT $3)) RETURNING 1
)
SELECT greatest((SELECT count(*) FROM t), (SELECT count(*) FROM s), (SELECT count(*) FROM r), (SELECT count(*) FROM u))`

var (
	readsOnly = regexp.MustCompile(`(?is)^(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:SELECT|WITH|TABLE|VALUES)\b`)
	// afterQuery is a final semicolon, and comments after it in which nothing could be the end of a string.
	afterQuery = regexp.MustCompile(`;(?:\s|--[^\n'"$]*(?:\n|$)|/\*[^*/'"$]*\*/)*$`)
)

// workspaceQuery returns the operator's query without a final semicolon, and refuses what needs no database to be refused. All
// else Postgres says when the query is first used (conn.check, and that what is part of a FROM can only read).
func workspaceQuery(q string) (string, error) {
	q = strings.TrimSpace(afterQuery.ReplaceAllString(q, ""))
	var faults []error
	if !readsOnly.MatchString(q) {
		faults = append(faults, fmt.Errorf("it begins with %.20q: only a query that reads is allowed (SELECT or WITH)", q))
	}
	if !strings.Contains(q, "$1") {
		faults = append(faults, errors.New("it does not use $1, the workspace's id"))
	}
	return q, errors.Join(faults...)
}
