package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// countResizes stands before an engine and counts the calls for a terminal's size.
func countResizes(t *testing.T, host string) (before string, calls *atomic.Int64) {
	t.Helper()
	socket, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		t.Fatalf("the engine is at %s", host)
	}
	calls = new(atomic.Int64)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}},
		FlushInterval: -1,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/resize") {
			calls.Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return "tcp://" + server.Listener.Addr().String(), calls
}

// However many sizes a client tells, also one that may not type, they cost a few calls of the engine, and what is typed
// behind them sees the last.
func TestManyResizes(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	engine, calls := countResizes(t, env.Docker(t).Host)
	g := p.serve(t, "DOCKER_HOST="+engine)
	const first = 1 // the call that gives a shell its first size
	tell := func(c *tty) {
		for i := range 500 {
			c.control(t, fmt.Sprintf(`{"type":"resize","cols":%d,"rows":40}`, 101+i))
		}
	}
	// A session gives its terminal three sizes at once, and one more every 300 ms. One that gives each makes 500 calls: where
	// the pace would let so many through, there is nothing to see.
	paced := func(began time.Time) int64 { return 3 + int64(time.Since(began)/(300*time.Millisecond)) }
	t.Run("then a command", func(t *testing.T) {
		// An engine that hangs over a size holds up no input: on a busy machine the command may see an earlier one.
		for try := range 10 {
			c := g.open(t, "ws", dialing{})
			c.run(t, "true")
			before, began := calls.Load(), time.Now()
			tell(c)
			got := c.run(t, "stty size")
			n := calls.Load() - before
			if most := paced(began); n > most {
				t.Errorf("%d calls, of at most %d", n, most)
			}
			c.close(t)
			if got == "40 600\r\n" {
				return
			}
			t.Logf("%d calls, and %q", n, got)
			if try == 9 {
				t.Error("never with the last size")
			}
		}
	})
	t.Run("under a flood, then Ctrl-C", func(t *testing.T) {
		c := g.open(t, "ws", dialing{})
		c.run(t, "true")
		c.send(t, "yes\r")
		c.expect(t, "y\r\ny\r\ny\r\n")
		before, began := calls.Load(), time.Now()
		tell(c)
		c.send(t, "\x03")
		c.expect(t, "^C")
		if n, most := calls.Load()-before, paced(began); n > most {
			t.Errorf("%d calls before the interrupt was seen, of at most %d", n, most)
		}
		eventually(t, "the last size arrives", func() bool { return c.run(t, "stty size") == "40 600\r\n" })
		c.close(t)
	})
	t.Run("of one who only looks on", func(t *testing.T) {
		before := calls.Load()
		c := g.dial(t, "ws", p.ticket(t, "ws", func(c *ticket.Claims) { c.Mode = ticket.ReadOnly }), dialing{query: "cols=90&rows=30"})
		c.message(t, "ready")
		for range 100 {
			c.control(t, `{"type":"resize","cols":90,"rows":30}`)
		}
		c.control(t, `{"type":"ping","id":1}`)
		c.message(t, "pong")
		if n := calls.Load() - before; n != first {
			t.Errorf("%d calls for the size that it has", n)
		}
		began := time.Now()
		tell(c)
		c.control(t, `{"type":"ping","id":2}`)
		eventually(t, "the second pong", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			n := 0
			for _, m := range c.messages {
				if m.Type == "pong" {
					n++
				}
			}
			return n == 2
		})
		if n, most := calls.Load()-before-first, paced(began); n > most {
			t.Errorf("%d calls, of at most %d", n, most)
		}
		c.close(t)
	})
}
