package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// psql runs one statement by the program of that name, and returns its rows.
func (p *platform) psql(t *testing.T, databaseURL, statement string) (rows string, err error) {
	t.Helper()
	cmd := exec.Command("psql", "-XAtqv", "ON_ERROR_STOP=1", "-c", statement, databaseURL)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if _, exited := errors.AsType[*exec.ExitError](err); exited {
		err = errors.New(said.String())
	} else if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), err
}

// role makes one with rights and returns the database's URL for it.
func (p *platform) role(t *testing.T, grants ...string) (databaseURL, name string) {
	t.Helper()
	name = fmt.Sprintf("role_%d", time.Now().UnixNano())
	u, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	password := p.keepSecret("x.rolerolerolerolerolerole.x")
	u.User = url.UserPassword(name, password)
	p.exec(t, `CREATE ROLE `+name+` LOGIN PASSWORD '`+password+`'`)
	t.Cleanup(func() {
		if _, err := p.db.Exec(`DROP OWNED BY ` + name + `; DROP ROLE ` + name); err != nil {
			t.Error(err)
		}
	})
	for _, grant := range grants {
		p.exec(t, `GRANT `+grant+` TO `+name)
	}
	return u.String(), name
}

// A platform with the documented rights tries to ban for good: Postgres says what is wrong with infinity, the year 9999 does
// it, and where a row of infinity is in the table after all, it does the same and every other order still cuts.
func TestOneOrderStopsNoOther(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "a", "")
	newBox(t, env.Docker(t), "a")
	gateways := []*served{p.serve(t), p.serve(t)}
	platform, _ := p.role(t, `USAGE ON SCHEMA termgw`,
		`INSERT (workspace_id, subject, session_id, instance_id, reason, revoked_by, created_at) ON termgw.revocations`)
	open := func(subject string) (ttys []*tty) {
		for _, g := range gateways {
			c := g.dial(t, "a", p.ticketOf(t, "a", subject), dialing{})
			c.message(t, "ready")
			ttys = append(ttys, c)
		}
		return ttys
	}
	wantCut := func(ttys []*tty, order string) {
		t.Helper()
		for i, c := range ttys {
			if code, m := c.closed(t), c.message(t, "error"); code != 4423 || m.Code != "revoked" {
				t.Errorf("%s: gateway %d closed with %d, %+v", order, i, code, m)
			}
		}
	}

	banned := open("subject-1")
	_, err := p.psql(t, platform, `INSERT INTO termgw.revocations (subject, created_at) VALUES ('subject-1', 'infinity')`)
	if err == nil || !strings.Contains(err.Error(), "created_at_is_in_1970_to_9999") {
		t.Errorf("an order of infinity: %v", err)
	}
	if _, err := p.psql(t, platform, `INSERT INTO termgw.revocations (subject, created_at) VALUES ('subject-1', '9999-12-31')`); err != nil {
		t.Error(err)
	}
	wantCut(banned, "a ban until 9999")
	later := time.Now().Unix() + 1
	eventually(t, "the next second", func() bool { return time.Now().Unix() > later })
	gateways[0].refused(t, "a", p.ticketOf(t, "a", "subject-1"), 4423)

	p.exec(t, `ALTER TABLE termgw.revocations DROP CONSTRAINT revocations_created_at_is_in_1970_to_9999`)
	for i, at := range []string{"infinity", "-infinity", "294276-12-31", "4713-01-01 BC"} {
		other := fmt.Sprint("other-", i)
		others := open(other)
		if _, err := p.psql(t, platform, `INSERT INTO termgw.revocations (subject, created_at) VALUES ('subject-0', '`+at+`')`); err != nil {
			t.Fatal(err)
		}
		if _, err := p.psql(t, platform, `INSERT INTO termgw.revocations (subject) VALUES ('`+other+`')`); err != nil {
			t.Fatal(err)
		}
		wantCut(others, "an order beside one of "+at)
	}
	for _, g := range gateways {
		if a := g.get(t, g.address, "/readyz"); a.StatusCode != http.StatusOK || !strings.Contains(a.body, `"orders":"ok"`) {
			t.Errorf("%d %s", a.StatusCode, a.body)
		}
	}
}

// A gateway that cannot read the orders says so everywhere, once in its log, and takes no terminals until it can.
func TestOrdersThatAreNotRead(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "a", "")
	newBox(t, env.Docker(t), "a")
	databaseURL, name := p.role(t, `SELECT ON workspaces`, `USAGE ON SCHEMA termgw`, `SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA termgw`)
	g := p.serve(t, "TERMGW_DATABASE_URL="+databaseURL)
	c := g.dial(t, "a", p.ticket(t, "a"), dialing{})
	session := c.message(t, "ready").Session
	if age := g.metric(t, "termgw_orders_age_seconds"); age < 0 || g.metric(t, `termgw_ready{part="orders"}`) != 1 || g.metric(t, `termgw_ready{part="store"}`) != 1 {
		t.Errorf("the orders were read %g s ago, by a gateway that is not ready", age)
	}

	// All that a redemption reads is left.
	p.exec(t, `REVOKE SELECT ON termgw.revocations FROM `+name)
	p.exec(t, `GRANT SELECT (id, xid, created_at, workspace_id, subject, session_id, instance_id, row_id) ON termgw.revocations TO `+name)
	eventually(t, "not ready", func() bool {
		a := g.get(t, g.address, "/readyz")
		return a.StatusCode == http.StatusServiceUnavailable && strings.Contains(a.body, `"orders":"unavailable"`) && strings.Contains(a.body, `"store":"ok"`)
	})
	if age := g.metric(t, "termgw_orders_age_seconds"); age < 15 || g.metric(t, `termgw_ready{part="orders"}`) != 0 {
		t.Errorf("the orders were read %g s ago", age)
	}
	lines := func(msg string) (n int) {
		for _, line := range g.logLines() {
			if line["msg"] == msg {
				n++
			}
		}
		return n
	}
	if n := lines("revocations are not read"); n != 1 {
		t.Errorf("the fault is logged %d times", n)
	}

	// The command says what an order has done: nothing, so far.
	status, out, said := p.operate(t, nil, "sessions", "revoke", "--session="+session)
	if status != 1 || !strings.Contains(out, "cuts 0 session(s)") || !strings.Contains(said, "NOT cut: session "+session) || !strings.Contains(said, "is written") {
		t.Errorf("exit status %d:\n%s%s", status, out, said)
	}
	if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("the terminal that was not cut says %q", got)
	}

	p.exec(t, `GRANT SELECT ON termgw.revocations TO `+name)
	if code := c.closed(t); code != 4423 {
		t.Errorf("closed with %d when the orders are read again", code)
	}
	eventually(t, "ready again", func() bool { return g.get(t, g.address, "/readyz").StatusCode == http.StatusOK })
	if n := lines("revocations are read again"); n != 1 {
		t.Errorf("the end of the fault is logged %d times", n)
	}
}

// One workspace has many spellings where its id is a uuid. For limits, orders, the audit trail, the container and the log it
// is one; path and ticket still have to be the same text.
func TestSpellingsOfAWorkspace(t *testing.T) {
	t.Parallel()
	const id = "abcdef01-9d1e-4a53-8e0b-0a8d3c0f7b11"
	spellings := []string{id, strings.ToUpper(id), strings.ReplaceAll(id, "-", ""), "ABCD-ef01-9d1e-4a53-8e0b-0a8d-3c0f-7b11"}
	p := newPlatform(t)
	p.exec(t, `DROP TABLE workspaces; CREATE TABLE workspaces (id uuid PRIMARY KEY, name text, instance_id text)`)
	p.workspace(t, id, "")
	box := newBox(t, env.Docker(t), id[:12])
	limited := p.serve(t, "TERMGW_MAX_SESSIONS_PER_WORKSPACE=1")
	free := p.serve(t)
	open := func(g *served, spelling string) *tty {
		t.Helper()
		c := g.dial(t, spelling, p.ticket(t, spelling), dialing{})
		if ready := c.message(t, "ready"); ready.Workspace != id {
			t.Errorf("%s is ready as %s", spelling, ready.Workspace)
		}
		return c
	}
	for i, spelling := range spellings {
		other := spellings[(i+1)%len(spellings)]
		c := open(limited, spelling)
		for _, second := range spellings {
			limited.refused(t, second, p.ticket(t, second), 4429)
		}
		limited.refused(t, other, p.ticket(t, spelling), 4403)
		c.close(t)
		p.lastRow(t, id)
	}
	var rows int
	p.query(t, `SELECT count(*) FROM termgw.sessions WHERE workspace_id <> '`+id+`'`, &rows)
	if rows != 0 {
		t.Errorf("%d rows of the audit trail have another spelling", rows)
	}
	for _, line := range limited.logLines() {
		if line["msg"] == "session started" && line["workspace"] != id {
			t.Errorf("the log says %v", line)
		}
	}

	for i, written := range append(slices.Clone(spellings), "{"+strings.ToUpper(id)+"}") {
		var ttys []*tty
		for _, spelling := range spellings {
			ttys = append(ttys, open(free, spelling))
		}
		if i%2 == 0 {
			if _, err := p.psql(t, p.url, `INSERT INTO termgw.revocations (workspace_id) VALUES ('`+written+`')`); err != nil {
				t.Fatal(err)
			}
		} else if status, out, said := p.operate(t, nil, "sessions", "revoke", "--workspace="+written); status != 0 || !strings.Contains(out, "cuts 4 session(s)") {
			t.Errorf("revoke %s: exit status %d:\n%s%s", written, status, out, said)
		}
		for j, c := range ttys {
			if code := c.closed(t); code != 4423 {
				t.Errorf("an order for %s: %s closed with %d", written, spellings[j], code)
			}
		}
		ordered := time.Now().Unix()
		eventually(t, "the next second", func() bool { return time.Now().Unix() > ordered })
	}
	eventually(t, "no shell is left", func() bool { return box.shells(t) == 0 })
}

// A gateway that is killed leaves a shell that was opened by another spelling: the next one ends it.
func TestReapingAnotherSpelling(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.exec(t, `DROP TABLE workspaces; CREATE TABLE workspaces (id bigint PRIMARY KEY, name text, instance_id text)`)
	p.workspace(t, "42", "")
	box := newBox(t, env.Docker(t), "42")
	g := p.serve(t)
	c := g.dial(t, "0042", p.ticket(t, "0042", func(c *ticket.Claims) { c.Subject = "bob" }), dialing{})
	session := c.message(t, "ready").Session
	g.signal(t, os.Kill)
	g.wait(t)
	p.exec(t, `UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '1 hour'`)
	p.serve(t)
	if r := p.lastRowOf(t, session); r.reason != "replica_lost" {
		t.Errorf("ended as %q", r.reason)
	}
	eventually(t, "its shell is gone", func() bool { return box.shells(t) == 0 })
}

// Behind a pooler in transaction mode a gateway is ready and says that revocations do not arrive at once, and the log why.
func TestReadyBehindAPooler(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	pooler := env.Postgres(t).StartPgBouncer(t, "transaction")
	g := p.serve(t, "TERMGW_DATABASE_URL="+pooler.Before(t, p.url))
	eventually(t, "revocations do not arrive at once, and the log names the pooler", func() bool {
		a := g.get(t, g.address, "/readyz")
		if a.StatusCode != http.StatusOK || !strings.Contains(a.body, `"store":"ok"`) {
			t.Errorf("/readyz: %d %s", a.StatusCode, a.body)
		}
		return strings.Contains(a.body, `"revocations":"unavailable"`) && strings.Contains(g.log.String(), "is a pooler in transaction mode before it?")
	})
	for range 3 {
		status, out, said := p.operate(t, []string{"TERMGW_DATABASE_URL=" + pooler.Before(t, p.url)}, "migrate")
		if status != 0 || !strings.Contains(out, "up to date") {
			t.Errorf("migrate: exit status %d: %s%s", status, out, said)
		}
	}
}
