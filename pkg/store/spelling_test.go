package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// spelled is a kind of id, its row's own spelling, and others by which the row is found. All but the last of the others
// pass the endpoint's path.
type spelled struct {
	name, tables, query string
	id                  string
	others              []string
}

// spellings has the types of ids that read one value from several texts.
func spellings() []spelled {
	const uuid = "abcdef01-9d1e-4a53-8e0b-0a8d3c0f7b11"
	const places = `; CREATE TABLE homes (id %s, name text, instance_id text); INSERT INTO homes VALUES ('%s', 'one', '')`
	table := func(typ, id string) string {
		return fmt.Sprintf(strings.Replace(strings.TrimPrefix(places, "; "), "homes", "workspaces", 2), typ, id)
	}
	uuids := []string{
		strings.ToUpper(uuid), "Abcdef01-9d1e-4a53-8e0b-0a8d3c0f7b11", strings.ReplaceAll(uuid, "-", ""),
		"abcd-ef01-9d1e-4a53-8e0b-0a8d-3c0f-7b11", "{" + uuid + "}",
	}
	const noID = `SELECT name, instance_id FROM workspaces WHERE id = $1`
	return []spelled{
		{"uuid", table("uuid", uuid), "", uuid, uuids},
		{"uuid, by a query without its id", table("uuid", uuid), noID, uuid, uuids},
		{"uuid, cast in the query", table("text", uuid), `SELECT name, instance_id FROM workspaces WHERE id::uuid = $1::uuid`, uuid, uuids},
		{"bigint", table("bigint", "42"), "", "42", []string{"042", "0000042", " 42", "+42"}},
		{"bigint, by a query without its id", table("bigint", "42"), noID, "42", []string{"042", "0000042", "+42"}},
		{"numeric", table("numeric(10,2)", "42"), "", "42.00", []string{"42", "42.0", "042", "4.2e1", "+42"}},
		{"numeric, by a query without its id", table("numeric(10,2)", "42"), noID, "42", []string{"42.0", "42.00", "042", "4.2e1", "+42"}},
		{"citext, by a query without its id", `CREATE EXTENSION citext; ` + table("citext", "Ab.c"), noID, "ab.c", []string{"Ab.c", "AB.C"}},
		{"char", table("char(8)", "ab"), "", "ab", []string{"ab "}},
		{"char, all of the row", table("char(8)", "ab"), `SELECT * FROM workspaces WHERE id = $1`, "ab", []string{"ab "}},
		{"citext", `CREATE EXTENSION citext; ` + table("citext", "Ab.c"), "", "Ab.c", []string{"ab.c", "AB.C"}},
		{
			"a collation without case", `CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false); ` +
				table("text COLLATE caseless", "Ab.c"), "", "Ab.c", []string{"ab.c", "AB.C"},
		},
		{"a query of its own", table("text", "Ab.c"), `SELECT * FROM workspaces WHERE lower(id) = lower($1)`, "Ab.c", []string{"ab.c", "AB.C"}},
	}
}

// A workspace is what its row says, however the path and the ticket spell its id: for limits, orders, the audit trail and
// what the runner is told. An order's writer may spell it in yet another way.
func TestSpellingsOfAnID(t *testing.T) {
	t.Parallel()
	for _, tt := range spellings() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dsn := database(t, tt.tables)
			db := sqlDB(t, dsn)
			limited := open(t, PostgresConfig{URL: dsn, WorkspaceQuery: tt.query, Limits: Limits{PerWorkspace: 1}})
			p, cuts := watchingEvery(t, time.Hour, PostgresConfig{URL: dsn, WorkspaceQuery: tt.query})
			all := append([]string{tt.id}, tt.others...)
			n := 0
			redeemed := func(p *Postgres, c ticket.Claims) error {
				n++
				w, err := p.Redeem(t.Context(), c, session(fmt.Sprint("s", n)))
				if err == nil && (w.ID != tt.id || w.Attributes["name"] != "one") {
					t.Errorf("%q is the workspace %+v, want %q", c.WorkspaceID, w, tt.id)
				}
				return err
			}
			redeem := func(p *Postgres, id string) error { return redeemed(p, claims(fmt.Sprint("t", n), id)) }

			// One place, whoever has it and whoever asks.
			for _, first := range all {
				if err := redeem(limited, first); err != nil {
					t.Fatalf("%q: %v", first, err)
				}
				held := fmt.Sprint("s", n)
				for _, second := range all {
					if err := redeem(limited, second); !errors.Is(err, ErrLimit) {
						t.Errorf("%q beside %q: %v, want ErrLimit", second, first, err)
					}
				}
				if err := limited.Finish(t.Context(), held, End{Reason: "exit"}); err != nil {
					t.Fatal(err)
				}
			}
			var rows, own int
			if err := db.QueryRow(`SELECT count(*), count(*) FILTER (WHERE workspace_id = $1) FROM termgw.sessions`, tt.id).Scan(&rows, &own); err != nil || rows == 0 || own != rows {
				t.Errorf("%d of %d rows have the workspace's own id, %v", own, rows, err)
			}

			// An order in any spelling cuts a session that was opened by any, and refuses tickets of any.
			for _, written := range all {
				var live []string
				for _, id := range all {
					if err := redeem(p, id); err != nil {
						t.Fatalf("%q: %v", id, err)
					}
					live = append(live, fmt.Sprint("s", n))
				}
				listed, err := p.Sessions(t.Context(), SessionFilter{WorkspaceID: written})
				if err != nil || len(listed) != len(live) {
					t.Errorf("list of %q has %d sessions, want %d, %v", written, len(listed), len(live), err)
				}
				var old []ticket.Claims
				for _, id := range all {
					old = append(old, claims("old"+fmt.Sprint(n)+id, id))
				}
				execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id) VALUES ($1)`, written)
				var cut []string
				for len(cut) < len(live) {
					select {
					case got := <-cuts:
						cut = append(cut, got.sessions...)
					case <-time.After(patience):
						t.Fatalf("an order for %q cut %v of %v", written, cut, live)
					}
				}
				for _, c := range old {
					if err := redeemed(p, c); !errors.Is(err, ErrRevoked) {
						t.Errorf("%q after an order for %q: %v, want ErrRevoked", c.WorkspaceID, written, err)
					}
				}
				for _, s := range live {
					if err := p.Finish(t.Context(), s, End{Reason: "revoked"}); err != nil {
						t.Fatal(err)
					}
				}
				execSQL(t, dsn, `DELETE FROM termgw.revocations`)

				// By the command's way.
				if err := redeem(p, tt.id); err != nil {
					t.Fatal(err)
				}
				last := fmt.Sprint("s", n)
				_, sessions, err := p.Revoke(t.Context(), Revocation{WorkspaceID: written})
				if err != nil || !slices.Equal(sessions, []string{last}) {
					t.Errorf("revoke %q: %v, %v", written, sessions, err)
				}
				if got := <-cuts; !slices.Equal(got.sessions, []string{last}) {
					t.Errorf("revoke %q cuts %v", written, got.sessions)
				}
				if err := p.Finish(t.Context(), last, End{Reason: "revoked"}); err != nil {
					t.Fatal(err)
				}
				execSQL(t, dsn, `DELETE FROM termgw.revocations`)
			}
		})
	}
}

// Where two ids differ, they are two workspaces, however alike they look.
func TestIDsThatAreNotSpellings(t *testing.T) {
	t.Parallel()
	dsn := database(t, `CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text);
		INSERT INTO workspaces SELECT id, id, '' FROM unnest(ARRAY['ab', 'AB', 'a-b', '01', '1', '1.0']) id`)
	p, cuts := watching(t, PostgresConfig{URL: dsn, Limits: Limits{PerWorkspace: 1}})
	ids := []string{"ab", "AB", "a-b", "01", "1", "1.0"}
	for _, id := range ids {
		w, err := p.Redeem(t.Context(), claims("t"+id, id), session("s"+id))
		if err != nil || w.ID != id {
			t.Fatalf("%q: %+v, %v", id, w, err)
		}
	}
	for _, id := range ids {
		execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id) VALUES ($1)`, id)
		if got := <-cuts; !slices.Equal(got.sessions, []string{"s" + id}) {
			t.Errorf("an order for %q cuts %v", id, got.sessions)
		}
	}
}

// An order for a workspace whose row is gone by then holds for the spellings that its type knows; one that the type refuses,
// or on which the query fails, holds as it is written, and neither stops the others.
func TestOrdersForWorkspacesThatAreGone(t *testing.T) {
	t.Parallel()
	const id = "abcdef01-9d1e-4a53-8e0b-0a8d3c0f7b11"
	dsn := database(t, `CREATE TABLE workspaces (id uuid PRIMARY KEY, name text, instance_id text, parts integer);
		INSERT INTO workspaces VALUES ('`+id+`', 'one', '', 1), ('00000000-0000-0000-0000-000000000000', 'bad', '', 0)`)
	p, cuts := watching(t, PostgresConfig{URL: dsn, WorkspaceQuery: `SELECT *, 1 / parts FROM workspaces WHERE id = $1`})
	for i, gone := range []bool{false, true} {
		s := fmt.Sprint("s", i)
		if _, err := p.Redeem(t.Context(), claims("t"+s, id), session(s)); err != nil {
			t.Fatal(err)
		}
		if gone {
			execSQL(t, dsn, `DELETE FROM workspaces WHERE name = 'one'`)
		}
		for _, other := range []string{"no-uuid", "00000000000000000000000000000000", "'; --", "\u202e"} {
			execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id) VALUES ($1)`, other)
		}
		execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id, subject) VALUES ($1, 'bob')`, strings.ToUpper(id))
		execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id, subject) VALUES ($1, 'ann')`, strings.ToUpper(id))
		if got := <-cuts; !slices.Equal(got.sessions, []string{s}) || got.order.Subject != "ann" {
			t.Errorf("cut %+v", got)
		}
		execSQL(t, dsn, `DELETE FROM termgw.revocations`)
	}
}

// The same where the type takes texts for equal and writes several. What only a collation or the query takes for equal is told.
func TestSpellingsOfAWorkspaceThatIsGone(t *testing.T) {
	t.Parallel()
	for _, tt := range spellings() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dsn := database(t, tt.tables)
			var said log
			p, cuts := watching(t, PostgresConfig{URL: dsn, WorkspaceQuery: tt.query, Logger: said.logger()})
			if _, err := p.Redeem(t.Context(), claims("t", tt.id), session("s")); err != nil {
				t.Fatal(err)
			}
			execSQL(t, dsn, `DELETE FROM workspaces`)
			execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id) VALUES ($1)`, tt.others[len(tt.others)-1])
			if tt.name == "a collation without case" || tt.name == "a query of its own" || tt.name == "uuid, cast in the query" {
				until(t, func() bool { return said.count("has no row") == 1 })
				return
			}
			wantCut(t, cuts, "s")
		})
	}
}

// A promoted standby may give an id a second time: the workspace that was looked up for the old revocation of that id is not
// written into the new one, which is looked up itself.
func TestRevocationIDGivenTwice(t *testing.T) {
	t.Parallel()
	dsn := database(t, `CREATE TABLE workspaces (id uuid PRIMARY KEY, name text, instance_id text);
		INSERT INTO workspaces VALUES ('aaaaaaaa-0000-0000-0000-000000000000', 'a', ''), ('bbbbbbbb-0000-0000-0000-000000000000', 'b', '')`)
	p := open(t, PostgresConfig{URL: dsn})
	const old, written = "AAAAAAAA-0000-0000-0000-000000000000", "BBBBBBBB-0000-0000-0000-000000000000"
	var id int64
	if err := sqlDB(t, dsn).QueryRow(`INSERT INTO termgw.revocations (workspace_id) VALUES ($1) RETURNING id`, written).Scan(&id); err != nil {
		t.Fatal(err)
	}
	s := newLookups(p)
	for _, workspace := range []string{old, written} {
		s.add(lookup{order: id, workspace: workspace})
	}
	l, _, err := s.take(t.Context())
	if err != nil || l.workspace != written {
		t.Errorf("looked up is %q: %v", l.workspace, err)
	}
	for _, step := range []struct{ workspace, want string }{{old, ""}, {written, strings.ToLower(written)}} {
		if err := s.find(t.Context(), lookup{order: id, workspace: step.workspace}); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := sqlDB(t, dsn).QueryRow(`SELECT COALESCE(row_id, '') FROM termgw.revocations WHERE id = $1`, id).Scan(&got); err != nil || got != step.want {
			t.Errorf("after the lookup of %s: %q, want %q: %v", step.workspace, got, step.want, err)
		}
	}
}

// A workspace query that returns no id is warned of, once.
func TestQueryWithoutAnID(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	for query, want := range map[string]int{"": 0, `SELECT name, instance_id FROM workspaces WHERE id = $1`: 1} {
		var said log
		p := open(t, PostgresConfig{URL: dsn, WorkspaceQuery: query, Logger: said.logger()})
		for range 3 {
			if err := p.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := said.count("id::text AS id"); got != want {
			t.Errorf("%q: %d warnings, want %d", query, got, want)
		}
	}
}

// An order for a workspace for which the query takes too long does not keep those of others from being looked up.
func TestSlowLookupStopsNoOther(t *testing.T) {
	t.Parallel()
	dsn := database(t, `CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text); INSERT INTO workspaces VALUES ('Ab', '', '')`)
	var said log
	p, cuts := watching(t, PostgresConfig{
		URL: dsn, Logger: said.logger(), Timeout: 2 * time.Second,
		WorkspaceQuery: `SELECT *, CASE WHEN $1 = 'slow' THEN pg_sleep(3600) END FROM workspaces WHERE lower(id) = lower($1) OR $1 = 'slow'`,
	})
	if _, err := p.Redeem(t.Context(), claims("t", "ab"), session("s")); err != nil {
		t.Fatal(err)
	}
	execSQL(t, dsn, `INSERT INTO termgw.revocations (workspace_id) VALUES ('slow'), ('AB')`)
	wantCut(t, cuts, "s")
	until(t, func() bool { return p.Reading() == nil })
}

// The same for the in-process store, whose lookup may take several spellings. That of a file takes one.
func TestMemorySpellings(t *testing.T) {
	t.Parallel()
	list := LookupIn([]Workspace{{ID: "Ab"}})
	if _, err := list(t.Context(), "ab"); !errors.Is(err, ErrNotFound) {
		t.Errorf("another spelling in a file: %v", err)
	}
	m := NewMemory(MemoryConfig{Limits: Limits{PerWorkspace: 1}, Lookup: func(ctx context.Context, id string) (Workspace, error) {
		return list(ctx, strings.ToUpper(id[:1])+strings.ToLower(id[1:]))
	}})
	for i, written := range []string{"Ab", "ab", "aB"} {
		s := fmt.Sprint("s", i)
		if w, err := m.Redeem(t.Context(), claims("t"+s, written), session(s)); err != nil || w.ID != "Ab" {
			t.Fatal(w, err)
		}
		if _, err := m.Redeem(t.Context(), claims("u"+s, "AB"), session("u"+s)); !errors.Is(err, ErrLimit) {
			t.Errorf("another spelling: %v, want ErrLimit", err)
		}
		if err := m.Finish(t.Context(), s, End{}); err != nil {
			t.Fatal(err)
		}
	}
}
