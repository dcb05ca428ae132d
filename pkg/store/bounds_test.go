package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"
)

// oddTimes are times that Postgres takes, and Go or JSON do not, or an arithmetic of Postgres.
var oddTimes = []string{"infinity", "-infinity", "294276-12-31 23:59:59+00", "10000-01-01 00:00:00+00", "4713-01-01 00:00:00+00 BC"}

// withoutConstraints takes away what keeps rows in bounds, as if they were from before 0004_bounds.sql.
func withoutConstraints(t *testing.T, dsn string) {
	t.Helper()
	execSQL(t, dsn, `DO $$ DECLARE c record; BEGIN
		FOR c IN SELECT conrelid::regclass AS tab, conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'termgw'::regnamespace LOOP
			EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.tab, c.conname);
		END LOOP;
	END $$`)
}

// log is what a store says, line by line.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) count(words string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), words)
}

func (l *log) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// platformRole makes a role that has the rights that docs/tickets.md gives a platform, or more, and returns its URL.
func platformRole(t *testing.T, dsn string, grants ...string) string {
	t.Helper()
	role := fmt.Sprintf("platform_%d", time.Now().UnixNano())
	execSQL(t, dsn, `CREATE ROLE `+role+` LOGIN PASSWORD 'platform'`)
	t.Cleanup(func() { execSQL(t, dsn, `DROP OWNED BY `+role+`; DROP ROLE `+role) })
	for _, grant := range append([]string{`USAGE ON SCHEMA termgw`}, grants...) {
		execSQL(t, dsn, `GRANT `+grant+` TO `+role)
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "platform")
	return u.String()
}

const platformGrant = `INSERT (workspace_id, subject, session_id, instance_id, reason, revoked_by, created_at) ON termgw.revocations`

// What makes no sense is refused, by a constraint whose name says what is wrong; also from a role with all rights.
func TestRowsOutOfBoundsAreRefused(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	openAll(t, open(t, PostgresConfig{URL: dsn}), "gw-1", claims("t", "ws-local"))
	for _, tt := range []struct{ statement, says string }{
		{`INSERT INTO termgw.revocations (workspace_id) VALUES (repeat('x', 257))`, "names_have_256_bytes"},
		{`INSERT INTO termgw.revocations (subject) VALUES (repeat('ü', 129))`, "names_have_256_bytes"},
		{`INSERT INTO termgw.revocations (session_id) VALUES (repeat('x', 257))`, "names_have_256_bytes"},
		{`INSERT INTO termgw.revocations (instance_id) VALUES (repeat('x', 257))`, "names_have_256_bytes"},
		{`INSERT INTO termgw.revocations (subject, reason) VALUES ('ann', repeat('x', 60000000))`, "have_4096_bytes"},
		{`INSERT INTO termgw.revocations (subject, revoked_by) VALUES ('ann', repeat('x', 4097))`, "have_4096_bytes"},
		{`INSERT INTO termgw.revocations (subject, created_at) VALUES ('ann', NULL)`, "created_at"},
		{`INSERT INTO termgw.host_keys VALUES ('i-1', '')`, "line_has_1_to_16384_bytes"},
		{`INSERT INTO termgw.host_keys VALUES ('i-1', repeat('x', 16385))`, "line_has_1_to_16384_bytes"},
		{`INSERT INTO termgw.tunnels VALUES ('t', repeat('x', 257), 'i-1', 'gw')`, "names_have_256_bytes"},
	} {
		if _, err := db.Exec(tt.statement); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want a refusal that says %s", tt.statement, err, tt.says)
		}
	}
	for _, at := range oddTimes {
		for _, statement := range []string{
			`INSERT INTO termgw.revocations (subject, created_at) VALUES ('ann', $1)`,
			`INSERT INTO termgw.tunnels (id, endpoint, instance_id, replica, renewed_at) VALUES ('t', 'e', 'i-1', 'gw', $1)`,
			`INSERT INTO termgw.tunnels (id, endpoint, instance_id, replica, acquired_at) VALUES ('t', 'e', 'i-1', 'gw', $1)`,
			`INSERT INTO termgw.spent_tickets (issuer, jti, attempt, expires_at) VALUES ('i', 'j', 'a', $1)`,
			`UPDATE termgw.sessions SET started_at = $1`,
			`UPDATE termgw.sessions SET process = NULL, last_seen_at = $1`,
			`UPDATE termgw.sessions SET ended_at = $1`,
		} {
			if _, err := db.Exec(statement, at); err == nil || !strings.Contains(err.Error(), "in_1970_to_9999") {
				t.Errorf("%s, %s: %v, want a refusal that says the years", statement, at, err)
			}
		}
	}
	for _, order := range []string{
		`(subject, created_at) VALUES ('ann', '9999-12-31')`, // a ban for good
		`(subject, created_at) VALUES ('ann', '1970-01-01 00:00:00+00')`,
		`(subject, reason) VALUES (repeat('x', 256), repeat('x', 4096))`,
	} {
		if _, err := db.Exec(`INSERT INTO termgw.revocations ` + order); err != nil {
			t.Errorf("%s: %v", order, err)
		}
	}
}

// An order that is out of bounds, where the table takes it, cuts whom it names and stops no other, at gateways that run and
// at those that start.
func TestNoOrderStopsTheOthers(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	withoutConstraints(t, dsn)
	var said log
	p, cuts := watchingEvery(t, time.Hour, PostgresConfig{URL: dsn, Logger: said.logger()})
	n := 0
	cutBy := func(order string, args ...any) []string {
		t.Helper()
		execSQL(t, dsn, `DELETE FROM termgw.revocations`)
		n++
		id := fmt.Sprint("s", n)
		if err := errors.Join(as("ann", "ann-"+id).redeem(t.Context(), p), as("bob", "bob-"+id).redeem(t.Context(), p)); err != nil {
			t.Fatal(err)
		}
		if order != "" {
			execSQL(t, dsn, order, args...)
		}
		execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('bob')`)
		var cut []string
		var bobs time.Time // when his was read, and with it, sooner or later, all that came before
		for _, last := range []string{"bob-" + id, "eve-" + id} {
			for !slices.Contains(cut, last) {
				cut = append(cut, (<-cuts).sessions...)
			}
			if last == "bob-"+id {
				bobs = time.Now()
				if err := as("eve", "eve-"+id).redeem(t.Context(), p); err != nil {
					t.Fatal(err)
				}
				execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('eve')`)
			}
		}
		until(t, func() bool {
			p.watch.mu.Lock()
			defer p.watch.mu.Unlock()
			return p.watch.read.After(bobs)
		})
		for more := true; more; {
			select {
			case got := <-cuts:
				cut = append(cut, got.sessions...)
			default:
				more = false
			}
		}
		cut = slices.DeleteFunc(cut, func(s string) bool { return s == "eve-"+id })
		if err := p.Reading(); err != nil {
			t.Error(err)
		}
		return cut
	}
	for _, at := range []string{"infinity", "294276-12-31 23:59:59+00", "10000-01-01 00:00:00+00", "9999-12-31 00:00:00+00"} {
		if got := cutBy(`INSERT INTO termgw.revocations (subject, created_at) VALUES ('ann', $1)`, at); len(got) < 2 {
			t.Errorf("an order of %s: cut %v, want ann's too", at, got)
		}
		c := claims(fmt.Sprint("t", n), "ws-local")
		if _, err := p.Redeem(t.Context(), c, session(c.ID)); !errors.Is(err, ErrRevoked) {
			t.Errorf("an order of %s: %v, want that it holds for good", at, err)
		}
	}
	for _, order := range []string{
		`(subject, created_at) VALUES ('ann', '-infinity')`,
		`(subject, created_at) VALUES ('ann', '4713-01-01 BC')`,
		`(subject) VALUES (repeat('ann', 20000000))`,
		`(workspace_id, subject) VALUES (repeat('x', 20000000), 'ann')`,
		`(subject) SELECT repeat('ann', 100) FROM generate_series(1, 1500)`,
	} {
		if got := cutBy(`INSERT INTO termgw.revocations ` + order); len(got) != 1 {
			t.Errorf("%s: cut %v, want bob's alone", order, got)
		}
	}
	if told := said.count("cannot be read"); told != 1502 {
		t.Errorf("%d orders were told to be unreadable, want 1502", told)
	}
	if got := cutBy(`INSERT INTO termgw.revocations (subject, reason) VALUES ('ann', repeat('x', 60000000))`); len(got) < 2 {
		t.Errorf("an order with a reason of 60 MB: cut %v, want ann's too", got)
	}

	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject, created_at) VALUES ('ann', 'infinity')`)
	late, lateCuts := watchingEvery(t, time.Hour, PostgresConfig{URL: dsn})
	if err := as("carol", "late").redeem(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('carol')`)
	if got := <-lateCuts; !slices.Equal(got.sessions, []string{"late"}) {
		t.Errorf("at a gateway that started later: cut %v", got.sessions)
	}
}

// An order that the database itself cannot give out does not stop the others: here one in an encoding that has bytes without
// a meaning, written by a client that uses the same.
func TestUnreadableOrder(t *testing.T) {
	t.Parallel()
	admin := env.Postgres(t).NewDatabase(t)
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	name := path.Base(u.Path) + "_win"
	execSQL(t, env.Postgres(t).URL, `CREATE DATABASE `+name+` ENCODING 'WIN1252' LOCALE 'C' TEMPLATE template0`)
	t.Cleanup(func() { execSQL(t, env.Postgres(t).URL, `DROP DATABASE `+name+` WITH (FORCE)`) })
	u.Path = "/" + name
	dsn := u.String()
	prepare(t, dsn, textWorkspaces)

	var said log
	p, cuts := watching(t, PostgresConfig{URL: dsn, Logger: said.logger()})
	for i := range 3 {
		who := fmt.Sprint("p", i)
		if err := as(who, "s-"+who).redeem(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) SELECT 'before' FROM generate_series(1, 40)`)
		execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) SELECT convert_from('\x81', 'WIN1252')`)
		execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('after'), ($1)`, who)
		if got := <-cuts; !slices.Equal(got.sessions, []string{"s-" + who}) {
			t.Errorf("cut %v", got.sessions)
		}
	}
	// A new order is applied before the older ones of a page that cannot be read.
	until(t, func() bool { return said.count("cannot be read") >= 3 })
	if err := p.Reading(); err != nil {
		t.Error(err)
	}
	if told := said.count("cannot be read"); told != 3 {
		t.Errorf("%d orders were told to be unreadable, want 3", told)
	}
}

// A platform with the rights that the docs give it cannot write an order that gateways pass over, nor make the orders of
// others fail; with a right to insert whatever it likes it cannot either.
func TestPlatformsRights(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p, cuts := watching(t, PostgresConfig{URL: dsn})
	narrow, wide := sqlDB(t, platformRole(t, dsn, platformGrant)), sqlDB(t, platformRole(t, dsn, `INSERT ON termgw.revocations`))

	for _, statement := range []string{
		`INSERT INTO termgw.revocations (subject, xid) VALUES ('ann', '3')`,
		`INSERT INTO termgw.revocations (id, subject) OVERRIDING SYSTEM VALUE VALUES (-5, 'ann')`,
		`INSERT INTO termgw.revocations (subject, row_id) VALUES ('ann', 'x')`,
		`SELECT * FROM termgw.revocations`,
		`UPDATE termgw.revocations SET subject = 'bob'`,
		`DELETE FROM termgw.revocations`,
		`SELECT nextval('termgw.revocations_id_seq')`,
	} {
		if _, err := narrow.Exec(statement); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s: %v, want that the right is missing", statement, err)
		}
	}
	for i, tt := range []struct {
		by interface {
			ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
		}
		order string
	}{
		{narrow, `(workspace_id, subject, session_id, instance_id, reason, revoked_by, created_at) VALUES ('', $1, NULL, '', 'left', 'platform', now())`},
		{wide, `(subject, xid) VALUES ($1, '3')`},
		{wide, `(subject, xid) VALUES ($1, '4611686018427387904')`},
		{wide, `(id, subject) OVERRIDING SYSTEM VALUE VALUES (-9223372036854775808, $1)`},
		{wide, `(id, subject) OVERRIDING SYSTEM VALUE VALUES (9223372036854775807, $1)`},
		{wide, `(id, subject, xid, row_id) OVERRIDING SYSTEM VALUE SELECT n, $1, '3', 'ws-local' FROM generate_series(-50, 50) n`},
	} {
		who := fmt.Sprint("p", i)
		if err := errors.Join(as(who, "s-"+who).redeem(t.Context(), p), as("bob", "bob-"+who).redeem(t.Context(), p)); err != nil {
			t.Fatal(err)
		}
		if _, err := tt.by.ExecContext(t.Context(), `INSERT INTO termgw.revocations `+tt.order, who); err != nil {
			t.Fatalf("%s: %v", tt.order, err)
		}
		if got := <-cuts; !slices.Equal(got.sessions, []string{"s-" + who}) {
			t.Errorf("%s: cut %v", tt.order, got.sessions)
		}
		if _, _, err := p.Revoke(t.Context(), Revocation{Subject: "nobody"}); err != nil {
			t.Errorf("%s: the next order: %v", tt.order, err)
		}
	}
	var unlike int
	err := sqlDB(t, dsn).QueryRow(`SELECT count(*) FROM termgw.revocations WHERE id < 1 OR id > 1000000 OR row_id IS NOT NULL
		OR xid >= pg_current_xact_id() OR xid < '100'`).Scan(&unlike)
	if err != nil || unlike != 0 {
		t.Errorf("%d orders have an id, xid or row_id of the platform's choice, %v", unlike, err)
	}
}

// Rows from before 0004 that are out of bounds: the migration takes them, older gateways read them, and what gateways do
// with many rows at once does not fail because of one.
func TestRowsFromBeforeBounds(t *testing.T) {
	t.Parallel()
	dsn := env.Postgres(t).NewDatabase(t)
	for _, step := range []string{
		textWorkspaces,
		`CREATE SCHEMA termgw; CREATE TABLE termgw.schema_migrations (version text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())`,
		migration(t, "0001_sessions"), migration(t, "0002_replicas"), migration(t, "0003_empty_names"),
		`INSERT INTO termgw.schema_migrations VALUES ('0001_sessions'), ('0002_replicas'), ('0003_empty_names')`,
		`INSERT INTO termgw.revocations (subject, reason, created_at) VALUES ('ann', repeat('x', 5000000), now()), (repeat('x', 5000000), 'long', now())`,
		`INSERT INTO termgw.tunnels VALUES (repeat('x', 300), 'e', 'i', 'gw', now(), 'infinity'), ('good', 'e', 'i', 'gw', now(), now())`,
		`INSERT INTO termgw.host_keys VALUES ('i-long', repeat('x', 20000)), ('i-empty', '')`,
	} {
		execSQL(t, dsn, step)
	}
	for i, at := range oddTimes {
		execSQL(t, dsn, `INSERT INTO termgw.revocations (subject, created_at) VALUES ('carol', $1)`, at)
		execSQL(t, dsn, `INSERT INTO termgw.spent_tickets VALUES ('i', $1, 'a', $2)`, fmt.Sprint("j", i), at)
		for j, column := range []string{"started_at", "last_seen_at", "ended_at"} {
			execSQL(t, dsn, `INSERT INTO termgw.sessions (id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr, `+column+`)
				VALUES ($1, 'w', 's', 'i', 'j', 'rw', '', 'gw-old', 'c', $2)`, fmt.Sprintf("odd-%d-%d", i, j), at)
		}
	}
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject, reason, created_at) VALUES ('dora', repeat('x', 5000), now())`)
	if _, err := Migrate(t.Context(), dsn, nil); err == nil {
		t.Log("migrated")
	} else {
		t.Fatal(err)
	}
	var left int
	if err := sqlDB(t, dsn).QueryRow(`SELECT (SELECT count(*) FROM termgw.revocations WHERE NOT isfinite(created_at) OR created_at >= '10000-01-01') +
		(SELECT count(*) FROM termgw.tunnels WHERE id <> 'good')`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d rows are as they were, %v", left, err)
	}
	p, cuts := watching(t, PostgresConfig{URL: dsn})
	carol := claims("t", "ws-local")
	carol.Subject = "carol"
	if _, err := p.Redeem(t.Context(), carol, session("t")); !errors.Is(err, ErrRevoked) {
		t.Errorf("an order of infinity: %v, want that it holds for good", err)
	}
	// A replica of before holds odd sessions of its own.
	for i := range oddTimes {
		e := p.sessions.begin(claims("t", "w"), Session{ID: fmt.Sprintf("odd-%d-0", i), Replica: "gw-old"}, time.Now())
		p.sessions.open(e, time.Now())
	}
	if err := p.Heartbeat(t.Context(), "gw-old", nil); err != nil {
		t.Errorf("heartbeat: %v", err)
	}
	list, err := p.Sessions(t.Context(), SessionFilter{All: true})
	if err != nil || len(list) != 3*len(oddTimes) {
		t.Errorf("%d sessions are listed, %v", len(list), err)
	}
	if err := errors.Join(p.CloseAbandoned(t.Context(), ReasonLost, time.Hour), p.Purge(t.Context())); err != nil {
		t.Error(err)
	}
	if err := as("bob", "s").redeem(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('bob')`)
	if got := <-cuts; !slices.Contains(got.sessions, "s") {
		t.Errorf("cut %v", got.sessions)
	}
	if line, err := p.HostKey(t.Context(), "i-long"); line != "" || !errors.Is(err, ErrUnavailable) {
		t.Errorf("a host key of 20 kB: %d bytes, %v", len(line), err)
	}
	if line, err := p.HostKey(t.Context(), "i-empty"); line != "" || !errors.Is(err, ErrUnavailable) {
		t.Errorf("an empty host key: %q, %v, which must not count as none", line, err)
	}
	if line, err := p.KeepHostKey(t.Context(), "i-empty", "ssh-ed25519 AAAA"); line != "" || !errors.Is(err, ErrUnavailable) {
		t.Errorf("an empty host key: kept %q, %v", line, err)
	}
}

// The sessions that are listed do not depend on what one of them is.
func TestSessionsOutOfBounds(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	withoutConstraints(t, dsn)
	p := open(t, PostgresConfig{URL: dsn})
	openAll(t, p, "gw-1", claims("t", "ws-local"))
	for _, at := range oddTimes {
		for _, column := range []string{"started_at", "last_seen_at", "ended_at"} {
			execSQL(t, dsn, `UPDATE termgw.sessions SET `+column+` = $1`, at)
			list, err := p.Sessions(t.Context(), SessionFilter{All: true})
			if err != nil || len(list) != 1 {
				t.Errorf("%s %s: %v, %v", column, at, list, err)
				continue
			}
			for _, shown := range []time.Time{list[0].Started, list[0].LastSeen, list[0].Ended} {
				if _, err := shown.UTC().MarshalJSON(); err != nil {
					t.Errorf("%s %s: %v", column, at, err)
				}
			}
		}
	}
}

// A workspace whose row the query fails on, or that has a value of megabytes, is refused by itself; it costs no other
// workspace its terminal, nor the end of what a dead gateway left.
func TestNoWorkspaceStopsTheOthers(t *testing.T) {
	t.Parallel()
	dsn := database(t, `
		CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text, extra json, since timestamptz, share numeric, parts integer);
		INSERT INTO workspaces VALUES ('good', 'good', '', '{}', 'infinity', 'NaN', 1), ('broken', 'b', '', '{"x":"\u0000"}', now(), 1, 1),
			('zero', 'z', '', '{}', '-infinity', 1, 0), ('long', repeat('x', 5000000), '', '{}', '294276-12-31', 1, 1),
			('far', '', repeat('i', 20000), '{}', now(), 1, 1)`)
	var c clock
	p := open(t, PostgresConfig{URL: dsn, Now: c.now, WorkspaceQuery: `SELECT *, 1 / parts AS part FROM workspaces WHERE id = $1`})
	if _, err := p.Redeem(t.Context(), claims("good", "good"), Session{ID: "good", Replica: "gw-dead"}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"broken", "zero", "long", "far"} {
		if w, err := p.Redeem(t.Context(), claims("t-"+id, id), session(id)); !errors.Is(err, ErrUnavailable) || !same(w, Workspace{}) {
			t.Errorf("%s: %v", id, err)
		}
		execSQL(t, dsn, `INSERT INTO termgw.sessions (id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr)
			VALUES ($1 || '-dead', $1, 'ann', 'i', 'j', 'rw', '', 'gw-dead', 'c')`, id)
	}
	execSQL(t, dsn, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '1 hour'`)
	steadily(t, p, &c, "gw-1", time.Minute)
	list, err := p.Abandoned(t.Context(), time.Minute, nil)
	if err != nil {
		t.Error(err)
	}
	failed := map[string]bool{}
	for _, a := range list {
		failed[a.SessionID] = errors.Is(a.Err, ErrUnavailable)
		if id := strings.TrimSuffix(a.SessionID, "-dead"); a.Workspace.ID != id {
			t.Errorf("%s is of %q", id, a.Workspace.ID)
		}
	}
	if want := map[string]bool{"good": false, "broken-dead": true, "zero-dead": true, "long-dead": false, "far-dead": false}; !maps.Equal(failed, want) {
		t.Errorf("abandoned, and not looked up: %v, want %v", failed, want)
	}
}

// Gateways of before work on, beside newer ones, with the schema that is migrated: these are their statements.
func TestOlderGatewaysOnTheNewSchema(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	const orders = `SELECT x.xmin::text::bigint, r.id, r.created_at, extract(epoch FROM clock_timestamp() - r.created_at)::float8,
		r.workspace_id, r.subject, r.session_id, r.instance_id, r.reason, r.revoked_by
		FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xmin) x LEFT JOIN LATERAL (
		  SELECT * FROM termgw.revocations WHERE xid >= $1::text::xid8 AND id > $2 ORDER BY id LIMIT $3
		) r ON true ORDER BY r.id`
	const revoke = `INSERT INTO termgw.revocations (workspace_id, subject, session_id, instance_id, reason, revoked_by)
		VALUES (NULLIF($1::text, ''), NULLIF($2::text, ''), NULLIF($3::text, ''), NULLIF($4::text, ''), NULLIF($5::text, ''), NULLIF($6::text, ''))
		RETURNING id, created_at`
	const opened = `INSERT INTO termgw.sessions AS s (id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr)
		VALUES ('old', 'WS-1', 'ann', 'i', 'j', 'rw', '', 'gw-old', 'c') ON CONFLICT (id) DO NOTHING`
	var (
		id      int64
		created time.Time
	)
	if err := db.QueryRow(revoke, "WS-1", "", "", "", "", "").Scan(&id, &created); err != nil || id < 1 {
		t.Fatal(id, err)
	}
	rows, err := db.Query(orders, "0", 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for rows.Next() {
		var xmin, got int64
		var age float64
		var at time.Time
		var names [6]*string
		if err := rows.Scan(&xmin, &got, &at, &age, &names[0], &names[1], &names[2], &names[3], &names[4], &names[5]); err != nil || got != id {
			t.Error(got, err)
		}
		n++
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || n != 1 {
		t.Errorf("%d orders, %v", n, err)
	}
	execSQL(t, dsn, opened)
	if _, err := db.Exec(olderHeartbeat, "gw-old", pq.Array([]string{"old"}), pq.Array([]string{}), pq.Array([]string{})); err != nil {
		t.Error(err)
	}
	// A newer gateway cuts what an older one opened by the spelling that it has, as ever.
	_, cut, err := open(t, PostgresConfig{URL: dsn}).Revoke(t.Context(), Revocation{WorkspaceID: "WS-1"})
	if err != nil || !slices.Equal(cut, []string{"old"}) {
		t.Errorf("cut %v, %v", cut, err)
	}
}
