package main

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// TestHolderIsLost: where the replica that holds a session was killed, or hangs, its person has a new shell at another at
// once, also where the person may have one shell alone.
func TestHolderIsLost(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	const limit = "TERMGW_MAX_SESSIONS_PER_SUBJECT=1"
	killed, asked := p.servePair(t, limit)
	address := ownHost() + ":8080"
	hangs := p.serve(t, limit, "TERMGW_RESUME=1h", "TERMGW_LISTEN="+address, "TERMGW_ADVERTISE_URL=http://"+address)

	type left struct {
		session string
		output  int
	}
	leaves := func(g *served, who string) left {
		t.Helper()
		c := g.dial(t, "ws", p.ticket(t, "ws", waits, bySubject(who)), dialing{})
		session := c.message(t, "ready").Session
		c.run(t, "secret=mine")
		c.reset(t)
		eventually(t, "the shell waits", func() bool { return g.metric(t, "termgw_sessions_waiting") == 1 })
		return left{session, c.base + len(c.output)}
	}
	comesBack := func(who string, l left) *tty {
		t.Helper()
		return asked.resumes(t, "ws", l.session, fmt.Sprint(l.output), bySubject(who))
	}
	ann, bob := leaves(killed, "ann"), leaves(hangs, "bob")

	killed.signal(t, os.Kill)
	killed.wait(t)
	hangs.signal(t, syscall.SIGSTOP)
	for _, who := range []string{"ann", "bob"} {
		if code := asked.dial(t, "ws", p.ticketOf(t, "ws", who), dialing{}).closed(t); code != 4429 {
			t.Errorf("another shell of %s: closed with %d", who, code)
		}
	}
	isNew(t, comesBack("ann", ann), ann.session)
	isNew(t, comesBack("bob", bob), bob.session)

	// One that only hung has its session, which counts again.
	hangs.signal(t, syscall.SIGCONT)
	eventually(t, "its heart beats", func() (beats bool) {
		p.query(t, "SELECT COALESCE(h.seen_at > s.unreached_at, false) FROM termgw.sessions s LEFT JOIN termgw.heartbeats h USING (process) WHERE id = '"+bob.session+"'", &beats)
		return beats
	})
	if code := asked.dial(t, "ws", p.ticketOf(t, "ws", "bob"), dialing{}).closed(t); code != 4429 {
		t.Errorf("another shell of bob: closed with %d", code)
	}
	c := comesBack("bob", bob)
	holds(t, c, bob.session)
	c.close(t)
	p.exec(t, "UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '5 minutes' WHERE ended_at IS NULL") // others end what is left
	container.empty(t)
	if r := p.lastRowOf(t, ann.session); r.reason != "replica_lost" {
		t.Errorf("the row says %+v", r)
	}
}

// TestWorkspaceIsGone: a shell that waits does not need the workspace's row, and a revocation of the workspace ends it.
func TestWorkspaceIsGone(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "gone", "")
	container := newBox(t, env.Docker(t), "gone")
	g := p.serve(t, "TERMGW_RESUME=1h")
	session, output := g.waiting(t, "gone", "secret=mine")
	p.exec(t, "DELETE FROM workspaces WHERE id = 'gone'")
	c := g.resumes(t, "gone", session, fmt.Sprint(output))
	holds(t, c, session)
	c.reset(t)
	eventually(t, "the shell waits", func() bool { return g.metric(t, "termgw_sessions_waiting") == 1 })
	p.exec(t, "INSERT INTO termgw.revocations (workspace_id) VALUES ('gone')")
	container.empty(t)
	if r := p.lastRowOf(t, session); r.reason != "revoked" {
		t.Errorf("the row says %+v", r)
	}
}

// TestModeOfWhoComesBack: the ticket that resumes decides whether its connection may type; the row says so once one could.
func TestModeOfWhoComesBack(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "TERMGW_RESUME=1h")
	readOnly := func(c *ticket.Claims) { c.Mode = ticket.ReadOnly }
	c := g.dial(t, "ws", p.ticket(t, "ws", waits, readOnly), dialing{})
	session := c.message(t, "ready").Session
	for _, test := range []struct {
		change []func(*ticket.Claims)
		mode   ticket.Mode
		row    string
	}{
		{[]func(*ticket.Claims){readOnly}, ticket.ReadOnly, "ro"},
		{nil, ticket.ReadWrite, "rw"},
		{[]func(*ticket.Claims){readOnly}, ticket.ReadOnly, "rw"},
	} {
		c.reset(t)
		c = g.resumes(t, "ws", session, "", test.change...)
		ready := c.message(t, "ready")
		var row string
		p.query(t, "SELECT mode FROM termgw.sessions WHERE id = '"+session+"'", &row)
		if !ready.Resumed || ready.Mode != string(test.mode) || row != test.row {
			t.Errorf("ready says %+v, the row %s; want %s, %s", ready, row, test.mode, test.row)
		}
	}
	c.control(t, `{"type":"end"}`)
	c.closed(t)
}
