package store

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/testenv"
)

// pair is a primary with a database, a standby that follows it, and a proxy that leads to one of them.
type pair struct {
	t                        *testing.T
	primary, standby         *testenv.Postgres
	proxy                    *proxy
	dsn, atStandby, proxyDSN string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, primary: testenv.StartPostgres(t)}
	p.dsn = p.primary.NewDatabase(t)
	prepare(t, p.dsn, textWorkspaces)
	p.standby = p.primary.StartStandby(t)
	p.atStandby = at(t, p.dsn, p.standby)
	p.proxy, p.proxyDSN = startProxy(t, p.dsn)
	return p
}

// at returns the URL of a database at another server.
func at(t *testing.T, dsn string, pg *testenv.Postgres) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	other, err := url.Parse(pg.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = other.Host
	return u.String()
}

// caughtUp waits until the standby has what the primary has.
func (p *pair) caughtUp() {
	p.t.Helper()
	var written string
	if err := sqlDB(p.t, p.dsn).QueryRow(`SELECT pg_current_wal_insert_lsn()`).Scan(&written); err != nil {
		p.t.Fatal(err)
	}
	standby := sqlDB(p.t, p.atStandby)
	until(p.t, func() bool {
		var there bool
		return standby.QueryRow(`SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, written).Scan(&there) == nil && there
	})
}

// unplug has the standby receive nothing any more.
func (p *pair) unplug() {
	p.t.Helper()
	execSQL(p.t, p.atStandby, `ALTER SYSTEM SET primary_conninfo = ''`)
	execSQL(p.t, p.atStandby, `SELECT pg_reload_conf()`)
	standby := sqlDB(p.t, p.atStandby)
	until(p.t, func() bool {
		var receivers int
		return standby.QueryRow(`SELECT count(*) FROM pg_stat_wal_receiver`).Scan(&receivers) == nil && receivers == 0
	})
}

// use uses up so many transaction ids.
func use(t *testing.T, dsn string, n int) {
	t.Helper()
	db := sqlDB(t, dsn)
	db.SetMaxOpenConns(1)
	for range n {
		if _, err := db.Exec(`SELECT pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
	}
}

// readAgain waits until Watch has read the orders once more.
func readAgain(t *testing.T, p *Postgres) {
	t.Helper()
	last := func() time.Time {
		p.watch.mu.Lock()
		defer p.watch.mu.Unlock()
		return p.watch.read
	}
	before := last()
	until(t, func() bool { return last().After(before) })
}

// A standby that was behind takes over, and gives out again the transaction ids that the old primary had given out. An order
// that is written there is followed, however many transactions come before the gateway does.
func TestOrderAfterFailover(t *testing.T) {
	t.Parallel()
	s := newPair(t)
	p, cuts := watchingEvery(t, 20*time.Millisecond, PostgresConfig{URL: s.proxyDSN, Timeout: 5 * time.Second})
	for _, who := range []string{"ann", "bob"} {
		if err := as(who, who).redeem(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	s.caughtUp()
	s.unplug()
	use(t, s.dsn, 300)
	readAgain(t, p)
	s.proxy.lead("postgres://127.0.0.1:1/none")
	s.primary.Stop(t)
	s.standby.Promote(t)
	execSQL(t, s.atStandby, `INSERT INTO termgw.revocations (subject) VALUES ('ann')`)
	use(t, s.atStandby, 400)
	s.proxy.lead(s.atStandby)
	wantCut(t, cuts, "ann")
	until(t, func() bool { return p.Watching() == nil })
	execSQL(t, s.atStandby, `INSERT INTO termgw.revocations (subject) VALUES ('bob')`)
	wantCut(t, cuts, "bob")
}

// So it is where a server comes back from a crash without the last transactions, which nobody was promised.
func TestOrderAfterCrash(t *testing.T) {
	t.Parallel()
	pg := testenv.StartPostgres(t) // with synchronous_commit=off
	execSQL(t, pg.URL, `ALTER SYSTEM SET wal_writer_delay = '10s'`)
	execSQL(t, pg.URL, `SELECT pg_reload_conf()`)
	dsn := pg.NewDatabase(t)
	prepare(t, dsn, textWorkspaces)
	proxy, proxyDSN := startProxy(t, dsn)
	p, cuts := watchingEvery(t, 20*time.Millisecond, PostgresConfig{URL: proxyDSN, Timeout: 5 * time.Second})
	if err := as("ann", "ann").redeem(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	execSQL(t, pg.URL, `CHECKPOINT`)
	var before, after uint64
	db := sqlDB(t, dsn)
	xid := func(of *uint64) {
		if err := db.QueryRow(`SELECT pg_snapshot_xmax(pg_current_snapshot())::text`).Scan(of); err != nil {
			t.Fatal(err)
		}
	}
	use(t, dsn, 300)
	readAgain(t, p)
	xid(&before)
	proxy.lead("postgres://127.0.0.1:1/none")
	pg.Crash(t)
	until(t, func() bool { return db.Ping() == nil })
	if xid(&after); after >= before {
		t.Fatalf("no transaction was lost: the next is %d, and was %d", after, before)
	}
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject) VALUES ('ann')`)
	use(t, dsn, 400)
	proxy.lead(dsn)
	wantCut(t, cuts, "ann")
}

// A standby does not know which transactions run. Where the orders are read at one, for a while, none is passed over.
func TestOrderReadAtAStandby(t *testing.T) {
	t.Parallel()
	s := newPair(t)
	p, cuts := watchingEvery(t, 20*time.Millisecond, PostgresConfig{URL: s.proxyDSN, Timeout: 5 * time.Second})
	if err := as("ann", "ann").redeem(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	slow, err := sqlDB(t, s.dsn).Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Exec(`INSERT INTO termgw.revocations (subject) VALUES ('ann')`); err != nil {
		t.Fatal(err)
	}
	execSQL(t, s.dsn, `INSERT INTO termgw.revocations (subject) VALUES ('nobody')`)
	s.caughtUp()
	s.proxy.lead(s.atStandby)
	readAgain(t, p)
	readAgain(t, p)
	if err := slow.Commit(); err != nil {
		t.Fatal(err)
	}
	wantCut(t, cuts, "ann")
}

// A server that takes no writes does not stay in the pool, nor does the one that listens stay with it, once another takes them.
func TestReadOnlyServerIsLeft(t *testing.T) {
	t.Parallel()
	s := newPair(t)
	s.proxy.lead(s.atStandby)
	p := open(t, PostgresConfig{URL: s.proxyDSN, Timeout: 5 * time.Second})
	watch(t, p)
	if err := p.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "takes no writes") {
		t.Fatalf("ping at a standby: %v", err)
	}
	for range 5 { // several connections
		_, _ = p.Redeem(t.Context(), claims("t", "ws-local"), session("s"))
	}
	until(t, func() bool { return p.Reading() == nil })
	s.proxy.leadNew(s.dsn) // what is connected stays so
	if err := p.Ping(t.Context()); err != nil {
		// The connection that was found read-only by the last call is gone; this call may have found another.
		if err = p.Ping(t.Context()); err != nil {
			t.Errorf("ping at the primary: %v", err)
		}
	}
	if _, err := p.Redeem(t.Context(), claims("t", "ws-local"), session("s")); err != nil {
		t.Errorf("redeem at the primary: %v", err)
	}
	until(t, func() bool { return p.Watching() == nil })
}

// After a failover to a standby that was minutes behind, others' sessions look silent until their next heartbeats: they count, and
// nobody ends them.
func TestSilenceAfterFailover(t *testing.T) {
	t.Parallel()
	s := newPair(t)
	var c clock
	config := PostgresConfig{URL: s.proxyDSN, Limits: Limits{PerWorkspace: 1}, Now: c.now, Timeout: 5 * time.Second}
	other, p := open(t, config), open(t, config)
	openAll(t, other, "gw-other", claims("theirs", "ws-local"))
	if _, err := other.AcquireTunnel(t.Context(), "eice", "i-1", "gw-other", 1); err != nil {
		t.Fatal(err)
	}
	steadily(t, p, &c, "gw-1", time.Minute)
	s.caughtUp()
	s.unplug()
	s.primary.Stop(t)
	s.standby.Promote(t)
	s.proxy.lead(s.atStandby)
	// The last heartbeat that arrived there.
	execSQL(t, s.atStandby, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '4 minutes'`)
	execSQL(t, s.atStandby, `UPDATE termgw.tunnels SET renewed_at = now() - interval '4 minutes'`)
	n := 0
	expect := func(when string, want error) {
		t.Helper()
		n++
		id := fmt.Sprint("t", n)
		if _, err := p.Redeem(t.Context(), claims(id, "ws-local"), session(id)); !errors.Is(err, want) {
			t.Errorf("%s: redeem: %v, want %v", when, err, want)
		}
		if _, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 1); !errors.Is(err, want) {
			t.Errorf("%s: tunnel: %v, want %v", when, err, want)
		}
		list, err := p.Abandoned(t.Context(), time.Minute, nil)
		if ids := func() (ids []string) {
			for _, a := range list {
				ids = append(ids, a.SessionID)
			}
			return ids
		}(); err != nil || slices.Contains(ids, "theirs") != (want == nil) {
			t.Errorf("%s: %v count as abandoned: %v", when, ids, err)
		}
	}
	expect("before the first heartbeat", ErrLimit)
	if err := p.CloseAbandoned(t.Context(), ReasonLost, time.Minute); err != nil {
		t.Fatal(err)
	}
	expect("when what is abandoned was to be closed", ErrLimit)
	if err := p.Heartbeat(t.Context(), "gw-1", nil); err != nil {
		t.Fatal(err)
	}
	expect("after it", ErrLimit)
	steadily(t, p, &c, "gw-1", 10*time.Second)
	expect("soon after it", ErrLimit)
	steadily(t, p, &c, "gw-1", time.Minute)
	expect("when they had the time to beat", nil)
}

// A clock that is ahead, of a server that took over say, deletes nothing that the gateway's own says is not old.
func TestPurgeWithAWrongClock(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p := open(t, PostgresConfig{URL: dsn, Retention: 90 * 24 * time.Hour, Now: func() time.Time { return time.Now().Add(-100 * 24 * time.Hour) }}) // the database's is ahead by that
	for _, fill := range []string{
		`INSERT INTO termgw.spent_tickets VALUES ('i', 'j', 'a', now() - interval '99 days')`,
		`INSERT INTO termgw.sessions SELECT 's', '', '', '', '', '', '', '', '', now() - interval '99 days'`,
		`INSERT INTO termgw.revocations (subject, created_at) VALUES ('ann', now() - interval '99 days')`,
	} {
		execSQL(t, dsn, fill)
	}
	if err := p.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	db := sqlDB(t, dsn)
	for _, table := range []string{"termgw.spent_tickets", "termgw.sessions", "termgw.revocations"} {
		if n := count(t, db, table); n != 1 {
			t.Errorf("%s has %d rows", table, n)
		}
	}
}

// Of several hosts the first hangs: the next is reached within the time of one call.
func TestSeveralHosts(t *testing.T) {
	t.Parallel()
	s := newPair(t)
	hanging, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hanging.Close() })
	primary, err := url.Parse(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	standby, err := url.Parse(s.atStandby)
	if err != nil {
		t.Fatal(err)
	}
	several := *primary
	several.Host = ""
	for name, hosts := range map[string][]string{
		"the first hangs":               {hanging.Addr().String(), primary.Host},
		"the first refuses":             {"127.0.0.1:1", primary.Host},
		"the first is a standby":        {standby.Host, primary.Host},
		"two hang, one is a standby":    {hanging.Addr().String(), hanging.Addr().String(), standby.Host, primary.Host},
		"the first is there, one hangs": {primary.Host, hanging.Addr().String()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// As psql takes it.
			dsn := strings.Replace(several.String(), "@/", "@"+strings.Join(hosts, ",")+"/", 1) + "&target_session_attrs=read-write"
			p := open(t, PostgresConfig{URL: dsn, Timeout: 10 * time.Second})
			until(t, func() bool { return p.Ping(t.Context()) == nil })
			if _, err := p.Redeem(t.Context(), claims(name, "ws-local"), session(name)); err != nil {
				t.Error(err)
			}
			watch(t, p)
			until(t, func() bool { return p.Reading() == nil && p.Watching() == nil })
		})
	}
}

func TestHostsOfAURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://u:p@h1:1,h2:2/db?sslmode=disable": "h1:1 h2:2",
		"postgresql://u:p@h1,h2:2/db":                 "h1:5432 h2:2",
		"postgres://u:p@h1,h2,h3":                     "h1:5432 h2:5432 h3:5432",
		"postgres://u:p@[::1]:1,[fe80::2]/db":         "::1:1 fe80::2:5432",
		"postgres://u:p%2C%40@h1:1,h2:2/db":           "h1:1 h2:2",
		"postgres://h1:1,h2:2/db":                     "h1:1 h2:2",
		"postgres://%2Frun%2Fpg:1/db":                 "/run/pg:1",
		"postgres://u:p@/db?host=h1,h2&port=1,2":      "h1:1 h2:2",
		"host=h1,h2 port=1,2 user=u":                  "h1:1 h2:2",
	} {
		_, cfg, err := parseURL(url)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		got := []string{fmt.Sprintf("%s:%d", cfg.Host, cfg.Port)}
		for _, h := range cfg.Multi {
			got = append(got, fmt.Sprintf("%s:%d", h.Host, h.Port))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %s", url, got, want)
		}
	}
	for _, url := range []string{"postgres://u:s3cret@h1:x,h2:2/db", "postgres://u:s3%zzcret@h1,h2/db", "postgres://u:s3/cret@h1,h2/db", "postgres://u:s3,cret/x@h1/db", "postgres://u:3,cret/x@h1,h2/db"} {
		if _, _, err := parseURL(url); err == nil || strings.Contains(err.Error(), "cret") {
			t.Errorf("%s: %v", url, err)
		}
	}
}
