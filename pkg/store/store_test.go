package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

type storeUnderTest interface {
	Redeem(ctx context.Context, claims ticket.Claims, s Session) (Workspace, error)
	Finish(ctx context.Context, sessionID string, e End) error
	Settle(ctx context.Context, sessionID string, bytesOut int64) error
	Ping(ctx context.Context) error
	Close() error
	AcquireTunnel(ctx context.Context, endpoint, instanceID, replica string, limit int) (string, error)
	Resume(ctx context.Context, claims ticket.Claims, sessionID, replica, clientAddr string) error
	FreeTunnels(ctx context.Context, endpoint string, limit int) (int, error)
	IdleTunnel(ctx context.Context, lease string) (bool, error)
	VacateTunnel(ctx context.Context, endpoint, replica string) (bool, error)
	ReleaseTunnel(ctx context.Context, lease string) error
	HostKey(ctx context.Context, instanceID string) (string, error)
	KeepHostKey(ctx context.Context, instanceID, line string) (string, error)
}

func TestMemoryStore(t *testing.T) {
	t.Parallel()
	testStore(t, func(_ *testing.T, l Limits) storeUnderTest {
		return NewMemory(MemoryConfig{Limits: l, Lookup: LookupIn([]Workspace{
			of("ws-local", "name", "My Space"),
			of("ws-remote", "name", "far", "instance_id", "i-0abc", "container", "c1"),
		})})
	})
}

func TestPostgresStore(t *testing.T) {
	t.Parallel()
	testStore(t, func(t *testing.T, l Limits) storeUnderTest {
		t.Helper()
		return open(t, PostgresConfig{
			Limits:         l,
			URL:            database(t, textWorkspaces),
			WorkspaceQuery: `SELECT id, name, instance_id, container FROM workspaces WHERE id = $1`,
		})
	})
}

// testStore holds a store to what both promise.
func testStore(t *testing.T, newLimited func(*testing.T, Limits) storeUnderTest) {
	newStore := func(t *testing.T) storeUnderTest {
		t.Helper()
		return newLimited(t, Limits{})
	}
	redeemed := func(t *testing.T, s storeUnderTest, c ticket.Claims, session Session, want error) Workspace {
		t.Helper()
		w, err := s.Redeem(t.Context(), c, session)
		if !errors.Is(err, want) {
			t.Fatalf("redeem: %v, want %v", err, want)
		}
		if err != nil && !same(w, Workspace{}) {
			t.Fatalf("redeem: a workspace (%+v) with an error", w)
		}
		return w
	}

	t.Run("lookup", func(t *testing.T) {
		s := newStore(t)
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := redeemed(t, s, claims("t1", "ws-local"), session("s1"), nil)
		if want := of("ws-local", "name", "My Space"); !same(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		got = redeemed(t, s, claims("t2", "ws-remote"), session("s2"), nil)
		if want := of("ws-remote", "name", "far", "instance_id", "i-0abc", "container", "c1"); !same(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})

	t.Run("a ticket opens one session", func(t *testing.T) {
		s := newStore(t)
		redeemed(t, s, claims("t1", "ws-local"), session("s1"), nil)
		redeemed(t, s, claims("t1", "ws-local"), session("s2"), ErrUsed)
		redeemed(t, s, claims("t1", "ws-local"), session("s1"), ErrUsed)
		if err := s.Finish(t.Context(), "s1", End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
		redeemed(t, s, claims("t1", "ws-local"), session("s3"), ErrUsed)
		redeemed(t, s, claims("t2", "ws-local"), session("s3"), nil)
	})

	t.Run("the id of a ticket is its issuer's", func(t *testing.T) {
		s := newStore(t)
		other := claims("t1", "ws-local")
		other.Issuer = "https://other.example"
		redeemed(t, s, claims("t1", "ws-local"), session("s1"), nil)
		redeemed(t, s, other, session("s2"), nil)
	})

	t.Run("used wins over not found", func(t *testing.T) {
		s := newStore(t)
		redeemed(t, s, claims("t1", "ws-local"), session("s1"), nil)
		redeemed(t, s, claims("t1", "ws-none"), session("s2"), ErrUsed)
		redeemed(t, s, claims("t2", "ws-none"), session("s3"), ErrNotFound)
		redeemed(t, s, claims("t2", "ws-local"), session("s4"), ErrUsed)
	})

	t.Run("hostile ids are just not found", func(t *testing.T) {
		s := newStore(t)
		for i, id := range []string{
			"", "'", `"`, "'; DROP TABLE workspaces; --", "ws-local' OR '1'='1", "$1", "%s", "../ws-local", "ws-local\x00",
			"\xff", "WS-LOCAL", "ws-local ", strings.Repeat("x", 10_000), "\u202ews",
		} {
			redeemed(t, s, claims(fmt.Sprint("t", i), id), session(fmt.Sprint("s", i)), ErrNotFound)
		}
		redeemed(t, s, claims("t", "ws-local"), session("s"), nil)
	})

	t.Run("odd claims", func(t *testing.T) {
		s := newStore(t)
		c := claims("'; DROP TABLE termgw.spent_tickets; --\x00\xff", "ws-local")
		c.Subject = "o'neil\x00\xff"
		redeemed(t, s, c, session("s1"), nil)
		redeemed(t, s, c, session("s2"), ErrUsed)
	})

	t.Run("a session id opens one session", func(t *testing.T) {
		s := newStore(t)
		redeemed(t, s, claims("t1", "ws-local"), session("s1"), nil)
		redeemed(t, s, claims("t2", "ws-local"), session("s1"), ErrUnavailable)
	})

	t.Run("a cancelled call is refused and spends nothing", func(t *testing.T) {
		s := newStore(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Redeem(ctx, claims("t1", "ws-local"), session("s1")); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("redeem: %v, want ErrUnavailable", err)
		}
		redeemed(t, s, claims("t1", "ws-local"), session("s1"), nil)
	})

	t.Run("finish may be repeated", func(t *testing.T) {
		s := newStore(t)
		redeemed(t, s, claims("t1", "ws-local"), session("s1"), nil)
		code := 3
		for range 2 {
			if err := s.Finish(t.Context(), "s1", End{Reason: "exit", ExitCode: &code, BytesIn: 1, BytesOut: 1 << 40}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Finish(t.Context(), "never-was", End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("200 at once", func(t *testing.T) {
		s := newStore(t)
		var (
			wg    sync.WaitGroup
			won   atomic.Int64
			start = make(chan struct{})
		)
		for i := range 200 {
			wg.Go(func() {
				<-start
				switch _, err := s.Redeem(t.Context(), claims("t1", "ws-local"), session(fmt.Sprint("s", i))); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, ErrUsed):
					t.Errorf("redeem: %v, want ErrUsed", err)
				}
			})
		}
		close(start)
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d redemptions of one ticket succeeded", won.Load())
		}
	})

	as := func(subject, jti, workspace string) ticket.Claims {
		c := claims(jti, workspace)
		c.Subject = subject
		return c
	}

	t.Run("limits", func(t *testing.T) {
		s := newLimited(t, Limits{PerWorkspace: 2, PerSubject: 3})
		limited := func(c ticket.Claims, id string, want LimitError) {
			t.Helper()
			_, err := s.Redeem(t.Context(), c, session(id))
			var got *LimitError
			if !errors.Is(err, ErrLimit) || !errors.As(err, &got) || *got != want {
				t.Errorf("redeem: %v, want %v", err, &want)
			}
		}
		redeemed(t, s, as("ann", "t1", "ws-local"), session("s1"), nil)
		redeemed(t, s, as("bob", "t2", "ws-local"), session("s2"), nil)
		limited(as("cid", "t3", "ws-local"), "s3", LimitError{LimitWorkspace, 2})
		redeemed(t, s, as("cid", "t3", "ws-remote"), session("s3"), ErrUsed)
		if err := s.Finish(t.Context(), "s1", End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
		redeemed(t, s, as("bob", "t4", "ws-local"), session("s4"), nil)
		redeemed(t, s, as("bob", "t5", "ws-remote"), session("s5"), nil)
		limited(as("bob", "t6", "ws-remote"), "s6", LimitError{LimitSubject, 3})
		redeemed(t, s, as("ann", "t7", "ws-remote"), session("s7"), nil)
		redeemed(t, s, as("dan", "t8", "ws-none"), session("s8"), ErrNotFound)
	})

	t.Run("a limit is met exactly", func(t *testing.T) {
		s := newLimited(t, Limits{PerWorkspace: 7, PerSubject: 5})
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			won   = map[string]int{}
			start = make(chan struct{})
		)
		for i := range 120 {
			wg.Go(func() {
				<-start
				subject, workspace := fmt.Sprint("p", i%2), []string{"ws-local", "ws-remote"}[i/2%2]
				switch _, err := s.Redeem(t.Context(), as(subject, fmt.Sprint("t", i), workspace), session(fmt.Sprint("s", i))); {
				case err == nil:
					mu.Lock()
					won[subject]++
					won[workspace]++
					mu.Unlock()
				case !errors.Is(err, ErrLimit):
					t.Errorf("redeem: %v, want ErrLimit", err)
				}
			})
		}
		close(start)
		wg.Wait()
		// The subjects' limit is the tighter one: 10 sessions in all, in two workspaces with room for 14.
		if won["p0"] != 5 || won["p1"] != 5 || won["ws-local"] > 7 || won["ws-remote"] > 7 {
			t.Errorf("opened: %v", won)
		}
	})

	t.Run("resume", func(t *testing.T) {
		s := newStore(t)
		redeemed(t, s, as("ann", "t1", "ws-local"), session("s1"), nil)
		redeemed(t, s, as("ann", "t2", "ws-local"), session("s2"), nil)
		if err := s.Finish(t.Context(), "s2", End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
		replica := session("").Replica
		for _, c := range []struct {
			name   string
			claims ticket.Claims
			id     string
			want   error
		}{
			{"its person", as("ann", "t3", "ws-local"), "s1", nil},
			{"with a used ticket", as("ann", "t3", "ws-local"), "s1", ErrUsed},
			{"with the ticket that opened it", as("ann", "t1", "ws-local"), "s1", ErrUsed},
			{"another person", as("bob", "t4", "ws-local"), "s1", ErrGone},
			{"an ended one", as("ann", "t5", "ws-local"), "s2", ErrGone},
			{"none", as("ann", "t6", "ws-local"), "s\x00\xff", ErrGone},
			{"again", as("ann", "t7", "ws-local"), "s1", nil},
		} {
			if err := s.Resume(t.Context(), c.claims, c.id, replica, "2001:db8::7"); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
		}
		for _, id := range []string{"t4", "t5", "t6"} { // what found no session has spent nothing
			redeemed(t, s, as("ann", id, "ws-local"), session("of-"+id), nil)
		}
		// The last output of a shell that has ended may wait.
		redeemed(t, s, as("ann", "t9", "ws-local"), session("s3"), nil)
		if err := s.Finish(t.Context(), "s3", End{Reason: "exit", BytesOut: 3, Waits: true}); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if err := s.Resume(t.Context(), as("ann", fmt.Sprint("last", i), "ws-local"), "s3", replica, ""); err != nil {
				t.Errorf("to an end that waits: %v", err)
			}
		}
		if err := s.Settle(t.Context(), "s3", 7); err != nil {
			t.Fatal(err)
		}
		if err := s.Resume(t.Context(), as("ann", "last", "ws-local"), "s3", replica, ""); !errors.Is(err, ErrGone) {
			t.Errorf("to an end that waits no more: %v", err)
		}
		shared, ok := s.(*Postgres)
		if !ok {
			return
		}
		if list, err := shared.Sessions(t.Context(), SessionFilter{SessionID: "s3", All: true}); err != nil || len(list) != 1 || list[0].BytesOut != 7 || list[0].Resumes != 2 {
			t.Errorf("recorded %+v, %v", list, err)
		}
		if err := shared.Resume(t.Context(), as("ann", "t8", "ws-local"), "s1", "another", ""); !errors.Is(err, ErrGone) {
			t.Errorf("of another replica: %v", err)
		}
		record := func() Record {
			t.Helper()
			list, err := shared.Sessions(t.Context(), SessionFilter{SessionID: "s1"})
			if err != nil || len(list) != 1 {
				t.Fatalf("%+v, %v", list, err)
			}
			return list[0]
		}
		if r := record(); r.Resumes != 2 || r.Waiting || r.ClientAddr != "2001:db8::7" {
			t.Errorf("recorded %+v", r)
		}
		for _, waits := range []bool{true, false} {
			var waiting []string
			if waits {
				waiting = []string{"s1"}
			}
			if err := shared.Heartbeat(t.Context(), replica, waiting); err != nil {
				t.Fatal(err)
			}
			if r := record(); r.Waiting != waits {
				t.Errorf("recorded %+v", r)
			}
		}
		for i, order := range []Revocation{{SessionID: "s1"}, {Subject: "ann"}, {WorkspaceID: "ws-local"}} {
			c := as("ann", fmt.Sprint("late", i), "ws-local")
			if _, _, err := shared.Revoke(t.Context(), order); err != nil {
				t.Fatal(err)
			}
			if err := shared.Resume(t.Context(), c, "s1", replica, ""); !errors.Is(err, ErrRevoked) {
				t.Errorf("with %+v: %v", order, err)
			}
		}
	})

	t.Run("revocations", func(t *testing.T) {
		s, shared := newStore(t).(*Postgres)
		if !shared {
			return // an order is a row of a database
		}
		cuts := watch(t, s)
		for _, who := range []struct{ id, subject, workspace string }{
			{"ann-local", "ann", "ws-local"},
			{"ann-remote", "ann", "ws-remote"},
			{"bob-local", "bob", "ws-local"},
			{"bob-remote", "bob", "ws-remote"},
			{"cid-local", "cid", "ws-local"},
			{"cid-gone", "cid", "ws-local"},
		} {
			redeemed(t, s, as(who.subject, who.id, who.workspace), session(who.id), nil)
		}
		if err := s.Finish(t.Context(), "cid-gone", End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
		old := as("ann", "old", "ws-remote")
		// A session that is cut stays in the list until its end is written.
		for _, tt := range []struct {
			order   Revocation
			matches []string
			cut     []string
		}{
			{Revocation{SessionID: "none"}, nil, nil},
			{Revocation{Subject: "ann", InstanceID: "i-0abc"}, []string{"ann-remote"}, []string{"ann-remote"}},
			{Revocation{Subject: "ann", Reason: "left", By: "root"}, []string{"ann-local", "ann-remote"}, []string{"ann-local"}},
			{Revocation{SessionID: "bob-remote"}, []string{"bob-remote"}, []string{"bob-remote"}},
			{Revocation{WorkspaceID: "ws-local"}, []string{"ann-local", "bob-local", "cid-local"}, []string{"bob-local", "cid-local"}},
			{Revocation{InstanceID: "i-0abc"}, []string{"ann-remote", "bob-remote"}, nil},
		} {
			made, matches, err := s.Revoke(t.Context(), tt.order)
			if err != nil {
				t.Fatal(err)
			}
			if made.ID == 0 || made.CreatedAt.IsZero() || !slices.Equal(matches, tt.matches) {
				t.Errorf("%+v: matches %v, want %v", made, matches, tt.matches)
			}
			if tt.cut == nil {
				continue
			}
			got := <-cuts
			if !slices.Equal(got.sessions, tt.cut) || got.order.ID != made.ID || !got.order.CreatedAt.Equal(made.CreatedAt) ||
				got.order.Reason != tt.order.Reason || got.order.By != tt.order.By {
				t.Errorf("%+v: cut %+v, want %v", made, got, tt.cut)
			}
		}
		redeemed(t, s, old, session("old"), ErrRevoked)
		redeemed(t, s, old, session("old2"), ErrUsed)
		fresh := as("ann", "fresh", "ws-remote")
		fresh.IssuedAt = fresh.IssuedAt.Add(2 * time.Second)
		redeemed(t, s, fresh, session("fresh"), nil)
		// Told again from the start, the orders spare who came later.
		again := watch(t, s)
		redeemed(t, s, as("eve", "eve", "ws-none"), session("eve"), ErrNotFound)
		if _, _, err := s.Revoke(t.Context(), Revocation{SessionID: "fresh"}); err != nil {
			t.Fatal(err)
		}
		select { // one of the two watches has it
		case got := <-again:
			if !slices.Equal(got.sessions, []string{"fresh"}) || got.order.SessionID != "fresh" {
				t.Errorf("cut %+v", got)
			}
		case got := <-cuts:
			if !slices.Equal(got.sessions, []string{"fresh"}) || got.order.SessionID != "fresh" {
				t.Errorf("cut %+v", got)
			}
		}
		if _, _, err := s.Revoke(t.Context(), Revocation{Reason: "all of them"}); err == nil {
			t.Error("an order that matches everybody was accepted")
		}
	})

	t.Run("sessions", func(t *testing.T) {
		s, shared := newStore(t).(*Postgres)
		if !shared {
			return
		}
		ids := func(f SessionFilter) (ids []string) {
			t.Helper()
			list, err := s.Sessions(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				ids = append(ids, r.ID)
			}
			slices.Sort(ids)
			return ids
		}
		ro := as("bob", "t2", "ws-remote")
		ro.Mode = ticket.ReadOnly
		redeemed(t, s, as("ann", "t1", "ws-local"), session("s1"), nil)
		redeemed(t, s, ro, Session{ID: "s2", Replica: "gw-2", ClientAddr: "192.0.2.8:1"}, nil)
		redeemed(t, s, as("bob", "t3", "ws-local"), session("s3"), nil)
		if err := s.Finish(t.Context(), "s3", End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			filter SessionFilter
			want   []string
		}{
			{SessionFilter{}, []string{"s1", "s2"}},
			{SessionFilter{WorkspaceID: "ws-local"}, []string{"s1"}},
			{SessionFilter{Subject: "bob"}, []string{"s2"}},
			{SessionFilter{InstanceID: "i-0abc"}, []string{"s2"}},
			{SessionFilter{Replica: "gw-1"}, []string{"s1"}},
			{SessionFilter{SessionID: "s1"}, []string{"s1"}},
			{SessionFilter{SessionID: "s1", Replica: "gw-2"}, nil},
			{SessionFilter{Limit: 1}, []string{"s2"}},
			{SessionFilter{Subject: "' OR true --"}, nil},
		} {
			if got := ids(tt.filter); !slices.Equal(got, tt.want) {
				t.Errorf("%+v: %v, want %v", tt.filter, got, tt.want)
			}
		}
		list, err := s.Sessions(t.Context(), SessionFilter{Subject: "bob"})
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		got := list[0]
		if got.Started.IsZero() || got.LastSeen.Before(got.Started) {
			t.Errorf("started %v, last seen %v", got.Started, got.LastSeen)
		}
		got.Started, got.LastSeen = time.Time{}, time.Time{}
		want := Record{
			ID: "s2", WorkspaceID: "ws-remote", Subject: "bob", Mode: ticket.ReadOnly, InstanceID: "i-0abc",
			Replica: "gw-2", ClientAddr: "192.0.2.8:1",
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}

		// The trail is written once, with the start or with the end.
		trail := map[string]string{"key": "SHA256:abc", "odd": "a\x00b\xff\"'\\"}
		noted := map[string]string{"key": "SHA256:abc", "odd": "a\uFFFDb\uFFFD\"'\\"}
		if err := s.Trace(t.Context(), "s1", trail); err != nil {
			t.Fatal(err)
		}
		for id, end := range map[string]End{"s1": {Reason: "exit"}, "s2": {Reason: "backend_failed", Trail: trail}} {
			if err := s.Finish(t.Context(), id, end); err != nil {
				t.Fatal(err)
			}
			list, err := s.Sessions(t.Context(), SessionFilter{SessionID: id, All: true})
			if err != nil || len(list) != 1 || !maps.Equal(list[0].Trail, noted) {
				t.Errorf("%s: %+v, %v", id, list, err)
			}
		}
	})

	t.Run("tunnels", func(t *testing.T) {
		s := newStore(t)
		const limit = 20
		leases := make(chan string, 100)
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				lease, err := s.AcquireTunnel(t.Context(), "eice-1", "i-1", "gw-1", limit)
				var e *LimitError
				switch {
				case err == nil:
					leases <- lease
				case !errors.As(err, &e) || *e != LimitError{LimitTunnels, limit} || !errors.Is(err, ErrLimit):
					t.Errorf("acquire: %v", err)
				}
			})
		}
		wg.Wait()
		if len(leases) != limit {
			t.Fatalf("%d of %d places taken", len(leases), limit)
		}
		if _, err := s.AcquireTunnel(t.Context(), "eice-2", "i-2", "gw-1", limit); err != nil {
			t.Errorf("another endpoint: %v", err)
		}
		if _, err := s.AcquireTunnel(t.Context(), "eice-2", "i-2", "gw-1", 1); !errors.Is(err, ErrLimit) {
			t.Errorf("another endpoint's place is not counted: %v", err)
		}
		lease := <-leases
		for range 2 { // the second frees nothing
			if err := s.ReleaseTunnel(t.Context(), lease); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.AcquireTunnel(t.Context(), "eice-1", "i-1", "gw-1", limit); err != nil {
			t.Errorf("a place was given back: %v", err)
		}
		if _, err := s.AcquireTunnel(t.Context(), "eice-1", "i-1", "gw-1", limit); !errors.Is(err, ErrLimit) {
			t.Errorf("one place, two tunnels: %v", err)
		}
	})

	// An idle tunnel gives its place to another that needs it, the replica's own before others', and each to one.
	t.Run("idle tunnels", func(t *testing.T) {
		s := newStore(t)
		var ended sync.Map
		// take is a tunnel without a terminal, which ends when its place is wanted.
		take := func(name, endpoint, replica string) {
			t.Helper()
			lease, err := s.AcquireTunnel(t.Context(), endpoint, "i-"+name, replica, 20)
			if err != nil {
				t.Fatal(err)
			}
			if wanted, err := s.IdleTunnel(t.Context(), lease); wanted || err != nil {
				t.Fatal(name, wanted, err)
			}
			background(t, func(ctx context.Context) error {
				for ctx.Err() == nil {
					wanted, err := s.IdleTunnel(context.WithoutCancel(ctx), lease)
					if err != nil {
						return err
					}
					if wanted {
						ended.Store(name, true)
						return s.ReleaseTunnel(context.WithoutCancel(ctx), lease)
					}
					time.Sleep(20 * time.Millisecond)
				}
				return nil
			})
		}
		vacate := func(endpoint, replica string) bool {
			vacated, err := s.VacateTunnel(t.Context(), endpoint, replica)
			if err != nil {
				t.Error(err)
			}
			return vacated
		}
		has := func(name string) bool {
			_, ok := ended.Load(name)
			return ok
		}
		if _, err := s.AcquireTunnel(t.Context(), "eice-1", "i-used", "gw-1", 20); err != nil {
			t.Fatal(err)
		}
		take("elsewhere", "eice-2", "gw-1")
		if vacate("eice-1", "gw-1") {
			t.Error("a tunnel that is in use, or another endpoint's, was asked for its place")
		}
		take("others", "eice-1", "gw-1")
		take("own", "eice-1", "gw-2")
		own, others := "own", "others"
		if _, shared := s.(*Postgres); !shared {
			own, others = others, own // all are its own: the oldest comes first
		}
		if !vacate("eice-1", "gw-2") || !has(own) || has(others) {
			t.Errorf("the first is not its own: %v %v", has(own), has(others))
		}
		if !vacate("eice-1", "gw-2") || !has(others) {
			t.Error("another's did not end")
		}
		for n := range 3 {
			take(fmt.Sprint(n), "eice-1", "gw-1")
		}
		var all sync.WaitGroup
		for range 3 { // each another's place
			all.Go(func() {
				if !vacate("eice-1", "gw-3") {
					t.Error("one of three was not vacated")
				}
			})
		}
		all.Wait()
		if free, err := s.FreeTunnels(t.Context(), "eice-1", 20); free != 19 || err != nil {
			t.Errorf("%d places are free: %v", free, err)
		}
		// One that has got a terminal again right after its note is left, and another one asked.
		again, err := s.AcquireTunnel(t.Context(), "eice-3", "i-again", "gw-1", 20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.IdleTunnel(t.Context(), again); err != nil {
			t.Fatal(err)
		}
		take("behind it", "eice-3", "gw-1")
		if !vacate("eice-3", "gw-1") || !has("behind it") {
			t.Error("the one behind it did not end")
		}
		if vacate("eice-1", "gw-1") || has("elsewhere") {
			t.Error("another endpoint's tunnel ended")
		}
	})

	t.Run("host keys", func(t *testing.T) {
		s := newStore(t)
		if line, err := s.HostKey(t.Context(), "i-1"); line != "" || err != nil {
			t.Fatalf("none yet: %q, %v", line, err)
		}
		kept := make([]string, 50)
		var wg sync.WaitGroup
		for i := range kept {
			wg.Go(func() {
				var err error
				if kept[i], err = s.KeepHostKey(t.Context(), "i-1", fmt.Sprint("ssh-ed25519 key", i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		line, err := s.HostKey(t.Context(), "i-1")
		if err != nil || line == "" || slices.ContainsFunc(kept, func(k string) bool { return k != line }) {
			t.Errorf("kept %v, %q, %v", kept, line, err)
		}
		if line, err := s.HostKey(t.Context(), "i-2"); line != "" || err != nil {
			t.Errorf("another instance: %q, %v", line, err)
		}
	})
}

type cutting struct {
	order    Revocation
	sessions []string
}

// watch runs Watch until the test's end.
func watch(t *testing.T, s *Postgres) <-chan cutting {
	t.Helper()
	cuts := make(chan cutting, 1000)
	background(t, func(ctx context.Context) error {
		return s.Watch(ctx, func(o Revocation, sessions []string) { cuts <- cutting{o, sessions} })
	})
	return cuts
}

// background runs what a gateway runs in the background, until the test's end.
func background(t *testing.T, job func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := job(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

// of returns a workspace, of its columns' names and values.
func of(id string, columns ...string) Workspace {
	w := Workspace{ID: id, Attributes: map[string]string{}}
	for i := 0; i < len(columns); i += 2 {
		w.Attributes[columns[i]] = columns[i+1]
	}
	return w
}

func same(a, b Workspace) bool { return a.ID == b.ID && maps.Equal(a.Attributes, b.Attributes) }
