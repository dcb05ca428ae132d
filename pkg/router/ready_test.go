package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

func get(target string) *ask {
	return &ask{method: http.MethodGet, target: target, proto: "HTTP/1.1", host: "gateway.test", header: http.Header{"Connection": {"close"}}}
}

func TestHealth(t *testing.T) {
	down := errors.New("pq: password authentication failed for user termgw")
	answers := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	for _, test := range []struct {
		name, target string
		edit         func(*Config)
		arrange      func(*gateway)
		status       int
		body         string
	}{
		{name: "alive", target: "/healthz", status: 200, body: `{"status":"ok"}`},
		{
			name: "alive while it drains", target: "/healthz", status: 200, body: `{"status":"ok"}`,
			arrange: func(g *gateway) { _ = g.Drain(context.Background(), 0) },
		},
		{
			name: "ready", target: "/readyz", status: 200,
			body: `{"draining":false,"sessions":0,"status":"ready","store":"ok"}`,
		},
		{
			name: "with Docker", target: "/readyz", edit: func(c *Config) { c.Docker = answers(nil) }, status: 200,
			body: `{"docker":"ok","draining":false,"sessions":0,"status":"ready","store":"ok"}`,
		},
		{
			name: "without Docker", target: "/readyz", edit: func(c *Config) { c.Docker = answers(down) }, status: 200,
			body: `{"docker":"unavailable","draining":false,"problems":["` + noDocker + `"],"sessions":0,"status":"ready","store":"ok"}`,
		},
		{
			name: "revocations arrive at once", target: "/readyz", edit: func(c *Config) { c.Watching = func() error { return nil } }, status: 200,
			body: `{"draining":false,"revocations":"ok","sessions":0,"status":"ready","store":"ok"}`,
		},
		{
			name: "revocations are late", target: "/readyz", edit: func(c *Config) { c.Watching = func() error { return down } }, status: 200,
			body: `{"draining":false,"problems":["` + notWatched + `"],"revocations":"unavailable","sessions":0,"status":"ready","store":"ok"}`,
		},
		{
			name: "with keys", target: "/readyz", edit: func(c *Config) { c.Keys = func() error { return nil } }, status: 200,
			body: `{"draining":false,"keys":"ok","sessions":0,"status":"ready","store":"ok"}`,
		},
		{
			name: "without keys", target: "/readyz", edit: func(c *Config) { c.Keys = func() error { return down } }, status: 503,
			body: `{"draining":false,"keys":"unavailable","problems":["` + noKeys + `"],"sessions":0,"status":"unavailable","store":"ok"}`,
		},
		{
			name: "orders are read", target: "/readyz", edit: func(c *Config) { c.Orders = func() error { return nil } }, status: 200,
			body: `{"draining":false,"orders":"ok","sessions":0,"status":"ready","store":"ok"}`,
		},
		{
			name: "orders are not read", target: "/readyz", edit: func(c *Config) { c.Orders = func() error { return down } }, status: 503,
			body: `{"draining":false,"orders":"unavailable","problems":["` + noRevoking + `"],"sessions":0,"status":"unavailable","store":"ok"}`,
		},
		{
			name: "without the store", target: "/readyz", arrange: func(g *gateway) { g.store.pingErr = down }, status: 503,
			body: `{"draining":false,"problems":["` + noStore + `"],"sessions":0,"status":"unavailable","store":"unavailable"}`,
		},
		{
			name: "draining", target: "/readyz", arrange: func(g *gateway) { _ = g.Drain(context.Background(), 0) }, status: 503,
			body: `{"draining":true,"problems":["` + isDraining + `"],"sessions":0,"status":"unavailable","store":"ok"}`,
		},
		{
			name: "with a session", target: "/readyz", status: 200,
			arrange: func(g *gateway) { g.ask(g.t, requestFor("ws-1", g.ticket("ws-1"), v1)).message("ready") },
			body:    `{"draining":false,"sessions":1,"status":"ready","store":"ok"}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var edits []func(*Config)
			if test.edit != nil {
				edits = append(edits, test.edit)
			}
			g := open(t, edits...)
			if test.arrange != nil {
				test.arrange(g)
			}
			p := g.ask(t, get(test.target))
			if p.status != test.status || strings.TrimSpace(string(p.body)) != test.body || p.header.Get("Content-Type") != "application/json" {
				t.Errorf("%d %s: %s, want %d %s", p.status, p.header.Get("Content-Type"), p.body, test.status, test.body)
			}
			head := get(test.target)
			head.method = http.MethodHead
			if p := g.ask(t, head); p.status != test.status {
				t.Errorf("HEAD answers %d, GET %d", p.status, test.status)
			}
		})
	}
}

// A probe asks every few seconds: what is wrong is logged when it is new.
func TestReadyIsLoggedOnce(t *testing.T) {
	g := open(t)
	clock := &played{time.Unix(1e9, 0)}
	g.parts.now = clock.now
	reset := func(port int) error {
		return fmt.Errorf("read tcp 127.0.0.1:%d->127.0.0.1:5432: connection reset by peer", port)
	}
	for i, probe := range []struct {
		err           error
		after         time.Duration
		faults, again int // lines so far
	}{
		{reset(40000), 0, 1, 0},
		{reset(40000), 5 * time.Second, 1, 0},
		{reset(40002), 5 * time.Second, 1, 0}, // the same with another port
		{reset(40002), time.Hour, 2, 0},       // other words for a minute
		{reset(40002), time.Hour, 2, 0},
		{nil, 5 * time.Second, 2, 1},
		{nil, 5 * time.Second, 2, 1},
		{reset(40002), 5 * time.Second, 3, 1},
	} {
		clock.pass(probe.after)
		g.store.pingErr = probe.err
		g.ask(t, get("/readyz"))
		logs := g.logs.String()
		if n := strings.Count(logs, `"not ready"`); n != probe.faults {
			t.Errorf("after probe %d not ready is logged %d times, want %d", i, n, probe.faults)
		}
		if n := strings.Count(logs, `"ready again"`); n != probe.again {
			t.Errorf("after probe %d ready again is logged %d times, want %d", i, n, probe.again)
		}
	}
}

// TestProbesShareAnAnswer: however many ask, the store and the engine are asked
// once a second.
func TestProbesShareAnAnswer(t *testing.T) {
	var asked atomic.Int32
	entered, proceed := make(chan struct{}, 100), make(chan struct{})
	g := open(t, func(c *Config) {
		c.Docker = func(ctx context.Context) error {
			asked.Add(1)
			entered <- struct{}{}
			<-proceed
			return ctx.Err()
		}
	})
	clock := &played{time.Unix(1e9, 0)}
	g.parts.now = clock.now
	var probes sync.WaitGroup
	for range 20 {
		probes.Go(func() {
			if p := g.ask(t, get("/readyz")); p.status != http.StatusOK || !strings.Contains(string(p.body), `"docker":"ok"`) {
				t.Errorf("%d %s", p.status, p.body)
			}
		})
	}
	<-entered
	close(proceed)
	probes.Wait()
	g.ask(t, get("/readyz"))
	clock.pass(readyAge - 1)
	g.ask(t, get("/readyz"))
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times within a second", n)
	}
	clock.pass(1)
	g.store.pingErr = errors.New("down")
	if p := g.ask(t, get("/readyz")); p.status != http.StatusServiceUnavailable || asked.Load() != 2 {
		t.Errorf("a second later: status %d, asked %d times", p.status, asked.Load())
	}
	clock.pass(readyAge)
	g.store.pingErr = nil
	if p := g.ask(t, get("/readyz")); p.status != http.StatusOK {
		t.Errorf("status %d", p.status)
	}
	// A terminal that finds the store away is believed.
	fails(store.ErrUnavailable)(g)
	g.store.pingErr = errors.New("down")
	g.ask(t, requestFor("ws-1", g.ticket("ws-1"))).outcome()
	if p := g.ask(t, get("/readyz")); p.status != http.StatusServiceUnavailable || asked.Load() != 4 {
		t.Errorf("without the store: status %d, asked %d times", p.status, asked.Load())
	}
	clock.pass(readyAge)
	g.store.pingErr = nil
	if p := g.ask(t, get("/readyz")); p.status != http.StatusOK {
		t.Errorf("status %d", p.status)
	}
	// Whether it drains is of now.
	if err := g.Drain(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	if p := g.ask(t, get("/readyz")); p.status != http.StatusServiceUnavailable || asked.Load() != 5 {
		t.Errorf("when it drains: status %d, asked %d times", p.status, asked.Load())
	}
}

// TestProbeThatLeaves spoils nobody's answer.
func TestProbeThatLeaves(t *testing.T) {
	g := open(t, func(c *Config) { c.Docker = func(ctx context.Context) error { return ctx.Err() } })
	gone, leave := context.WithCancel(context.Background())
	leave()
	r := httptest.NewRequestWithContext(gone, http.MethodGet, "/readyz", nil)
	g.ServeHTTP(httptest.NewRecorder(), r)
	if p := g.ask(t, get("/readyz")); !strings.Contains(string(p.body), `"docker":"ok"`) {
		t.Errorf("the next is told %s", p.body)
	}
}

// TestNoKeys: who comes while there is no key is told that, which is no word on the ticket, and /readyz does not deny it.
func TestNoKeys(t *testing.T) {
	var missing error
	g := open(t, func(c *Config) { c.Keys = func() error { return missing } })
	g.parts.now = (&played{time.Unix(1e9, 0)}).now
	if p := g.ask(t, get("/readyz")); p.status != http.StatusOK {
		t.Errorf("with keys: %d %s", p.status, p.body)
	}
	missing = ticket.ErrNoKeys
	g.Verifier = ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys()})
	if code, number := g.ask(t, requestFor("ws-1", g.ticket("ws-1"))).outcome(); code != "keys_unavailable" || number != 4503 {
		t.Errorf("told %s, %d", code, number)
	}
	if p := g.ask(t, get("/readyz")); p.status != http.StatusServiceUnavailable {
		t.Errorf("without keys: %d %s", p.status, p.body)
	}
	g.wantMetric(0, "termgw_ready", "part=keys")
	g.wantMetric(1, "termgw_sessions_total", "code=keys_unavailable", "target=none")
	g.wantMetric(0, "termgw_ticket_rejections_total", "code=keys_unavailable")
}

// TestReadyMetric: termgw_ready follows the parts although nobody calls /readyz, and a scrape asks no part.
func TestReadyMetric(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var pings atomic.Int64
		var away atomic.Bool
		unless := func(why string) error {
			if away.Load() {
				return errors.New(why)
			}
			return nil
		}
		reg := prometheus.NewRegistry()
		rt := New(Config{
			Store:   pinged{ping: func() error { pings.Add(1); return unless("down") }},
			Orders:  func() error { return unless("not read") },
			Docker:  func(context.Context) error { return errors.New("no engine") },
			Log:     slog.New(slog.DiscardHandler),
			Metrics: NewMetrics(reg),
		})
		ctx, stop := context.WithCancel(t.Context())
		var checks sync.WaitGroup
		checks.Go(func() { _ = rt.CheckParts(ctx) })
		want := func(when string, want map[string]float64) {
			t.Helper()
			synctest.Wait()
			before := pings.Load()
			if got := readyParts(t, reg); !maps.Equal(got, want) {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
			if pings.Load() != before {
				t.Errorf("%s: the scrape asked the store", when)
			}
		}
		want("at the start", map[string]float64{"store": 1, "orders": 1, "docker": 0})
		away.Store(true)
		time.Sleep(checkEvery)
		want("away", map[string]float64{"store": 0, "orders": 0, "docker": 0})
		away.Store(false)
		time.Sleep(checkEvery)
		want("back", map[string]float64{"store": 1, "orders": 1, "docker": 0})
		stop()
		checks.Wait()
	})
}

// pinged is a Store of which only Ping is called.
type pinged struct {
	Store
	ping func() error
}

func (p pinged) Ping(context.Context) error { return p.ping() }

func readyParts(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "termgw_ready" {
			for _, m := range f.GetMetric() {
				parts[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	return parts
}

// TestCountersBeginAtZero: a scrape before the first request has every code, or an alert would miss each code's first event.
func TestCountersBeginAtZero(t *testing.T) {
	g := open(t)
	for _, want := range []struct {
		name   string
		labels []string
	}{
		{"termgw_sessions_total", []string{"code=store_unavailable", "target=none"}},
		{"termgw_sessions_total", []string{"code=backend_failed", "target=local"}},
		{"termgw_sessions_total", []string{"code=exit", "target=remote"}},
		{"termgw_ticket_rejections_total", []string{"code=ticket_invalid"}},
		{"termgw_ticket_rejections_total", []string{"code=revoked"}},
		{"termgw_resumes_total", []string{"outcome=gone"}},
		{"termgw_session_start_seconds", []string{"target=local"}},
		{"termgw_store_seconds", []string{"op=finish"}},
	} {
		if n, found := g.series(want.name, want.labels...); n != 0 || !found {
			t.Errorf("%s%v is %v, there: %v", want.name, want.labels, n, found)
		}
	}
}
