package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAbandoned(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces+`; INSERT INTO workspaces VALUES ('ws-far', 'far', '', NULL); CREATE SEQUENCE lookups`)
	db := sqlDB(t, dsn)
	var c clock
	p := open(t, PostgresConfig{
		URL:            dsn,
		Now:            c.now,
		WorkspaceQuery: `SELECT COALESCE(instance_id,'') AS instance_id, name, 'box-' || id AS container, nextval('lookups') FROM workspaces WHERE id = $1`,
	})
	for _, s := range []struct{ id, workspace, replica string }{
		{"dead", "ws-local", "gw-dead"},
		{"dead-too", "ws-local", "gw-dead"},
		{"dead-far", "ws-far", "gw-dead"},
		{"dead-ended", "ws-local", "gw-dead"},
		{"dead-remote", "ws-remote", "gw-dead"},
		{"alive", "ws-local", "gw-alive"},
	} {
		if _, err := p.Redeem(t.Context(), claims(s.id, s.workspace), Session{ID: s.id, Replica: s.replica}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Finish(t.Context(), "dead-ended", End{Reason: "exit"}); err != nil {
		t.Fatal(err)
	}
	abandoned := func(leaveOut ...string) []Abandoned {
		t.Helper()
		list, err := p.Abandoned(t.Context(), time.Minute, leaveOut)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			if list[i].Silent < 2*time.Minute || list[i].Silent > 2*time.Minute+patience {
				t.Errorf("%s is silent for %s", list[i].SessionID, list[i].Silent)
			}
			list[i].Silent = 0
			delete(list[i].Workspace.Attributes, "nextval")
		}
		slices.SortFunc(list, func(a, b Abandoned) int { return strings.Compare(a.SessionID, b.SessionID) })
		return list
	}
	if got := abandoned(); len(got) != 0 {
		t.Errorf("just started: %v", got)
	}
	if _, err := db.Exec(`UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '2 minutes'`); err != nil {
		t.Fatal(err)
	}
	if err := p.Heartbeat(t.Context(), "gw-alive", nil); err != nil {
		t.Fatal(err)
	}
	if got := abandoned(); len(got) != 0 {
		t.Errorf("by who was not in touch itself: %v", got)
	}
	steadily(t, p, &c, "gw-1", time.Minute)
	local := of("ws-local", "name", "My Space", "container", "box-ws-local")
	want := []Abandoned{
		{SessionID: "dead", Workspace: local},
		{SessionID: "dead-far", Workspace: of("ws-far", "name", "far", "container", "box-ws-far")},
		{SessionID: "dead-remote", Workspace: of("ws-remote", "name", "far", "instance_id", "i-0abc", "container", "box-ws-remote")},
		{SessionID: "dead-too", Workspace: local},
	}
	if _, err := db.Exec(`SELECT setval('lookups', 1000)`); err != nil {
		t.Fatal(err)
	}
	if got := abandoned(); !slices.EqualFunc(got, want, sameAbandoned) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	var lookups int
	if err := db.QueryRow(`SELECT last_value - 1000 FROM lookups`).Scan(&lookups); err != nil || lookups != 3 {
		t.Errorf("%d lookups of three workspaces, %v", lookups, err)
	}
	if got := abandoned("ws-local", "ws-none"); !slices.EqualFunc(got, want[1:3], sameAbandoned) {
		t.Errorf("without one: got %+v, want %+v", got, want[1:3])
	}
	c.advance(31 * time.Second)
	if got := abandoned(); len(got) != 0 {
		t.Errorf("after a pause: %v", got)
	}
	steadily(t, p, &c, "gw-1", time.Minute)
	if got := abandoned(); !slices.EqualFunc(got, want, sameAbandoned) {
		t.Errorf("in touch again: got %+v, want %+v", got, want)
	}
	if _, err := db.Exec(`DELETE FROM workspaces`); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		gone := of(want[i].Workspace.ID)
		if want[i].SessionID == "dead-remote" { // the session's own
			gone.Attributes["instance_id"] = "i-0abc"
		}
		want[i].Workspace = gone
	}
	if got := abandoned(); !slices.EqualFunc(got, want, sameAbandoned) {
		t.Errorf("without its row: got %+v, want %+v", got, want)
	}
	if _, err := db.Exec(`UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '2 days'`); err != nil {
		t.Fatal(err)
	}
	if got := abandoned(); len(got) != 0 {
		t.Errorf("too old to look for: %v", got)
	}
}

func sameAbandoned(a, b Abandoned) bool {
	return a.SessionID == b.SessionID && same(a.Workspace, b.Workspace) && (a.Err == nil) == (b.Err == nil)
}

// A heartbeat of rows with a trail writes no index.
func TestHeartbeatsStayOffTheIndexes(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	p := open(t, PostgresConfig{URL: dsn})
	const live, beats = 200, 30
	trail := map[string]string{}
	for n := range 8 {
		trail[fmt.Sprint("name-", n)] = strings.Repeat("x", 40)
	}
	for n := range live {
		id := fmt.Sprintf("H4RRS6V2FUREPK5OFDFBJP%04d", n)
		if _, err := p.Redeem(t.Context(), claims("jti-"+id, "ws-local"), session(id)); err != nil {
			t.Fatal(err)
		}
		if err := p.Trace(t.Context(), id, trail); err != nil {
			t.Fatal(err)
		}
	}
	beat := func() {
		t.Helper()
		if err := p.Heartbeat(t.Context(), "gw-1", nil); err != nil {
			t.Fatal(err)
		}
	}
	for range beats {
		beat()
	}
	db := sqlDB(t, dsn)
	var updates, hot int
	until(t, func() bool { // the server publishes its counts with some delay
		beat()
		err := db.QueryRowContext(t.Context(), `SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'termgw.sessions'::regclass`).Scan(&updates, &hot)
		if err != nil {
			t.Fatal(err)
		}
		return updates >= live*beats
	})
	if hot < updates*85/100 { // without the room in each page 73% are: a snapshot of another connection keeps old versions for a moment
		t.Errorf("%d of %d updates wrote the indexes", updates-hot, updates)
	}
}
