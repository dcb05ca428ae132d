package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

func TestSessionRow(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p := open(t, PostgresConfig{URL: dsn})
	c := claims("t1", "ws-remote")
	c.Mode = ticket.ReadOnly
	if _, err := p.Redeem(t.Context(), c, session("s1")); err != nil {
		t.Fatal(err)
	}
	row := func() string {
		t.Helper()
		var s string
		// What is a time is shown as whether it is there and in order.
		err := db.QueryRow(`SELECT concat_ws(' ', id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr,
			started_at <= now() AND last_seen_at >= started_at, COALESCE((ended_at >= started_at)::text, 'live'),
			COALESCE(end_reason, '-'), COALESCE(exit_code::text, '-'), bytes_in, bytes_out) FROM termgw.sessions`).Scan(&s)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const who = "s1 ws-remote ann https://platform.example t1 ro i-0abc gw-1 192.0.2.7:1234 t "
	if got, want := row(), who+"live - - 0 0"; got != want {
		t.Errorf("after redeem: %s, want %s", got, want)
	}
	code := 137
	if err := p.Finish(t.Context(), "s1", End{Reason: "idle_timeout", ExitCode: &code, BytesIn: 5, BytesOut: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	want := who + "true idle_timeout 137 5 1099511627776"
	if got := row(); got != want {
		t.Errorf("after finish: %s, want %s", got, want)
	}
	if err := p.Finish(t.Context(), "s1", End{Reason: "exit", BytesIn: 9}); err != nil {
		t.Fatal(err)
	}
	if got := row(); got != want {
		t.Errorf("after a second finish: %s, want %s", got, want)
	}
	if _, err := p.Redeem(t.Context(), claims("t2", "ws-none"), session("s2")); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if got := row(); got != want { // Scan takes the first of two rows; count them too
		t.Errorf("after a refusal: %s, want %s", got, want)
	}
	if n := count(t, db, "termgw.sessions"); n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}

func count(t *testing.T, db *sql.DB, table string) (n int) {
	t.Helper()
	if err := db.QueryRow(`SELECT count(*) FROM ` + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWorkspaceIDTypes(t *testing.T) {
	t.Parallel()
	const uuid = "6f1c2a34-9d1e-4a53-8e0b-0a8d3c0f7b11"
	for _, tt := range []struct {
		typ, id string
		refused []string
	}{
		{"text", "any.thing", []string{"", "any"}},
		{"varchar(64)", "any.thing", []string{strings.Repeat("x", 65)}},
		{"uuid", uuid, []string{"any", "'; DROP TABLE workspaces; --", uuid + "'", "6f1c2a34-9d1e-4a53-8e0b-0a8d3c0f7b12"}},
		{"bigint", "42", []string{"any", "99999999999999999999", "1.5", "42; --", "43"}},
		{"integer", "42", []string{"9999999999", "\\x2a"}},
	} {
		t.Run(tt.typ, func(t *testing.T) {
			dsn := database(t, fmt.Sprintf(`CREATE TABLE workspaces (id %s PRIMARY KEY, name varchar(20), instance_id text);
				INSERT INTO workspaces VALUES ('%s', 'one', NULL)`, tt.typ, tt.id))
			p := open(t, PostgresConfig{URL: dsn})
			if err := p.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i, id := range tt.refused {
				if _, err := p.Redeem(t.Context(), claims(fmt.Sprint("r", i), id), session(fmt.Sprint("r", i))); !errors.Is(err, ErrNotFound) {
					t.Errorf("%q: %v, want ErrNotFound", id, err)
				}
			}
			w, err := p.Redeem(t.Context(), claims("t", tt.id), session("s"))
			if want := of(tt.id, "name", "one"); err != nil || !same(w, want) {
				t.Errorf("got %+v, %v, want %+v", w, err, want)
			}
		})
	}
}

func TestWorkspaceQueryShapes(t *testing.T) {
	t.Parallel()
	dsn := database(t, `
		CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text, extra json, ws text, j int, termgw_ws text);
		INSERT INTO workspaces VALUES ('a', 'one', 'i-1', '{"x":1}', 'w', 1, 'x'), ('b', 'one', NULL, NULL, NULL, NULL, NULL);
		CREATE TABLE spent (id text, name text, instance_id text); INSERT INTO spent VALUES ('a', 'of spent', '')`)
	full := of("a", "name", "one", "instance_id", "i-1")
	for i, tt := range []struct {
		query string
		id    string
		want  Workspace
		err   error
		says  string
	}{
		{query: DefaultWorkspaceQuery, id: "a", want: full},
		{query: `SELECT * FROM workspaces WHERE id = $1`, id: "a", want: of("a", "name", "one", "instance_id", "i-1", "extra", `{"x": 1}`, "ws", "w", "j", "1", "termgw_ws", "x")},
		{query: `SELECT * FROM workspaces WHERE id = $1`, id: "b", want: of("b", "name", "one")},
		{
			query: `SELECT name, instance_id, 'c' AS container, 'r' AS region, 'u' AS os_user, 'k' AS host_key, 'host' AS remote_target,
				repeat('x', 2048) AS role_arn, 'e' AS endpoint_id, true AS source_identity FROM workspaces WHERE id = $1`, id: "a",
			want: of("a", "name", "one", "instance_id", "i-1", "container", "c", "region", "r", "os_user", "u", "host_key", "k", "remote_target", "host",
				"role_arn", strings.Repeat("x", 2048), "endpoint_id", "e", "source_identity", "true"),
		},
		{query: "SELECT name, instance_id FROM workspaces WHERE id = $1; -- done", id: "a", want: full},
		{query: "SELECT name, instance_id FROM workspaces WHERE id = $1 -- no newline", id: "a", want: full},
		{query: `WITH spent AS (SELECT * FROM workspaces), found AS (SELECT * FROM spent) SELECT name, instance_id FROM found WHERE id = $1;`, id: "a", want: full},
		{query: `SELECT name, instance_id FROM spent WHERE id = $1`, id: "a", want: of("a", "name", "of spent")},
		{query: `SELECT name AS "found", name, instance_id, id AS spent, id AS n, id AS first FROM workspaces WHERE id = $1`, id: "a", want: of("a", "name", "one", "instance_id", "i-1", "found", "one", "spent", "a", "n", "a", "first", "a")},
		{
			query: `SELECT name, instance_id, repeat('x', 1024) AS fits, repeat('x', 1025) AS long, true AS yes, '' AS empty FROM workspaces WHERE id = $1`, id: "a",
			want: of("a", "name", "one", "instance_id", "i-1", "fits", strings.Repeat("x", 1024), "yes", "true"),
		},
		{query: `SELECT 'x' AS name, name, instance_id FROM workspaces WHERE id = $1`, id: "a", want: full},
		{query: `SELECT 7 AS name, instance_id FROM workspaces WHERE id = $1 FOR SHARE`, id: "a", want: of("a", "name", "7", "instance_id", "i-1")},

		{query: `SELECT name, instance_id FROM workspaces WHERE id = $1 AND false`, id: "a", err: ErrNotFound},
		{query: `SELECT name, instance_id FROM workspaces WHERE id <> $1`, id: "none", err: ErrUnavailable, says: "more than one row"},
		{query: `SELECT name FROM workspaces WHERE id = $1`, id: "a", err: ErrUnavailable, says: "instance_id and name"},
		{query: `SELECT name AS "Name", instance_id FROM workspaces WHERE id = $1`, id: "a", err: ErrUnavailable, says: "instance_id and name"},
		{query: `SELECT name, instance_id FROM nowhere WHERE id = $1`, id: "a", err: ErrUnavailable, says: `does not accept the workspace query`},
		{query: `SELECT name, instance_id FROM workspaces WHERE id = $1 AND 'x'::uuid IS NULL`, id: "a", err: ErrUnavailable, says: `does not accept the workspace query`},
		{query: `SELECT name, instance_id, 1/0 FROM workspaces WHERE id = $1`, id: "a", err: ErrUnavailable, says: "division by zero"},
		{query: `SELECT name, instance_id, pg_sleep(60) FROM workspaces WHERE id = $1`, id: "a", err: ErrUnavailable, says: "statement timeout"},
	} {
		t.Run(tt.query, func(t *testing.T) {
			p := open(t, PostgresConfig{URL: dsn, WorkspaceQuery: tt.query, Timeout: 10 * time.Second})
			c := claims(fmt.Sprint("t", i), tt.id)
			got, err := p.Redeem(t.Context(), c, session(fmt.Sprint("s", i)))
			if !same(got, tt.want) || !errors.Is(err, tt.err) {
				t.Fatalf("got %+v, %v, want %+v, %v", got, err, tt.want, tt.err)
			}
			if tt.says != "" && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v does not say %q", err, tt.says)
			}
			if err != nil {
				var n int
				if err := sqlDB(t, dsn).QueryRow(`SELECT count(*) FROM termgw.sessions WHERE jti = $1`, c.ID).Scan(&n); err != nil || n != 0 {
					t.Errorf("%d sessions for a refused ticket, %v", n, err)
				}
			}
			runs := tt.err == nil || errors.Is(tt.err, ErrNotFound) || strings.Contains(tt.says, "more than one") || strings.Contains(tt.says, "timeout")
			if err := p.Ping(t.Context()); runs != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("ping: %v", err)
			}
		})
	}
}

func TestRevocations(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p := open(t, PostgresConfig{URL: dsn})
	at := time.Now().Truncate(time.Second)

	n := 0
	redeem := func(workspace, subject string, iat time.Time) error {
		n++
		c := claims(fmt.Sprint("t", n), workspace)
		c.Subject, c.IssuedAt = subject, iat
		_, err := p.Redeem(t.Context(), c, session(fmt.Sprint("s", n)))
		if !errors.Is(err, ErrRevoked) {
			return err
		}
		if _, again := p.Redeem(t.Context(), c, session(fmt.Sprint("again", n))); !errors.Is(again, ErrUsed) {
			t.Errorf("a refused ticket was not spent: %v", again)
		}
		return err
	}

	t.Run("age", func(t *testing.T) {
		for _, tt := range []struct {
			order, iat time.Time
			want       error
		}{
			{at, at.Add(-time.Second), ErrRevoked},
			{at, at, ErrRevoked},
			{at, at.Add(time.Second), nil},
			// A ticket says only the second: one of the order's own second may be older than the order, and is refused.
			{at.Add(300 * time.Millisecond), at, ErrRevoked},
			{at.Add(999 * time.Millisecond), at.Add(time.Second), nil},
		} {
			if _, err := db.Exec(`TRUNCATE termgw.revocations`); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(`INSERT INTO termgw.revocations (subject, created_at) VALUES ('ann', $1)`, tt.order); err != nil {
				t.Fatal(err)
			}
			if err := redeem("ws-local", "ann", tt.iat); !errors.Is(err, tt.want) {
				t.Errorf("order at +%v, ticket at %v: %v, want %v", tt.order.Sub(at), tt.iat.Sub(at), err, tt.want)
			}
		}
	})

	t.Run("match", func(t *testing.T) {
		for _, tt := range []struct {
			order, workspace, subject string
			want                      error
		}{
			{"(subject) VALUES ('ann')", "ws-local", "ann", ErrRevoked},
			{"(subject) VALUES ('ann')", "ws-local", "bob", nil},
			{"(workspace_id) VALUES ('ws-local')", "ws-local", "bob", ErrRevoked},
			{"(workspace_id) VALUES ('ws-local')", "ws-remote", "bob", nil},
			{"(instance_id) VALUES ('i-0abc')", "ws-remote", "ann", ErrRevoked},
			{"(instance_id) VALUES ('i-0abc')", "ws-local", "ann", nil},
			{"(workspace_id, subject) VALUES ('ws-local', 'ann')", "ws-local", "ann", ErrRevoked},
			{"(workspace_id, subject) VALUES ('ws-local', 'ann')", "ws-local", "bob", nil},
			{"(workspace_id, subject) VALUES ('ws-local', 'ann')", "ws-remote", "ann", nil},
			{"(subject, session_id) VALUES ('ann', 'one-that-runs')", "ws-local", "ann", nil},
			{"(subject) VALUES ('ann'), ('bob')", "ws-local", "bob", ErrRevoked},
			{"(workspace_id, subject, session_id, instance_id) VALUES ('', 'ann', '', '')", "ws-local", "ann", ErrRevoked},
			{"(workspace_id, subject, session_id, instance_id) VALUES ('', 'ann', '', '')", "ws-remote", "ann", ErrRevoked},
			{"(workspace_id, subject, session_id, instance_id) VALUES ('', 'ann', '', '')", "ws-local", "bob", nil},
			{"(workspace_id, instance_id) VALUES ('ws-local', '')", "ws-remote", "ann", nil},
			{"(subject) VALUES ('ann')", "ws-none", "ann", ErrRevoked},
			{"(subject) VALUES ('ann')", "ws-none", "bob", ErrNotFound},
		} {
			if _, err := db.Exec(`TRUNCATE termgw.revocations`); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(`INSERT INTO termgw.revocations ` + tt.order); err != nil {
				t.Fatal(err)
			}
			if err := redeem(tt.workspace, tt.subject, at); !errors.Is(err, tt.want) {
				t.Errorf("%s: %s on %s: %v, want %v", tt.order, tt.subject, tt.workspace, err, tt.want)
			}
		}
	})

	t.Run("an order names something", func(t *testing.T) {
		for _, order := range []string{
			"DEFAULT VALUES",
			"(workspace_id) VALUES ('')",
			"(workspace_id, subject, session_id, instance_id) VALUES ('', '', '', '')",
			"(workspace_id, subject, reason) VALUES ('', NULL, 'all of them')",
		} {
			if _, err := db.Exec(`INSERT INTO termgw.revocations ` + order); err == nil {
				t.Errorf("%s: an order that matches everybody was accepted", order)
			}
		}
		if _, err := db.Exec(`TRUNCATE termgw.revocations; INSERT INTO termgw.revocations (subject) VALUES ('ann')`); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(`UPDATE termgw.revocations SET subject = ''`); err == nil {
			t.Error("an order was changed to one that matches everybody")
		}
	})
}

func TestOneRoundTrip(t *testing.T) {
	t.Parallel()
	proxy, dsn := startProxy(t, database(t, textWorkspaces))
	p := open(t, PostgresConfig{URL: dsn, MaxConns: 1, Limits: Limits{PerWorkspace: 5, PerSubject: 5}})
	warm := func(i int) {
		t.Helper()
		if _, err := p.Redeem(t.Context(), claims(fmt.Sprint("t", i), "ws-local"), session(fmt.Sprint("s", i))); err != nil {
			t.Fatal(err)
		}
		if err := p.Finish(t.Context(), fmt.Sprint("s", i), End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
		if err := p.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	warm(0)
	for i := range 10 {
		syncs, messages := proxy.syncs.Load(), proxy.messages.Load()
		warm(i + 1)
		syncs, messages = proxy.syncs.Load()-syncs, proxy.messages.Load()-messages
		// Redeem, Finish and Ping: Bind, Execute and Sync each.
		if syncs != 3 || messages != 9 {
			t.Fatalf("%d round trips of %d messages for three calls", syncs, messages)
		}
	}
}

// The server committed, and its answer was lost: what is repeated must not take itself for a replay.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	proxy, through := startProxy(t, dsn)
	p := open(t, PostgresConfig{URL: through, MaxConns: 1})
	if err := p.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Prepared, so that the next answer is the statement's.
	if _, err := p.Redeem(t.Context(), claims("t0", "ws-local"), session("s0")); err != nil {
		t.Fatal(err)
	}
	proxy.cuts.Store(1)
	if _, err := p.Redeem(t.Context(), claims("t1", "ws-local"), session("s1")); err != nil {
		t.Fatal(err)
	}
	if got := proxy.cuts.Load(); got != 0 {
		t.Fatal("no answer was lost")
	}
	db := sqlDB(t, dsn)
	if spent, sessions := count(t, db, "termgw.spent_tickets"), count(t, db, "termgw.sessions"); spent != 2 || sessions != 2 {
		t.Errorf("%d tickets spent and %d sessions, want 2 and 2", spent, sessions)
	}
	if _, err := p.Redeem(t.Context(), claims("t1", "ws-local"), session("s1")); !errors.Is(err, ErrUsed) {
		t.Errorf("the same ticket again: %v, want ErrUsed", err)
	}
	if _, err := p.Redeem(t.Context(), claims("t1", "ws-local"), session("s2")); !errors.Is(err, ErrUsed) {
		t.Errorf("the same ticket for another session: %v, want ErrUsed", err)
	}
}

// A peer that is gone without a word ends a call at its deadline, not when TCP gives up.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	for _, connected := range []bool{true, false} {
		t.Run(fmt.Sprint("connected=", connected), func(t *testing.T) {
			proxy, dsn := startProxy(t, database(t, textWorkspaces))
			p := open(t, PostgresConfig{URL: dsn, Timeout: timeout, MaxConns: 1})
			if connected {
				if err := p.Ping(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			proxy.silent.Store(true)
			var wg sync.WaitGroup
			redeem := func(id string, limit time.Duration) {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				// TCP by itself gives up after some 15 minutes: the test's own time would be over.
				if _, err := p.Redeem(ctx, claims(id, "ws-local"), session(id)); !errors.Is(err, ErrUnavailable) {
					t.Errorf("redeem: %v, want ErrUnavailable", err)
				}
			}
			// The first has the connection and gives up while the others wait for it, whereupon database/sql connects for
			// them in its own goroutine: that must have an end too.
			wg.Go(func() { redeem("first", timeout/2) })
			for p.db.Stats().InUse == 0 {
				runtime.Gosched()
			}
			for i := range 5 {
				wg.Go(func() { redeem(fmt.Sprint("t", i), timeout) })
			}
			wg.Wait()
			proxy.silent.Store(false)
			// A connection that was begun in the silence is still given its time, and its failure to whoever waits for it.
			back, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for {
				_, err := p.Redeem(back, claims("t", "ws-local"), session("s"))
				if err == nil {
					break
				}
				if back.Err() != nil {
					t.Fatalf("once the network is back: %v", err)
				}
			}
		})
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	pg := testenv.StartPostgres(t)
	dsn := pg.NewDatabase(t)
	prepare(t, dsn, textWorkspaces)
	const timeout = 2 * time.Second
	p := open(t, PostgresConfig{URL: dsn, Timeout: timeout, MaxConns: 4})
	redeemAll := func(name string) (failed []error) {
		var (
			wg sync.WaitGroup
			mu sync.Mutex
		)
		for i := range 8 {
			wg.Go(func() {
				start := time.Now()
				id := fmt.Sprint(name, i)
				_, err := p.Redeem(t.Context(), claims(id, "ws-local"), session(id))
				if took := time.Since(start); took > timeout+time.Minute {
					t.Errorf("redeem took %v", took)
				}
				if err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed = append(failed, err)
				}
			})
		}
		wg.Wait()
		return failed
	}
	if failed := redeemAll("before"); failed != nil {
		t.Fatal(failed)
	}
	// Restarted between two calls: every pooled connection is dead, and nobody notices.
	pg.Stop(t)
	pg.Start(t)
	if failed := redeemAll("restarted"); failed != nil {
		t.Fatal(failed)
	}
	pg.Stop(t)
	failed := redeemAll("down")
	if len(failed) != 8 {
		t.Fatalf("without a server %d of 8 failed", len(failed))
	}
	for _, err := range append(failed, p.Ping(t.Context()), p.Finish(t.Context(), "another's", End{Reason: "exit"})) {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v, want ErrUnavailable", err)
		}
	}
	pg.Start(t)
	if err := p.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Nothing was spent while the server was away.
	if failed := redeemAll("down"); failed != nil {
		t.Fatal(failed)
	}
	if err := p.Finish(t.Context(), "before0", End{Reason: "exit"}); err != nil {
		t.Fatal(err)
	}
}

func TestOpenPostgresNeedsNoDatabase(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	p := open(t, PostgresConfig{URL: "postgres://ann:s3cret@" + addr + "/x?sslmode=disable"})
	err = p.Ping(t.Context())
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("ping: %v", err)
	}
}

func TestOpenPostgresRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ url, query, says string }{
		{url: "", says: "database URL: it is empty"},
		{url: "postgres://ann:s3cret@host:port/x", says: "percent-encode"},
		{url: "postgres://ann:s3/cret@host/x", says: "percent-encode"},
		{url: "postgres://ann:1/s3cret@host/x", says: "percent-encode"},
		{url: "postgres://ann:s3#cret@host/x", says: "percent-encode"},
		{url: "postgres://ann:s3%zzcret@host/x", says: "percent-encode"},
		{url: "mysql://ann:s3cret@host/x", says: "database URL"},
		{url: "host=x password=s3 cret", says: "database URL"},
		{url: "host=x password='s3cret", says: "database URL"},
		{url: "postgres://ann:s3cret@host/x?sslmode=off", says: `"sslmode"`},
		{url: "postgres://ann:s3cret@host/x", query: "SELECT 1", says: "workspace query: it does not use $1"},
		{url: "", query: "SELECT 1", says: "workspace query: it does not use $1"},
	} {
		p, err := OpenPostgres(PostgresConfig{URL: tt.url, WorkspaceQuery: tt.query})
		if err == nil {
			_ = p.Close()
			t.Errorf("%s: accepted", tt.url)
			continue
		}
		if !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", tt.url, err, tt.says)
		}
		if _, merr := Migrate(t.Context(), tt.url, nil); tt.query == "" && merr == nil {
			t.Errorf("%s: migrate accepted it", tt.url)
		}
		for _, secret := range []string{"s3", "cret"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the password is in %v", tt.url, err)
			}
		}
	}
}

// What an operator can get wrong is told in words, and never with the password.
func TestCauses(t *testing.T) {
	t.Parallel()
	good := database(t, textWorkspaces)
	bare := env.Postgres(t).NewDatabase(t)
	if _, err := sqlDB(t, bare).Exec(textWorkspaces); err != nil {
		t.Fatal(err)
	}
	role := fmt.Sprintf("poor_%d", time.Now().UnixNano())
	db := sqlDB(t, good)
	if _, err := db.Exec(`CREATE ROLE ` + role + ` LOGIN PASSWORD 's3cret'; GRANT SELECT ON workspaces TO ` + role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role); err != nil {
			t.Error(err)
		}
	})
	with := func(dsn string, change func(*url.URL)) string {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		return u.String()
	}
	for _, tt := range []struct{ name, url, says string }{
		{"no schema", bare, "termgw migrate"},
		{"password", with(good, func(u *url.URL) { u.User = url.UserPassword("postgres", "s3cret") }), "password authentication failed"},
		{"database", with(good, func(u *url.URL) { u.Path = "/nowhere" }), "does not exist"},
		{"right", with(good, func(u *url.URL) { u.User = url.UserPassword(role, "s3cret") }), "lacks a right"},
		{"tls", with(good, func(u *url.URL) { u.RawQuery = "sslmode=require" }), "SSL is not enabled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := url.Parse(tt.url)
			if err != nil {
				t.Fatal(err)
			}
			password, _ := u.User.Password()
			p := open(t, PostgresConfig{URL: tt.url})
			_, redeemErr := p.Redeem(t.Context(), claims("t", "ws-local"), session("s"))
			for _, err := range []error{redeemErr, p.Ping(t.Context())} {
				if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, want %q", err, tt.says)
				} else if strings.Contains(err.Error(), password) {
					t.Errorf("the password is in %v", err)
				}
			}
		})
	}
}

func TestPurge(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p := open(t, PostgresConfig{URL: dsn, Retention: 90 * 24 * time.Hour})
	const kept = 7
	for _, fill := range []string{
		`INSERT INTO termgw.spent_tickets SELECT 'i', 'old' || n, 'a', now() - interval '11 minutes' FROM generate_series(1, 12000) n`,
		`INSERT INTO termgw.spent_tickets SELECT 'i', 'new' || n, 'a', now() - interval '9 minutes' FROM generate_series(1, 7) n`,
		`INSERT INTO termgw.sessions SELECT 'old' || n, '', '', '', '', '', '', '', '', now() - interval '91 days' FROM generate_series(1, 100) n`,
		`INSERT INTO termgw.sessions SELECT 'new' || n, '', '', '', '', '', '', '', '', now() - interval '89 days' FROM generate_series(1, 7) n`,
		`INSERT INTO termgw.revocations (subject, created_at) SELECT 'old', now() - interval '91 days' FROM generate_series(1, 100) n`,
		`INSERT INTO termgw.revocations (subject, created_at) SELECT 'new', now() - interval '89 days' FROM generate_series(1, 7) n`,
		`INSERT INTO termgw.tunnels SELECT 'old' || n, '', '', '', now(), now() - interval '25 hours' FROM generate_series(1, 100) n`,
		`INSERT INTO termgw.tunnels SELECT 'new' || n, '', '', '', now(), now() - interval '23 hours' FROM generate_series(1, 7) n`,
		`INSERT INTO termgw.heartbeats SELECT 'old' || n, '', now() - interval '25 hours' FROM generate_series(1, 100) n`,
		`INSERT INTO termgw.heartbeats SELECT 'new' || n, '', now() - interval '23 hours' FROM generate_series(1, 5) n`,
		`INSERT INTO termgw.heartbeats VALUES ('live', '', now() - interval '25 hours')`, // its session is not closed yet
		`UPDATE termgw.sessions SET process = 'live' WHERE id = 'new1'`,
		`UPDATE termgw.heartbeats SET seen_at = now() - interval '2 years' WHERE process = ''`, // that of older gateways
	} {
		if _, err := db.Exec(fill); err != nil {
			t.Fatal(err)
		}
	}
	counts := func() [5]int {
		return [5]int{
			count(t, db, "termgw.spent_tickets"), count(t, db, "termgw.sessions"), count(t, db, "termgw.revocations"), count(t, db, "termgw.tunnels"), count(t, db, "termgw.heartbeats"),
		}
	}

	// Another replica is at it.
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`SELECT FROM termgw.locks WHERE slot = -1 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if err := p.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := counts(); got != [5]int{12000 + kept, 100 + kept, 100 + kept, 100 + kept, 100 + kept} {
		t.Errorf("while another purges: %v rows", got)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}

	forever := open(t, PostgresConfig{URL: dsn})
	if err := forever.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := counts(); got != [5]int{kept, 100 + kept, 100 + kept, kept, kept} {
		t.Errorf("after a purge that keeps the trail for ever: %v rows", got)
	}
	if err := p.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := counts(); got != [5]int{kept, kept, kept, kept, kept} {
		t.Errorf("after a purge: %v rows", got)
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	dsn := env.Postgres(t).NewDatabase(t)
	var (
		wg    sync.WaitGroup
		total atomic.Int64
	)
	for range 8 {
		wg.Go(func() {
			applied, err := Migrate(t.Context(), dsn, nil)
			if err != nil {
				t.Error(err)
			}
			total.Add(int64(len(applied)))
		})
	}
	wg.Wait()
	db := sqlDB(t, dsn)
	if n := count(t, db, "termgw.schema_migrations"); n == 0 || total.Load() != int64(n) {
		t.Errorf("%d migrations applied by eight at once, %d recorded", total.Load(), n)
	}
	applied, err := Migrate(t.Context(), dsn, nil)
	if err != nil || len(applied) != 0 {
		t.Errorf("again: %v, %v", applied, err)
	}
	var outside int
	if err := db.QueryRow(`SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'termgw')`).Scan(&outside); err != nil || outside != 0 {
		t.Errorf("%d relations outside the schema, %v", outside, err)
	}
}

func TestMigrateStopsWithItsContext(t *testing.T) {
	t.Parallel()
	dsn := env.Postgres(t).NewDatabase(t)
	execSQL(t, dsn, `CREATE SCHEMA termgw; `+recordSQL)
	db := sqlDB(t, dsn)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`LOCK TABLE termgw.schema_migrations IN SHARE ROW EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if applied, err := Migrate(ctx, dsn, nil); err == nil || len(applied) != 0 {
		t.Errorf("while another migrates: %v, %v", applied, err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
}

// One that waits for another says so.
func TestMigrateWaits(t *testing.T) {
	t.Parallel()
	dsn := env.Postgres(t).NewDatabase(t)
	execSQL(t, dsn, `CREATE SCHEMA termgw; `+recordSQL)
	tx, err := sqlDB(t, dsn).BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(lockSQL); err != nil {
		t.Fatal(err)
	}
	waited := 0
	applied, err := Migrate(t.Context(), dsn, func() {
		waited++
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	})
	if err != nil || len(applied) == 0 || waited != 1 {
		t.Errorf("applied %v, told %d times that it waits: %v", applied, waited, err)
	}
}

// A migration that fails leaves nothing behind.
func TestMigrateFails(t *testing.T) {
	t.Parallel()
	dsn := env.Postgres(t).NewDatabase(t)
	db := sqlDB(t, dsn)
	if _, err := db.Exec(`CREATE SCHEMA termgw; CREATE TABLE termgw.revocations ()`); err != nil {
		t.Fatal(err)
	}
	applied, err := Migrate(t.Context(), dsn, nil)
	if err == nil || len(applied) != 0 || !strings.Contains(err.Error(), "0001_sessions") {
		t.Fatalf("got %v, %v", applied, err)
	}
	var left bool
	if err := db.QueryRow(`SELECT to_regclass('termgw.sessions') IS NOT NULL`).Scan(&left); err != nil || left {
		t.Errorf("half a migration is left: %v, %v", left, err)
	}
	if _, err := db.Exec(`DROP TABLE termgw.revocations`); err != nil {
		t.Fatal(err)
	}
	if _, err := Migrate(t.Context(), dsn, nil); err != nil {
		t.Error(err)
	}
}

// Orders of empty strings from before 0003 are put right.
func TestOrdersFromBeforeEmptyNames(t *testing.T) {
	t.Parallel()
	dsn := env.Postgres(t).NewDatabase(t)
	db := sqlDB(t, dsn)
	old := claims("old", "ws-local")
	for _, step := range []string{
		textWorkspaces,
		`CREATE SCHEMA termgw; CREATE TABLE termgw.schema_migrations (version text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())`,
		migration(t, "0001_sessions"),
		migration(t, "0002_replicas"),
		`INSERT INTO termgw.schema_migrations VALUES ('0001_sessions'), ('0002_replicas')`,
		`INSERT INTO termgw.revocations (workspace_id, subject, session_id, instance_id, reason)
			VALUES ('', 'ann', '', NULL, 'part'), ('', NULL, '', NULL, 'nothing'), ('', '', '', '', 'nothing'),
				(NULL, NULL, 's1', NULL, 'whole'), (NULL, NULL, NULL, 'i-1', '')`,
	} {
		if _, err := db.Exec(step); err != nil {
			t.Fatal(err)
		}
	}
	if applied, err := Migrate(t.Context(), dsn, nil); err != nil || len(applied) == 0 || applied[0] != "0003_empty_names" {
		t.Fatal(applied, err)
	}
	p := open(t, PostgresConfig{URL: dsn})
	var orders string
	err := db.QueryRow(`SELECT string_agg(format('%L %L %L %L %L', workspace_id, subject, session_id, instance_id, reason), '; ' ORDER BY id)
		FROM termgw.revocations`).Scan(&orders)
	if want := "NULL 'ann' NULL NULL 'part'; NULL NULL 's1' NULL 'whole'; NULL NULL NULL 'i-1' ''"; err != nil || orders != want {
		t.Errorf("the orders are %s, %v, want %s", orders, err, want)
	}
	if _, err := p.Redeem(t.Context(), old, session("old")); !errors.Is(err, ErrRevoked) {
		t.Errorf("redeem: %v, want ErrRevoked", err)
	}
}

func migration(t *testing.T, name string) string {
	t.Helper()
	body, err := migrations.ReadFile("migrations/" + name + ".sql")
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// A secret that was made from a file ends in a newline.
func TestURLWithWhiteSpace(t *testing.T) {
	t.Parallel()
	dsn := " " + env.Postgres(t).NewDatabase(t) + "\r\n"
	if _, err := Migrate(t.Context(), dsn, nil); err != nil {
		t.Fatal(err)
	}
	p := open(t, PostgresConfig{URL: dsn, WorkspaceQuery: "SELECT '' AS instance_id, $1::text AS name"})
	if err := p.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	watch(t, p)
	until(t, func() bool { return p.Watching() == nil })
}

// A schema that is older than the gateway is told in words.
func TestOldSchema(t *testing.T) {
	t.Parallel()
	for _, change := range []string{
		`DROP TABLE termgw.tunnels`,
		`ALTER TABLE termgw.revocations DROP COLUMN row_id`,
		`ALTER TABLE termgw.sessions DROP COLUMN kind`,
		`ALTER TABLE termgw.sessions DROP COLUMN trail`,
		`ALTER TABLE termgw.sessions DROP COLUMN waiting`,
		`ALTER TABLE termgw.sessions DROP COLUMN holder_url`,
		`ALTER TABLE termgw.tunnels DROP COLUMN wanted_at`,
		`DROP FUNCTION termgw.over_limit`,
		`DROP FUNCTION termgw.normal_id`,
		`DROP TABLE termgw.locks`,
	} {
		t.Run(change, func(t *testing.T) {
			dsn := database(t, textWorkspaces)
			execSQL(t, dsn, change)
			p := open(t, PostgresConfig{URL: dsn})
			_, err := p.Redeem(t.Context(), claims("t", "ws-local"), session("s"))
			if err == nil {
				err = p.Ping(t.Context())
			}
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "termgw migrate") {
				t.Errorf("got %v", err)
			}
			if err := p.each(t.Context(), ordersSQL, []any{nothing, everything, "0", int64(0), int64(1)}, func(*sql.Rows) error { return nil }); err != nil &&
				!strings.Contains(unavailable("", err).Error(), "termgw migrate") {
				t.Errorf("got %v", unavailable("", err))
			}
		})
	}
}

// A database that takes no writes opens no terminal: a balancer that asks must hear of it.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p := open(t, PostgresConfig{URL: dsn + "&default_transaction_read_only=on"})
	_, redeemed := p.Redeem(t.Context(), claims("t", "ws-local"), session("s"))
	for _, err := range []error{redeemed, p.Ping(t.Context())} {
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "takes no writes") {
			t.Errorf("got %v", err)
		}
	}
}

// What a redemption may not do, makes the gateway unready: each of its rights, in turn, is taken away.
func TestPingNeedsWhatARedemptionNeeds(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	role := fmt.Sprintf("gateway_%d", time.Now().UnixNano())
	execSQL(t, dsn, `REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA termgw FROM PUBLIC; CREATE ROLE `+role+` LOGIN PASSWORD 's3cret'`)
	execSQL(t, dsn, documentedGrants(t, "gateway", role))
	t.Cleanup(func() {
		if _, err := db.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "s3cret")
	p := open(t, PostgresConfig{URL: u.String(), Limits: Limits{PerWorkspace: 5}})
	redeem := func(id string) error {
		_, err := p.Redeem(t.Context(), claims(id, "ws-local"), session(id))
		return err
	}
	if err := errors.Join(p.Ping(t.Context()), redeem("all")); err != nil {
		t.Fatal(err)
	}
	for i, right := range []string{
		"SELECT ON workspaces", "USAGE ON SCHEMA termgw", "INSERT ON termgw.spent_tickets", "UPDATE ON termgw.spent_tickets",
		"INSERT ON termgw.sessions", "SELECT ON termgw.revocations", "SELECT ON termgw.heartbeats",
		"EXECUTE ON FUNCTION termgw.over_limit", "EXECUTE ON FUNCTION termgw.normal_id",
	} {
		execSQL(t, dsn, `REVOKE `+right+` FROM `+role)
		redeemed, pinged := redeem(fmt.Sprint("t", i)), p.Ping(t.Context())
		for _, err := range []error{redeemed, pinged} {
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "lacks a right") {
				t.Errorf("without %s: %v", right, err)
			}
		}
		execSQL(t, dsn, `GRANT `+right+` TO `+role)
		if err := p.Ping(t.Context()); err != nil {
			t.Errorf("with %s again: %v", right, err)
		}
	}
}

// A table that is altered under prepared statements costs no answer: readiness's, nor a terminal's.
func TestAlteredWorkspaces(t *testing.T) {
	t.Parallel()
	dsn := database(t, `CREATE TABLE workspaces (id text PRIMARY KEY, name varchar(20), instance_id text);
		INSERT INTO workspaces VALUES ('ws-local', 'one', '')`)
	p := open(t, PostgresConfig{URL: dsn, MaxConns: 1, WorkspaceQuery: `SELECT * FROM workspaces WHERE id = $1`})
	for i, change := range []string{
		`ALTER TABLE termgw.sessions ALTER COLUMN replica TYPE varchar(300)`,
		`ALTER TABLE workspaces ALTER COLUMN name TYPE text`,
		`ALTER TABLE workspaces ADD COLUMN container text`,
		`ALTER TABLE workspaces DROP COLUMN container`,
		`ALTER TABLE workspaces ALTER COLUMN instance_id TYPE varchar(30), ADD COLUMN region text`,
	} {
		for n := range 2 {
			id := fmt.Sprint(i, n)
			if _, err := p.Redeem(t.Context(), claims(id, "ws-local"), session(id)); err != nil {
				t.Errorf("redeem after %d changes: %v", i, err)
			}
			if _, err := p.Sessions(t.Context(), SessionFilter{WorkspaceID: "ws-local"}); err != nil {
				t.Errorf("sessions after %d changes: %v", i, err)
			}
			if err := p.Ping(t.Context()); err != nil {
				t.Errorf("ping after %d changes: %v", i, err)
			}
		}
		execSQL(t, dsn, change)
	}
}

// Nor does a server that forgets them.
func TestForgottenStatements(t *testing.T) {
	t.Parallel()
	p := open(t, PostgresConfig{URL: database(t, textWorkspaces), MaxConns: 1})
	for i := range 3 {
		id := fmt.Sprint(i)
		if _, err := p.Redeem(t.Context(), claims(id, "ws-local"), session(id)); err != nil {
			t.Errorf("redeem: %v", err)
		}
		if err := p.Ping(t.Context()); err != nil {
			t.Errorf("ping: %v", err)
		}
		if err := p.one(t.Context(), `DEALLOCATE ALL`, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkRedeem(b *testing.B) {
	for _, limits := range []Limits{{}, {PerWorkspace: 1 << 20, PerSubject: 1 << 20}} {
		// Spread over workspaces and people as in life, or all in one.
		for _, spread := range []int64{1000, 1} {
			b.Run(fmt.Sprintf("limits=%v/spread=%d", limits != Limits{}, spread), func(b *testing.B) {
				p := open(b, PostgresConfig{
					URL: database(b, textWorkspaces), Limits: limits,
					WorkspaceQuery: `SELECT '' AS instance_id, $1::text AS name`,
				})
				var n atomic.Int64
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						i := n.Add(1)
						c := claims(fmt.Sprint(i), fmt.Sprint("ws-", i%spread))
						c.Subject = fmt.Sprint("p", i%spread)
						if _, err := p.Redeem(b.Context(), c, session(c.ID)); err != nil {
							b.Error(err)
							return
						}
						if err := p.Finish(b.Context(), c.ID, End{Reason: "exit"}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

// The audit trail has the kind of place by the columns that the row has, as Workspace.Attributes does.
func TestKindsAreNoted(t *testing.T) {
	t.Parallel()
	p := open(t, PostgresConfig{
		URL: database(t, `CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text, pod text);
			INSERT INTO workspaces VALUES ('both', '', 'i-1', 'p'), ('far', '', 'i-1', ''), ('long', '', NULL, repeat('x', 1025)), ('none', '', NULL, NULL)`),
		WorkspaceQuery: `SELECT * FROM workspaces WHERE id = $1`,
		Kinds:          []Kind{{"pod", "pod"}, {"remote", "instance_id"}, {"local", ""}},
	})
	for id, want := range map[string]string{"both": "pod", "far": "remote", "long": "local", "none": "local"} {
		if _, err := p.Redeem(t.Context(), claims("t-"+id, id), session("s-"+id)); err != nil {
			t.Fatal(err)
		}
		list, err := p.Sessions(t.Context(), SessionFilter{SessionID: "s-" + id})
		if err != nil || len(list) != 1 || list[0].Kind != want {
			t.Errorf("%s: %+v, %v, want %s", id, list, err, want)
		}
	}
}
