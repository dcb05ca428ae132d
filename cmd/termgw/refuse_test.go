package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Bad input, in four tests: what is refused before the upgrade (HTTP status), the tickets that are refused, the workspaces
// and parts that are not there, and what breaks the protocol in an open session. Each has its code, a sentence that helps,
// a metric, and no shell.

const (
	rejections = `termgw_ticket_rejections_total{code=%q}`
	ends       = `termgw_sessions_total{code=%q,target=%q}`
)

// isSentence tells whether a text is one that a person can read.
func isSentence(text string) bool {
	return len(text) > 20 && strings.HasSuffix(text, ".") && strings.ToUpper(text[:1]) == text[:1]
}

// wantRefusal checks what a termgw.v1 client was told, and that a metric moved from before.
func wantRefusal(t *testing.T, g *served, c *tty, code string, status websocket.StatusCode, metric string, before float64) message {
	t.Helper()
	if got := c.closed(t); got != status {
		t.Errorf("closed with %d, want %d", got, status)
	}
	m := c.message(t, "error")
	if m.Code != code || !isSentence(m.Message) {
		t.Errorf("told %q, %q; want %q and a sentence", m.Code, m.Message, code)
	}
	g.wantMoved(t, metric, before)
	return m
}

func (g *served) wantMoved(tb testing.TB, metric string, before float64) {
	tb.Helper()
	if after := g.metric(tb, metric); after != before+1 {
		tb.Errorf("%s went from %v to %v, want one more", metric, before, after)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	direct := p.serve(t)
	proxied := p.serve(t, "TERMGW_TRUSTED_PROXIES=127.0.0.0/8", "TERMGW_ALLOWED_ORIGINS=https://canvas.example")

	// Opened now: it has the time of all the others.
	silent, err := net.Dial("tcp", direct.address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	opened := time.Now()

	host := direct.address
	for _, test := range []struct {
		name    string
		gateway *served
		id      string
		header  string // one a line, besides those of a handshake
		status  int
		code    string
	}{
		{"id ..", direct, "..", "", 404, "not_found"},
		{"id with a step up", direct, "ws/..", "", 404, ""},
		{"id with %2f", direct, "a%2fws", "", 404, "not_found"},
		{"id with %2e%2e", direct, "%2e%2e", "", 404, "not_found"},
		{"id with a quote", direct, `ws'--`, "", 404, "not_found"},
		{"id with an encoded quote", direct, `ws%22`, "", 404, "not_found"},
		{"id of 10 kB", direct, strings.Repeat("a", 10<<10), "", 404, "not_found"},
		{"id of 129", direct, strings.Repeat("a", 129), "", 404, "not_found"},
		{"a foreign origin", direct, "ws", "Origin: http://evil.example", 403, "origin_not_allowed"},
		{"an origin of another port", direct, "ws", "Origin: http://127.0.0.1:1", 403, "origin_not_allowed"},
		{"the null origin", direct, "ws", "Origin: null", 403, "origin_not_allowed"},
		{"two origins", direct, "ws", "Origin: http://" + host + "\nOrigin: http://evil.example", 403, "origin_not_allowed"},
		{"an origin that only looks like ours", direct, "ws", "Origin: http://" + host + ".evil.example", 403, "origin_not_allowed"},
		{"an http origin of an https host", proxied, "ws", "Host: gw.example\nX-Forwarded-Proto: https\nOrigin: http://gw.example", 403, "origin_not_allowed"},
		{"an https origin of an http host", direct, "ws", "Origin: https://" + host, 403, "origin_not_allowed"},
		{"X-Forwarded-Proto of a stranger", direct, "ws", "X-Forwarded-Proto: https\nOrigin: https://" + host, 403, "origin_not_allowed"},
		{"X-Forwarded-Host of a stranger", direct, "ws", "X-Forwarded-Host: gw.example\nOrigin: http://gw.example", 403, "origin_not_allowed"},
		{"no WebSocket", direct, "ws", "Upgrade: h2c", 426, "upgrade_required"},
		{"an old WebSocket", direct, "ws", "Sec-WebSocket-Version: 8", 426, "upgrade_required"},
		{"a short key", direct, "ws", "Sec-WebSocket-Key: c2hvcnQ=", 400, "bad_handshake"},
		// Let on: the next check, the ticket's, refuses them.
		{"our own origin", direct, "ws", "Origin: http://" + host, 101, "ticket_invalid"},
		{"our own https origin behind a proxy", proxied, "ws", "Host: gw.example\nX-Forwarded-Proto: https\nOrigin: https://gw.example", 101, "ticket_invalid"},
		{"an allowed origin", proxied, "ws", "Origin: https://canvas.example", 101, "ticket_invalid"},
		{"no origin", direct, "ws", "", 101, "ticket_invalid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			metric := fmt.Sprintf(ends, test.code, "none")
			before := test.gateway.metric(t, metric)
			// A ticket in the address is one that access logs like to show.
			response := handshake(t, test.gateway.address, test.id+"/terminal?ticket="+p.keepSecret("x.notaticketatallbutsecret.x"), test.header)
			defer response.Body.Close()
			if response.StatusCode != test.status {
				t.Fatalf("status %d, want %d", response.StatusCode, test.status)
			}
			if test.status != http.StatusSwitchingProtocols {
				var problem struct{ Code, Detail, Title string }
				err := json.NewDecoder(response.Body).Decode(&problem)
				if err != nil || response.Header.Get("Content-Type") != "application/problem+json" || !isSentence(problem.Detail) || problem.Title == "" {
					t.Errorf("%v: %s, %+v; want a problem with a sentence", err, response.Header.Get("Content-Type"), problem)
				}
				if test.code != "" && problem.Code != test.code {
					t.Errorf("code %q, want %q", problem.Code, test.code)
				}
			}
			switch {
			case test.code == "": // it is no terminal's address
			case test.status == http.StatusSwitchingProtocols: // told after the answer
				eventually(t, metric+" moves", func() bool { return test.gateway.metric(t, metric) == before+1 })
			default:
				test.gateway.wantMoved(t, metric, before)
			}
		})
	}
	if n := container.execs(t); n > 0 {
		t.Errorf("%d execs", n)
	}

	t.Run("a client that connects and says nothing", func(t *testing.T) {
		const requestTime = 10 * time.Second // to send its request in
		if err := silent.SetReadDeadline(time.Now().Add(requestTime + patience)); err != nil {
			t.Fatal(err)
		}
		if n, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read %d bytes, %v; want to be dropped", n, err)
		}
		if lasted := time.Since(opened); lasted < requestTime/2 {
			t.Errorf("dropped after %s: slow clients are dropped too", lasted)
		}
		if n := direct.metric(t, `termgw_sessions_active{target="local"}`); n != 0 {
			t.Errorf("it cost a session")
		}
	})
}

// handshake asks for a terminal byte by byte: no client would send all of these.
func handshake(tb testing.TB, address, path, header string) *http.Response {
	tb.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	var b strings.Builder
	fmt.Fprintf(&b, "GET /workspaces/%s HTTP/1.1\r\n", path)
	for _, standard := range []string{
		"Host: " + address, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
	} {
		name, _, _ := strings.Cut(standard, ":")
		if !strings.Contains("\n"+header, "\n"+name+":") {
			b.WriteString(standard + "\r\n")
		}
	}
	if header != "" {
		b.WriteString(strings.ReplaceAll(header, "\n", "\r\n") + "\r\n")
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.WriteString(conn, b.String()+"\r\n"); err != nil {
		tb.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return response
}

func TestBadTickets(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)

	type m = map[string]any
	now := time.Now().Unix()
	public := p.key.Public().Key.(ed25519.PublicKey)
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	jwks, err := os.ReadFile(p.jwks)
	if err != nil {
		t.Fatal(err)
	}
	hs256 := func(secret []byte) func([]byte) []byte {
		return func(signed []byte) []byte {
			mac := hmac.New(sha256.New, secret)
			mac.Write(signed)
			return mac.Sum(nil)
		}
	}
	_, foreign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name           string
		header, claims m
		sign           func([]byte) []byte // nil: the platform's key
		code           string
		close          websocket.StatusCode
	}{
		{"alg none, no signature", m{"alg": "none"}, nil, func([]byte) []byte { return nil }, "ticket_invalid", 4401},
		{"alg none, signed", m{"alg": "none"}, nil, nil, "ticket_invalid", 4401},
		{"HMAC with the public key", m{"alg": "HS256"}, nil, hs256(public), "ticket_invalid", 4401},
		{"HMAC with the public key as PEM", m{"alg": "HS256"}, nil, hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})), "ticket_invalid", 4401},
		{"HMAC with the key set", m{"alg": "HS256"}, nil, hs256(jwks), "ticket_invalid", 4401},
		{"a foreign key", nil, nil, func(b []byte) []byte { return ed25519.Sign(foreign, b) }, "ticket_invalid", 4401},
		{"an unknown kid", m{"kid": "another"}, nil, nil, "ticket_invalid", 4401},
		{"no kid", m{"kid": nil}, nil, nil, "ticket_invalid", 4401},
		{"a wrong typ", m{"typ": "JWT"}, nil, nil, "ticket_invalid", 4401},
		{"no typ", m{"typ": nil}, nil, nil, "ticket_invalid", 4401},
		{"a wrong aud", nil, m{"aud": "another"}, nil, "ticket_invalid", 4401},
		{"a wrong iss", nil, m{"iss": "https://evil.example"}, nil, "ticket_invalid", 4401},
		{"no iss", nil, m{"iss": nil}, nil, "ticket_invalid", 4401},
		{"expired", nil, m{"iat": now - 70, "nbf": now - 70, "exp": now - 10}, nil, "ticket_expired", 4401},
		{"not yet valid", nil, m{"nbf": now + 30}, nil, "ticket_invalid", 4401},
		{"issued in the future", nil, m{"iat": now + 30, "nbf": now + 30, "exp": now + 60}, nil, "ticket_invalid", 4401},
		{"a life over the limit", nil, m{"exp": now + 3600}, nil, "ticket_invalid", 4401},
		{"no exp", nil, m{"exp": nil}, nil, "ticket_invalid", 4401},
		{"no jti", nil, m{"jti": nil}, nil, "ticket_invalid", 4401},
		{"an empty jti", nil, m{"jti": ""}, nil, "ticket_invalid", 4401},
		{"an empty sub", nil, m{"sub": ""}, nil, "ticket_invalid", 4401},
		{"an empty workspace_id", nil, m{"workspace_id": ""}, nil, "ticket_invalid", 4401},
		{"a huge sub", nil, m{"sub": strings.Repeat("a", 300)}, nil, "ticket_invalid", 4401},
		{"a huge jti", nil, m{"jti": strings.Repeat("a", 10<<10)}, nil, "ticket_invalid", 4401},
		{"a huge time", nil, m{"exp": 1e300}, nil, "ticket_invalid", 4401},
		{"an unknown mode", nil, m{"mode": "root"}, nil, "ticket_invalid", 4401},
		{"another workspace's", nil, m{"workspace_id": "another"}, nil, "ticket_mismatch", 4403},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw := p.forge(t, test.header, test.claims, test.sign)
			metric := fmt.Sprintf(rejections, test.code)
			before := g.metric(t, metric)
			c := g.dial(t, "ws", raw, dialing{})
			if m := wantRefusal(t, g, c, test.code, test.close, metric, before); m.Retryable != (test.close == 4401) {
				t.Errorf("retryable = %v", m.Retryable)
			}
			if strings.Contains(c.protocol, "ticket") {
				t.Errorf("the gateway chose the subprotocol %q", c.protocol)
			}

			// The same in raw mode: a line of text for the person, no JSON.
			c = g.dial(t, "ws", raw, dialing{raw: true})
			if code := c.closed(t); code != test.close {
				t.Errorf("raw mode: closed with %d", code)
			}
			if text := c.message(t, "text").Message; !strings.HasSuffix(text, ".\r\n") || strings.HasPrefix(text, "{") {
				t.Errorf("raw mode: told %q", text)
			}
		})
	}

	for _, test := range []struct {
		name, raw string
		how       dialing
		code      string
	}{
		{"none", "", dialing{}, "ticket_missing"},
		{"no JWT", "hello", dialing{}, "ticket_invalid"},
		{"two in one request", p.ticket(t, "ws"), dialing{header: http.Header{"Authorization": {"Bearer " + p.ticket(t, "ws")}}}, "ticket_invalid"},
		{"two subprotocols", p.ticket(t, "ws"), dialing{protocols: []string{"termgw.ticket." + p.ticket(t, "ws")}}, "ticket_invalid"},
		{"two in the query", "", dialing{query: "ticket=" + p.ticket(t, "ws") + "&ticket=" + p.ticket(t, "ws")}, "ticket_invalid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			metric := fmt.Sprintf(rejections, test.code)
			before := g.metric(t, metric)
			wantRefusal(t, g, g.dial(t, "ws", test.raw, test.how), test.code, 4401, metric, before)
		})
	}
	if n := container.execs(t); n > 0 || container.shells(t) > 0 {
		t.Fatalf("%d execs by refused tickets", n)
	}

	t.Run("a replay", func(t *testing.T) {
		raw := p.ticket(t, "ws")
		first := g.dial(t, "ws", raw, dialing{})
		first.message(t, "ready")
		metric := fmt.Sprintf(rejections, "ticket_used")
		before := g.metric(t, metric)
		wantRefusal(t, g, g.dial(t, "ws", raw, dialing{}), "ticket_used", 4409, metric, before)
		first.close(t)
		container.empty(t)
		wantRefusal(t, g, g.dial(t, "ws", raw, dialing{}), "ticket_used", 4409, metric, before+1)
	})

	t.Run("a replay, 200 at once: exactly one shell opens", func(t *testing.T) {
		raw := p.ticket(t, "ws")
		metric := fmt.Sprintf(rejections, "ticket_used")
		used, opened := g.metric(t, metric), countTerminals(t, env.Docker(t), []*box{container})
		const clients = 200
		var letIn atomic.Int64
		spread(t, clients, clients, func(int) {
			c := g.dial(t, "ws", raw, dialing{})
			m := c.answer(t)
			for m.Code == "store_unavailable" && m.Retryable { // as so many at once may be told on a busy machine
				c = g.dial(t, "ws", raw, dialing{})
				m = c.answer(t)
			}
			switch {
			case m.Type == "ready":
				letIn.Add(1)
				t.Cleanup(func() { c.close(t) })
			case m.Code != "ticket_used" || c.closed(t) != 4409:
				t.Errorf("told %+v", m)
			}
		})
		eventually(t, "the engine tells of a terminal", func() bool { return opened() > 0 })
		if letIn.Load() != 1 || opened() != 1 {
			t.Errorf("%d were let in, %d terminals opened; want one", letIn.Load(), opened())
		}
		// A shell that starts can have a child.
		eventually(t, "one shell", func() bool { return container.shells(t) == 1 })
		if n := g.metric(t, metric) - used; n != clients-1 {
			t.Errorf("%v replays were counted", n)
		}
	})
}

func TestNoShellToOpen(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := newPlatform(t)
	for _, id := range []string{"ws", "stopped", "missing"} {
		p.workspace(t, id, "")
	}
	p.workspace(t, "far", "i-0123456789abcdef0")
	container := newBox(t, engine, "ws")
	stopped := newBox(t, engine, "stopped")
	if _, err := engine.Client(t).ContainerStop(t.Context(), stopped.id, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	g := p.serve(t)
	noEngine := p.serve(t, "DOCKER_HOST=unix://"+filepath.Join(t.TempDir(), "none.sock"))

	for _, test := range []struct {
		name, workspace string
		gateway         *served
		query           string
		close           websocket.StatusCode
		code, target    string
		detail          string
		retry           bool
	}{
		{"an unknown workspace", "unknown", g, "", 4404, "workspace_not_found", "none", "", false},
		{"a stopped container", "stopped", g, "", 4404, "container_not_running", "local", "", false},
		{"no container", "missing", g, "", 4404, "container_not_running", "local", "", false},
		{"Docker down", "ws", noEngine, "", 4502, "backend_failed", "local", "docker", true},
		{"an instance, and no AWS", "far", g, "", 4502, "backend_failed", "remote", "region", false},
		{"a negative first size", "ws", g, "cols=-1", 4400, "bad_message", "none", "", false},
		{"a huge first size", "ws", g, "rows=1001", 4400, "bad_message", "none", "", false},
		{"a first size of no number", "ws", g, "cols=wide", 4400, "bad_message", "none", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			metric := fmt.Sprintf(ends, test.code, test.target)
			before := test.gateway.metric(t, metric)
			c := test.gateway.dial(t, test.workspace, p.ticket(t, test.workspace), dialing{query: test.query})
			m := wantRefusal(t, test.gateway, c, test.code, test.close, metric, before)
			if test.detail != "" && m.Detail != test.detail || m.Retryable != test.retry {
				t.Errorf("detail %q, retryable %v", m.Detail, m.Retryable)
			}
			if test.target != "none" {
				if r := p.lastRow(t, test.workspace); r.reason != test.code || r.exitCode.Valid {
					t.Errorf("the audit trail says %+v", r)
				}
			}
		})
	}
	if n := container.execs(t) + stopped.execs(t); n > 0 || container.shells(t) > 0 {
		t.Errorf("%d execs", n)
	}
	if a := noEngine.get(t, noEngine.address, "/readyz"); a.StatusCode != http.StatusOK || !strings.Contains(a.body, `"docker":"unavailable"`) {
		t.Errorf("/readyz without Docker: %d %s", a.StatusCode, a.body)
	}
}

// Named after the platform's own tests of its handler.
func TestInstanceIDRoutesToRemoteRunner(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "i-0123456789abcdef0")
	container := newBox(t, env.Docker(t), "ws") // has the right name, and must not be used
	g := p.serve(t)
	before := g.metric(t, fmt.Sprintf(ends, "backend_failed", "local"))
	c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	// This gateway knows no region to look for the instance in, which only the way to instances asks for.
	if code, m := c.closed(t), c.message(t, "error"); code != 4502 || m.Detail != "region" || !strings.Contains(m.Message, "AWS_REGION") {
		t.Errorf("closed with %d, %+v", code, m)
	}
	if container.execs(t) > 0 || g.metric(t, fmt.Sprintf(ends, "backend_failed", "local")) != before {
		t.Error("it was tried on this machine")
	}
}

func TestEmptyInstanceIDRoutesToLocalRunner(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "empty", "")
	p.exec(t, "INSERT INTO workspaces VALUES ('null', NULL, NULL)")
	g := p.serve(t)
	for _, workspace := range []string{"empty", "null"} {
		newBox(t, env.Docker(t), workspace)
		c := g.dial(t, workspace, p.ticket(t, workspace), dialing{})
		if m := c.message(t, "ready"); m.Target != "local" || m.Workspace != workspace {
			t.Errorf("%s: %+v", workspace, m)
		}
		if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
			t.Errorf("%s: the shell says %q", workspace, got)
		}
	}
}

func TestBrokenProtocol(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)

	text := func(s string) func(*tty) error {
		return func(c *tty) error { return c.trySend(websocket.MessageText, s) }
	}
	for _, test := range []struct {
		name  string
		raw   bool
		send  func(*tty) error
		close websocket.StatusCode
		code  string
	}{
		{"a text frame that is no JSON", false, text("ls -l\r"), 4400, "bad_message"},
		{"an array", false, text(`["resize"]`), 4400, "bad_message"},
		{"a negative resize", false, text(`{"type":"resize","cols":-1,"rows":24}`), 4400, "bad_message"},
		{"a resize to nothing", false, text(`{"type":"resize","cols":0,"rows":0}`), 4400, "bad_message"},
		{"a huge resize", false, text(`{"type":"resize","cols":80,"rows":1001}`), 4400, "bad_message"},
		{"a resize past every number", false, text(`{"type":"resize","cols":1e99,"rows":24}`), 4400, "bad_message"},
		{"an ack past what was sent", false, text(`{"type":"ack","bytes":1000000000}`), 4400, "bad_message"},
		{"an ack below zero", false, text(`{"type":"ack","bytes":-1}`), 4400, "bad_message"},
		{"a control message over the limit", false, text(`{"type":"ping","id":1,"x":"` + strings.Repeat("x", 4<<10) + `"}`), 1009, "too_large"},
		{"input over the limit", false, func(c *tty) error {
			return c.trySend(websocket.MessageBinary, strings.Repeat("x", 1<<20+1))
		}, 1009, "too_large"},
		{"input over the limit in raw mode", true, func(c *tty) error {
			return c.trySend(websocket.MessageBinary, strings.Repeat("x", 1<<20+1))
		}, 1009, "too_large"},
		{"a continuation that never ends", false, endless(websocket.MessageBinary), 1009, "too_large"},
		{"a control message that never ends", false, endless(websocket.MessageText), 1009, "too_large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			metric := fmt.Sprintf(ends, test.code, "local")
			before := g.metric(t, metric)
			c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{raw: test.raw})
			c.wait(t, "a prompt", func() bool { return len(c.output) > 0 })
			if err := test.send(c); err != nil && websocket.CloseStatus(err) == -1 && !test.raw {
				t.Logf("sending: %v", err) // the gateway may close before it has all
			}
			if test.raw {
				if code, m := c.closed(t), c.message(t, "text"); code != test.close || !strings.HasSuffix(m.Message, ".\r\n") {
					t.Errorf("closed with %d, %q", code, m.Message)
				}
				g.wantMoved(t, metric, before)
			} else if m := wantRefusal(t, g, c, test.code, test.close, metric, before); m.Detail == "" || m.Retryable {
				t.Errorf("told %+v; want the rule that was broken, and no retry", m)
			}
			container.empty(t)
			if r := p.lastRow(t, "ws"); r.reason != test.code {
				t.Errorf("the audit trail says %+v", r)
			}
		})
	}

	t.Run("what is not known is ignored", func(t *testing.T) {
		c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
		c.control(t, `{"type":"dance","cols":-1}`)
		c.control(t, `{"type":"ping","id":7,"mood":"good"}`)
		c.message(t, "pong")
	})
}

// endless sends a message far over every limit in fragments, and never the last one.
func endless(typ websocket.MessageType) func(*tty) error {
	return func(c *tty) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c.setDeaf(true) // no other message can be sent amid this one
		w, err := c.ws.Writer(ctx, typ)
		piece := []byte(strings.Repeat("x", 64<<10))
		for n := 0; n < 4<<20 && err == nil; n += len(piece) {
			_, err = w.Write(piece)
		}
		return err
	}
}

func TestPostgresStopped(t *testing.T) {
	t.Parallel()
	cluster := testenv.StartPostgres(t)
	p := &platform{}
	p.makeKey(t)
	p.useDatabase(t, cluster.URL)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)
	open := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	id := open.message(t, "ready").Session
	leaving := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	leavingID := leaving.message(t, "ready").Session
	leaving.run(t, "true")
	execs := container.execs(t)

	cluster.Stop(t)
	metric := fmt.Sprintf(ends, "store_unavailable", "none")
	before := g.metric(t, metric)
	raw := p.ticket(t, "ws")
	wantRefusal(t, g, g.dial(t, "ws", raw, dialing{}), "store_unavailable", 4503, metric, before)
	if n := container.execs(t); n != execs {
		t.Errorf("%d execs without a database", n-execs)
	}
	if a := g.get(t, g.address, "/readyz"); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, `"store":"unavailable"`) {
		t.Errorf("/readyz: %d %s", a.StatusCode, a.body)
	}
	if a := g.get(t, g.address, "/healthz"); a.StatusCode != http.StatusOK {
		t.Errorf("/healthz: %d", a.StatusCode)
	}
	if got := open.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("the open session answers %q", got)
	}
	leaving.close(t) // its end is kept until it can be recorded
	eventually(t, "it is over", func() bool { return container.shells(t) == 1 })

	cluster.Start(t)
	eventually(t, "ready again", func() bool { return g.get(t, g.address, "/readyz").StatusCode == http.StatusOK })
	again := g.dial(t, "ws", raw, dialing{}) // the refused ticket was not spent
	again.message(t, "ready")
	again.close(t)
	open.close(t)
	eventually(t, "the ends of both are recorded", func() bool {
		var ended int
		err := p.db.QueryRowContext(t.Context(), "SELECT count(*) FROM termgw.sessions WHERE id IN ($1, $2) AND end_reason = 'client_closed'", id, leavingID).Scan(&ended)
		return err == nil && ended == 2
	})
	container.empty(t)
}

// The in-process store cannot know what an earlier process has seen, so it refuses it.
func TestRestartOpensNoReplay(t *testing.T) {
	t.Parallel()
	p := &platform{}
	p.makeKey(t)
	container := newBox(t, env.Docker(t), "ws")
	file := filepath.Join(t.TempDir(), "workspaces.json")
	if err := os.WriteFile(file, []byte(`[{"id":"ws","name":""}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	early := p.ticket(t, "ws")
	g := p.serve(t, "TERMGW_WORKSPACES_FILE="+file)
	metric := fmt.Sprintf(rejections, "ticket_used")
	wantRefusal(t, g, g.dial(t, "ws", early, dialing{}), "ticket_used", 4409, metric, 0)

	raw := p.ticket(t, "ws", func(c *ticket.Claims) { c.Subject = "bob" })
	c := g.dial(t, "ws", raw, dialing{})
	c.message(t, "ready")
	c.close(t)
	container.empty(t)
	g.signal(t, os.Kill)
	g.wait(t)
	g = p.serve(t, "TERMGW_WORKSPACES_FILE="+file)
	wantRefusal(t, g, g.dial(t, "ws", raw, dialing{}), "ticket_used", 4409, metric, 0)
	fresh := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	fresh.message(t, "ready")
}

// Requests that are refused hold little for as long as their refusal takes, however large they were.
func TestLargeRefusedRequests(t *testing.T) {
	const requests = 400
	var p platform
	gateway, address := p.serveAlone(t)
	g := &served{child: gateway, platform: &p, address: address}
	before := g.memory(t, "VmRSS")
	header := make([]string, 4000) // names with nothing behind them
	for i := range header {
		header[i] = fmt.Sprintf("%04x:", i)
	}
	spread(t, requests, 8, func(int) {
		a, err := g.tryAttack(t, "ws", "no.ticket.x", header...)
		if err != nil {
			return // the request took a slow machine longer than it may take
		}
		if first, _, err := a.next(); err != nil || first != wsFinal|wsText {
			t.Errorf("%x, %v: want an error message", first, err)
		}
	})
	// What each held was 0.6 MiB, 240 in all.
	after := g.memory(t, "VmRSS")
	t.Logf("%d MiB, %d before", after>>20, before>>20)
	if after > before+120<<20 {
		t.Error("that is too much")
	}
}
