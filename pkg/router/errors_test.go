package router

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// all is the table with the two rows that are no sentinel's.
func all() []outcome { return append(append([]outcome{exited}, outcomes...), backendFailed) }

func TestOutcomesGolden(t *testing.T) {
	var b strings.Builder
	b.WriteString("code\tclose\tstatus\tretry\tdocs\tmessage\n")
	for _, o := range all() {
		fmt.Fprintf(&b, "%s\t%d\t%d\t%t\t%t\t%s\n", o.code, o.close, o.status, o.retry, o.docs, o.message)
	}
	const file = "testdata/outcomes.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the error table is not %s (go test ./pkg/router -update rewrites it):\n%s", file, b.String())
	}
}

// TestOutcomesKeepTheContract compares the table with the close codes that
// clients were promised. It is written by hand on purpose.
func TestOutcomesKeepTheContract(t *testing.T) {
	type promise struct {
		close int
		retry bool
	}
	contract := map[string]promise{
		"exit":                  {1000, false},
		"too_large":             {1009, false},
		"draining":              {1012, true},
		"overloaded":            {1013, true},
		"bad_message":           {4400, false},
		"ticket_missing":        {4401, true},
		"ticket_invalid":        {4401, true},
		"ticket_expired":        {4401, true},
		"ticket_mismatch":       {4403, false},
		"workspace_not_found":   {4404, false},
		"container_not_running": {4404, false},
		"idle_timeout":          {4408, true},
		"ticket_used":           {4409, true},
		"session_expired":       {4410, true},
		"too_many_sessions":     {4429, true},
		"tunnel_expired":        {4504, true},
		"revoked":               {4423, false},
		"taken_over":            {4412, false},
		"backend_failed":        {4502, true},
		"store_unavailable":     {4503, true},
		"keys_unavailable":      {4503, true},
	}
	statuses := map[string]int{"not_found": 404, "upgrade_required": 426, "bad_handshake": 400, "origin_not_allowed": 403, "not_held": 409, "rate_limited": 429}
	silent := map[string]bool{"client_closed": true, "client_lost": true}

	seen := map[string]bool{}
	for _, o := range all() {
		seen[o.code] = true
		switch p, promised := contract[o.code]; {
		case promised:
			if int(o.close) != p.close || o.retry != p.retry || o.status != 0 {
				t.Errorf("%s: close %d, retry %t, status %d; the contract says %+v", o.code, o.close, o.retry, o.status, p)
			}
		case statuses[o.code] != 0:
			if o.status != statuses[o.code] || o.close != 0 || o.retry {
				t.Errorf("%s: status %d, close %d, retry %t; want status %d alone", o.code, o.status, o.close, o.retry, statuses[o.code])
			}
		case silent[o.code]:
			if o.close != 0 || o.status != 0 || o.message != "" {
				t.Errorf("%s is told to somebody, but nobody is there: %+v", o.code, o)
			}
		default:
			t.Errorf("%s is not in the contract", o.code)
		}
	}
	for code := range contract {
		if !seen[code] {
			t.Errorf("%s has no row", code)
		}
	}
	for code := range statuses {
		if !seen[code] {
			t.Errorf("%s has no row", code)
		}
	}
}

func TestOutcomeMessages(t *testing.T) {
	for _, o := range all() {
		told := o.close != 0 && o.code != "exit" || o.status != 0
		if told != strings.HasSuffix(o.message, ".") {
			t.Errorf("%s: the message %q is no sentence", o.code, o.message)
		}
		if o.docs != strings.Contains(o.message, docsPage) {
			t.Errorf("%s: docs is %t, the message is %q", o.code, o.docs, o.message)
		}
		if o.docs != (o.tell(nil).Docs == "docs/infra/workspace-terminal.md") {
			t.Errorf("%s: docs is %t, a client is told %q", o.code, o.docs, o.tell(nil).Docs)
		}
		if len(o.code) > 123 {
			t.Errorf("%s is too long for a close frame", o.code)
		}
	}
}

func TestTunnelsInUse(t *testing.T) {
	err := &runner.Failure{Step: store.LimitTunnels, Sentence: "All are in use.", Err: &store.LimitError{Of: store.LimitTunnels, Max: 20}}
	if e := outcomeOf(err).tell(err); e.Docs != docsPage || !strings.Contains(e.Message, docsPage) || e.Detail != "eice_tunnels" {
		t.Errorf("told %+v", e)
	}
}

func TestEveryOutcomeCanBeReached(t *testing.T) {
	for i, o := range outcomes {
		if got := outcomeOf(fmt.Errorf("doing x: %w", o.is)); got != o {
			t.Errorf("row %d, %s, is hidden by %s", i, o.code, got.code)
		}
	}
	if got := outcomeOf(nil); got != exited {
		t.Errorf("no error is %s", got.code)
	}
	if got := outcomeOf(errors.New("anything")); got != backendFailed {
		t.Errorf("any other error is %s", got.code)
	}
}

// TestNothingLeftToOpen: a part that could not be reached for want of a descriptor is not the one to blame.
func TestNothingLeftToOpen(t *testing.T) {
	for name, err := range map[string]error{
		"the engine":   &runner.Failure{Step: "docker", Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}},
		"a pty":        &runner.Failure{Step: "pty", Err: &os.PathError{Op: "open", Path: "/dev/ptmx", Err: syscall.ENOSPC}},
		"the database": fmt.Errorf("redeeming: %w: %w", store.ErrUnavailable, &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.ENFILE)}),
	} {
		if o := outcomeOf(err); o.code != "overloaded" {
			t.Errorf("%s: %s", name, o.code)
		}
	}
	if o := outcomeOf(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}); o != backendFailed {
		t.Errorf("a refused connection: %s", o.code)
	}
}

func TestDetail(t *testing.T) {
	for _, test := range []struct {
		name   string
		err    error
		detail string
	}{
		{"a step", &runner.Failure{Step: "docker", Err: errors.New("dial unix /secret/docker.sock: no")}, "docker"},
		{"a step within a step", fmt.Errorf("x: %w", &runner.Failure{Step: "shell", Err: runner.ErrNotRunning}), "shell"},
		{"no such place", &runner.Failure{Step: "remote", Err: runner.ErrAbsent}, "remote"},
		{"time is up", fmt.Errorf("starting: %w", context.DeadlineExceeded), "timeout"},
		{"a rule", fmt.Errorf("%w: no type", bridge.ErrBadMessage), "a message that breaks the protocol: no type"},
		{"keys that hang", fmt.Errorf("%w: fetching https://keys.internal: %w", ticket.ErrNoKeys, context.DeadlineExceeded), "timeout"},
		{"the store", fmt.Errorf("%w: pq: host=db.internal", store.ErrUnavailable), ""},
		{"anything else", errors.New("arn:aws:ec2:eu-west-1:123456789012:instance/i-1"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := outcomeOf(test.err).tell(test.err).Detail; got != test.detail {
				t.Errorf("detail is %q, want %q", got, test.detail)
			}
		})
	}
}

// fault spoils a request; code and number are how it is told. Faults of one
// kind exclude each other.
type fault struct {
	kind, code string
	number     int
	redeems    bool // it shows when the ticket is spent, or later
	request    func(*gateway, *ask)
	gateway    func(*gateway)
}

// faults are in the order of checks.
func faults() []fault {
	edit := func(edits ...func(*ask)) func(*gateway, *ask) {
		return func(_ *gateway, a *ask) {
			for _, e := range edits {
				e(a)
			}
		}
	}
	to := func(workspace string) func(*ask) {
		return func(a *ask) { a.target = strings.Replace(a.target, "/ws-1/", "/"+workspace+"/", 1) }
	}
	return []fault{
		{kind: "path", code: "not_found", number: 404, request: edit(to("ws%2f1"))},
		{kind: "upgrade", code: "upgrade_required", number: 426, request: edit(with("Sec-WebSocket-Version", "8"))},
		{kind: "handshake", code: "bad_handshake", number: 400, request: edit(with("Sec-WebSocket-Key", "c2hvcnQ="))},
		{kind: "origin", code: "origin_not_allowed", number: 403, request: edit(with("Origin", "https://evil.example"))},
		{kind: "rate", code: "rate_limited", number: 429, request: edit(with("X-Forwarded-For", "192.0.2.1")), gateway: func(g *gateway) {
			g.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
			g.handshakes.now = (&played{time.Unix(1e9, 0)}).now
			allowed(g.handshakes, "192.0.2.1", handshakesAtOnce)
		}},
		{kind: "ticket", code: "ticket_missing", number: 4401, request: edit(func(a *ask) { a.header.Del("Authorization") })},
		{kind: "ticket", code: "ticket_invalid", number: 4401, request: edit(with("Authorization", "Bearer one", "Bearer two"))},
		{kind: "ticket", code: "ticket_invalid", number: 4401, request: edit(with("Authorization", "Bearer a.b.c"))},
		{kind: "keys", code: "keys_unavailable", number: 4503, gateway: func(g *gateway) {
			g.Verifier = ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys()})
		}},
		{kind: "path", code: "ticket_mismatch", number: 4403, request: edit(to("ws-2"))},
		{kind: "size", code: "bad_message", number: 4400, request: edit(query("cols=0"))},
		{kind: "live", code: "draining", number: 1012, gateway: func(g *gateway) { g.live.refuse(time.Now(), 0) }},
		{kind: "live", code: "overloaded", number: 1013, gateway: func(g *gateway) {
			g.live.max = 1
			if _, err := g.live.add("another"); err != nil {
				g.t.Fatal(err)
			}
			g.held = 1
			g.t.Cleanup(func() { g.live.remove("another"); g.held = 0 })
		}},
		{kind: "store", code: "ticket_used", number: 4409, redeems: true, gateway: fails(store.ErrUsed)},
		{kind: "store", code: "revoked", number: 4423, redeems: true, gateway: fails(store.ErrRevoked)},
		{kind: "store", code: "workspace_not_found", number: 4404, redeems: true, gateway: fails(store.ErrNotFound)},
		{kind: "store", code: "store_unavailable", number: 4503, redeems: true, gateway: fails(store.ErrUnavailable)},
		{kind: "start", code: "container_not_running", number: 4404, redeems: true, gateway: func(g *gateway) {
			g.local.before = func(context.Context) error { return runner.ErrNotRunning }
		}},
	}
}

func fails(err error) func(*gateway) {
	return func(g *gateway) {
		g.store.during = func(context.Context) error { return fmt.Errorf("redeeming: %w", err) }
	}
}

func (f fault) spoil(g *gateway, a *ask) {
	if f.request != nil {
		f.request(g, a)
	}
	if f.gateway != nil {
		f.gateway(g)
	}
}

// TestOrderOfChecks makes every pair of faults at once: the one that comes
// first in the order is told.
func TestOrderOfChecks(t *testing.T) {
	list := faults()
	for i, first := range list {
		t.Run(fmt.Sprintf("%d %s", i, first.code), func(t *testing.T) {
			for j := i; j < len(list); j++ {
				second := list[j]
				if j > i && second.kind == first.kind {
					continue
				}
				g := open(t)
				a := requestFor("ws-1", g.ticket("ws-1"))
				first.spoil(g, a)
				if j > i {
					second.spoil(g, a)
				}
				if code, number := g.ask(t, a).outcome(); code != first.code || number != first.number {
					t.Errorf("with %s: told %s, %d; want %s, %d", second.code, code, number, first.code, first.number)
				}
				if asked := len(g.store.sessions) > 0; asked != first.redeems {
					t.Errorf("with %s: the store was asked: %t, want %t", second.code, asked, first.redeems)
				}
			}
		})
	}
}

// TestRefusedTicketIsNotSpent: what is refused before Redeem leaves the ticket
// good for another try; what is refused after does not.
func TestRefusedTicketIsNotSpent(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		for _, f := range faults() {
			if f.redeems || f.code == "ticket_missing" || f.code == "ticket_invalid" {
				continue
			}
			g := open(t)
			raw := g.ticket("ws-1")
			claims, err := g.Verifier.Verify(context.Background(), raw)
			if err != nil {
				t.Fatal(err)
			}
			a := requestFor("ws-1", raw)
			f.spoil(g, a)
			g.ask(t, a).outcome()
			if _, err := g.store.Memory.Redeem(context.Background(), claims, store.Session{ID: "next"}); err != nil {
				t.Errorf("after %s the ticket is gone: %v", f.code, err)
			}
		}
	})
	t.Run("after", func(t *testing.T) {
		g := open(t)
		g.local.before = func(context.Context) error { return runner.ErrNotRunning }
		raw := g.ticket("ws-1")
		for _, want := range []string{"container_not_running", "ticket_used"} {
			if code, _ := g.ask(t, requestFor("ws-1", raw)).outcome(); code != want {
				t.Errorf("told %s, want %s", code, want)
			}
		}
		raw = g.ticket("gone")
		for _, want := range []string{"workspace_not_found", "ticket_used"} {
			if code, _ := g.ask(t, requestFor("gone", raw)).outcome(); code != want {
				t.Errorf("told %s, want %s", code, want)
			}
		}
	})
}

// TestProblem: what is refused before the upgrade is a JSON problem (RFC 9457).
func TestProblem(t *testing.T) {
	g := open(t, func(c *Config) { c.BasePath = "/base" })
	at := func(target string) func(*ask) { return func(a *ask) { a.target = target } }
	method := func(m string) func(*ask) { return func(a *ask) { a.method = m } }
	const path = "/base/workspaces/ws-1/terminal"
	plain := func(a *ask) { a.header = http.Header{"Connection": {"close"}} }
	for _, test := range []struct {
		name   string
		status int
		edits  []func(*ask)
	}{
		{"the root", 404, []func(*ask){at("/"), plain}},
		{"no base path", 404, []func(*ask){at("/workspaces/ws-1/terminal")}},
		{"a slash at the end", 404, []func(*ask){at(path + "/")}},
		{"another page", 404, []func(*ask){at("/base/workspaces/ws-1"), plain}},
		{"an empty id", 404, []func(*ask){at("/base/workspaces//terminal")}},
		{"a dot", 404, []func(*ask){at("/base/workspaces/./terminal")}},
		{"two dots", 404, []func(*ask){at("/base/workspaces/../terminal")}},
		{"two dots, encoded", 404, []func(*ask){at("/base/workspaces/%2e%2e/terminal")}},
		{"a slash, encoded", 404, []func(*ask){at("/base/workspaces/a%2fb/terminal")}},
		{"a quote", 404, []func(*ask){at("/base/workspaces/a'b/terminal")}},
		{"a NUL", 404, []func(*ask){at("/base/workspaces/a%00b/terminal")}},
		{"129 characters", 404, []func(*ask){at("/base/workspaces/" + strings.Repeat("a", 129) + "/terminal")}},
		{"POST /healthz", 404, []func(*ask){at("/healthz"), method("POST"), plain}},
		{"a method of no one", 404, []func(*ask){at(path), method("BREW")}},
		{"a browser's address bar", 426, []func(*ask){at(path), plain}},
		{"HEAD", 426, []func(*ask){at(path), method("HEAD"), plain}},
		{"POST", 426, []func(*ask){at(path), method("POST"), plain}},
		{"no Connection", 426, []func(*ask){at(path), with("Connection", "close")}},
		{"another protocol", 426, []func(*ask){at(path), with("Upgrade", "h2c")}},
		{"no version", 426, []func(*ask){at(path), with("Sec-WebSocket-Version")}},
		{"version 8", 426, []func(*ask){at(path), with("Sec-WebSocket-Version", "8")}},
		{"POST with an upgrade", 400, []func(*ask){at(path), method("POST")}},
		{"HTTP/1.0", 400, []func(*ask){at(path), func(a *ask) { a.proto = "HTTP/1.0" }}},
		{"no key", 400, []func(*ask){at(path), with("Sec-WebSocket-Key")}},
		{"a key that is no base64", 400, []func(*ask){at(path), with("Sec-WebSocket-Key", "%%%%")}},
		{"two keys", 400, []func(*ask){at(path), with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "AAAAAAAAAAAAAAAAAAAAAA==")}},
		{"an origin", 403, []func(*ask){at(path), with("Origin", "https://evil.example")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := requestFor("ws-1", "", test.edits...)
			p := g.ask(t, a)
			if p.status != test.status {
				t.Fatalf("status %d, want %d", p.status, test.status)
			}
			if a.method == http.MethodHead {
				if len(p.body) > 0 {
					t.Errorf("HEAD has the body %q", p.body)
				}
				return
			}
			if b := p.problem(); b.Code == "" || !strings.HasSuffix(b.Detail, ".") {
				t.Errorf("problem %+v", b)
			}
			if p.header.Get("Cache-Control") != "no-store" || p.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers %v", p.header)
			}
			// RFC 9110, 15.5.22: a 426 names the protocol; RFC 6455, 4.4: its version.
			upgrade, version := p.header.Get("Upgrade"), p.header.Get("Sec-WebSocket-Version")
			if told := upgrade == "websocket" && version == "13"; told != (test.status == http.StatusUpgradeRequired) {
				t.Errorf("Upgrade %q, Sec-WebSocket-Version %q", upgrade, version)
			}
		})
	}
	g.wantMetric(0, "termgw_sessions_active", "target=local")
	if len(g.store.sessions) > 0 {
		t.Error("the store was asked")
	}
}
