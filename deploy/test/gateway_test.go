package deploy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// clientIP is where clients connect from, so that they are told from the proxy, which connects from 127.0.0.1.
const clientIP = "127.99.99.99"

// serve starts a gateway without a workspace: each ticket is refused. It believes its proxy.
func serve(t *testing.T) (gateway *child, address, admin string) {
	t.Helper()
	dir := t.TempDir()
	workspaces := filepath.Join(dir, "workspaces.json")
	if err := os.WriteFile(workspaces, []byte(`[{"id":"ws1","name":"one"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	keygen := exec.Command(binary, "ticket", "keygen", "--out", filepath.Join(dir, "ticket.json"))
	if out, err := keygen.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", keygen, err, out)
	}
	gateway = start(t, exec.Command(binary, "serve"),
		"TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN=127.0.0.1:0", "TERMGW_TRUSTED_PROXIES=127.0.0.1",
		"TERMGW_TICKET_JWKS="+filepath.Join(dir, "ticket.jwks.json"), "TERMGW_WORKSPACES_FILE="+workspaces)
	listening := regexp.MustCompile(`(?s)"msg":"serving metrics","address":"([^"]+)".*"msg":"serving terminals","address":"([^"]+)"`)
	eventually(t, "the gateway serves", func() bool {
		found := listening.FindStringSubmatch(gateway.said(t))
		if found == nil && gateway.ended() {
			t.Fatalf("termgw serve ended:\n%s", gateway.said(t))
		}
		if found != nil {
			admin, address = found[1], found[2]
		}
		return found != nil
	})
	return gateway, address, admin
}

// demo starts one, whose workspace host is a shell of this machine.
func demo(t *testing.T) (address string, ticket func() string) {
	t.Helper()
	c := start(t, exec.Command(binary, "demo", "--json", "--listen", "127.0.0.1:0", "--shell", "exec bash --norc --noprofile"),
		"DOCKER_HOST=unix:///nonexistent.sock")
	var addresses struct{ Terminal, Tickets string }
	eventually(t, "the demo tells its addresses", func() bool {
		line, _, whole := strings.Cut(c.said(t), "\n")
		return whole && json.Unmarshal([]byte(line), &addresses) == nil || c.ended()
	})
	u, err := url.Parse(addresses.Terminal)
	if err != nil || u.Host == "" {
		t.Fatalf("the demo's first line:\n%s", c.said(t))
	}
	return u.Host, func() string {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
		response, err := client.Post(addresses.Tickets, "application/json", strings.NewReader(`{"workspace":"host"}`))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		var minted struct{ Ticket string }
		if err := json.NewDecoder(response.Body).Decode(&minted); err != nil || minted.Ticket == "" {
			t.Fatalf("no ticket: %s, %v", response.Status, err)
		}
		return minted.Ticket
	}
}

// client asks for host, wherever that is, at the proxy's address.
func client(t *testing.T, proxy, host string) *http.Client {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientIP)}}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, proxy)
		},
		TLSClientConfig: &tls.Config{ServerName: host, InsecureSkipVerify: true},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// tty is the client's end of a terminal.
type tty struct {
	*websocket.Conn
	output []byte
	events []string // control messages
}

// dial opens a WebSocket; a handshake that is refused gives the response alone.
func dial(t *testing.T, c *http.Client, target string, header http.Header, protocols ...string) (*tty, *http.Response) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ws, response, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: c, HTTPHeader: header, Subprotocols: protocols})
	if err != nil {
		if response == nil {
			t.Fatal(err)
		}
		return nil, response
	}
	t.Cleanup(func() { _ = ws.CloseNow() })
	return &tty{Conn: ws}, response
}

// read takes one message in.
func (c *tty) read(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	kind, message, err := c.Read(ctx)
	if ctx.Err() != nil {
		t.Fatalf("nothing came for %s; before: %s %s", patience, c.events, c.output)
	}
	if kind == websocket.MessageText {
		c.events = append(c.events, string(message))
	} else {
		c.output = append(c.output, message...)
	}
	return err
}

// run types a line and waits for what it prints.
func (c *tty) run(t *testing.T, line, prints string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageBinary, []byte(line+"\n")); err != nil {
		t.Fatal(err)
	}
	for !bytes.Contains(c.output, []byte(prints)) {
		if err := c.read(t); err != nil {
			t.Fatalf("%v, after %s %s", err, c.events, c.output)
		}
	}
}

// end reads until the gateway has closed, and tells how.
func (c *tty) end(t *testing.T) websocket.StatusCode {
	t.Helper()
	for {
		if err := c.read(t); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}
