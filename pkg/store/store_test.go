package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

type storeUnderTest interface {
	Redeem(ctx context.Context, claims ticket.Claims, s Session) (Workspace, error)
	Finish(ctx context.Context, sessionID string, e End) error
	Ping(ctx context.Context) error
	Close() error
}

func TestMemoryStore(t *testing.T) {
	testStore(t, func(*testing.T) storeUnderTest {
		return NewMemory(MemoryConfig{Lookup: LookupIn([]Workspace{
			{ID: "ws-local", Name: "My Space"},
			{ID: "ws-remote", Name: "far", InstanceID: "i-0abc", Container: "c1"},
		})})
	})
}

func TestPostgresStore(t *testing.T) {
	testStore(t, func(t *testing.T) storeUnderTest {
		t.Helper()
		return open(t, PostgresConfig{
			URL:            database(t, textWorkspaces),
			WorkspaceQuery: `SELECT id, name, instance_id, container FROM workspaces WHERE id = $1`,
		})
	})
}

// testStore holds a store to what both promise.
func testStore(t *testing.T, newStore func(*testing.T) storeUnderTest) {
	redeemed := func(t *testing.T, s storeUnderTest, c ticket.Claims, session Session, want error) Workspace {
		t.Helper()
		w, err := s.Redeem(t.Context(), c, session)
		if !errors.Is(err, want) {
			t.Fatalf("redeem: %v, want %v", err, want)
		}
		if err != nil && w != (Workspace{}) {
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
		if want := (Workspace{ID: "ws-local", Name: "My Space"}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		got = redeemed(t, s, claims("t2", "ws-remote"), session("s2"), nil)
		if want := (Workspace{ID: "ws-remote", Name: "far", InstanceID: "i-0abc", Container: "c1"}); got != want {
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
}
