package store

import (
	"strings"
	"testing"
)

func TestWorkspaceQuery(t *testing.T) {
	t.Parallel()
	const ok = "SELECT name, instance_id FROM w WHERE id = $1"
	for _, tt := range []struct{ query, want, fault string }{
		{query: DefaultWorkspaceQuery, want: DefaultWorkspaceQuery},
		{query: ok + ";", want: ok},
		{query: ok + " ; -- done; really", want: ok + " "},
		{query: ok + "; /* a /* nested; */ one */ \n", want: ok},
		{query: ok + " -- no newline", want: ok + " -- no newline"},
		{query: "-- first\nselect '--', $1", want: "-- first\nselect '--', $1"},
		{query: "(SELECT $1)", want: "(SELECT $1)"},
		{query: "WITH x AS (SELECT $1 AS id) SELECT * FROM x", want: "WITH x AS (SELECT $1 AS id) SELECT * FROM x"},
		{query: `SELECT ';' || $$;)$$ || $a$ $$ ; $a$ || E'\';' || E'a''b;' || 'it''s;' || ";)" || $1`, want: `SELECT ';' || $$;)$$ || $a$ $$ ; $a$ || E'\';' || E'a''b;' || 'it''s;' || ";)" || $1`},

		{query: "", fault: "empty"},
		{query: " -- nothing", fault: "empty"},
		{query: ";", fault: "empty"},
		{query: "SELECT 1", fault: "does not use $1"},
		{query: "SELECT '$1'", fault: "does not use $1"},
		{query: "SELECT 1 -- $1", fault: "does not use $1"},
		{query: "SELECT $1, $2", fault: "$2: the only parameter"},
		{query: "SELECT $10", fault: "$10: the only parameter"},
		{query: ok + "; DROP TABLE w", fault: "more than one statement"},
		{query: ok + ";;", fault: "more than one statement"},
		{query: "SELECT $1), x AS (SELECT 1", fault: "never opened"},
		{query: "SELECT ($1", fault: "not closed"},
		{query: "DELETE FROM w WHERE id = $1", fault: "begins with DELETE"},
		{query: "SELECT 'x, $1", fault: "not closed"},
		{query: "SELECT $1 /* x", fault: "not closed"},
		{query: "SELECT $1, $a$ x", fault: "not closed"},
		{query: `SELECT E'\', $1`, fault: "not closed"},
	} {
		got, err := workspaceQuery(tt.query)
		switch {
		case tt.fault == "" && (err != nil || got != tt.want):
			t.Errorf("%s: got %q, %v, want %q", tt.query, got, err, tt.want)
		case tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault)):
			t.Errorf("%s: got %v, want %q", tt.query, err, tt.fault)
		}
	}
}

func FuzzWorkspaceQuery(f *testing.F) {
	for _, q := range []string{DefaultWorkspaceQuery, "SELECT $1;", "'", `E'\`, "$", "$a", "/*/**/", "--", "\xff"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, q string) {
		got, err := workspaceQuery(q)
		if err != nil {
			return
		}
		if !strings.HasPrefix(q, got) {
			t.Errorf("%q is no beginning of %q", got, q)
		}
		// What is accepted stays one part: within parentheses, and read again, it says the same.
		again, err := workspaceQuery("WITH x AS (\n" + got + "\n) SELECT * FROM x")
		if err != nil || !strings.Contains(again, got) {
			t.Errorf("%q embedded: %v", got, err)
		}
	})
}
