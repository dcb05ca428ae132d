package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
)

// workspacesFile is a list of one workspace, ws.
func workspacesFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "workspaces.json")
	if err := os.WriteFile(file, []byte(`[{"id":"ws","name":""}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// serveAlone starts a gateway that needs neither a database nor an engine, and returns the address of its terminals.
func (p *platform) serveAlone(t *testing.T, environ ...string) (*child, string) {
	t.Helper()
	p.makeKey(t)
	gateway := start(t, command(t, append([]string{
		"TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN=127.0.0.1:0", "TERMGW_TICKET_JWKS=" + p.jwks, "TERMGW_WORKSPACES_FILE=" + workspacesFile(t),
		"TERMGW_LOG_LEVEL=debug", "TERMGW_DRAIN_TIMEOUT=0", "DOCKER_HOST=unix:///nonexistent.sock",
	}, environ...), "serve"))
	serving := regexp.MustCompile(`serving terminals"[, ]"?address"?[:=]"?([^" ]+)`)
	var address []string
	eventually(t, "the gateway serves", func() bool {
		address = serving.FindStringSubmatch(gateway.log.String())
		return address != nil
	})
	return gateway, address[1]
}

// keptAlive sends requests as they stand, on one connection for as long as the gateway keeps it.
type keptAlive struct {
	address string
	conn    net.Conn // nil: none
	r       *bufio.Reader
}

// ask returns the answer's status, or 0 if there is none.
func (k *keptAlive) ask(t *testing.T, request string) (status int) {
	t.Helper()
	if k.conn == nil {
		var err error
		if k.conn, err = net.Dial("tcp", k.address); err != nil {
			t.Error(err)
			return 0
		}
		k.r = bufio.NewReader(k.conn)
	}
	_ = k.conn.SetDeadline(time.Now().Add(patience))
	stays := false
	if _, err := io.WriteString(k.conn, request); err == nil {
		if response, err := http.ReadResponse(k.r, nil); err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			status, stays = response.StatusCode, !response.Close && response.StatusCode != http.StatusSwitchingProtocols
		}
	}
	if !stays {
		_ = k.conn.Close()
		k.conn = nil
	}
	return status
}

// What a stranger is refused costs few lines of log, none of which can act on a terminal or shows a ticket, whatever is
// refused and however much of it comes.
func TestFloodOfRefusals(t *testing.T) {
	t.Parallel()
	// The pace is that of either format.
	for format, times := range map[string]int{"json": 600, "text": 50} {
		t.Run(format, func(t *testing.T) {
			p := &platform{}
			gateway, address := p.serveAlone(t, "TERMGW_LOG_FORMAT="+format)
			secret := p.ticket(t, "ws")
			evil := "https://\u009b2J\u202e\u2066.example/" + secret + "\t" + strings.Repeat("x", 20<<10)
			hello := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nHost: " + address + "\r\n"
			key := "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
			for _, flood := range []struct{ name, request string }{
				{"a wrong origin", "GET /workspaces/ws/terminal HTTP/1.1\r\n" + hello + key + "Origin: " + evil + "\r\n\r\n"},
				{"a wrong host", "GET /workspaces/ws/terminal HTTP/1.1\r\n" + strings.Replace(hello, address, secret, 1) + key + "Origin: https://x.example\r\n\r\n"},
				{"a bad handshake", "GET /workspaces/ws/terminal HTTP/1.1\r\n" + hello + "Origin: " + evil + "\r\n\r\n"},
				{"no WebSocket", "GET /workspaces/ws/terminal HTTP/1.1\r\nHost: x\r\nOrigin: " + evil + "\r\nUser-Agent: " + evil + "\r\n\r\n"},
				{"a ticket as the workspace", "GET /workspaces/" + secret[:100] + "/terminal HTTP/1.1\r\nHost: x\r\n\r\n"},
				{"a path that is none", "GET /" + secret + " HTTP/1.1\r\nHost: x\r\nReferer: " + evil + "\r\n\r\n"},
				{"a method that is none", secret[:20] + " /healthz HTTP/1.1\r\nHost: x\r\n\r\n"},
				{"no HTTP", secret + "\r\n\r\n"},
				{"a ticket that is none", "GET /workspaces/ws/terminal?ticket=x." + secret + " HTTP/1.1\r\n" + hello + key + "\r\n"},
			} {
				before, began := gateway.log.String(), time.Now()
				statuses := map[int]int{}
				connection := &keptAlive{address: address}
				for range times {
					statuses[connection.ask(t, flood.request)]++
				}
				said := gateway.log.String()[len(before):]
				most := 2*100 + int(time.Since(began).Seconds()+1)*2*10 + 5 // lines of two kinds, and what says how many are left out
				if n := strings.Count(said, "\n"); n > most {
					t.Errorf("%s: %d lines, of at most %d; answers %v", flood.name, n, most, statuses)
				}
				for line := range strings.Lines(said) {
					if len(line) > 8<<10 {
						t.Errorf("%s: a line of %d bytes", flood.name, len(line))
						break
					}
				}
				if i := strings.IndexFunc(said, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
					t.Errorf("%s: the log has %q", flood.name, said[i:min(len(said), i+20)])
				}
				p.checkSecrets(t, flood.name+": the log", said)
			}
			// Who asks well is let on, from the same address.
			if got := handshake(t, address, "ws/terminal", ""); got.StatusCode != http.StatusSwitchingProtocols {
				t.Errorf("a good handshake gets %s", got.Status)
			}
		})
	}
}

// An address that a client of a trusted network makes up is neither free of the pace nor in the log.
func TestAddressMadeUp(t *testing.T) {
	t.Parallel()
	p := &platform{}
	gateway, address := p.serveAlone(t, "TERMGW_TRUSTED_PROXIES=127.0.0.0/8")
	for _, claim := range []string{"127.0.0.1", "::1", "[::ffff:127.0.0.1%lo]:80", "0.0.0.0", "127.0.0.1\r\nX-Forwarded-For: ::1", "unknown"} {
		request := "GET /workspaces/ws/terminal HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
			"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-Forwarded-For: " + claim + "\r\n\r\n"
		var clients sync.WaitGroup
		var paced atomic.Bool
		for range 8 {
			clients.Go(func() {
				connection := &keptAlive{address: address}
				for range 2000 {
					if paced.Load() {
						return
					}
					if connection.ask(t, request) == http.StatusTooManyRequests {
						paced.Store(true)
					}
				}
			})
		}
		if clients.Wait(); !paced.Load() {
			t.Errorf("%q is not paced", claim)
		}
	}
	for line := range strings.Lines(gateway.log.String()) {
		if strings.Contains(line, `"client"`) && !strings.Contains(line, `"client":"127.0.0.1"`) && !strings.Contains(line, `"client":"::1"`) {
			t.Errorf("an address that is none: %s", line)
		}
	}
}
