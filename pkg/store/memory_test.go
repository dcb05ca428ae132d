package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestMemoryRefusesTicketsFromBeforeItBegan(t *testing.T) {
	t.Parallel()
	since := time.Now()
	m := NewMemory(MemoryConfig{Lookup: LookupIn([]Workspace{{ID: "ws"}}), Since: since})
	for _, tt := range []struct {
		iat  time.Time
		want error
	}{
		{since.Add(-time.Second), ErrUsed},
		{since.Add(-time.Nanosecond), ErrUsed},
		{since, nil},
		{since.Add(time.Second), nil},
	} {
		c := claims(tt.iat.String(), "ws")
		c.IssuedAt = tt.iat
		_, err := m.Redeem(t.Context(), c, session(c.ID))
		if !errors.Is(err, tt.want) {
			t.Errorf("issued %v after the start: %v, want %v", tt.iat.Sub(since), err, tt.want)
		}
		if tt.want != nil && !strings.Contains(err.Error(), "before this gateway started") {
			t.Errorf("%v does not say why", err)
		}
	}
}

func TestMemoryForgetsWhatExpired(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := NewMemory(MemoryConfig{Lookup: LookupIn([]Workspace{{ID: "ws"}}), Now: func() time.Time { return now }})
	redeem := func(i int) {
		t.Helper()
		c := claims(fmt.Sprint("t", i), "ws")
		c.IssuedAt, c.Expires = now, now.Add(time.Minute)
		if _, err := m.Redeem(t.Context(), c, session(c.ID)); err != nil {
			t.Fatal(err)
		}
		if err := m.Finish(t.Context(), c.ID, End{Reason: "exit"}); err != nil {
			t.Fatal(err)
		}
	}
	// One ticket a second, each remembered for two minutes: at any time about 120 matter.
	for i := range 10_000 {
		redeem(i)
		now = now.Add(time.Second)
		if n := len(m.spent); n > 2*(120+2) {
			t.Fatalf("%d tickets are remembered after %d", n, i)
		}
	}
	if n := len(m.sessions); n != 0 {
		t.Errorf("%d sessions are remembered after their end", n)
	}
	// A ticket is remembered while a verifier may still accept it.
	now = now.Add(-time.Second)
	c := claims("t9999", "ws")
	c.Expires = now.Add(time.Minute)
	if _, err := m.Redeem(t.Context(), c, session("again")); !errors.Is(err, ErrUsed) {
		t.Errorf("redeeming the last ticket again: %v, want ErrUsed", err)
	}
}

func TestMemoryLookupThatFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("engine is down")
	var fail error
	m := NewMemory(MemoryConfig{Lookup: func(_ context.Context, id string) (Workspace, error) {
		return of("", "name", id), fail
	}})
	fail = broken
	_, err := m.Redeem(t.Context(), claims("t1", "ws"), session("s1"))
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, broken) {
		t.Fatalf("redeem: %v, want ErrUnavailable with its cause", err)
	}
	fail = nil
	w, err := m.Redeem(t.Context(), claims("t1", "ws"), session("s1"))
	if err != nil || w.ID != "ws" {
		t.Fatalf("the same ticket once the lookup works: %+v, %v", w, err)
	}
}
