package router

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// resumable is a gateway whose shells wait for their persons.
func resumable(t testing.TB, edits ...func(*Config)) *gateway {
	g := open(t, append(edits, func(c *Config) { c.Resume = time.Hour })...)
	g.reg.MustRegister(g.Router)
	return g
}

func waits(c *ticket.Claims) { c.Resume = time.Hour }

// resumes asks for a session.
func (g *gateway) resumes(t testing.TB, id, output string, edits ...func(*ticket.Claims)) *peer {
	t.Helper()
	q := "resume=" + id
	if output != "" {
		q += "&output=" + output
	}
	return g.ask(t, requestFor("ws-1", g.ticket("ws-1", append([]func(*ticket.Claims){waits}, edits...)...), v1, query(q)))
}

// opened opens a terminal that waits for its person, with some output and input.
func (g *gateway) opened(t testing.TB, edits ...func(*ticket.Claims)) (p *peer, shell start, id string) {
	t.Helper()
	p = g.ask(t, requestFor("ws-1", g.ticket("ws-1", append([]func(*ticket.Claims){waits}, edits...)...), v1))
	ready := p.message("ready")
	shell = <-g.local.asked
	p.send(opBinary, "abc")
	if got := <-shell.typed; got != "abc" {
		t.Fatalf("typed %q", got)
	}
	shell.out <- "hello"
	p.output("hello")
	return p, shell, ready["session"].(string)
}

// output reads output, pings left out.
func (p *peer) output(want string) {
	p.t.Helper()
	for got := ""; got != want; {
		op, payload, err := p.next()
		switch {
		case err != nil || op != opPing && op != opBinary || !strings.HasPrefix(want, got+string(payload)) && op == opBinary:
			p.t.Fatalf("want output %q, got opcode %d %q after %q, %v", want, op, payload, got, err)
		case op == opBinary:
			got += string(payload)
		}
	}
}

// reset loses the connection.
func (p *peer) reset() {
	_ = p.conn.(*net.TCPConn).SetLinger(0)
	_ = p.conn.Close()
}

func (p *peer) closes(code uint16) {
	p.t.Helper()
	p.send(opClose, string(binary.BigEndian.AppendUint16(nil, code)))
}

func (g *gateway) waiting(t testing.TB, n int) {
	t.Helper()
	for end := time.Now().Add(patience); len(g.Waiting()) != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d sessions wait, want %d", len(g.Waiting()), n)
		}
	}
}

func wantResumed(t testing.TB, ready map[string]any, resumed bool, output, input int) {
	t.Helper()
	if ready["resumed"] != resumed || ready["output"] != float64(output) || ready["input"] != float64(input) || ready["resume"] != 3600.0 {
		t.Errorf("ready says %v", ready)
	}
}

// A shell waits for its person when the connection is lost or the page goes away, and for
// nothing else.
func TestResume(t *testing.T) {
	for name, leave := range map[string]func(*peer){
		"reset":      (*peer).reset,
		"FIN":        func(p *peer) { _ = p.conn.Close() },
		"going away": func(p *peer) { p.closes(1001) },
	} {
		t.Run(name, func(t *testing.T) {
			g := resumable(t)
			p, shell, id := g.opened(t)
			leave(p)
			g.waiting(t, 1)
			g.wantMetric(1, "termgw_sessions_waiting")
			g.wantMetric(1, "termgw_sessions_active", "target=local")
			shell.out <- " and"
			shell.out <- " more"

			p = g.resumes(t, id, "3")
			ready := p.message("ready")
			wantResumed(t, ready, true, 3, 3)
			if ready["session"] != id {
				t.Errorf("another session: %v", ready)
			}
			p.output("lo and more")
			p.send(opBinary, "def")
			if got := <-shell.typed; got != "def" {
				t.Errorf("typed %q", got)
			}
			shell.out <- "!"
			p.output("!")
			g.waiting(t, 0)
			shell.exit.Code = 5
			shell.quit()
			if exit := p.message("exit"); exit["code"] != 5.0 {
				t.Errorf("exit %v", exit)
			}
			if f := p.rest(); f.code != 1000 {
				t.Errorf("closed with %+v", f)
			}
			g.over(t)
			if end := g.store.end(id); end.Reason != "exit" || end.BytesIn != 6 || end.BytesOut != int64(len("hello and more!")) {
				t.Errorf("recorded %+v", end)
			}
			g.wantMetric(1, "termgw_resumes_total", "outcome=resumed")
			g.wantMetric(1, "termgw_sessions_total", "code=exit", "target=local")
			g.wantMetric(0, "termgw_backlog_bytes")
		})
	}
	for name, leave := range map[string]func(*peer){
		"normal closure": func(p *peer) { p.closes(1000) },
		"no code":        func(p *peer) { p.send(opClose, "") },
		"its own code":   func(p *peer) { p.closes(4321) },
		"end":            func(p *peer) { p.send(opText, `{"type":"end"}`) },
		"nonsense":       func(p *peer) { p.send(opText, `{"type":7}`) },
		"a bad opcode":   func(p *peer) { p.send(0x80|0x3, "") },
		"a bad code":     func(p *peer) { p.closes(1006) },
	} {
		t.Run("not after "+name, func(t *testing.T) {
			g := resumable(t)
			p, shell, id := g.opened(t)
			leave(p)
			<-shell.over
			p.rest()
			g.over(t)
			p = g.resumes(t, id, "5")
			wantResumed(t, p.message("ready"), false, 0, 0)
			g.wantMetric(1, "termgw_resumes_total", "outcome=gone")
		})
	}
}

// A shell that ends while its person is away is no live session, and its last output and exit are
// for the person all the same.
func TestEndWhileAway(t *testing.T) {
	g := resumable(t, func(c *Config) { c.MaxSessions = 1 })
	p, shell, id := g.opened(t)
	p.reset()
	g.waiting(t, 1)
	shell.out <- " bye"
	shell.exit.Code = 5
	shell.quit()
	for deadline := time.Now().Add(patience); g.live.count() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it counts as live")
		}
	}
	g.waiting(t, 0)
	if end := g.store.end(id); end.Reason != "exit" || end.ExitCode == nil || *end.ExitCode != 5 || !end.Waits {
		t.Errorf("recorded %+v", end)
	}
	g.wantMetric(0, "termgw_sessions_active", "target=local")
	g.wantMetric(1, "termgw_sessions_total", "code=exit", "target=local")
	g.wantMetric(0, "termgw_sessions_waiting")

	other, another, _ := g.opened(t)
	other.send(opText, `{"type":"end"}`)
	<-another.over
	other.rest()

	for range 2 { // it has not heard the exit the first time
		p.reset()
		p = g.resumes(t, id, "5")
		wantResumed(t, p.message("ready"), true, 5, 3)
		p.output(" bye")
	}
	if exit := p.message("exit"); exit["code"] != 5.0 {
		t.Errorf("exit %v", exit)
	}
	p.rest()
	g.over(t)
	if n := g.store.settled(id); n != int64(len("hello bye")) {
		t.Errorf("%d bytes were taken", n)
	}
	g.wantMetric(0, "termgw_sessions_active", "target=local")
	g.wantMetric(1, "termgw_sessions_total", "code=exit", "target=local")
	wantResumed(t, g.resumes(t, id, "5").message("ready"), false, 0, 0)
}

// The person comes back by another connection while the old one is thought open.
func TestTakenOver(t *testing.T) {
	g := resumable(t)
	old, shell, id := g.opened(t)
	p := g.resumes(t, id, "5")
	wantResumed(t, p.message("ready"), true, 5, 3)
	if f := old.rest(); f.code != 4412 || f.reason != "taken_over" || len(f.text) != 1 || !strings.Contains(f.text[0], `"retryable":false`) {
		t.Errorf("the old one is told %+v", f)
	}
	shell.out <- "x"
	p.output("x")
	g.wantMetric(1, "termgw_resumes_total", "outcome=taken_over")
}

// The ticket of who comes back may have the shell wait for less than the first one, or not at all.
func TestResumeWithALesserTicket(t *testing.T) {
	g := resumable(t)
	p, shell, id := g.opened(t)
	p.reset()
	g.waiting(t, 1)
	p = g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1, query("resume="+id+"&output=5")))
	if ready := p.message("ready"); ready["resumed"] != true || ready["resume"] != 0.0 || ready["input"] != 3.0 {
		t.Errorf("ready says %v", ready)
	}
	p.reset()
	<-shell.over
	g.over(t)
	g.wantMetric(1, "termgw_sessions_total", "code=client_lost", "target=local")
}

// slowVerifier checks tickets after a moment that the test chooses.
type slowVerifier struct {
	Verifier
	after chan struct{} // nil: at once
}

func (v *slowVerifier) Verify(ctx context.Context, raw string) (ticket.Claims, error) {
	if v.after != nil {
		<-v.after
	}
	return v.Verifier.Verify(ctx, raw)
}

// A request that comes when its client has left takes no session over.
func TestResumeOfAClientThatHasLeft(t *testing.T) {
	left := make(chan struct{})
	var verifier *slowVerifier
	g := resumable(t, func(c *Config) {
		verifier = &slowVerifier{Verifier: c.Verifier}
		c.Verifier = verifier
	})
	p, shell, id := g.opened(t)
	verifier.after = left
	late := requestFor("ws-1", g.ticket("ws-1", waits), v1, query("resume="+id+"&output=5"))
	late.leaves = func() { close(left) }
	if told, _ := io.ReadAll(g.ask(t, late).r); strings.Contains(string(told), `"resumed"`) {
		t.Errorf("it was told %q", told)
	}
	shell.out <- "x"
	p.output("x")
	g.wantMetric(1, "termgw_resumes_total", "outcome=refused")
}

// A client that comes back by itself takes its session from no later try: neither of its own,
// which the network brought sooner, nor of another client with which the person went on.
func TestTriesComeInOrder(t *testing.T) {
	g := resumable(t)
	p := g.ask(t, requestFor("ws-1", g.ticket("ws-1", waits), v1, query("client=laptop&try=1")))
	id, _ := p.message("ready")["session"].(string)
	shell := <-g.local.asked
	p.send(opBinary, "a") // else it may know nothing of the session
	<-shell.typed
	printed := 0
	resume := func(by string) *peer {
		return g.ask(t, requestFor("ws-1", g.ticket("ws-1", waits), v1, query(fmt.Sprintf("resume=%s&output=%d%s", id, printed, by))))
	}
	resumes := func(by string) *peer {
		t.Helper()
		p := resume(by)
		if ready := p.message("ready"); ready["resumed"] != true {
			t.Fatalf("%s: %v", by, ready)
		}
		return p
	}
	refused := func(by string, p *peer) {
		t.Helper()
		if reason, code := resume(by).outcome(); code != 4412 || reason != "taken_over" {
			t.Errorf("%s: told %d %s", by, code, reason)
		}
		shell.out <- "x"
		printed++
		p.output("x")
	}

	p.reset()
	p = resumes("&client=laptop&try=3")
	refused("&client=laptop&try=2", p)
	refused("&client=laptop&try=3", p)
	resumes("&client=laptop&try=4")
	p = resumes("&client=phone&try=1")
	refused("&client=laptop&try=5", p)
	p.reset()
	refused("&client=laptop&try=6", resumes("&client=phone&try=2"))
	p = resumes("&client=laptop-by-hand&try=1")
	refused("&client=phone&try=3", p)
	refused("&client=laptop&try=7", p)
	p = resumes("") // a client without a name is taken for a person's act
	refused("&client=laptop-by-hand&try=2", p)
	for _, by := range []string{"&client=a.b", "&client=" + strings.Repeat("x", 65), "&client=a&client=b", "&client=a&try=x", "&client=a&try=-1", "&try=1&try=2"} {
		if reason, code := resume(by).outcome(); code != 4400 || reason != "bad_message" {
			t.Errorf("%s: told %d %s", by, code, reason)
		}
	}
}

// Who has nothing on the screen gets the last lines, and who has acknowledged more than it has gets
// the rest, as far as there is such.
func TestResumeWithoutOutput(t *testing.T) {
	g := resumable(t)
	p, shell, id := g.opened(t)
	p.send(opText, `{"type":"ack","bytes":2}`)
	p.send(opText, `{"type":"ping","id":1}`)
	p.message("pong")
	p.reset()
	g.waiting(t, 1)
	for _, c := range []struct {
		asked string
		gets  int
	}{{"1", 1}, {"", 0}, {"1", 0}} { // 1 is another byte for who was given a screen
		p := g.resumes(t, id, c.asked)
		wantResumed(t, p.message("ready"), true, c.gets, 3)
		p.output("hello"[c.gets:])
		p.reset()
		g.waiting(t, 1)
	}
	shell.quit()
}

// What is refused costs the waiting session nothing.
func TestResumeRefused(t *testing.T) {
	g := resumable(t)
	p, shell, id := g.opened(t)
	p.reset()
	g.waiting(t, 1)

	for _, output := range []string{"-1", "6", "99999999999999999999", "9223372036854775807", "x", "1e3", "%20", "5&output=5", "5&resume=" + id} {
		if reason, code := g.resumes(t, id, output).outcome(); code != 4400 || reason != "bad_message" {
			t.Errorf("output %s: closed with %d %s", output, code, reason)
		}
	}
	used := g.ticket("ws-1", waits)
	first := g.ask(t, requestFor("ws-1", used, v1))
	first.message("ready")
	first.closes(1000)
	if reason, code := g.ask(t, requestFor("ws-1", used, v1, query("resume="+id))).outcome(); code != 4409 {
		t.Errorf("a used ticket: closed with %d %s", code, reason)
	}
	for name, ask := range map[string]*ask{
		"another person's":   requestFor("ws-1", g.ticket("ws-1", waits, func(c *ticket.Claims) { c.Subject = "bob" }), v1, query("resume="+id)),
		"another platform's": requestFor("ws-1", g.ticket("ws-1", waits, func(c *ticket.Claims) { c.Issuer = "https://elsewhere" }), v1, query("resume="+id)),
		"another workspace":  requestFor("ws-2", g.ticket("ws-2", waits), v1, query("resume="+id)),
		"never opened":       requestFor("ws-1", g.ticket("ws-1", waits), v1, query("resume=AAAAAAAAAAAAAAAAAAAAAAAAAA")),
		"nonsense":           requestFor("ws-1", g.ticket("ws-1", waits), v1, query("resume=%00%ff"+strings.Repeat("x", 5000))),
	} {
		other := g.ask(t, ask)
		ready := other.message("ready")
		wantResumed(t, ready, false, 0, 0)
		if ready["session"] == id {
			t.Errorf("%s: it is the same session", name)
		}
		other.closes(1000)
		other.rest()
	}
	raw := g.ask(t, requestFor("ws-1", g.ticket("ws-1", waits), query("resume="+id)))
	raw.closes(1000)
	raw.rest()

	p = g.resumes(t, id, "5")
	wantResumed(t, p.message("ready"), true, 5, 3)
	shell.quit()
}

// Both the ticket and the gateway have to allow it, and the client has to speak termgw.v1.
func TestNoResume(t *testing.T) {
	for name, c := range map[string]struct {
		gateway time.Duration
		ticket  time.Duration
		raw     bool
	}{
		"the gateway does not": {0, time.Hour, false},
		"the ticket does not":  {time.Hour, 0, false},
		"raw":                  {time.Hour, time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := open(t, func(o *Config) { o.Resume = c.gateway })
			edits := []func(*ask){v1}
			if c.raw {
				edits = nil
			}
			p := g.ask(t, requestFor("ws-1", g.ticket("ws-1", func(o *ticket.Claims) { o.Resume = c.ticket }), edits...))
			if !c.raw {
				if ready := p.message("ready"); ready["resume"] != nil || ready["output"] != nil {
					t.Errorf("ready says %v", ready)
				}
			}
			shell := <-g.local.asked
			p.reset()
			<-shell.over
			g.over(t)
		})
	}
}

// A wait has its end, a revocation cuts it, and a replica that drains waits for nobody.
func TestWaitEnds(t *testing.T) {
	for name, c := range map[string]struct {
		resume time.Duration
		end    func(g *gateway, id string)
		reason string
	}{
		"its time is over": {time.Second, func(*gateway, string) {}, "client_lost"},
		"revoked":          {time.Hour, func(g *gateway, id string) { g.Cut([]string{id}, 0) }, "revoked"},
		"draining": {time.Hour, func(g *gateway, _ string) {
			if err := g.Drain(g.t.Context(), time.Hour); err != nil {
				g.t.Error(err)
			}
		}, "draining"},
	} {
		t.Run(name, func(t *testing.T) {
			g := open(t, func(o *Config) { o.Resume = c.resume })
			p, shell, id := g.opened(t)
			p.reset()
			c.end(g, id)
			<-shell.over
			g.over(t)
			if end := g.store.end(id); end.Reason != c.reason {
				t.Errorf("recorded %+v", end)
			}
		})
	}
}

// Two connections come back at once: one has the session, and the other is told so.
func TestResumeTwiceAtOnce(t *testing.T) {
	g := resumable(t)
	p, shell, id := g.opened(t)
	p.reset()
	g.waiting(t, 1)
	outcomes := make(chan string, 2)
	peers := make(chan *peer, 2)
	for range 2 {
		go func() {
			p := g.resumes(t, id, "5")
			peers <- p
			for {
				op, payload, err := p.next()
				switch {
				case err != nil:
					outcomes <- "lost"
					return
				case op == opBinary:
					outcomes <- string(payload)
					return
				case op == opClose:
					outcomes <- fmt.Sprint(binary.BigEndian.Uint16(payload))
					return
				}
			}
		}()
	}
	if first := <-outcomes; first != "4412" {
		t.Errorf("the first that ends: %s", first)
	}
	shell.out <- "x"
	if second := <-outcomes; second != "x" {
		t.Errorf("the other: %s", second)
	}
	(<-peers).reset()
	(<-peers).reset()
}

// A panic of a session that was resumed ends the connection that there is.
func TestPanicAfterResume(t *testing.T) {
	g := resumable(t)
	edit := g.local.edit
	g.local.edit = func(f *fakeTerm) {
		if edit != nil {
			edit(f)
		}
		f.onWait = func() { panic("boom") }
	}
	p, shell, id := g.opened(t)
	p.reset()
	g.waiting(t, 1)
	p = g.resumes(t, id, "5")
	wantResumed(t, p.message("ready"), true, 5, 3)
	shell.quit()
	p.rest()
	g.over(t)
	if end := g.store.end(id); end.Reason != "backend_failed" {
		t.Errorf("recorded %+v", end)
	}
}
