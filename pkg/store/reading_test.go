package store

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

// Orders by workspace, of which each has to be looked up with a query that takes its time, delay neither the orders after
// them nor readiness, and take one connection at most.
func TestLookupsDelayNoOrder(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	var c clock
	p := open(t, PostgresConfig{
		URL: dsn, Now: c.now, MaxConns: 2,
		WorkspaceQuery: `SELECT w.* FROM (SELECT pg_sleep(CASE WHEN $1::text LIKE 'w%-' THEN 0.2 ELSE 0 END)) z LEFT JOIN workspaces w ON w.id = $1 WHERE w.id IS NOT NULL`,
	})
	cuts := watch(t, p)
	until(t, func() bool { return p.Reading() == nil })
	execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id) SELECT 'w' || n || '-' FROM generate_series(1, 3000) n`)
	for i := range 5 { // the lookups take ten minutes
		who := fmt.Sprint("p", i)
		if err := as(who, "s-"+who).redeem(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ($1)`, who)
		if got := <-cuts; !slices.Equal(got.sessions, []string{"s-" + who}) {
			t.Errorf("cut %v", got.sessions)
		}
		c.advance(watchStale) // the orders are read at this time, too
		execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('nobody')`)
		until(t, func() bool { return p.Reading() == nil })
	}
	// The connections that do anything else come and go.
	var lookups int
	err := sqlDB(t, dsn).QueryRow(`SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND state = 'active' AND query LIKE '%pg_sleep(CASE%' AND pid <> pg_backend_pid()`).Scan(&lookups)
	if err != nil || lookups > 1 {
		t.Errorf("%d lookups at once, %v", lookups, err)
	}
}

// What waits to be looked up is bounded in memory, and nothing of it is lost.
func TestLookupsAreBounded(t *testing.T) {
	t.Parallel()
	const orders = 3*lookupsKept + 17
	dsn := database(t, `CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text); INSERT INTO workspaces VALUES ('Ab', '', '')`)
	p := open(t, PostgresConfig{URL: dsn, WorkspaceQuery: `SELECT * FROM workspaces WHERE lower(id) = lower($1)`})
	execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id, subject, reason) SELECT 'aB', 's' || n, repeat('r', 4096) FROM generate_series(1, $1) n`, orders)
	s := newLookups(p)
	r := orderReader{Postgres: p, spellings: s, last: nothing}
	if err := r.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.next) != lookupsKept || s.low == 0 || s.high < s.low {
		t.Fatalf("%d are kept, and from %d to %d in the table", len(s.next), s.low, s.high)
	}
	background(t, func(ctx context.Context) error { s.run(ctx); return nil })
	db := sqlDB(t, dsn)
	until(t, func() bool {
		var n int
		if err := db.QueryRow(`SELECT count(*) FROM termgw.revocations WHERE row_id = 'Ab'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == orders
	})
}

// While a transaction stays open, whoever began it, an order is read once and not at each poll; one that becomes visible late
// is read all the same, and so is one of a server whose transaction ids begin anew.
func TestOrdersAreReadOnce(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p := open(t, PostgresConfig{URL: dsn})
	slow, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Exec(`INSERT INTO termgw.revocations (workspace_id) VALUES ('slow')`); err != nil {
		t.Fatal(err)
	}
	execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id) SELECT 'w' || n FROM generate_series(1, 2500) n`)
	r := orderReader{Postgres: p, spellings: newLookups(p), last: nothing}
	read := func(want int) {
		t.Helper()
		r.spellings = newLookups(p)
		if err := r.read(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := r.spellings
		if got := len(s.next) + s.spilled; got != want {
			t.Errorf("%d orders were read, want %d", got, want)
		}
	}
	read(2500)
	read(0)
	execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id) VALUES ('new')`)
	read(1)
	if err := slow.Commit(); err != nil {
		t.Fatal(err)
	}
	read(1)
	read(0)
	r.server = "another"
	read(2502)
	r.last = "9000000:9000000:"
	read(2502)
	read(0)
}

// A new order does not wait behind all that are read when it comes, nor does a read that failed begin anew.
func TestNewOrdersComeFirst(t *testing.T) {
	t.Parallel()
	const old = 10 * ordersPage
	dsn := database(t, textWorkspaces)
	p := open(t, PostgresConfig{URL: dsn})
	for _, who := range []string{"old", "new"} {
		if err := as(who, who).redeem(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('old')`)
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) SELECT 's' || n FROM generate_series(1, $1) n`, old)
	var cut []string
	ctx, cancel := context.WithCancel(t.Context())
	r := orderReader{Postgres: p, spellings: newLookups(p), last: nothing, cut: func(_ Revocation, s []string) { cut = append(cut, s...) }}
	if err := r.look(ctx); err != nil {
		t.Fatal(err)
	}
	if done, err := r.readPage(ctx, &r.spans[0]); done || err != nil {
		t.Fatal(done, err)
	}
	cancel()
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('new')`)
	if err := r.read(ctx); err == nil {
		t.Fatal("read with a context that is done")
	}
	at := r.spans[0].id
	if err := r.read(ctx); err == nil || r.spans[0].id != at || !r.spans[0].begun {
		t.Errorf("after a read that failed at %d the next is at %d: %v", at, r.spans[0].id, err)
	}
	began := time.Now()
	if err := r.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d orders in %s", old, time.Since(began))
	if !slices.Equal(cut, []string{"new", "old"}) {
		t.Errorf("cut %v", cut)
	}
}
