package gateway

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/molecule-ai/termgw/pkg/router"
)

// pipes is a listener without a network, whose clients' time is a test's.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	conn, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	p <- server
	return client, nil
}

// inTime serves a handler as the gateway does, in time that passes at once.
func inTime(t *testing.T, handler http.Handler, test func(*testing.T, pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		listener := make(pipes)
		server := newServer(handler, slog.New(slog.DiscardHandler))
		var served sync.WaitGroup
		served.Go(func() { _ = server.Serve(listener) }) // until Close
		test(t, listener)
		_ = server.Close()
		served.Wait()
	})
}

// TestStalledClients: nobody holds a descriptor by sending half of a request, or by not taking the answers.
func TestStalledClients(t *testing.T) {
	t.Parallel()
	rt := router.New(router.Config{Log: slog.New(slog.DiscardHandler), Metrics: router.NewMetrics(prometheus.NewRegistry())})
	for _, test := range []struct {
		name, sends string
		takes       bool
		within      time.Duration
	}{
		{"nothing", "", true, headerTimeout},
		{"half a header", "GET /healthz HTTP/1.1\r\nHost: x\r\n", true, headerTimeout},
		{"no body, for /healthz", "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", true, headerTimeout},
		{"no body, for a terminal", "GET /workspaces/ws/terminal HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", true, headerTimeout},
		{"no chunk", "POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", true, headerTimeout},
		{"nothing after an answer", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", true, time.Minute},
		{"and takes nothing", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", false, answerTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			inTime(t, rt, func(t *testing.T, listener pipes) {
				conn, _ := listener.dial(t.Context(), "", "")
				defer conn.Close()
				began := time.Now()
				if _, err := io.WriteString(conn, test.sends); err != nil {
					t.Fatal(err)
				}
				if !test.takes {
					time.Sleep(2 * answerTimeout)
				}
				_ = conn.SetDeadline(began.Add(time.Hour))
				n, err := io.Copy(io.Discard, conn)
				if err != nil || n > 0 && !test.takes {
					t.Errorf("after %s: %d bytes, %v", time.Since(began), n, err)
				}
				// net/http lingers for half a second when it has answered what it has not read.
				if d := time.Since(began); test.takes && d > test.within+time.Second {
					t.Errorf("let go after %s", d)
				}
			})
		})
	}
}

// TestDeadlinesEndWithTheHandshake: a terminal that is quiet for hours goes on.
func TestDeadlinesEndWithTheHandshake(t *testing.T) {
	t.Parallel()
	echo := func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = ws.CloseNow() }()
		typ, p, err := ws.Read(context.Background())
		if err == nil {
			err = ws.Write(context.Background(), typ, p)
		}
		if err != nil {
			t.Errorf("the server's end: %v", err)
		}
	}
	inTime(t, http.HandlerFunc(echo), func(t *testing.T, listener pipes) {
		transport := &http.Transport{DialContext: listener.dial}
		ws, _, err := websocket.Dial(t.Context(), "ws://gateway.test", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ws.CloseNow() }()
		time.Sleep(8 * time.Hour)
		if err := ws.Write(t.Context(), websocket.MessageText, []byte("still here")); err != nil {
			t.Fatal(err)
		}
		if _, p, err := ws.Read(t.Context()); err != nil || string(p) != "still here" {
			t.Errorf("answered %q, %v", p, err)
		}
	})
}
