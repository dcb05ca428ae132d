package store

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// A role that may connect, and no more, holds every advisory lock whose key gateways ever used. Nobody waits for it: not a
// redemption under limits, a tunnel, the purge, a migration.
func TestStrangersLocks(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	stranger := sqlDB(t, platformRole(t, dsn))
	stranger.SetMaxOpenConns(1)
	conn, err := stranger.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, lock := range []string{
		`SELECT pg_advisory_lock(1952937843, hashtext('ws-local')), pg_advisory_lock(1952936821, hashtext('ann'))`,
		`SELECT pg_advisory_lock(1952937077, hashtext('eice'))`,
		`SELECT pg_advisory_lock(x'7465726d67770001'::bigint), pg_advisory_lock(x'7465726d67770002'::bigint)`,
	} {
		if _, err := conn.ExecContext(t.Context(), lock); err != nil {
			t.Fatal(err)
		}
	}
	for _, lock := range []string{
		`SELECT FROM termgw.locks FOR UPDATE`, `SELECT FROM termgw.locks FOR KEY SHARE`, `LOCK TABLE termgw.locks IN ACCESS SHARE MODE`,
		`SELECT termgw.lock_slots('workspace ws-local')`, `SELECT termgw.over_limit('s', 'ws-local', 'ann', 1, 1, 30)`,
	} {
		if _, err := conn.ExecContext(t.Context(), lock); err == nil {
			t.Errorf("a stranger may %s", lock)
		}
	}
	const waits = 20 * time.Second // a redemption that waits for the stranger fails after this
	for _, limits := range []Limits{{PerWorkspace: 2}, {PerSubject: 2}, {PerWorkspace: 2, PerSubject: 2}} {
		p := open(t, PostgresConfig{URL: dsn, Limits: limits, Timeout: waits})
		id := fmt.Sprintf("%+v", limits)
		if err := as("ann", id).redeem(t.Context(), p); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if err := p.Finish(t.Context(), id, End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
	}
	p := open(t, PostgresConfig{URL: dsn, Timeout: waits})
	if _, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 1); err != nil {
		t.Error(err)
	}
	execSQL(t, dsn, `INSERT INTO termgw.spent_tickets VALUES ('i', 'old', 'a', now() - interval '1 day')`)
	if err := p.Purge(t.Context()); err != nil {
		t.Error(err)
	}
	var old int
	if err := sqlDB(t, dsn).QueryRow(`SELECT count(*) FROM termgw.spent_tickets WHERE jti = 'old'`).Scan(&old); err != nil || old != 0 {
		t.Errorf("%d old tickets after a purge, %v", old, err)
	}
	execSQL(t, dsn, `DROP SCHEMA termgw CASCADE`)
	applied, err := Migrate(t.Context(), dsn, nil)
	if err != nil || len(applied) == 0 {
		t.Errorf("migrated %v, %v", applied, err)
	}
}

// Limits of workspaces and of persons cross: whoever waits for one waits in the same order as the others, so that nobody is
// refused by a deadlock. The table of locks does not grow.
func TestLocksAreOrdered(t *testing.T) {
	t.Parallel()
	const names = 12
	dsn := database(t, textWorkspaces+`; INSERT INTO workspaces SELECT 'w' || n, 'w', '' FROM generate_series(0, 11) n`)
	p := open(t, PostgresConfig{URL: dsn, MaxConns: 20, Limits: Limits{PerWorkspace: 10000, PerSubject: 10000}})
	size := func() (n int64) {
		if err := sqlDB(t, dsn).QueryRow(`SELECT pg_relation_size('termgw.locks')`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := size()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for j := range 20 {
				c := claims(fmt.Sprint(i, "-", j), fmt.Sprint("w", (i+j)%names))
				c.Subject = fmt.Sprint("w", (i*7+j*5)%names)
				if _, err := p.Redeem(t.Context(), c, session(c.ID)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if after := size(); after != before {
		t.Errorf("the table of locks had %d bytes and has %d", before, after)
	}
}

// One row whose times make no sense, from before there were bounds, does not keep the sessions of dead gateways from being
// closed, nor a replica's own from being noted as live, nor its end from being written; and it ages like the others.
func TestBadRowStopsNoClosing(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p := open(t, PostgresConfig{URL: dsn})
	var c clock
	p.now = c.now
	steadily(t, p, &c, "gw-1", time.Minute)
	const insert = `INSERT INTO termgw.sessions (id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr, started_at, last_seen_at)
		VALUES ($1, 'w', 's', 'i', 'j', 'rw', '', 'gw-dead', 'c', $2, $3)`
	hourAgo := time.Now().Add(-time.Hour).Format(time.RFC3339)
	ids := []string{"lost"}
	var constraint string
	if err := db.QueryRow(`SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'sessions_times_are_in_1970_to_9999'`).Scan(&constraint); err != nil {
		t.Fatal(err)
	}
	execSQL(t, dsn, `ALTER TABLE termgw.sessions DROP CONSTRAINT sessions_times_are_in_1970_to_9999`)
	execSQL(t, dsn, insert, "lost", hourAgo, hourAgo)
	for i, at := range oddTimes {
		execSQL(t, dsn, insert, fmt.Sprint("seen-", i), hourAgo, at)
		execSQL(t, dsn, insert, fmt.Sprint("started-", i), at, hourAgo)
		execSQL(t, dsn, insert, fmt.Sprint("own-", i), at, at)
		execSQL(t, dsn, insert, fmt.Sprint("ends-", i), at, at)
		ids = append(ids, fmt.Sprint("seen-", i), fmt.Sprint("started-", i))
	}
	execSQL(t, dsn, `ALTER TABLE termgw.sessions ADD CONSTRAINT sessions_times_are_in_1970_to_9999 `+constraint)

	for i := range oddTimes {
		for _, id := range []string{fmt.Sprint("own-", i), fmt.Sprint("ends-", i)} {
			e := p.sessions.begin(claims("t", "w"), Session{ID: id, Replica: "gw-dead"}, time.Now())
			p.sessions.open(e, time.Now())
		}
		if err := p.Finish(t.Context(), fmt.Sprint("ends-", i), End{Reason: "exit"}); err != nil {
			t.Error(err)
		}
	}
	if n := p.outbox.size(); n != 0 {
		t.Errorf("%d ends were not written", n)
	}
	if err := p.Heartbeat(t.Context(), "gw-dead", nil); err != nil {
		t.Error(err)
	}
	if err := p.CloseAbandoned(t.Context(), ReasonLost, time.Minute); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(`SELECT id FROM termgw.sessions WHERE end_reason = $1
		AND greatest(started_at, last_seen_at, ended_at) <= now() AND least(started_at, last_seen_at) >= '1970-01-01Z' ORDER BY id`, ReasonLost)
	if err != nil {
		t.Fatal(err)
	}
	var closed []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		closed = append(closed, id)
	}
	slices.Sort(ids)
	slices.Sort(closed)
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || !slices.Equal(closed, ids) {
		t.Errorf("closed as lost, with times that can be: %v, want %v, %v", closed, ids, err)
	}
}
