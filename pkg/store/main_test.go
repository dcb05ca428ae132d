package store

import (
	"cmp"
	"database/sql"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

var env testenv.Env

func TestMain(m *testing.M) { env.Main(m) }

// patience is how long the database may take to answer, and a test waits for what a busy machine does late.
const patience = 3 * time.Minute

// claims are those of a good ticket, issued just now.
func claims(jti, workspace string) ticket.Claims {
	now := time.Now().Truncate(time.Second)
	return ticket.Claims{
		Issuer: "https://platform.example", Audience: []string{"termgw"}, Subject: "ann", ID: jti,
		IssuedAt: now, NotBefore: now, Expires: now.Add(time.Minute), WorkspaceID: workspace, Mode: ticket.ReadWrite,
	}
}

func session(id string) Session {
	return Session{ID: id, Replica: "gw-1", ClientAddr: "192.0.2.7:1234"}
}

// textWorkspaces is the platform's table with ids of type text.
const textWorkspaces = `
	CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text, container text);
	INSERT INTO workspaces VALUES ('ws-local', 'My Space', '', NULL), ('ws-remote', 'far', 'i-0abc', 'c1')`

// database makes a migrated database with the given tables of the platform.
func database(tb testing.TB, platform string) string {
	tb.Helper()
	url := env.Postgres(tb).NewDatabase(tb)
	prepare(tb, url, platform)
	return url
}

func prepare(tb testing.TB, url, platform string) {
	tb.Helper()
	if _, err := Migrate(tb.Context(), url, nil); err != nil {
		tb.Fatal(err)
	}
	if _, err := sqlDB(tb, url).Exec(platform); err != nil {
		tb.Fatal(err)
	}
}

func sqlDB(tb testing.TB, url string) *sql.DB {
	tb.Helper()
	db, err := sql.Open("postgres", url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return db
}

func open(tb testing.TB, c PostgresConfig) *Postgres {
	tb.Helper()
	c.Timeout = cmp.Or(c.Timeout, patience)
	p, err := OpenPostgres(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}
