package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Shells that wait: what is refused to whoever asks for one, and how one ends to which nobody comes back.

// waits has a ticket's shell wait for its person.
func waits(c *ticket.Claims) { c.Resume = time.Hour }

// waiting opens a terminal, runs a command line, loses the connection, and waits until the shell waits.
func (g *served) waiting(tb testing.TB, workspace, line string) (session string, output int) {
	tb.Helper()
	before := g.metric(tb, "termgw_sessions_waiting")
	c := g.dial(tb, workspace, g.ticket(tb, workspace, waits), dialing{})
	session = c.message(tb, "ready").Session
	c.run(tb, line)
	c.reset(tb)
	eventually(tb, "the shell waits", func() bool { return g.metric(tb, "termgw_sessions_waiting") == before+1 })
	return session, c.base + len(c.output)
}

// resumes comes back to a session.
func (g *served) resumes(tb testing.TB, workspace, session, output string, change ...func(*ticket.Claims)) *tty {
	tb.Helper()
	query := "resume=" + session
	if output != "" {
		query += "&output=" + output
	}
	return g.dial(tb, workspace, g.ticket(tb, workspace, append([]func(*ticket.Claims){waits}, change...)...), dialing{query: query})
}

// holds checks that a client has the session, and that its shell is the one in which secret was set.
func holds(tb testing.TB, c *tty, session string) {
	tb.Helper()
	if ready := c.message(tb, "ready"); !ready.Resumed || ready.Session != session {
		tb.Errorf("ready says %+v", ready)
	}
	if got := c.run(tb, `echo "[$secret]"`); got != "[mine]\r\n" {
		tb.Errorf("the shell says %q", got)
	}
}

// isNew checks that a client has a new shell, and ends it.
func isNew(tb testing.TB, c *tty, session string) {
	tb.Helper()
	if ready := c.message(tb, "ready"); ready.Resumed || ready.Session == session || ready.Output != 0 || ready.Input != 0 {
		tb.Errorf("ready says %+v", ready)
	}
	if got := c.run(tb, `echo "[$secret]"`); got != "[]\r\n" {
		tb.Errorf("the shell says %q", got)
	}
	c.close(tb)
}

// servePair starts two gateways that pass connections on to each other.
func (p *platform) servePair(tb testing.TB, environ ...string) (holder, asked *served) {
	tb.Helper()
	var both [2]*served
	for i := range both {
		address := ownHost() + ":8080"
		both[i] = p.serve(tb, append([]string{"TERMGW_RESUME=1h", "TERMGW_LISTEN=" + address, "TERMGW_ADVERTISE_URL=http://" + address}, environ...)...)
	}
	return both[0], both[1]
}

// TestResumeRefused: bad input, at the replica that holds a session and at another. Each has its code or a new shell, and the
// session waits on for its person.
func TestResumeRefused(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	p.workspace(t, "other", "")
	container, another := newBox(t, env.Docker(t), "ws"), newBox(t, env.Docker(t), "other")
	holder, asked := p.servePair(t)
	session, output := holder.waiting(t, "ws", "secret=mine") // and a prompt, which may not have come
	ended := holder.dial(t, "ws", p.ticket(t, "ws", waits), dialing{})
	over := ended.message(t, "ready").Session
	ended.control(t, `{"type":"end"}`)
	ended.closed(t)
	p.lastRowOf(t, over)

	for name, g := range map[string]*served{"holder": holder, "another replica": asked} {
		for _, bad := range []string{
			"-1", fmt.Sprint(output + 1000), "1e30", "1e3", "0x10", "9223372036854775807", "99999999999999999999", "%00", "1.5",
			fmt.Sprintf("%d&output=%d", output, output), fmt.Sprintf("%d&resume=%s", output, over), "&output=",
		} {
			c := g.resumes(t, "ws", session, bad)
			if code, m := c.closed(t), c.message(t, "error"); code != 4400 || m.Code != "bad_message" || !isSentence(m.Message) {
				t.Errorf("%s, output=%s: closed with %d, %+v", name, bad, code, m)
			}
		}
		raw := p.ticket(t, "ws", waits)
		first := g.dial(t, "ws", raw, dialing{})
		first.message(t, "ready")
		again := g.dial(t, "ws", raw, dialing{query: "resume=" + session})
		if code, m := again.closed(t), again.message(t, "error"); code != 4409 || m.Code != "ticket_used" {
			t.Errorf("%s, a used ticket: closed with %d, %+v", name, code, m)
		}
		first.close(t)
		isNew(t, g.resumes(t, "ws", session, "0", bySubject("bob")), session)
		isNew(t, g.resumes(t, "other", session, "0"), session)
		isNew(t, g.resumes(t, "ws", over, "0"), over)
		isNew(t, g.resumes(t, "ws", "AAAAAAAAAAAAAAAAAAAAAAAAAA", "0"), "")
		isNew(t, g.resumes(t, "ws", "%27%00%ff"+strings.Repeat("x", 2000), "0"), "")
	}

	var resumes int
	var client string
	look := func() {
		t.Helper()
		err := p.db.QueryRowContext(t.Context(), "SELECT resumes, client_addr FROM termgw.sessions WHERE id = $1", session).Scan(&resumes, &client)
		if err != nil {
			t.Fatal(err)
		}
	}
	if look(); resumes != 0 || holder.metric(t, "termgw_sessions_waiting") != 1 {
		t.Errorf("%d resumes are recorded", resumes)
	}

	// Who comes from outside names no address, and passes nothing on.
	raw := p.ticket(t, "ws", waits)
	for _, g := range []*served{holder, asked} {
		response := handshake(t, g.address, "ws/terminal?resume="+session,
			"Termgw-Hop: 9999999999;203.0.113.9;AAAA\nSec-WebSocket-Protocol: termgw.v1, termgw.ticket."+raw)
		if _ = response.Body.Close(); response.StatusCode != http.StatusConflict {
			t.Errorf("a forged header: status %d", response.StatusCode)
		}
	}
	c := asked.dial(t, "ws", raw, dialing{
		query:  fmt.Sprintf("resume=%s&output=%d", session, output),
		header: http.Header{"X-Forwarded-For": {"203.0.113.9"}, "Forwarded": {"for=203.0.113.9"}, "X-Real-Ip": {"203.0.113.9"}, "Connection": {"Termgw-Hop"}},
	})
	holds(t, c, session)
	if look(); resumes != 1 || client != "127.0.0.1" {
		t.Errorf("%d resumes are recorded, from %s", resumes, client)
	}

	// Two come at once: one has the session, and the other is told so.
	c.reset(t)
	two := []*tty{holder.resumes(t, "ws", session, ""), asked.resumes(t, "ws", session, "")}
	lost := -1
	eventually(t, "one is told", func() bool {
		for i, c := range two {
			select {
			case <-c.done:
				lost = i
			default:
			}
		}
		return lost >= 0
	})
	if code, m := two[lost].closed(t), two[lost].message(t, "error"); code != 4412 || m.Code != "taken_over" || m.Retryable {
		t.Errorf("the one that lost is told %d, %+v", code, m)
	}
	holds(t, two[1-lost], session)
	two[1-lost].close(t)
	container.empty(t)
	another.empty(t)
}

// TestHolderIsNotThere: where the replica that holds a session does not answer, or rows lead in a circle, the person has a new
// shell.
func TestHolderIsNotThere(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	holder, asked := p.servePair(t, "TERMGW_DRAIN_TIMEOUT=1h")
	session, output := holder.waiting(t, "ws", "secret=mine")
	silent, err := net.Listen("tcp", ownHost()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var url, replica string
	p.query(t, "SELECT holder_url, replica FROM termgw.sessions WHERE ended_at IS NULL", &url, &replica)
	set := func(url, replica string) {
		t.Helper()
		p.exec(t, "UPDATE termgw.sessions SET holder_url = $1, replica = $2 WHERE id = $3", url, replica, session)
	}
	for _, where := range []string{"http://" + silent.Addr().String(), "http://" + freeAddress(t), "http://" + asked.address, "nonsense", "http://[::1]:0"} {
		set(where, "lost")
		isNew(t, asked.resumes(t, "ws", session, fmt.Sprint(output)), session)
	}
	set(url, replica)
	holder.signal(t, syscall.SIGSTOP)
	isNew(t, asked.resumes(t, "ws", session, fmt.Sprint(output)), session)
	holder.signal(t, syscall.SIGCONT)
	eventually(t, "the holder's heart beats", func() (beats bool) {
		p.query(t, "SELECT COALESCE(max(h.seen_at) > now() - interval '15 seconds', false) FROM termgw.sessions s JOIN termgw.heartbeats h USING (process) WHERE ended_at IS NULL", &beats)
		return beats
	})
	holds(t, asked.resumes(t, "ws", session, fmt.Sprint(output)), session)

	// One that drains holds nothing: who comes back has a new shell elsewhere, and is told so there.
	stays := holder.dial(t, "ws", p.ticket(t, "ws", waits), dialing{})
	stays.run(t, "secret=mine")
	mine := stays.message(t, "ready").Session
	holder.signal(t, syscall.SIGTERM)
	eventually(t, "it drains", func() bool {
		return holder.get(t, holder.address, "/readyz").StatusCode == http.StatusServiceUnavailable
	})
	late := holder.resumes(t, "ws", mine, "0")
	if code, m := late.closed(t), late.message(t, "error"); code != 1012 || m.Code != "draining" || !m.Retryable {
		t.Errorf("at a replica that drains: %d, %+v", code, m)
	}
	isNew(t, asked.resumes(t, "ws", mine, "0"), mine)
	holder.signal(t, syscall.SIGTERM) // it has its hour else
	holder.wait(t)
	isNew(t, asked.resumes(t, "ws", mine, "0"), mine)
	container.empty(t)
}

// TestResumesArePaced: whoever resumes without end is held to the pace of all requests, and has one connection at a time.
func TestResumesArePaced(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "TERMGW_RESUME=1h", "TERMGW_TRUSTED_PROXIES=127.0.0.0/8", "TERMGW_LOG_LEVEL=info")
	session, _ := g.waiting(t, "ws", "secret=mine")
	from := http.Header{"X-Forwarded-For": {"192.0.2.7"}} // connections from this machine itself are not paced
	try := func() *tty {
		c, response, err := g.tryDial(t, "ws", p.ticket(t, "ws", waits), dialing{query: "resume=" + session, header: from})
		if err != nil && (response == nil || response.StatusCode != http.StatusTooManyRequests) {
			t.Error(err, response)
		}
		if c != nil {
			c.answer(t) // before it, an earlier one may still take the session over
		}
		return c
	}
	var resumed atomic.Int64
	began := time.Now()
	spread(t, 400, 4, func(int) {
		if c := try(); c != nil {
			resumed.Add(1)
		}
	})
	// However slow this machine is: 200 at once, and 50 a second.
	if most := 201 + 50*time.Since(began).Seconds(); float64(resumed.Load()) > most {
		t.Errorf("resumed %d times, want %v at most", resumed.Load(), most)
	}
	var last *tty
	eventually(t, "there is room again", func() bool {
		last = try()
		return last != nil
	})
	holds(t, last, session)
	last.close(t)
	container.empty(t)
	eventually(t, "no session is left", func() bool { return g.metric(t, `termgw_sessions_active{target="local"}`) == 0 })
}

// TestWaitingCounts: a shell that waits is in the limits, in the list and in the metrics as any other, and whoever comes back to
// it needs no place more.
func TestWaitingCounts(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "TERMGW_RESUME=1h", "TERMGW_MAX_SESSIONS=1", "TERMGW_MAX_SESSIONS_PER_SUBJECT=1")
	session, output := g.waiting(t, "ws", "secret=mine")
	if code := g.dial(t, "ws", p.ticketOf(t, "ws", "bob"), dialing{}).closed(t); code != 1013 {
		t.Errorf("the replica has another place: %d", code)
	}
	other := p.serve(t, "TERMGW_MAX_SESSIONS_PER_SUBJECT=1")
	if code := other.dial(t, "ws", p.ticketOf(t, "ws", "ann"), dialing{}).closed(t); code != 4429 {
		t.Errorf("at another replica: %d", code)
	}
	if n := g.metric(t, `termgw_sessions_active{target="local"}`); n != 1 {
		t.Errorf("%v sessions are active", n)
	}
	eventually(t, "the list says that it waits", func() bool {
		_, out, _ := p.operate(t, nil, "sessions", "list", "--json")
		return strings.Contains(out, session) && strings.Contains(out, `"waiting":true`)
	})
	c := g.resumes(t, "ws", session, fmt.Sprint(output))
	holds(t, c, session)
	if n := g.metric(t, "termgw_sessions_waiting"); n != 0 {
		t.Errorf("%v sessions wait", n)
	}
	c.close(t)
}

// leaveWaiting has a shell with jobs wait for its person.
func (g *served) leaveWaiting(t *testing.T, workspace string, container *box) {
	t.Helper()
	c := g.dial(t, workspace, g.ticket(t, workspace, waits), dialing{})
	c.run(t, jobs)
	container.started(t)
	c.reset(t)
}

// TestNobodyComesBack: a shell to which nobody comes back ends as any other, and leaves what any other leaves.
func TestNobodyComesBack(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		resume, reason string
		end            func(t *testing.T, g *served)
	}{
		"its time is over": {"1s", "client_lost", func(*testing.T, *served) {}},
		"it is revoked": {"1h", "revoked", func(t *testing.T, g *served) {
			g.exec(t, "INSERT INTO termgw.revocations (subject) VALUES ('ann')")
		}},
		"its idle time is over": {"1h", "idle_timeout", func(t *testing.T, g *served) {}},
		"its gateway drains": {"1h", "draining", func(t *testing.T, g *served) {
			g.signal(t, syscall.SIGTERM)
			if status := g.wait(t); status != 0 {
				t.Errorf("exit status %d", status)
			}
		}},
		"its gateway is killed": {"1h", store.ReasonLost, func(t *testing.T, g *served) {
			g.signal(t, os.Kill)
			g.wait(t)
			g.exec(t, "UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '5 minutes'")
			g.serve(t, "TERMGW_RESUME=1h")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t)
			workspace := strings.ReplaceAll(name, " ", "-")
			p.workspace(t, workspace, "")
			container := newBox(t, env.Docker(t), workspace)
			idle := "1h"
			if test.reason == "idle_timeout" {
				idle = "10s" // from the last key, before the jobs run
			}
			g := p.serve(t, "TERMGW_RESUME="+test.resume, "TERMGW_IDLE_TIMEOUT="+idle)
			g.leaveWaiting(t, workspace, container)
			if test.resume == "1h" && test.reason != "idle_timeout" {
				eventually(t, "the shell waits", func() bool { return g.metric(t, "termgw_sessions_waiting") == 1 })
			}
			test.end(t, g)
			container.empty(t, stay...)
			if r := p.lastRow(t, workspace); r.reason != test.reason {
				t.Errorf("the row says %+v", r)
			}
		})
	}
}

// TestRemoteNobodyComesBack is TestNobodyComesBack on an instance, where nobody looks for what a dead gateway left: a guard
// there does.
func TestRemoteNobodyComesBack(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	for name, test := range map[string]struct {
		resume, reason string
		end            func(t *testing.T, g *served)
	}{
		"far, its time is over": {"1s", "client_lost", func(*testing.T, *served) {}},
		"far, its gateway drains": {"1h", "draining", func(t *testing.T, g *served) {
			g.signal(t, syscall.SIGTERM)
			g.wait(t)
		}},
		"far, its gateway is killed": {"1h", "", func(t *testing.T, g *served) {
			g.signal(t, os.Kill)
			g.wait(t)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			workspace := strings.NewReplacer(" ", "-", ",", "").Replace(name)
			p.onInstance(t, aws, workspace)
			container := newBox(t, env.Docker(t), workspace)
			g := p.serve(t, aws.environ(t, "TERMGW_RESUME="+test.resume)...)
			g.leaveWaiting(t, workspace, container)
			if test.resume == "1h" {
				eventually(t, "the shell waits", func() bool { return g.metric(t, "termgw_sessions_waiting") == 1 })
			}
			test.end(t, g)
			container.empty(t, stay...)
			if test.reason == "" {
				return // the row is another replica's to end, in time
			}
			if r := p.lastRow(t, workspace); r.reason != test.reason {
				t.Errorf("the row says %+v", r)
			}
		})
	}
}
