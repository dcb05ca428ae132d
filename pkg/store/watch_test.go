package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// watching opens a store whose Watch listens.
func watching(t *testing.T, c PostgresConfig) (*Postgres, <-chan cutting) {
	t.Helper()
	return watchingEvery(t, watchPoll, c)
}

// watchingEvery is watching with another time between two reads that nobody notified of.
func watchingEvery(t *testing.T, poll time.Duration, c PostgresConfig) (*Postgres, <-chan cutting) {
	t.Helper()
	p := open(t, c)
	p.poll = poll
	cuts := watch(t, p)
	until(t, func() bool { return p.Watching() == nil && p.Reading() == nil })
	return p, cuts
}

// wantCut waits for the next order that cuts something, and compares what it cuts.
func wantCut(t *testing.T, cuts <-chan cutting, want ...string) {
	t.Helper()
	select {
	case got := <-cuts:
		if !slices.Equal(got.sessions, want) {
			t.Errorf("cut %v", got.sessions)
		}
	case <-time.After(patience):
		t.Fatal("not cut")
	}
}

// as makes a ticket, issued now.
func as(subject, id string) issued {
	t := issued(claims(id, "ws-local"))
	t.Subject = subject
	return t
}

type issued ticket.Claims

func (t issued) redeem(ctx context.Context, p *Postgres) error {
	_, err := p.Redeem(ctx, ticket.Claims(t), session(t.ID))
	return err
}

// Every replica hears of an order by anyone's SQL without polling.
func TestWatchOverReplicas(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	a, cutsA := watchingEvery(t, time.Hour, PostgresConfig{URL: dsn})
	b, cutsB := watchingEvery(t, time.Hour, PostgresConfig{URL: dsn})
	for i := range 20 {
		who := fmt.Sprint("p", i)
		if err := errors.Join(as(who, "a"+who).redeem(t.Context(), a), as(who, "b"+who).redeem(t.Context(), b)); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(`INSERT INTO termgw.revocations (subject) VALUES ($1)`, who); err != nil {
			t.Fatal(err)
		}
		if got := <-cutsA; !slices.Equal(got.sessions, []string{"a" + who}) {
			t.Errorf("cut %v", got)
		}
		if got := <-cutsB; !slices.Equal(got.sessions, []string{"b" + who}) {
			t.Errorf("cut %v", got)
		}
	}
}

// How old an order is, is told by the database's clock, whatever this machine's says.
func TestWatchTellsTheAge(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p, cuts := watching(t, PostgresConfig{URL: dsn})
	if err := as("ann", "s").redeem(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	if _, err := sqlDB(t, dsn).Exec(`INSERT INTO termgw.revocations (subject, created_at) VALUES ('ann', clock_timestamp() + interval '1 hour')`); err != nil {
		t.Fatal(err)
	}
	got := <-cuts
	if age, most := got.order.Age+time.Hour, time.Since(before); age < 0 || age > most {
		t.Errorf("%s old, of %s at most", age, most)
	}
}

// The database refuses connections, and orders are given meanwhile: they are followed when it is back.
func TestWatchCatchesUp(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p, cuts := watching(t, PostgresConfig{URL: dsn})
	for _, id := range []string{"s1", "s2", "s3"} {
		if err := as("ann-"+id, id).redeem(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := db.Conn(t.Context()) // stays, to write the orders
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var pid int
	if err := conn.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	name, cluster := path.Base(u.Path), env.Postgres(t).URL
	for i := range 3 {
		execSQL(t, cluster, `ALTER DATABASE `+name+` ALLOW_CONNECTIONS false`)
		execSQL(t, cluster, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> $2`, name, pid)
		until(t, func() bool { return p.Watching() != nil })
		if err := p.Watching(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("watching: %v, want ErrUnavailable", err)
		}
		session := fmt.Sprint("s", i+1)
		if _, err := conn.ExecContext(t.Context(), `INSERT INTO termgw.revocations (subject) VALUES ($1)`, "ann-"+session); err != nil {
			t.Fatal(err)
		}
		if err := as("new", "refused").redeem(t.Context(), p); !errors.Is(err, ErrUnavailable) {
			t.Errorf("redeem: %v, want ErrUnavailable", err)
		}
		select {
		case got := <-cuts:
			t.Fatalf("cut %+v without a connection", got)
		default:
		}
		execSQL(t, cluster, `ALTER DATABASE `+name+` ALLOW_CONNECTIONS true`)
		if got := <-cuts; !slices.Equal(got.sessions, []string{session}) {
			t.Errorf("cut %+v, want %s", got, session)
		}
		until(t, func() bool { return p.Watching() == nil })
	}
}

// Only the connection that listens dies, again and again, while orders are given.
func TestWatchListenerKilled(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p, cuts := watching(t, PostgresConfig{URL: dsn})
	const n = 40
	for i := range n {
		if err := as(fmt.Sprint("p", i), fmt.Sprint("s", i)).redeem(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	killed := 0
	for i := range n {
		rows, err := db.Query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			killed++
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.Revoke(t.Context(), Revocation{Subject: fmt.Sprint("p", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if killed == 0 {
		t.Fatal("no connection listened")
	}
	cut := map[string]int{}
	for range n {
		for _, s := range (<-cuts).sessions {
			cut[s]++
		}
	}
	for i := range n {
		if s := fmt.Sprint("s", i); cut[s] != 1 {
			t.Errorf("%s was cut %d times", s, cut[s])
		}
	}
	until(t, func() bool { return p.Watching() == nil })
}

// Ids are given out in another order than they become visible: an order whose transaction took longer is not passed over.
func TestWatchSeesLateCommits(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	p, cuts := watching(t, PostgresConfig{URL: dsn})
	for _, who := range []string{"slow", "fast", "last"} {
		if err := as(who, "s-"+who).redeem(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	slow, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		db interface {
			Exec(query string, args ...any) (sql.Result, error)
		}
		who string
	}{{slow, "slow"}, {db, "fast"}, {db, "last"}} {
		if _, err := step.db.Exec(`INSERT INTO termgw.revocations (subject) VALUES ($1)`, step.who); err != nil {
			t.Fatal(err)
		}
		if step.who == "slow" {
			continue
		}
		if got := <-cuts; !slices.Equal(got.sessions, []string{"s-" + step.who}) {
			t.Errorf("cut %+v, want that of %s", got, step.who)
		}
	}
	if err := slow.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := <-cuts; !slices.Equal(got.sessions, []string{"s-slow"}) {
		t.Errorf("cut %+v, want that of slow", got)
	}
}

// More orders than fit a page, from before Watch began.
func TestWatchReadsManyOrders(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p := open(t, PostgresConfig{URL: dsn})
	for _, i := range []int{1, 1000, 1001, 2500} {
		if err := as(fmt.Sprint("p", i), fmt.Sprint("s", i)).redeem(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject, reason) SELECT 'p' || n, 'many' FROM generate_series(1, 2500) n`)
	cuts := watch(t, p)
	for _, want := range []string{"s2500", "s1001", "s1000", "s1"} { // the newest first
		if got := <-cuts; !slices.Equal(got.sessions, []string{want}) || got.order.Reason != "many" {
			t.Errorf("cut %+v, want %s", got, want)
		}
	}
}

// Orders race redemptions on two replicas: whoever gets in is cut.
func TestRevokeRacesRedeem(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	a, cutsA := watching(t, PostgresConfig{URL: dsn})
	b, cutsB := watching(t, PostgresConfig{URL: dsn})
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		live    = map[string]bool{}
		refused int
	)
	for i := range 150 {
		who := fmt.Sprint("p", i)
		start := make(chan struct{})
		for r, p := range []*Postgres{a, b} {
			id := fmt.Sprint(who, "-", r)
			old := as(who, id) // one of a later second than the order's gets in, and stays
			wg.Go(func() {
				<-start
				err := old.redeem(t.Context(), p)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					live[id] = true
				case errors.Is(err, ErrRevoked):
					refused++
				default:
					t.Errorf("redeem: %v", err)
				}
			})
		}
		wg.Go(func() {
			<-start
			if _, _, err := b.Revoke(t.Context(), Revocation{Subject: who}); err != nil {
				t.Error(err)
			}
		})
		close(start)
	}
	wg.Wait()
	t.Logf("%d got in, %d were refused", len(live), refused)
	deadline := time.After(patience)
	for len(live) > 0 {
		var got cutting
		select {
		case got = <-cutsA:
		case got = <-cutsB:
		case <-deadline:
			t.Fatalf("still live: %v", live)
		}
		for _, id := range got.sessions {
			delete(live, id)
		}
	}
}

// An order that arrives while a ticket is redeemed, after the look at the orders and before the session is opened.
func TestOrderDuringRedemption(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(time.Second)
	for _, tt := range []struct {
		name            string
		issued, started time.Time
		order           Revocation
		want            bool
	}{
		{"covered", now.Add(-time.Minute), now, Revocation{InstanceID: "i-1", CreatedAt: now.Add(time.Millisecond)}, false},
		{"another instance", now.Add(-time.Minute), now, Revocation{InstanceID: "i-2", CreatedAt: now.Add(time.Millisecond)}, true},
		{"written before and committed after", now.Add(-time.Minute), now, Revocation{Subject: "ann", CreatedAt: now.Add(-time.Second)}, false},
		{"a platform whose clock is ahead", now.Add(5 * time.Second), now, Revocation{Subject: "ann", CreatedAt: now.Add(time.Millisecond)}, false},
		{"by another server, with a clock that is behind", now.Add(time.Hour), now.Add(time.Hour), Revocation{Subject: "ann", CreatedAt: now, given: now.Add(time.Millisecond)}, false},
		{"newer than the order of another server", now.Add(time.Hour), now.Add(time.Hour), Revocation{Subject: "ann", CreatedAt: now, given: now.Add(-time.Millisecond)}, true},
		{"newer than the order", now, now.Add(time.Millisecond), Revocation{Subject: "ann", CreatedAt: now.Add(-time.Millisecond)}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRegistry()
			c := claims("t", "ws")
			c.IssuedAt = tt.issued
			e := r.begin(c, session("s"), now)
			if got := r.apply(tt.order); got != nil {
				t.Errorf("cut %v, which is not open", got)
			}
			e.place(of("ws", "instance_id", "i-1"))
			if got := r.open(e, tt.started); got != tt.want {
				t.Errorf("open: %v, want %v", got, tt.want)
			}
			r.close("s")

			// The same once it is open.
			e = r.begin(c, session("s"), now)
			e.place(of("ws", "instance_id", "i-1"))
			if !r.open(e, tt.started) {
				t.Fatal("not opened")
			}
			if got := r.apply(tt.order); (len(got) == 0) != tt.want {
				t.Errorf("cut %v, want a cut: %v", got, !tt.want)
			}
			if got := r.apply(tt.order); got != nil {
				t.Errorf("cut again: %v", got)
			}
			r.drop(e)
			r.close("s")
			if len(r.live)+len(r.pending) != 0 {
				t.Errorf("left: %v, %v", r.live, r.pending)
			}
		})
	}
}

// A peer that is gone without a word: Watch says so, goes on when it is back, and ends at once when told.
func TestWatchSilentPeer(t *testing.T) {
	t.Parallel()
	proxy, dsn := startProxy(t, database(t, textWorkspaces))
	var c clock
	p := open(t, PostgresConfig{URL: dsn, Timeout: time.Second, Now: c.now})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Watch(ctx, func(Revocation, []string) {}); err != nil {
			t.Error(err)
		}
	})
	until(t, func() bool { return p.Watching() == nil })
	proxy.silent.Store(true)
	c.advance(watchStale)
	if err := p.Reading(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("reading: %v, want ErrUnavailable", err)
	}
	if age := p.OrdersAge(); age < watchStale {
		t.Errorf("read %s ago, of %s at least", age, watchStale)
	}
	proxy.silent.Store(false)
	until(t, func() bool { return p.Watching() == nil && p.Reading() == nil && p.OrdersAge() < watchStale })
	proxy.silent.Store(true)
	cancel()
	wg.Wait()
}

func TestWatchNeedsNoDatabase(t *testing.T) {
	t.Parallel()
	p := open(t, PostgresConfig{URL: "postgres://ann:s3cret@127.0.0.1:1/x?sslmode=disable"})
	watch(t, p)
	until(t, func() bool {
		err := p.Watching()
		return err != nil && strings.Contains(err.Error(), "refused")
	})
	for _, err := range []error{p.Watching(), p.Reading()} {
		if !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("watching: %v", err)
		}
	}
}
