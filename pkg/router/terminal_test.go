package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

func TestSession(t *testing.T) {
	g := open(t, func(c *Config) { c.IdleTimeout, c.MaxSession = 30*time.Minute, 8*time.Hour })
	raw := g.ticket("ws-1", func(c *ticket.Claims) { c.Mode, c.MaxSession = ticket.ReadOnly, time.Hour })
	p := g.ask(t, requestFor("ws-1", raw, v1, query("cols=120&rows=40")))
	ready := p.message("ready")
	s := <-g.local.asked
	id := ready["session"].(string)
	for field, want := range map[string]any{
		"workspace": "ws-1", "target": "local", "mode": "ro", "idle_timeout": 1800.0, "max_session": 3600.0,
	} {
		if ready[field] != want {
			t.Errorf("ready says %s %v, want %v", field, ready[field], want)
		}
	}
	s.Log, s.Trail = nil, nil
	want := runner.Target{Session: id, WorkspaceID: "ws-1", Subject: "ann", Attributes: map[string]string{"name": "One", "container": "c-1"}}
	if !reflect.DeepEqual(s.Target, want) {
		t.Errorf("started %+v, want %+v", s.Target, want)
	}
	if want := (terminal.Size{Cols: 120, Rows: 40}); s.Size != want {
		t.Errorf("the first size is %v, want %v", s.Size, want)
	}
	if want := (store.Session{ID: id, Replica: "replica-1", ClientAddr: "127.0.0.1"}); g.store.sessions[0] != want {
		t.Errorf("redeemed for %+v, want %+v", g.store.sessions[0], want)
	}
	g.wantMetric(1, "termgw_sessions_active", "target=local")
	g.wantMetric(1, "termgw_session_start_seconds", "target=local")

	s.out <- "hello"
	if op, payload, err := p.next(); err != nil || op != opBinary || string(payload) != "hello" {
		t.Fatalf("want output, got opcode %d %q, %v", op, payload, err)
	}
	g.wantMetric(5, "termgw_backlog_bytes")
	g.wantMetric(5, "termgw_bytes_total", "direction=out") // while it is open
	s.exit = terminal.Exit{Code: 3}
	s.quit()
	f := p.rest()
	if f.code != 1000 || f.reason != "exit" || len(f.text) != 1 || f.text[0] != `{"type":"exit","code":3}` {
		t.Errorf("the end is %+v", f)
	}
	g.over(t)
	end := g.store.end(id)
	if end.ExitCode == nil || *end.ExitCode != 3 || end.Reason != "exit" || end.BytesOut != 5 || end.BytesIn != 0 {
		t.Errorf("recorded %+v", end)
	}
	g.wantMetric(0, "termgw_sessions_active", "target=local")
	g.wantMetric(0, "termgw_backlog_bytes")
	g.wantMetric(1, "termgw_sessions_total", "code=exit", "target=local")
	g.wantMetric(1, "termgw_session_duration_seconds")
	g.wantMetric(5, "termgw_bytes_total", "direction=out")
	g.wantMetric(1, "termgw_store_seconds", "op=redeem")
	g.wantMetric(1, "termgw_store_seconds", "op=finish")

	for line := range strings.Lines(g.logs.String()) {
		if !strings.Contains(line, `"session":"`+id+`"`) || !strings.Contains(line, `"workspace":"ws-1"`) {
			t.Errorf("a line of the session does not name it: %s", line)
		}
	}
	if n := strings.Count(g.logs.String(), `"msg":"session ended"`); n != 1 {
		t.Errorf("the end was logged %d times", n)
	}
}

// What others' logs know a session by is recorded once its shell has started, and else with its end; the log has it at once.
func TestTrail(t *testing.T) {
	trail := map[string]string{"key": "SHA256:abc", "tunnel": "T1"}
	const group = `"trail":{"key":"SHA256:abc","tunnel":"T1"}`
	for _, test := range []struct {
		name            string
		startErr, dbErr error
		traced          bool // at the start
		line            string
	}{
		{"started", nil, nil, true, `"msg":"session started"`},
		{"the database is away", nil, store.ErrUnavailable, false, `"msg":"session started"`},
		{"refused", &runner.Failure{Step: "ssh_auth", Err: errors.New("no")}, nil, false, `"msg":"session ended"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := open(t)
			g.local.trail, g.local.startErr, g.store.traceErr = trail, test.startErr, test.dbErr
			p := g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1))
			if test.startErr == nil {
				p.message("ready")
				(<-g.local.asked).quit()
			}
			p.rest()
			g.over(t)
			id := g.store.sessions[0].ID
			atEnd := trail
			if test.traced {
				atEnd = nil
			}
			if got := g.store.traces[id]; maps.Equal(got, trail) != test.traced {
				t.Errorf("traced %v", got)
			}
			if got := g.store.end(id).Trail; !maps.Equal(got, atEnd) {
				t.Errorf("recorded with the end: %v, want %v", got, atEnd)
			}
			lines := 0
			for line := range strings.Lines(g.logs.String()) {
				if strings.Contains(line, group) {
					lines++
					if !strings.Contains(line, test.line) {
						t.Errorf("the trail is in %s", line)
					}
				}
			}
			if lines != 1 {
				t.Errorf("the trail is in %d lines:\n%s", lines, g.logs.String())
			}
		})
	}
}

func TestClientLeaves(t *testing.T) {
	g := open(t)
	p := g.ask(t, requestFor("ws-1", g.ticket("ws-1")))
	s := <-g.local.asked
	p.send(opBinary, "abc")
	first := <-s.typed
	p.send(opText, "de") // raw mode: input as well
	if second := <-s.typed; first != "abc" || second != "de" {
		t.Errorf("typed %q, %q", first, second)
	}
	p.send(opClose, "\x03\xe8")
	p.rest()
	g.over(t)
	end := g.store.end(s.Session)
	if end.Reason != "client_closed" || end.ExitCode == nil || end.BytesIn < 3 || end.BytesIn > 5 {
		t.Errorf("recorded %+v", end) // the last piece may not be counted yet when the client leaves
	}
	g.wantMetric(5, "termgw_bytes_total", "direction=in")
	g.wantMetric(1, "termgw_sessions_total", "code=client_closed", "target=local")
	g.wantMetric(0, "termgw_sessions_active", "target=local")
}

// TestInstanceDecidesTarget keeps the platform's rule: an instance_id in the
// row leads to the remote runner, an empty one to the local.
func TestInstanceDecidesTarget(t *testing.T) {
	g := open(t)
	for workspace, starter := range map[string]*fakeStarter{"ws-1": g.local, "far": g.remote} {
		p := g.ask(t, requestFor(workspace, g.ticket(workspace), v1))
		ready := p.message("ready")
		s := <-starter.asked
		if want := map[bool]string{true: "local", false: "remote"}[starter == g.local]; ready["target"] != want || s.WorkspaceID != workspace {
			t.Errorf("%s: started %s by %v, want %s", workspace, s.WorkspaceID, ready["target"], want)
		}
		s.quit()
		p.rest()
	}

	g = open(t, func(c *Config) { c.Places[0].Kind = runner.Absent("remote", errors.New("no ssh")) })
	f := g.ask(t, requestFor("far", g.ticket("far"), v1)).rest()
	if f.code != 4502 || len(f.text) != 1 || !strings.Contains(f.text[0], `"detail":"remote","docs":"docs/infra/workspace-terminal.md"`) {
		t.Errorf("without a remote runner: %+v", f)
	}
	g.wantMetric(1, "termgw_sessions_total", "code=backend_failed", "target=remote")
	if len(g.local.asked) > 0 {
		t.Error("a remote workspace got a local shell")
	}
}

// TestSubprotocol: termgw.v1 is negotiated or nothing is, and a ticket is never
// sent back. A browser that offers only a ticket fails the connection then, as the
// WHATWG's standard demands (seen in Chromium: closed with 1006); RFC 6455 lets
// other clients go on. A raw-mode page must put its ticket into the query.
func TestSubprotocol(t *testing.T) {
	g := open(t)
	for _, test := range []struct {
		name  string
		offer []string // %s is the ticket
		want  string
	}{
		{"none but a ticket", []string{"termgw.ticket.%s"}, ""},
		{"ticket first", []string{"termgw.ticket.%s, termgw.v1"}, "termgw.v1"},
		{"ticket last", []string{"termgw.v1,termgw.ticket.%s"}, "termgw.v1"},
		{"two headers", []string{"termgw.ticket.%s", "termgw.v1"}, "termgw.v1"},
		{"among others", []string{"tty, termgw.v2, termgw.v1, termgw.ticket.%s"}, "termgw.v1"},
		{"others", []string{"tty, termgw.v2, termgw.ticket.%s"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw := g.ticket("ws-1")
			offer := make([]string, len(test.offer))
			for i, o := range test.offer {
				offer[i] = strings.ReplaceAll(o, "%s", raw)
			}
			p := g.ask(t, requestFor("ws-1", "", with("Sec-WebSocket-Protocol", offer...)))
			if got := strings.Join(p.header.Values("Sec-WebSocket-Protocol"), ","); p.status != 101 || got != test.want {
				t.Fatalf("status %d, answered %q, want %q", p.status, got, test.want)
			}
			if strings.Contains(fmt.Sprint(p.header), raw) {
				t.Error("the ticket was sent back")
			}
			s := <-g.local.asked
			s.quit()
			f := p.rest()
			if spoke := len(f.text) > 0; f.code != 1000 || spoke != (test.want != "") {
				t.Errorf("control messages %q, close %d", f.text, f.code)
			}
		})
	}
}

// TestTicketIsNotTold: wherever a ticket came from and whatever came of it, it
// is neither logged nor sent back.
func TestTicketIsNotTold(t *testing.T) {
	g := open(t)
	for name, place := range map[string]func(raw string) func(*ask){
		"query":         func(raw string) func(*ask) { return query("ticket=" + raw) },
		"subprotocol":   func(raw string) func(*ask) { return with("Sec-WebSocket-Protocol", "termgw.v1, termgw.ticket."+raw) },
		"authorization": func(raw string) func(*ask) { return with("Authorization", "Bearer "+raw) },
	} {
		for _, spoil := range []func(*ask){
			func(*ask) {}, // used by then
			with("Origin", "https://evil.example"),
			with("Sec-WebSocket-Key", "x"),
			func(a *ask) { a.target = strings.Replace(a.target, "ws-1", "ws-2", 1) },
			func(a *ask) { a.header.Add("Authorization", "Bearer another") },
		} {
			raw := g.ticket("ws-1")
			for range 2 {
				p := g.ask(t, requestFor("ws-1", "", place(raw), spoil))
				var f farewell
				if p.status == http.StatusSwitchingProtocols {
					select {
					case s := <-g.local.asked:
						s.quit()
					default:
					}
					p.send(opClose, "\x03\xe8")
					f = p.rest()
				}
				signature := raw[strings.LastIndexByte(raw, '.')+1:]
				if told := fmt.Sprint(p.header, string(p.body), f); strings.Contains(told, signature) {
					t.Errorf("%s: the ticket was sent back: %s", name, told)
				}
				g.over(t)
				if strings.Contains(g.logs.String(), signature) {
					t.Fatalf("%s: the ticket was logged: %s", name, g.logs)
				}
			}
		}
	}
}

func TestRefused(t *testing.T) {
	g := open(t)
	fails(store.ErrUnavailable)(g)
	f := g.ask(t, requestFor("ws-1", g.ticket("ws-1"))).rest()
	if want := outcomeOf(store.ErrUnavailable).message + "\r\n"; f.code != 4503 || f.reason != "store_unavailable" ||
		len(f.text) != 1 || f.text[0] != want || len(f.binary) > 0 {
		t.Errorf("raw mode is told %+v, want %q", f, want)
	}

	g.store.during = nil
	g.local.before = func(context.Context) error {
		return &runner.Failure{Step: "docker", Err: errors.New("dial unix /var/run/docker.sock: connect: no such file")}
	}
	f = g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1)).rest()
	if f.code != 4502 || f.reason != "backend_failed" || len(f.text) != 1 {
		t.Fatalf("termgw.v1 is told %+v", f)
	}
	var message map[string]any
	if err := json.Unmarshal([]byte(f.text[0]), &message); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]any{
		"type": "error", "code": "backend_failed", "message": backendFailed.message, "retryable": true,
		"detail": "docker", "docs": "docs/infra/workspace-terminal.md",
	} {
		if message[field] != want {
			t.Errorf("%s is %v, want %v", field, message[field], want)
		}
	}
	g.over(t)
	g.store.mu.Lock()
	defer g.store.mu.Unlock()
	if end := g.store.ends[g.store.sessions[1].ID]; end.Reason != "backend_failed" || end.ExitCode != nil {
		t.Errorf("a start that failed is recorded as %+v", end)
	}
	if len(g.store.ends) != 1 {
		t.Errorf("%d ends recorded; a ticket that was not redeemed has no row", len(g.store.ends))
	}
}

// TestRefusalsAreCounted: each once, under its code, and as a ticket's only if
// the ticket was at fault.
func TestRefusalsAreCounted(t *testing.T) {
	for _, f := range append(faults(), fault{
		kind: "ticket", code: "ticket_expired", number: 4401,
		request: func(g *gateway, a *ask) {
			hourAgo := func(c *ticket.Claims) { c.IssuedAt = time.Now().Add(-time.Hour) }
			a.header.Set("Authorization", "Bearer "+g.ticket("ws-1", hourAgo))
		},
	}) {
		g := open(t)
		a := requestFor("ws-1", g.ticket("ws-1"))
		f.spoil(g, a)
		if code, number := g.ask(t, a).outcome(); code != f.code || number != f.number {
			t.Errorf("told %s, %d; want %s, %d", code, number, f.code, f.number)
		}
		g.over(t)
		target, rejections := "target=none", 0.0
		if f.kind == "start" {
			target = "target=local"
		}
		if f.kind == "ticket" || f.code == "ticket_mismatch" || f.code == "ticket_used" || f.code == "revoked" {
			rejections = 1
		}
		g.wantMetric(1, "termgw_sessions_total", "code="+f.code, target)
		g.wantMetric(rejections, "termgw_ticket_rejections_total", "code="+f.code)
		g.wantMetric(0, "termgw_sessions_active", "target=local")
		g.wantMetric(0, "termgw_session_duration_seconds")
		if len(g.local.asked) > 0 {
			t.Errorf("%s: a shell was started", f.code)
		}
	}
}

func TestMaxSessions(t *testing.T) {
	g := open(t, func(c *Config) { c.MaxSessions = 1 })
	first := g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1))
	first.message("ready")
	raw := g.ticket("ws-1")
	if code, number := g.ask(t, requestFor("ws-1", raw)).outcome(); code != "overloaded" || number != 1013 {
		t.Errorf("the second is told %s, %d", code, number)
	}
	(<-g.local.asked).quit()
	first.rest()
	g.over(t)
	g.ask(t, requestFor("ws-1", raw, v1)).message("ready") // with the same ticket
}

// TestRefusedHoldsNoPlace: a client that was refused is told so for as long as it likes, on nobody else's account.
func TestRefusedHoldsNoPlace(t *testing.T) {
	g := open(t, func(c *Config) { c.MaxSessions = 1 })
	used := g.ticket("ws-1")
	first := g.ask(t, requestFor("ws-1", used, v1))
	first.message("ready")
	(<-g.local.asked).quit()
	first.rest()
	g.over(t)
	for range 3 {
		silent := g.ask(t, requestFor("ws-1", used, v1))
		if e := silent.message("error"); e["code"] != "ticket_used" {
			t.Fatalf("told %v", e)
		}
		if op, _, err := silent.next(); err != nil || op != opClose {
			t.Fatalf("opcode %d, %v", op, err)
		}
	} // and none of them answers
	p := g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1))
	p.message("ready")
	if code, _ := g.ask(t, requestFor("ws-1", g.ticket("ws-1"))).outcome(); code != "overloaded" {
		t.Errorf("a second session is told %s", code)
	}
}

// TestCut: a revoked session is cut, and how long that took is counted from the order on.
func TestCut(t *testing.T) {
	g := open(t)
	p := g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1))
	id, _ := p.message("ready")["session"].(string)
	g.Cut([]string{id, "of another replica"}, time.Hour)
	if e := p.message("error"); e["code"] != "revoked" {
		t.Errorf("told %v", e)
	}
	if f := p.rest(); f.code != 4423 {
		t.Errorf("the end is %+v", f)
	}
	g.over(t)
	if end := g.store.end(id); end.Reason != "revoked" {
		t.Errorf("recorded %+v", end)
	}
	g.wantMetric(1, "termgw_revocation_seconds")
	families, err := g.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if sum := f.GetMetric()[0].GetHistogram().GetSampleSum(); f.GetName() == "termgw_revocation_seconds" && (sum < 3600 || sum > 3600+patience.Seconds()) {
			t.Errorf("it took %v s", sum)
		}
	}
}

// TestLostClient: a client that answers no ping is let go in silence. The
// table has no sentence for nobody.
func TestLostClient(t *testing.T) {
	for _, mode := range []func(*ask){v1, func(*ask) {}} {
		g := open(t, func(c *Config) { c.PingInterval = 20 * time.Millisecond })
		p := g.ask(t, requestFor("ws-1", g.ticket("ws-1"), mode))
		if v1Spoken := p.header.Get("Sec-WebSocket-Protocol") != ""; v1Spoken {
			p.message("ready")
		}
		if f := p.rest(); f.code != 0 || len(f.text) > 0 || len(f.binary) > 0 {
			t.Errorf("it was told %+v", f)
		}
		g.over(t)
		g.wantMetric(1, "termgw_sessions_total", "code=client_lost", "target=local")
		g.wantMetric(0, "termgw_sessions_active", "target=local")
		if end := g.store.end((<-g.local.asked).Session); end.Reason != "client_lost" {
			t.Errorf("recorded %+v", end)
		}
	}
}

// TestPanic: net/http recovers a handler's panic but leaves a hijacked
// connection open. The shell and the row are nobody else's to end.
func TestPanic(t *testing.T) {
	boom := func(context.Context) error { panic("boom") }
	for name, test := range map[string]struct {
		arrange func(*gateway)
		shell   bool
		target  string // of the end that is counted; empty: the store takes none
	}{
		"in the store":      {func(g *gateway) { g.store.during = boom }, false, "none"},
		"in the starter":    {func(g *gateway) { g.local.before = boom }, false, "local"},
		"before the bridge": {func(g *gateway) { g.Places[1].Kind = tunneled{Kind: g.local, panics: true} }, true, "local"},
		"in the terminal": {func(g *gateway) {
			edit := g.local.edit
			g.local.edit = func(f *fakeTerm) { edit(f); f.onWait = func() { panic("boom") } }
		}, true, "local"},
		"in the record": {func(g *gateway) { g.store.atEnd = func() { panic("boom") } }, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := open(t)
			closed := make(chan struct{})
			g.local.edit = func(f *fakeTerm) { f.onClose = func() { close(closed) } } // a second time would panic
			test.arrange(g)
			p := g.ask(t, requestFor("ws-1", g.ticket("ws-1")))
			if test.shell {
				(<-g.local.asked).quit()
			}
			p.rest()
			g.over(t)
			if n := g.live.count(); n != 0 {
				t.Errorf("%d sessions are live", n)
			}
			if test.shell {
				select {
				case <-closed:
				default:
					t.Error("the shell was not ended")
				}
			}
			g.store.mu.Lock()
			defer g.store.mu.Unlock()
			end, recorded := g.store.ends[g.store.sessions[0].ID]
			if want := test.target != ""; recorded != want || want && end.Reason != "backend_failed" {
				t.Errorf("recorded %+v: %t", end, recorded)
			}
			if test.target != "" {
				g.wantMetric(1, "termgw_sessions_total", "code=backend_failed", "target="+test.target)
			}
			g.wantMetric(0, "termgw_sessions_active", "target=local")
			g.wantMetric(0, "termgw_backlog_bytes")
			if n := strings.Count(g.logs.String(), `"msg":"panic in a session"`); n != 1 {
				t.Errorf("it was logged %d times", n)
			}
		})
	}
}

func TestSessionIDs(t *testing.T) {
	want := regexp.MustCompile(`^[A-Za-z0-9_-]{26}$`) // runner.Target's, too
	seen := map[string]bool{}
	for range 1000 {
		id := newSessionID()
		if seen[id] || !want.MatchString(id) {
			t.Fatalf("session id %q, seen before: %t", id, seen[id])
		}
		seen[id] = true
	}
}
