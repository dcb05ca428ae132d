package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// clock is a replica's own; the database has the real one.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// steadily has a replica's heartbeats succeed for so long.
func steadily(t *testing.T, p *Postgres, c *clock, replica string, d time.Duration) {
	t.Helper()
	for range int(d/(10*time.Second)) + 1 {
		if err := p.Heartbeat(t.Context(), replica, nil); err != nil {
			t.Fatal(err)
		}
		c.advance(10 * time.Second)
	}
	if err := p.Heartbeat(t.Context(), replica, nil); err != nil {
		t.Fatal(err)
	}
}

func openAll(t *testing.T, p *Postgres, replica string, cs ...ticket.Claims) {
	t.Helper()
	for _, c := range cs {
		if _, err := p.Redeem(t.Context(), c, Session{ID: c.ID, Replica: replica}); err != nil {
			t.Fatal(err)
		}
	}
}

func execSQL(t *testing.T, dsn, query string, args ...any) {
	t.Helper()
	if _, err := sqlDB(t, dsn).Exec(query, args...); err != nil {
		t.Fatal(err)
	}
}

// Three replicas, one database: what is at the limit is there for all of them.
func TestLimitsOverReplicas(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		limits  Limits
		subject func(i int) string
		want    int
	}{
		{Limits{PerWorkspace: 7}, func(i int) string { return fmt.Sprint("p", i) }, 7},
		{Limits{PerSubject: 9}, func(int) string { return "ann" }, 9},
		{Limits{PerWorkspace: 11, PerSubject: 3}, func(i int) string { return fmt.Sprint("p", i%3) }, 9},
	} {
		t.Run(fmt.Sprintf("%+v", tt.limits), func(t *testing.T) {
			dsn := database(t, textWorkspaces)
			var (
				wg    sync.WaitGroup
				won   atomic.Int64
				start = make(chan struct{})
			)
			for r := range 3 {
				p := open(t, PostgresConfig{URL: dsn, Limits: tt.limits})
				for i := range 70 {
					wg.Go(func() {
						<-start
						c := claims(fmt.Sprint("t", r, "-", i), "ws-local")
						c.Subject = tt.subject(i)
						switch _, err := p.Redeem(t.Context(), c, Session{ID: c.ID, Replica: fmt.Sprint("gw-", r)}); {
						case err == nil:
							won.Add(1)
						case !errors.Is(err, ErrLimit):
							t.Errorf("redeem: %v, want ErrLimit", err)
						}
					})
				}
			}
			close(start)
			wg.Wait()
			if n := count(t, sqlDB(t, dsn), "termgw.sessions"); won.Load() != int64(tt.want) || n != tt.want {
				t.Errorf("%d opened, %d rows, want %d", won.Load(), n, tt.want)
			}
		})
	}
}

// One ticket, shown to three replicas at once, with limits that make them wait for each other.
func TestOneTicketAtThreeReplicas(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	var (
		wg    sync.WaitGroup
		won   atomic.Int64
		start = make(chan struct{})
	)
	const tickets = 70
	for r := range 3 {
		p := open(t, PostgresConfig{URL: dsn, Limits: Limits{PerWorkspace: 1000, PerSubject: 1000}})
		for i := range tickets {
			wg.Go(func() {
				<-start
				c := claims(fmt.Sprint("t", i), "ws-local")
				switch _, err := p.Redeem(t.Context(), c, Session{ID: fmt.Sprint(c.ID, "-", r), Replica: fmt.Sprint("gw-", r)}); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, ErrUsed):
					t.Errorf("redeem: %v, want ErrUsed", err)
				}
			})
		}
	}
	close(start)
	wg.Wait()
	if won.Load() != tickets {
		t.Errorf("%d sessions of %d tickets", won.Load(), tickets)
	}
}

func TestDeadReplicaStopsCounting(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	var c clock
	config := PostgresConfig{URL: dsn, Limits: Limits{PerWorkspace: 2}, Now: c.now}
	dead, p := open(t, config), open(t, config)
	openAll(t, dead, "gw-dead", claims("d1", "ws-local"), claims("d2", "ws-local"))
	if _, err := dead.AcquireTunnel(t.Context(), "eice", "i-1", "gw-dead", 1); err != nil {
		t.Fatal(err)
	}
	n := 0
	refused := func(when string) {
		t.Helper()
		n++
		id := fmt.Sprint("t", n)
		if _, err := p.Redeem(t.Context(), claims(id, "ws-local"), session(id)); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: redeem: %v, want ErrLimit", when, err)
		}
		if _, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 1); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: tunnel: %v, want ErrLimit", when, err)
		}
	}
	steadily(t, p, &c, "gw-1", time.Minute)
	refused("while it lives")
	execSQL(t, dsn, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '31 seconds'`)
	execSQL(t, dsn, `UPDATE termgw.tunnels SET renewed_at = now() - interval '31 seconds'`)

	// Whoever was out of touch cannot tell the dead from those that were out of touch too.
	c.advance(31 * time.Second)
	refused("after a pause")
	if err := p.Heartbeat(t.Context(), "gw-1", nil); err != nil {
		t.Fatal(err)
	}
	refused("just back")
	steadily(t, p, &c, "gw-1", 30*time.Second)

	if _, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 1); err != nil {
		t.Errorf("a dead replica's tunnel counts: %v", err)
	}
	openAll(t, p, "gw-1", claims("l1", "ws-local"))

	// It was only paused. What it has counts again from its next heartbeat on, and nobody is cut for that.
	if err := dead.Heartbeat(t.Context(), "gw-dead", nil); err != nil {
		t.Fatal(err)
	}
	refused("back from a pause")
	if _, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 2); !errors.Is(err, ErrLimit) {
		t.Errorf("a third tunnel: %v, want ErrLimit of two", err)
	}
}

// Who died long ago stays dead, for one that has just started and for one that was out of touch; who was alive when that
// one lost touch counts, however long it lasted.
func TestLongDeadStaysDead(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	var c clock
	config := PostgresConfig{URL: dsn, Limits: Limits{PerWorkspace: 1}, Now: c.now}
	other := open(t, config)
	openAll(t, other, "gw-other", claims("o1", "ws-local"))
	if _, err := other.AcquireTunnel(t.Context(), "eice", "i-1", "gw-other", 1); err != nil {
		t.Fatal(err)
	}
	heard := func(ago time.Duration) {
		t.Helper()
		execSQL(t, dsn, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - make_interval(secs => $1)`, ago.Seconds())
		execSQL(t, dsn, `UPDATE termgw.tunnels SET renewed_at = now() - make_interval(secs => $1)`, ago.Seconds())
	}
	n := 0
	expect := func(p *Postgres, when string, counts bool) {
		t.Helper()
		n++
		id := fmt.Sprint("t", n)
		_, err := p.Redeem(t.Context(), claims(id, "ws-local"), session(id))
		if errors.Is(err, ErrLimit) != counts || err != nil && !counts {
			t.Errorf("%s: redeem: %v, want a refusal: %v", when, err, counts)
		}
		lease, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 1)
		if errors.Is(err, ErrLimit) != counts || err != nil && !counts {
			t.Errorf("%s: tunnel: %v, want a refusal: %v", when, err, counts)
		}
		if !counts {
			if err := errors.Join(p.Finish(t.Context(), id, End{Reason: "exit"}), p.ReleaseTunnel(t.Context(), lease)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := open(t, config)
	heard(10 * time.Hour)
	expect(p, "just started, dead for hours", false)
	heard(outageAtStart)
	expect(p, "just started, perhaps after an outage", true)

	// It began in an outage.
	c.advance(3 * time.Hour)
	heard(3*time.Hour + time.Minute)
	expect(p, "the outage lasted", true)

	steadily(t, p, &c, "gw-1", time.Minute)
	p.steady.note("", false, c.now())
	heard(25 * time.Second)
	expect(p, "a beat failed, and theirs may too", true)
	heard(10 * time.Minute)
	expect(p, "a beat failed, dead for minutes", false)

	c.advance(2 * time.Hour)
	heard(2*time.Hour + 15*time.Second)
	expect(p, "after an outage", true)
	heard(2*time.Hour + 10*time.Minute)
	expect(p, "dead before the outage", false)
	// In touch for a moment, and away again: not enough to be judged by.
	if err := p.Heartbeat(t.Context(), "gw-1", nil); err != nil {
		t.Fatal(err)
	}
	c.advance(time.Hour)
	heard(3*time.Hour + 15*time.Second)
	expect(p, "after two outages", true)
	steadily(t, p, &c, "gw-1", time.Minute)
	expect(p, "in touch, and it is silent", false)
}

func TestPausedReplicaComesBack(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	var c clock
	paused, p := open(t, PostgresConfig{URL: dsn, Now: c.now}), open(t, PostgresConfig{URL: dsn, Now: c.now})
	openAll(t, paused, "gw-paused", claims("remote", "ws-remote"), claims("remote2", "ws-remote"), claims("local", "ws-local"))
	state := func() map[string]string {
		t.Helper()
		rows, err := db.Query(`SELECT id, concat_ws(' ', COALESCE(end_reason, 'live'), ended_at >= last_seen_at, exit_code) FROM termgw.sessions`)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		all := map[string]string{}
		for rows.Next() {
			var id, s string
			if err := rows.Scan(&id, &s); err != nil {
				t.Fatal(err)
			}
			all[id] = s
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return all
	}
	expect := func(when string, want map[string]string) {
		t.Helper()
		if got := state(); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	closeAbandoned := func() {
		t.Helper()
		if err := p.CloseAbandoned(t.Context(), ReasonLost, time.Hour); err != nil {
			t.Error(err)
		}
	}
	execSQL(t, dsn, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - CASE id WHEN 'local' THEN interval '2 minutes' ELSE interval '2 hours' END`)
	closeAbandoned()
	expect("not in touch for long enough to tell", map[string]string{"remote": "live", "remote2": "live", "local": "live"})
	steadily(t, p, &c, "gw-1", time.Minute)
	closeAbandoned()
	expect("lost", map[string]string{"remote": "replica_lost t", "remote2": "replica_lost t", "local": "live"})
	// The local one is for who sweeps it.
	if err := p.Finish(t.Context(), "local", End{Reason: ReasonLost}); err != nil {
		t.Fatal(err)
	}
	expect("swept", map[string]string{"remote": "replica_lost t", "remote2": "replica_lost t", "local": "replica_lost t"})
	var silent bool // whoever finds a session lost has not seen it
	if err := db.QueryRow(`SELECT bool_and(last_seen_at <= ended_at - interval '1 minute') FROM termgw.sessions`).Scan(&silent); err != nil || !silent {
		t.Errorf("lost sessions were seen just now: %v", err)
	}

	code := 7
	if err := paused.Finish(t.Context(), "remote2", End{Reason: "exit", ExitCode: &code}); err != nil {
		t.Fatal(err)
	}
	if err := paused.Heartbeat(t.Context(), "gw-paused", nil); err != nil {
		t.Fatal(err)
	}
	expect("back", map[string]string{"remote": "live", "remote2": "exit t 7", "local": "live"})
	if err := p.Finish(t.Context(), "remote2", End{Reason: ReasonLost}); err != nil {
		t.Fatal(err)
	}
	expect("an end that is known", map[string]string{"remote": "live", "remote2": "exit t 7", "local": "live"})

	// Where nobody could sweep for a day, nobody will.
	execSQL(t, dsn, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '25 hours' WHERE id = 'local'`)
	closeAbandoned()
	expect("too old", map[string]string{"remote": "live", "remote2": "exit t 7", "local": "replica_lost t"})
}

// A redemption whose answer nobody heard has a row that nobody ends. It must not be kept live.
func TestHeartbeatNotesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p, other := open(t, PostgresConfig{URL: dsn}), open(t, PostgresConfig{URL: dsn})
	openAll(t, other, "gw-1", claims("orphan", "ws-local"))
	openAll(t, p, "gw-1", claims("mine", "ws-local"), claims("ended", "ws-local"))
	if err := p.Finish(t.Context(), "ended", End{Reason: "exit"}); err != nil {
		t.Fatal(err)
	}
	execSQL(t, dsn, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '1 hour'`)
	if err := p.Heartbeat(t.Context(), "gw-1", nil); err != nil {
		t.Fatal(err)
	}
	var noted string
	if err := db.QueryRow(`SELECT string_agg(id, ',') FROM termgw.sessions WHERE last_seen_at > now() - interval '30 minutes'`).Scan(&noted); err != nil || noted != "mine" {
		t.Errorf("noted as live: %s, %v, want mine", noted, err)
	}
}

// Sessions that end while the database is away: each end is written once it is back, with the time it happened.
func TestEndsWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	pg := testenv.StartPostgres(t)
	dsn := pg.NewDatabase(t)
	prepare(t, dsn, textWorkspaces)
	var c clock
	p := open(t, PostgresConfig{URL: dsn, Now: c.now})
	background(t, p.Run)
	const n = 50
	var cs []ticket.Claims
	for i := range n + 1 {
		cs = append(cs, claims(fmt.Sprint("s", i), "ws-local"))
	}
	openAll(t, p, "gw-1", cs...)
	if err := p.Finish(t.Context(), "s50", End{Reason: "exit"}); err != nil || p.Unwritten() != 0 {
		t.Fatal(err, p.Unwritten())
	}
	pg.Stop(t)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := p.Finish(t.Context(), fmt.Sprint("s", i), End{Reason: "idle_timeout", ExitCode: &i, BytesIn: 1, BytesOut: int64(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Repeated, by who did not hear: the first end is kept.
	if err := p.Finish(t.Context(), "s7", End{Reason: "exit"}); err != nil {
		t.Error(err)
	}
	if err := p.Finish(t.Context(), "another's", End{Reason: "exit"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("another's session: %v, want ErrUnavailable", err)
	}
	if got := p.Unwritten(); got != n {
		t.Errorf("%d ends are kept, want %d", got, n)
	}
	if err := p.Flush(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("flush: %v, want ErrUnavailable", err)
	}
	c.advance(time.Hour)
	pg.Start(t)
	until(t, func() bool { return p.Unwritten() == 0 })
	var rows, right int
	err := sqlDB(t, dsn).QueryRow(`SELECT count(*), count(*) FILTER (WHERE id = 's' || exit_code AND bytes_out = exit_code AND bytes_in = 1
		AND end_reason = 'idle_timeout' AND ended_at BETWEEN now() - interval '90 minutes' AND now() - interval '59 minutes'
		AND last_seen_at >= started_at)
		FROM termgw.sessions WHERE id <> 's50'`).Scan(&rows, &right)
	if err != nil || rows != n || right != n {
		t.Errorf("%d rows, %d of them right, %v, want %d", rows, right, err, n)
	}
}

// An end that the database does not take, by what it says or by a trigger of the operator's, holds up no other.
func TestEndsThatAreNotTaken(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p := open(t, PostgresConfig{URL: dsn})
	openAll(t, p, "gw-1", claims("s1", "ws-local"), claims("s2", "ws-local"), claims("s3", "ws-local"), claims("s4", "ws-local"))
	if _, err := db.Exec(`CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.id = 's3' OR NEW.exit_code = 77 THEN RAISE 'not this one'; END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER refuse BEFORE UPDATE ON termgw.sessions FOR EACH ROW EXECUTE FUNCTION public.refuse()`); err != nil {
		t.Fatal(err)
	}
	for id, code := range map[string]int{"s1": 1<<32 - 1, "s2": 77, "s3": 1, "s4": 4} {
		if err := p.Finish(t.Context(), id, End{Reason: "exit", ExitCode: &code, BytesOut: 9}); err != nil {
			t.Error(err)
		}
	}
	if err := p.Flush(t.Context()); err != nil || p.Unwritten() != 0 {
		t.Errorf("%v, %d wait", err, p.Unwritten())
	}
	var got string
	err := db.QueryRow(`SELECT string_agg(concat_ws(' ', id, end_reason, exit_code, bytes_out), ', ' ORDER BY id) FROM termgw.sessions`).Scan(&got)
	if want := "s1 exit 9, s2 exit 0, s3 0, s4 exit 4 9"; err != nil || got != want {
		t.Errorf("%q, want %q: %v", got, want, err)
	}
}

// An end that was written and whose answer was lost is written again, and stays as it was.
func TestEndWrittenTwice(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	proxy, through := startProxy(t, dsn)
	p := open(t, PostgresConfig{URL: through, MaxConns: 1})
	openAll(t, p, "gw-1", claims("s1", "ws-local"), claims("s2", "ws-local"))
	for i, id := range []string{"s1", "s2"} { // the first prepares the statement
		if i == 1 {
			proxy.cuts.Store(3) // as often as database/sql tries
		}
		if err := p.Finish(t.Context(), id, End{Reason: "exit", BytesOut: 9}); err != nil {
			t.Fatal(err)
		}
	}
	proxy.cuts.Store(0)
	if got := p.Unwritten(); got != 1 {
		t.Fatalf("%d ends are kept, want 1", got)
	}
	if err := p.Flush(t.Context()); err != nil || p.Unwritten() != 0 {
		t.Fatal(err, p.Unwritten())
	}
	list, err := p.Sessions(t.Context(), SessionFilter{SessionID: "s2", All: true})
	if err != nil || len(list) != 1 || list[0].Reason != "exit" || list[0].BytesOut != 9 || list[0].Ended.IsZero() || list[0].ExitCode != nil {
		t.Errorf("%+v, %v", list, err)
	}
}

// What cannot be recorded is not begun.
func TestTooManyEndsUnwritten(t *testing.T) {
	t.Parallel()
	p := open(t, PostgresConfig{URL: database(t, textWorkspaces)})
	openAll(t, p, "gw-1", claims("s", "ws-local"))
	for i := range maxUnwritten {
		p.outbox.add(fmt.Sprint("x", i), ended{End{Reason: "exit"}, p.now()})
	}
	if _, err := p.Redeem(t.Context(), claims("t", "ws-local"), session("t")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("redeem: %v, want ErrUnavailable", err)
	}
	if err := p.Finish(t.Context(), "s", End{Reason: "exit"}); err != nil || p.Unwritten() != maxUnwritten+1 {
		t.Errorf("finish: %v, %d are kept", err, p.Unwritten())
	}
	if err := p.Flush(t.Context()); err != nil || p.Unwritten() != 0 {
		t.Errorf("flush: %v, %d are kept", err, p.Unwritten())
	}
	if _, err := p.Redeem(t.Context(), claims("t", "ws-local"), session("t")); err != nil {
		t.Errorf("redeem: %v", err)
	}
}

func TestTunnelsOverReplicas(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	const limit = 20
	var (
		wg    sync.WaitGroup
		won   atomic.Int64
		start = make(chan struct{})
	)
	for r := range 3 {
		p := open(t, PostgresConfig{URL: dsn})
		for range 40 {
			wg.Go(func() {
				<-start
				switch _, err := p.AcquireTunnel(t.Context(), "eice", "i-1", fmt.Sprint("gw-", r), limit); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, ErrLimit):
					t.Errorf("acquire: %v, want ErrLimit", err)
				}
			})
		}
	}
	close(start)
	wg.Wait()
	if won.Load() != limit {
		t.Errorf("%d tunnels, want %d", won.Load(), limit)
	}
}

// A place that was taken, and whose answer was lost, is not taken again by the repeated statement.
func TestTunnelAnswerLost(t *testing.T) {
	t.Parallel()
	proxy, dsn := startProxy(t, database(t, textWorkspaces))
	p := open(t, PostgresConfig{URL: dsn, MaxConns: 1})
	lease, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.ReleaseTunnel(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	proxy.cuts.Store(1)
	if _, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 1); err != nil {
		t.Errorf("acquire: %v", err)
	}
	if proxy.cuts.Load() != 0 {
		t.Fatal("no answer was lost")
	}
	if _, err := p.AcquireTunnel(t.Context(), "eice", "i-1", "gw-1", 2); err != nil {
		t.Errorf("the place was taken twice: %v", err)
	}
}

func TestHostKeysOverReplicas(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	var (
		wg   sync.WaitGroup
		kept = make([]string, 60)
	)
	for r := range 3 {
		p := open(t, PostgresConfig{URL: dsn})
		for i := range 20 {
			wg.Go(func() {
				var err error
				if kept[20*r+i], err = p.KeepHostKey(t.Context(), "i-1", fmt.Sprint("ssh-ed25519 ", r, i)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(kept)
	if first, last := kept[0], kept[len(kept)-1]; first == "" || first != last {
		t.Errorf("kept %q and %q", first, last)
	}
}

// until waits for a condition that another process brings about.
func until(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("waited for a minute")
		}
		<-tick.C
	}
}
