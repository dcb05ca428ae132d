package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// What is no query that reads one workspace is refused: some of it without a database, the rest by Postgres, and nothing of
// it is ever run.
func TestWorkspaceQuery(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces+`; CREATE TABLE w AS SELECT * FROM workspaces`)
	const ok = "SELECT name, instance_id FROM w WHERE id = $1"
	for _, tt := range []struct {
		query string
		says  string // "": it is accepted
		away  bool   // refused without a database
	}{
		{query: DefaultWorkspaceQuery},
		{query: ok + ";"},
		{query: ok + " ; -- done"},
		{query: ok + "; /* a comment */ \n"},
		{query: ok + " -- no newline"},
		{query: ok + " -- it's; done"},
		{query: "-- first\n /* second */ select '--' AS name, instance_id FROM w WHERE id = $1"},
		{query: "(" + ok + ")"},
		{query: "WITH x AS (SELECT $1 AS id) SELECT name, instance_id FROM x JOIN w USING (id)"},
		{query: "TABLE w LIMIT length($1) / length($1)"},
		{query: `SELECT ';' || $$;)$$ || $a$ $$ ; $a$ || E'\';' || E'a''b;' || 'it''s;' AS name, instance_id, 1 AS ";)" FROM w WHERE id = $1`},

		{query: " -- nothing", says: "only a query that reads", away: true},
		{query: ";", says: "only a query that reads", away: true},
		{query: "SELECT 1", says: "does not use $1", away: true},
		{query: "DELETE FROM w WHERE id = $1 RETURNING *", says: "only a query that reads", away: true},
		{query: "/* SELECT */ UPDATE w SET name = $1 RETURNING *", says: "only a query that reads", away: true},

		{query: "SELECT '$1' AS name, '' AS instance_id", says: "its one parameter is $1"},
		{query: "SELECT '' AS name, '' AS instance_id -- $1", says: "its one parameter is $1"},
		{query: "SELECT $1 AS name, $2::text AS instance_id", says: "its one parameter is $1"},
		{query: "SELECT $10::text AS name, $1 AS instance_id", says: "its one parameter is $1"},
		{query: ok + "; DROP TABLE w", says: "multiple commands"},
		{query: ok + ";;", says: "syntax error"},
		{query: "SELECT $1) AS q), x AS (DELETE FROM w RETURNING 1), y AS (SELECT * FROM (SELECT '' AS name, '' AS instance_id", says: "syntax error"},
		{query: "SELECT ($1", says: "syntax error"},
		{query: "SELECT 'x, $1", says: "unterminated quoted string"},
		{query: "SELECT $1 /* x", says: "unterminated /* comment"},
		{query: "SELECT $1, $a$ x", says: "unterminated dollar-quoted string"},
		{query: `SELECT E'\', $1`, says: "unterminated quoted string"},
		{query: "WITH x AS (DELETE FROM w WHERE id = $1 RETURNING *) SELECT * FROM x", says: "must be at the top level"},
		{query: "WITH x AS (SELECT $1) INSERT INTO w SELECT 'c', 'c' FROM x RETURNING *", says: "syntax error"},
		{query: "SELECT * INTO x FROM w WHERE id = $1", says: "not allowed here"},
		{query: "SELECT id, name FROM w WHERE id = $1", says: "instance_id and name"},
	} {
		t.Run(tt.query, func(t *testing.T) {
			p, err := OpenPostgres(PostgresConfig{URL: dsn, WorkspaceQuery: tt.query, Timeout: patience})
			if err == nil {
				t.Cleanup(func() { _ = p.Close() })
			}
			if tt.away {
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Fatalf("opened: %v, want %q", err, tt.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, redeemed := p.Redeem(t.Context(), claims(fmt.Sprint("t", tt.query), "ws-local"), session(fmt.Sprint("s", tt.query)))
			for _, err := range []error{p.Ping(t.Context()), redeemed} {
				switch {
				case tt.says == "" && err != nil:
					t.Error(err)
				case tt.says != "" && (!errors.Is(err, ErrQuery) || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tt.says)):
					t.Errorf("got %v, want %q", err, tt.says)
				}
			}
		})
	}
	var left []string
	rows, err := sqlDB(t, dsn).Query(`SELECT id FROM w ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		left = append(left, id)
	}
	if want := []string{"ws-local", "ws-remote"}; rows.Err() != nil || !slices.Equal(left, want) {
		t.Errorf("the table has %q, want %q: %v", left, want, rows.Err())
	}
}
