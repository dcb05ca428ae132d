package store

import (
	"errors"
	"fmt"
	"strings"
)

// DefaultWorkspaceQuery reads the platform's own table.
const DefaultWorkspaceQuery = `SELECT id::text AS id, COALESCE(instance_id,'') AS instance_id, COALESCE(name,'') AS name FROM workspaces WHERE id = $1`

// redeemSQL is one statement, and so one transaction and one round trip: either all of it happened or nothing.
//
//   - The operator's query comes first, so that no name of ours can shadow one of its tables, and owns $1, so that
//     Postgres infers the parameter's type from it (uuid, text, bigint). The id goes into the session as $6 again.
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
const redeemSQL = `WITH termgw_ws AS (
%s
), spent AS (
  INSERT INTO termgw.spent_tickets AS t (issuer, jti, attempt, expires_at)
  VALUES ($2::text, $3::text, $4::text, $5::timestamptz)
  ON CONFLICT (issuer, jti) DO UPDATE SET attempt = t.attempt WHERE t.attempt = excluded.attempt
  RETURNING true
), found AS (
  SELECT count(*) AS n, (array_agg(r.j))[1] AS j
  FROM (SELECT to_jsonb(termgw_ws.*) AS j FROM termgw_ws LIMIT 2) r
), own AS (
  SELECT COALESCE(NULLIF(rtrim(found.j->>'id', ' '), ''), termgw.normal_id($1::text, pg_typeof($1)::text)) AS id,
    COALESCE(greatest(octet_length(found.j->>'name'), octet_length(found.j->>'instance_id'), octet_length(found.j->>'container'),
      octet_length(found.j->>'region'), octet_length(found.j->>'os_user'), octet_length(found.j->>'host_key'),
      octet_length(found.j->>'remote_target')) <= 16384, true) AS fits
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
    THEN termgw.over_limit($9::text, id, $8::text, $13::integer, $14::integer, $15::double precision) END AS over
  FROM verdict
), opened AS (
  INSERT INTO termgw.sessions AS s (id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr)
  SELECT $9::text, judged.id, $8::text, $2::text, $3::text, $10::text, COALESCE(j->>'instance_id', ''), $11::text, $12::text
  FROM judged WHERE first AND n = 1 AND complete AND fits AND NOT revoked AND over IS NULL
  ON CONFLICT (id) DO UPDATE SET id = s.id WHERE s.issuer = excluded.issuer AND s.jti = excluded.jti
  RETURNING true
)
SELECT first, n, complete, fits, revoked, COALESCE(over, ''), EXISTS (SELECT FROM opened), now(), id,
  COALESCE(j->>'name', ''), COALESCE(j->>'instance_id', ''), COALESCE(j->>'container', ''), COALESCE(j->>'region', ''),
  COALESCE(j->>'os_user', ''), COALESCE(j->>'host_key', ''), COALESCE(j->>'remote_target', '')
FROM judged`

// rowIDSQL returns the id that a workspace has in its own row, as redeemSQL does, and whether there is a row. Where there is
// none any more, and the type writes one value in several ways, it is the id that a live session has.
const rowIDSQL = `WITH termgw_ws AS (
%s
), w AS MATERIALIZED (
  SELECT to_jsonb(termgw_ws.*)->>'id' AS id FROM termgw_ws LIMIT 1
)
SELECT COALESCE((SELECT NULLIF(rtrim(id, ' '), '') FROM w), (
    SELECT s.workspace_id FROM termgw.sessions s
    WHERE pg_typeof($1)::text ~ '^numeric$|(^|\.)citext$' AND s.ended_at IS NULL
      AND termgw.normal_id(s.workspace_id, pg_typeof($1)::text) = termgw.normal_id($1::text, pg_typeof($1)::text) LIMIT 1
  ), termgw.normal_id($1::text, pg_typeof($1)::text)), EXISTS (SELECT FROM w)`

// pingSQL has Postgres check, without running it, everything a redemption needs: the operator's query, our tables and
// the right to read them. Its one row tells whether this server takes no writes, a standby say; its other columns are the
// operator's query's, by their names.
const pingSQL = `WITH termgw_ws AS (
%s
) SELECT current_setting('transaction_read_only')::boolean, w.* FROM (VALUES (1)) AS one LEFT JOIN (
  SELECT termgw_ws.*, r.row_id AS termgw_row_id, termgw.normal_id('', '') AS termgw_normal_id
  FROM termgw_ws, termgw.spent_tickets, termgw.sessions, termgw.revocations r, termgw.tunnels, termgw.host_keys, termgw.locks LIMIT 0
) w ON true`

// purgeSQL deletes one batch of each table if this replica gets the lock (0005_locks.sql), which ends with the statement. Batches, because
// a backlog (a gateway that was away for a month) must not run into the statement's deadline every time anew.
const purgeSQL = `WITH lock AS MATERIALIZED (
  SELECT true AS held FROM termgw.locks WHERE slot = -1 FOR UPDATE SKIP LOCKED
), t AS (
  DELETE FROM termgw.spent_tickets WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.spent_tickets WHERE expires_at < now() - make_interval(secs => $1) LIMIT $3)) RETURNING 1
), s AS (
  DELETE FROM termgw.sessions WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.sessions WHERE started_at < now() - make_interval(secs => $2) LIMIT $3)) RETURNING 1
), r AS (
  DELETE FROM termgw.revocations WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.revocations WHERE created_at < now() - make_interval(secs => $2) LIMIT $3)) RETURNING 1
), u AS (
  DELETE FROM termgw.tunnels WHERE (SELECT held FROM lock) AND ctid = ANY (ARRAY(
    SELECT ctid FROM termgw.tunnels WHERE renewed_at < now() - make_interval(secs => $4) LIMIT $3)) RETURNING 1
)
SELECT greatest((SELECT count(*) FROM t), (SELECT count(*) FROM s), (SELECT count(*) FROM r), (SELECT count(*) FROM u))`

// workspaceQuery returns the operator's query as it goes into a WITH part: one statement that reads, without its final
// semicolon. It knows just enough of SQL's lexical rules (PostgreSQL manual, 4.1) to tell a semicolon, a parenthesis and
// a parameter from the same characters in a string or a comment; whether the rest is SQL is for Postgres to say.
func workspaceQuery(q string) (string, error) {
	var (
		faults []error
		fault  = func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
		end    = -1 // the final semicolon
		depth  int
		first  string
		one    bool
	)
	for i := 0; i < len(q); {
		tok, kind := nextToken(q[i:])
		start := i
		i += len(tok)
		if kind == tokSpace {
			continue
		}
		if kind == tokOpen {
			return "", fmt.Errorf("a string, name or comment is not closed: %.20s…", tok)
		}
		if end >= 0 {
			return "", errors.New("more than one statement")
		}
		if first == "" && tok != "(" {
			first = strings.ToUpper(tok)
		}
		switch {
		case tok == ";":
			end = start
		case tok == "(":
			depth++
		case tok == ")":
			depth--
			if depth < 0 {
				return "", errors.New("a parenthesis is closed that was never opened")
			}
		case kind == tokParam && tok == "$1":
			one = true
		case kind == tokParam:
			fault("%s: the only parameter is $1, the workspace's id", tok)
		}
	}
	if end < 0 {
		end = len(q)
	}
	switch first {
	case "SELECT", "WITH", "TABLE", "VALUES":
	case "", ";":
		return "", errors.New("it is empty")
	default:
		fault("it begins with %s: only a query that reads is allowed (SELECT or WITH)", first)
	}
	if depth > 0 {
		fault("a parenthesis is not closed")
	}
	if !one {
		fault("it does not use $1, the workspace's id")
	}
	return q[:end], errors.Join(faults...)
}

type tokenKind int

const (
	tokOther tokenKind = iota
	tokSpace           // white space and comments
	tokParam           // $1
	tokOpen            // a string, name or comment that never ends
)

// nextToken cuts the first token off q, which is not empty.
func nextToken(q string) (string, tokenKind) {
	switch c := q[0]; {
	case strings.IndexByte(" \t\r\n\f\v", c) >= 0:
		return q[:1], tokSpace
	case strings.HasPrefix(q, "--"):
		if i := strings.IndexByte(q, '\n'); i >= 0 {
			return q[:i+1], tokSpace
		}
		return q, tokSpace
	case strings.HasPrefix(q, "/*"):
		return blockComment(q)
	case c == '\'' || c == '"':
		return quoted(q, 0, false)
	case c == '$':
		return dollar(q)
	case wordByte(c):
		n := 1
		for n < len(q) && (wordByte(q[n]) || q[n] == '$') {
			n++
		}
		if n == 1 && (c == 'e' || c == 'E') && len(q) > 1 && q[1] == '\'' {
			return quoted(q, 1, true) // E'…' alone knows the backslash
		}
		return q[:n], tokOther
	}
	return q[:1], tokOther
}

func wordByte(c byte) bool {
	return c == '_' || c >= 0x80 || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// quoted ends at the closing quote; a doubled quote is read as the end of one string and the start of the next, which
// comes to the same here.
func quoted(q string, start int, escapes bool) (string, tokenKind) {
	for i := start + 1; i < len(q); i++ {
		switch {
		case escapes && q[i] == '\\':
			i++
		case q[i] == q[start]:
			if escapes && i+1 < len(q) && q[i+1] == q[start] {
				i++ // the next part would have lost its E
				continue
			}
			return q[:i+1], tokOther
		}
	}
	return q, tokOpen
}

// blockComment nests, unlike C's.
func blockComment(q string) (string, tokenKind) {
	depth := 0
	for i := 0; i+1 < len(q); i++ {
		switch q[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return q[:i+1], tokSpace
			}
		}
	}
	return q, tokOpen
}

// dollar reads a parameter ($1) or a dollar-quoted string ($tag$ … $tag$).
func dollar(q string) (string, tokenKind) {
	n := 1
	for n < len(q) && '0' <= q[n] && q[n] <= '9' {
		n++
	}
	if n > 1 {
		return q[:n], tokParam
	}
	for n < len(q) && wordByte(q[n]) {
		n++
	}
	if n == len(q) || q[n] != '$' {
		return q[:1], tokOther
	}
	tag := q[:n+1]
	if i := strings.Index(q[len(tag):], tag); i >= 0 {
		return q[:len(tag)+i+len(tag)], tokOther
	}
	return q, tokOpen
}
