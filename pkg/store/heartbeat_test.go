package store

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lib/pq"
)

// olderHeartbeat and olderAbandoned are the statements of gateways from before 0012_heartbeats.sql, which run beside newer ones
// during a rollout.
const (
	olderHeartbeat = `WITH s AS (
  UPDATE termgw.sessions SET last_seen_at = now(), ended_at = NULL, end_reason = NULL, waiting = id = ANY ($4), unreached = false
  WHERE id = ANY ($2) AND replica = $1 AND (ended_at IS NULL OR end_reason = 'replica_lost')
), t AS (
  UPDATE termgw.tunnels SET renewed_at = now() WHERE id = ANY ($3) AND replica = $1
)
SELECT ` + serverSQL
	olderAbandoned = `SELECT COALESCE(array_agg(id ORDER BY id), '{}') FROM termgw.sessions
WHERE ended_at IS NULL AND last_seen_at < now() - interval '1 minute'`
	olderUnreached = `UPDATE termgw.sessions SET unreached = true WHERE id = $1 AND ended_at IS NULL`
)

// noOldGateway dates the last heartbeat of an older gateway back.
func noOldGateway(t *testing.T, dsn string) {
	t.Helper()
	execSQL(t, dsn, `UPDATE termgw.heartbeats SET seen_at = now() - interval '1 hour' WHERE process = ''`)
}

func beats(t *testing.T, p *Postgres, replica string, waiting ...string) {
	t.Helper()
	if err := p.Heartbeat(t.Context(), replica, waiting); err != nil {
		t.Fatal(err)
	}
}

// versions are the rows of the live sessions, by where they are: each write of a row makes another.
func versions(t *testing.T, dsn string) (rows []string) {
	t.Helper()
	err := sqlDB(t, dsn).QueryRow(`SELECT array_agg(id || ' ' || ctid ORDER BY id) FROM termgw.sessions WHERE ended_at IS NULL`).Scan(pq.Array(&rows))
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// A heartbeat writes the row of its process, and that of a session only when there is something new of it.
func TestHeartbeatWritesNoSession(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	noOldGateway(t, dsn)
	p := open(t, PostgresConfig{URL: dsn})
	openAll(t, p, "gw-1", claims("a", "ws-local"), claims("b", "ws-local"))
	opened := versions(t, dsn)
	beats(t, p, "gw-1")
	noted := versions(t, dsn)
	if slices.Equal(noted, opened) {
		t.Error("the first heartbeat notes no session")
	}
	var first, last time.Time
	seen := func(at *time.Time) {
		t.Helper()
		if err := sqlDB(t, dsn).QueryRow(`SELECT seen_at FROM termgw.heartbeats WHERE replica = 'gw-1'`).Scan(at); err != nil {
			t.Fatal(err)
		}
	}
	seen(&first)
	beats(t, p, "gw-1")
	seen(&last)
	if again := versions(t, dsn); !slices.Equal(again, noted) || !last.After(first) {
		t.Errorf("the second heartbeat at %v after %v has %v of %v", last, first, again, noted)
	}
	beats(t, p, "gw-1", "b")
	waits := versions(t, dsn)
	if waits[0] != noted[0] || waits[1] == noted[1] {
		t.Errorf("when b waits: %v after %v", waits, noted)
	}
	beats(t, p, "gw-1", "b")
	if again := versions(t, dsn); !slices.Equal(again, waits) {
		t.Errorf("when b still waits: %v after %v", again, waits)
	}
}

// A session lives as long as its process beats, and no longer; what nobody has noted goes silent although its replica beats.
func TestSessionsLiveByTheHeartbeatOfTheirProcess(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	noOldGateway(t, dsn)
	var c clock
	p, other := open(t, PostgresConfig{URL: dsn, Now: c.now}), open(t, PostgresConfig{URL: dsn})
	openAll(t, other, "gw-2", claims("theirs", "ws-local"))
	beats(t, other, "gw-2")
	openAll(t, open(t, PostgresConfig{URL: dsn}), "gw-2", claims("unheard", "ws-local"))
	execSQL(t, dsn, `UPDATE termgw.sessions SET last_seen_at = now() - interval '1 hour'`)
	steadily(t, p, &c, "gw-1", time.Minute)
	expect := func(when string, live, abandoned []string) {
		t.Helper()
		var got []string
		list, err := p.Sessions(t.Context(), SessionFilter{})
		for _, s := range list {
			got = append(got, s.ID)
		}
		lost, lostErr := p.Abandoned(t.Context(), time.Minute, nil)
		var gone []string
		for _, a := range lost {
			gone = append(gone, a.SessionID)
		}
		slices.Sort(gone)
		if err := errors.Join(err, lostErr); err != nil || !slices.Equal(got, live) || !slices.Equal(gone, abandoned) {
			t.Errorf("%s: live are %v, abandoned %v, %v", when, got, gone, err)
		}
	}
	expect("while it beats", []string{"theirs"}, []string{"unheard"})
	execSQL(t, dsn, `UPDATE termgw.heartbeats SET seen_at = now() - interval '10 minutes' WHERE replica = 'gw-2'`)
	expect("when it beats no more", nil, []string{"theirs", "unheard"})
	if err := p.CloseAbandoned(t.Context(), ReasonLost, time.Minute); err != nil {
		t.Fatal(err)
	}
	var last bool
	if err := sqlDB(t, dsn).QueryRow(`SELECT now() - last_seen_at BETWEEN '9 minutes' AND '11 minutes' FROM termgw.sessions WHERE id = 'theirs'`).Scan(&last); err != nil || !last {
		t.Errorf("the row does not keep the last heartbeat: %v", err)
	}
	expect("when it is closed", nil, nil)
	beats(t, other, "gw-2") // it was only paused
	expect("when it beats again", []string{"theirs"}, nil)
}

// Old and new gateways side by side: as soon as an older one runs, it sees the sessions of newer ones as live; and newer ones see its own.
func TestRolloutFromHeartbeatsOfSessions(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	var c clock
	p := open(t, PostgresConfig{URL: dsn, Now: c.now, Limits: Limits{PerWorkspace: 2}})
	older := func(sessions ...string) {
		t.Helper()
		if _, err := db.Exec(olderHeartbeat, "gw-old", pq.Array(sessions), pq.Array([]string{}), pq.Array([]string{})); err != nil {
			t.Fatal(err)
		}
	}
	abandoned := func(when string, want ...string) {
		t.Helper()
		var ids []string
		if err := db.QueryRow(olderAbandoned).Scan(pq.Array(&ids)); err != nil || !slices.Equal(ids, want) {
			t.Errorf("%s an older gateway would end %v, want %v: %v", when, ids, want, err)
		}
	}
	ages := func() { execSQL(t, dsn, `UPDATE termgw.sessions SET last_seen_at = now() - interval '2 minutes'`) }
	openAll(t, p, "gw-1", claims("new", "ws-local"))
	beats(t, p, "gw-1")
	ages()
	beats(t, p, "gw-1")
	abandoned("right after the migration")

	noOldGateway(t, dsn)
	ages()
	beats(t, p, "gw-1")
	abandoned("when none runs any more,", "new")
	older() // one starts, without a session
	beats(t, p, "gw-1")
	abandoned("at the next heartbeat of the newer one")

	// Limits count the sessions of both.
	execSQL(t, dsn, `INSERT INTO termgw.sessions AS s (id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr)
		VALUES ('old', 'ws-local', 'ann', 'i', 'j', 'rw', '', 'gw-old', 'c')`)
	opens := func(when, id string, want error) {
		t.Helper()
		if _, err := p.Redeem(t.Context(), claims(id, "ws-local"), Session{ID: id, Replica: "gw-1"}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", when, err, want)
		}
	}
	opens("one of each", "t1", ErrLimit)
	// An older gateway could not reach the newer one.
	if _, err := db.Exec(olderUnreached, "new"); err != nil {
		t.Fatal(err)
	}
	opens("one was not reached", "t2", nil)
	beats(t, p, "gw-1")
	opens("it beats again", "t3", ErrLimit)

	// The older one is killed: its session goes silent.
	ages()
	older("old")
	steadily(t, p, &c, "gw-1", time.Minute)
	if list, err := p.Abandoned(t.Context(), time.Minute, nil); err != nil || len(list) != 0 {
		t.Errorf("abandoned while it beats: %v, %v", list, err)
	}
	execSQL(t, dsn, `UPDATE termgw.sessions SET last_seen_at = now() - interval '2 minutes' WHERE id = 'old'`)
	if list, err := p.Abandoned(t.Context(), time.Minute, nil); err != nil || len(list) != 1 || list[0].SessionID != "old" {
		t.Errorf("abandoned when it is gone: %v, %v", list, err)
	}
}

// A server that has taken over may lack what another was told.
func TestHeartbeatTellsANewServerOfAllSessions(t *testing.T) {
	t.Parallel()
	s := newPair(t)
	p := open(t, PostgresConfig{URL: s.proxyDSN, Timeout: 5 * time.Second})
	noOldGateway(t, s.proxyDSN)
	openAll(t, p, "gw-1", claims("a", "ws-local"))
	beats(t, p, "gw-1")
	s.caughtUp()
	s.unplug()
	s.primary.Stop(t)
	s.standby.Promote(t)
	s.proxy.lead(s.atStandby)
	execSQL(t, s.atStandby, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '4 minutes'`)
	execSQL(t, s.atStandby, `DELETE FROM termgw.heartbeats WHERE process <> ''`)
	var err error
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if err = p.Heartbeat(t.Context(), "gw-1", nil); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("waited %v for a heartbeat at the promoted standby: %v", patience, err)
	}
	var live int
	if err := sqlDB(t, s.atStandby).QueryRow(`SELECT count(*) FROM termgw.sessions s JOIN termgw.heartbeats h USING (process)
		WHERE s.last_seen_at > now() - interval '1 minute'`).Scan(&live); err != nil || live != 1 {
		t.Error(fmt.Errorf("%d sessions are noted there, %w", live, err))
	}
}

// Connections that only a burst has needed are given back.
func TestIdleConnectionsAreGivenBack(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p := open(t, PostgresConfig{URL: dsn, MaxConns: 8})
	done := make(chan error, 8)
	for range 8 {
		go func() { done <- p.one(t.Context(), `SELECT pg_sleep(0.2)`, nil) }()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if n := p.PoolStats().Open; n < 2 {
		t.Fatalf("a burst has used %d connections", n)
	}
	for until := time.Now().Add(patience); p.PoolStats().Open > 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited %v for idle connections to be given back, %d are open", patience, p.PoolStats().Open)
		}
		beats(t, p, "gw-1")
	}
}
