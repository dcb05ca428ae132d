package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// keyServer is an HTTP server of the platform's key set, whose answer a test changes.
type keyServer struct {
	address string
	answer  atomic.Pointer[http.HandlerFunc]
}

// newKeyServer answers by a handler; with nil it refuses connections until set is called.
func newKeyServer(t *testing.T, answer http.HandlerFunc) *keyServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &keyServer{address: listener.Addr().String()}
	if answer == nil {
		_ = listener.Close()
		return s
	}
	s.serve(t, listener, answer)
	return s
}

func (s *keyServer) serve(t *testing.T, listener net.Listener, answer http.HandlerFunc) {
	s.answer.Store(&answer)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*s.answer.Load())(w, r) })}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

// set changes the answer, and begins to listen if the server did not.
func (s *keyServer) set(t *testing.T, answer http.HandlerFunc) {
	t.Helper()
	if s.answer.Load() != nil {
		s.answer.Store(&answer)
		return
	}
	var listener net.Listener
	eventually(t, "the port is free", func() bool { // which a client may have just now
		var err error
		listener, err = net.Listen("tcp", s.address)
		return err == nil
	})
	s.serve(t, listener, answer)
}

func serveText(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
}

func keySetOf(t *testing.T, keys ...jose.JSONWebKey) http.HandlerFunc {
	t.Helper()
	for i := range keys {
		keys[i] = keys[i].Public()
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return serveText(string(set))
}

// told is how the gateway answers a client by hand: the error message and the close code.
func (g *served) told(t *testing.T, workspace, raw string) (m message, closed int) {
	t.Helper()
	a := g.attack(t, workspace, raw)
	_ = a.SetReadDeadline(time.Now().Add(patience))
	first, payload, err := a.next()
	if err != nil || first != wsFinal|wsText || json.Unmarshal(payload, &m) != nil {
		t.Fatalf("%x %q, %v: want an error message", first, payload, err)
	}
	return m, a.closed(t)
}

// A gateway without a key is not ready and says so to everybody; with one it goes on by it, whatever the platform serves.
func TestKeyServerFails(t *testing.T) {
	t.Parallel()
	box := newBox(t, env.Docker(t), "ws")
	p := &platform{}
	p.makeKey(t)
	many := make([]jose.JSONWebKey, 200)
	for i := range many {
		many[i] = p.key
	}
	var other platform
	other.makeKey(t)
	twin, encryption := other.key, p.key
	twin.KeyID, encryption.Use = p.key.KeyID, "enc"
	untrusted := httptest.NewTLSServer(keySetOf(t, p.key))
	t.Cleanup(untrusted.Close)

	for _, test := range []struct {
		name   string
		answer http.HandlerFunc // nil: refuses
		at     string           // instead of the server's address, which is not mended then
		logged string
	}{
		{"refuses", nil, "", "connection refused"},
		{"500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "", "status 500"},
		{"HTML", serveText("<!doctype html><title>Sign in</title>"), "", "not a JWK Set"},
		{"hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "", "deadline exceeded"},
		{"200 keys", keySetOf(t, many...), "", "more than 100 keys"},
		{"two keys of one kid", keySetOf(t, p.key, twin), "", "two different keys"},
		{"only keys that cannot be used", keySetOf(t, encryption), "", "use is not sig"},
		{"no keys", serveText(`{"keys":[]}`), "", "ticket key set is empty"},
		{"without end", func(w http.ResponseWriter, _ *http.Request) {
			for err := error(nil); err == nil; {
				_, err = w.Write(bytes.Repeat([]byte(" "), 64<<10))
			}
		}, "", "larger than"},
		{"redirects for ever", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }, "", "too many redirects"},
		{"redirects to where it can be altered", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://keys.example/", http.StatusFound)
		}, "", "not https"},
		{"a certificate of nobody", nil, untrusted.URL, "certificate"},
		{"a name of no host", nil, "https://keys.invalid", "keys.invalid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := newKeyServer(t, test.answer)
			location := test.at
			if location == "" {
				location = "http://" + server.address
			}
			g := p.launch(t, nil, "TERMGW_WORKSPACES_FILE="+workspacesFile(t), "TERMGW_TICKET_JWKS="+location+"/jwks.json?token="+p.keepSecret("hunter2hunter2"))
			eventually(t, "it has tried", func() bool { return strings.Contains(g.log.String(), test.logged) })
			rejected := fmt.Sprintf(rejections, "keys_unavailable")
			refused := fmt.Sprintf(ends, "keys_unavailable", "none")

			if a := g.get(t, g.address, "/readyz"); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, `"keys":"unavailable"`) || strings.Contains(a.body, "jwks.json") {
				t.Errorf("/readyz: %d %s", a.StatusCode, a.body)
			}
			if a := g.get(t, g.address, "/healthz"); a.StatusCode != http.StatusOK {
				t.Errorf("/healthz: %d", a.StatusCode)
			}
			if m, closed := g.told(t, "ws", p.ticket(t, "ws")); closed != 4503 || m.Code != "keys_unavailable" || !m.Retryable || !isSentence(m.Message) {
				t.Errorf("told %+v, closed with %d", m, closed)
			}
			c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{raw: true})
			if code := c.closed(t); code != 4503 || !strings.HasSuffix(c.message(t, "text").Message, ".\r\n") {
				t.Errorf("raw mode: closed with %d, told %+v", code, c.messages)
			}
			eventually(t, "both are counted", func() bool { return g.metric(t, refused) == 2 })
			if g.metric(t, `termgw_ready{part="keys"}`) != 0 || g.metric(t, rejected) != 0 || g.metric(t, "termgw_ticket_keys_age_seconds") <= 0 {
				t.Error("the metrics do not tell")
			}
			if test.at != "" {
				return
			}

			server.set(t, keySetOf(t, p.key))
			eventually(t, "ready", func() bool { return g.get(t, g.address, "/readyz").StatusCode == http.StatusOK })
			c = g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
			c.message(t, "ready")
			c.close(t)
			if g.metric(t, `termgw_ready{part="keys"}`) != 1 {
				t.Error("termgw_ready does not tell that there are keys")
			}
			if test.answer == nil || test.name == "no keys" {
				return // which cannot be undone, or is an order
			}

			server.set(t, test.answer)
			if m, closed := g.told(t, "ws", p.forge(t, map[string]any{"kid": "unknown"}, nil, nil)); closed != 4401 || m.Code != "ticket_invalid" {
				t.Errorf("a key that is unknown: told %+v, closed with %d", m, closed)
			}
			eventually(t, "the set was looked for", func() bool { return strings.Contains(g.log.String(), "the last good ones stay") })
			c = g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
			c.message(t, "ready")
			c.close(t)
			if a := g.get(t, g.address, "/readyz"); a.StatusCode != http.StatusOK || !strings.Contains(a.body, `"keys":"ok"`) {
				t.Errorf("/readyz: %d %s", a.StatusCode, a.body)
			}
		})
	}
	t.Cleanup(func() { box.empty(t) })
}

// A file of keys is asked for the same: at the start, and later.
func TestKeyFileFails(t *testing.T) {
	t.Parallel()
	newBox(t, env.Docker(t), "ws")
	p := &platform{}
	p.makeKey(t)
	good, err := os.ReadFile(p.jwks)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "jwks.json")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"nothing": "", "half a set": string(good[:40]), "no set": "[]"} {
		write(content)
		c := start(t, command(t, []string{"TERMGW_TICKET_JWKS=" + file, "TERMGW_WORKSPACES_FILE=" + workspacesFile(t), "TERMGW_LISTEN=127.0.0.1:0"}, "serve"))
		if status := c.wait(t); status != 1 || !strings.Contains(c.log.String(), "TERMGW_TICKET_JWKS") {
			t.Errorf("%s: exit status %d\n%s", name, status, c.log.String())
		}
	}

	write(`{"keys":[]}`)
	g := p.launch(t, nil, "TERMGW_WORKSPACES_FILE="+workspacesFile(t), "TERMGW_TICKET_JWKS="+file)
	ready := func() bool { return g.get(t, g.address, "/readyz").StatusCode == http.StatusOK }
	wantNoKeys := func() {
		t.Helper()
		if m, closed := g.told(t, "ws", p.ticket(t, "ws")); closed != 4503 || m.Code != "keys_unavailable" {
			t.Errorf("told %+v, closed with %d", m, closed)
		}
		eventually(t, "not ready", func() bool { return !ready() })
	}
	wantNoKeys()
	write(string(good))
	eventually(t, "ready", ready)
	for _, broken := range []string{"", "{"} {
		write(broken)
		eventually(t, "its keys are old", func() bool { return g.metric(t, "termgw_ticket_keys_age_seconds") > 1 })
		c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
		c.message(t, "ready")
		c.close(t)
		if !ready() {
			t.Error("not ready, with the last good keys")
		}
		write(string(good))
		eventually(t, "its keys are fresh", func() bool { return g.metric(t, "termgw_ticket_keys_age_seconds") < 1 })
	}
	write(`{"keys":[]}`)
	eventually(t, "not ready", func() bool { return !ready() })
	wantNoKeys()
}

// A configuration that refuses every ticket is told by the log, for each ticket, and counted.
func TestWrongIssuerIsTold(t *testing.T) {
	t.Parallel()
	p := &platform{}
	p.makeKey(t)
	for variable, reason := range map[string]string{
		"TERMGW_TICKET_ISSUER=https://another.example": `iss is not \"https://another.example\"`,
		"TERMGW_TICKET_AUDIENCE=another":               `aud does not name \"another\"`,
	} {
		g := p.serve(t, "TERMGW_WORKSPACES_FILE="+workspacesFile(t), variable)
		if m, closed := g.told(t, "ws", p.ticket(t, "ws")); closed != 4401 || m.Code != "ticket_invalid" || strings.Contains(m.Message+m.Detail, "another") {
			t.Errorf("told %+v, closed with %d", m, closed)
		}
		eventually(t, "the log says why", func() bool { return strings.Contains(g.log.String(), reason) })
		if n := g.metric(t, fmt.Sprintf(rejections, "ticket_invalid")); n != 1 {
			t.Errorf("%v tickets are counted as refused", n)
		}
	}
}
