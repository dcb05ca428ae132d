package store

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// heldBy is a session to which its person may come back at any replica.
func heldBy(id, replica string) Session {
	s := session(id)
	s.Replica, s.Holder = replica, Holder{URL: "http://" + replica + ":8080", Key: "key of " + id}
	return s
}

// A row that says more of its session than it should, or does not know any more where it is.
func TestHolderOf(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	db := sqlDB(t, dsn)
	var c clock
	p, gone := open(t, PostgresConfig{URL: dsn, Now: c.now}), Holder{}
	holder := open(t, PostgresConfig{URL: dsn})
	for _, s := range []Session{heldBy("s1", "gw-1"), {ID: "alone", Replica: "gw-1"}} {
		if _, err := holder.Redeem(t.Context(), claims(s.ID, "ws-local"), s); err != nil {
			t.Fatal(err)
		}
	}
	steadily(t, p, &c, "gw-2", 40*time.Second)

	ann, bob, foreign := claims("t", "ws-local"), ticket.Claims(as("bob", "t")), claims("t", "ws-local")
	foreign.Issuer = "https://another.example"
	asks := func(who ticket.Claims, id, replica string, want Holder) {
		t.Helper()
		h, err := p.HolderOf(t.Context(), who, id, replica)
		h.Silent = 0 // checked below
		if h != want || (want == gone) != errors.Is(err, ErrGone) || want != gone && err != nil {
			t.Errorf("%s asks for %s at %s: %+v, %v; want %+v", who.Subject, id, replica, h, err, want)
		}
	}
	// row checks what the session's row has of its holder, and whether somebody who reads it takes it for one that waits.
	row := func(key string, waiting bool) {
		t.Helper()
		var gotKey string
		var gotWaiting bool
		if err := db.QueryRow(`SELECT holder_key, waiting FROM termgw.sessions WHERE id = 's1'`).Scan(&gotKey, &gotWaiting); err != nil {
			t.Fatal(err)
		}
		if gotKey != key || gotWaiting != waiting {
			t.Errorf("the row has key %q, waiting %v; want %q, %v", gotKey, gotWaiting, key, waiting)
		}
	}
	seen := func(before string) {
		t.Helper()
		execSQL(t, dsn, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - $1::interval`, before)
	}
	s1 := heldBy("s1", "gw-1").Holder

	asks(ann, "s1", "gw-2", s1)
	asks(ann, "s1", "gw-1", gone) // it would pass the connection on to itself
	asks(bob, "s1", "gw-2", gone)
	asks(foreign, "s1", "gw-2", gone)
	asks(ann, "alone", "gw-2", gone)
	asks(ann, "s\x00\xff", "gw-2", gone)

	seen("31 seconds")
	asks(ann, "s1", "gw-2", gone)
	if err := holder.Heartbeat(t.Context(), "gw-1", []string{"s1"}); err != nil {
		t.Fatal(err)
	}
	asks(ann, "s1", "gw-2", s1)
	row(s1.Key, true)

	// Lost with its replica, while it waits; which was only paused.
	seen("11 minutes")
	if err := p.CloseAbandoned(t.Context(), ReasonLost, 10*time.Minute); err != nil {
		t.Fatal(err)
	}
	asks(ann, "s1", "gw-2", gone)
	row(s1.Key, false)
	if err := p.Resume(t.Context(), ann, "s1", "gw-1", ""); !errors.Is(err, ErrGone) {
		t.Errorf("a lost session is resumed: %v", err)
	}
	if err := holder.Heartbeat(t.Context(), "gw-1", []string{"s1"}); err != nil {
		t.Fatal(err)
	}
	asks(ann, "s1", "gw-2", s1)

	// Its shell ends while its person is away: what it has said last waits, however long nobody hears of it.
	if err := holder.Finish(t.Context(), "s1", End{Reason: "exit", Waits: true}); err != nil {
		t.Fatal(err)
	}
	seen("1 hour")
	row(s1.Key, true)
	asks(ann, "s1", "gw-2", s1)
	asks(ann, "s1", "gw-1", gone)
	asks(bob, "s1", "gw-2", gone)
	for _, refused := range []struct {
		who     ticket.Claims
		replica string
	}{{ann, "gw-2"}, {bob, "gw-1"}, {foreign, "gw-1"}} {
		if err := holder.Resume(t.Context(), refused.who, "s1", refused.replica, ""); !errors.Is(err, ErrGone) {
			t.Errorf("%s of %s comes back to it at %s: %v", refused.who.Subject, refused.who.Issuer, refused.replica, err)
		}
	}
	if err := holder.Resume(t.Context(), ann, "s1", "gw-1", ""); err != nil { // and no ticket was spent
		t.Errorf("its person comes back to it: %v", err)
	}
	row(s1.Key, true)
	if err := holder.Settle(t.Context(), "s1", 7); err != nil {
		t.Fatal(err)
	}
	asks(ann, "s1", "gw-2", gone)
	row("", false)
}

// What was not reached takes no place of a limit, until its replica says that it lives.
func TestUnreached(t *testing.T) {
	t.Parallel()
	for _, limits := range []Limits{{PerSubject: 1}, {PerWorkspace: 1}, {PerSubject: 1, PerWorkspace: 1}} {
		t.Run(fmt.Sprintf("%+v", limits), func(t *testing.T) { testUnreached(t, limits) })
	}
}

func testUnreached(t *testing.T, limits Limits) {
	dsn := database(t, textWorkspaces)
	asked, holder := open(t, PostgresConfig{URL: dsn, Limits: limits}), open(t, PostgresConfig{URL: dsn, Limits: limits})
	ann, bob := claims("t1", "ws-local"), ticket.Claims(as("bob", "t1"))
	if _, err := holder.Redeem(t.Context(), claims("t0", "ws-local"), heldBy("s1", "gw-1")); err != nil {
		t.Fatal(err)
	}
	opens := func(id string, want error) {
		t.Helper()
		if _, err := asked.Redeem(t.Context(), claims(id, "ws-local"), Session{ID: id, Replica: "gw-2"}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", id, err, want)
		}
	}
	unreached := func(who ticket.Claims, id, replica string) {
		t.Helper()
		if err := asked.Unreached(t.Context(), who, id, replica); err != nil {
			t.Error(err)
		}
	}
	beats := func() {
		t.Helper()
		if err := holder.Heartbeat(t.Context(), "gw-1", nil); err != nil {
			t.Fatal(err)
		}
	}
	opens("limited", ErrLimit)
	foreign := ann
	foreign.Issuer = "https://another.example"
	unreached(bob, "s1", "")
	unreached(foreign, "s1", "")
	unreached(ann, "s1", "gw-2")
	unreached(ann, "another", "")
	unreached(ann, "s\x00\xff", "")
	opens("nobody was told of it", ErrLimit)
	unreached(ann, "s1", "gw-1")
	opens("s2", nil)
	opens("once more", ErrLimit)

	// It lives as before: its person may come back to it at its replica, and is found there.
	if _, err := asked.HolderOf(t.Context(), ann, "s1", "gw-2"); err != nil {
		t.Error(err)
	}
	if list, err := asked.Sessions(t.Context(), SessionFilter{SessionID: "s1"}); err != nil || len(list) != 1 {
		t.Errorf("listed are %+v, %v", list, err)
	}
	if err := asked.Finish(t.Context(), "s2", End{Reason: "exit"}); err != nil {
		t.Fatal(err)
	}
	beats()
	opens("it lives", ErrLimit)

	// Also where it was taken for lost meanwhile.
	unreached(ann, "s1", "")
	execSQL(t, dsn, `UPDATE termgw.sessions SET ended_at = now(), end_reason = $1 WHERE id = 's1'`, ReasonLost)
	beats()
	opens("it lives after all", ErrLimit)
}

// Once a person could type, the row says so.
func TestResumeMode(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p := open(t, PostgresConfig{URL: dsn})
	withMode := func(id string, mode ticket.Mode) ticket.Claims {
		c := claims(id, "ws-local")
		c.Mode = mode
		return c
	}
	if _, err := p.Redeem(t.Context(), withMode("t0", ticket.ReadOnly), session("s1")); err != nil {
		t.Fatal(err)
	}
	revoked := withMode("t2", ticket.ReadWrite)
	revoked.IssuedAt = time.Now().Add(-time.Hour)
	execSQL(t, dsn, `INSERT INTO termgw.revocations (subject, created_at) VALUES ('ann', now() - interval '1 minute')`)
	for _, test := range []struct {
		with ticket.Claims
		want error
		mode ticket.Mode
	}{
		{withMode("t1", ticket.ReadOnly), nil, ticket.ReadOnly},
		{withMode("t1", ticket.ReadWrite), ErrUsed, ticket.ReadOnly},
		{revoked, ErrRevoked, ticket.ReadOnly},
		{withMode("t3", ticket.ReadWrite), nil, ticket.ReadWrite},
		{withMode("t4", ticket.ReadOnly), nil, ticket.ReadWrite},
	} {
		err := p.Resume(t.Context(), test.with, "s1", session("").Replica, "")
		list, errList := p.Sessions(t.Context(), SessionFilter{SessionID: "s1"})
		if !errors.Is(err, test.want) || errList != nil || len(list) != 1 || list[0].Mode != test.mode {
			t.Errorf("%s with %s: %v, recorded %+v, %v", test.with.ID, test.with.Mode, err, list, errList)
		}
	}
}

// Replicas that have sessions, and where they are; of a dead one for as long as it counts.
func TestReplicas(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p := open(t, PostgresConfig{URL: dsn})
	for _, s := range []Session{
		heldBy("s1", "gw-2"),
		{ID: "s2", Replica: "gw-2"},
		{ID: "s3", Replica: "gw-1"},
		heldBy("s4", "gw-ended"),
		heldBy("s5", "gw-dead"),
	} {
		if _, err := p.Redeem(t.Context(), claims(s.ID, "ws-local"), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Finish(t.Context(), "s4", End{Reason: "exit", Waits: true}); err != nil {
		t.Fatal(err)
	}
	execSQL(t, dsn, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '31 seconds' WHERE id = 's5'`)
	list, err := p.Replicas(t.Context())
	if want := []Replica{{"gw-1", ""}, {"gw-2", "http://gw-2:8080"}}; err != nil || !slices.Equal(list, want) {
		t.Errorf("%v, %v; want %v", list, err, want)
	}
}
