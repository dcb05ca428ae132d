package router

import (
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// played is a clock that moves when it is told to.
type played struct{ time.Time }

func (p *played) now() time.Time { return p.Time }

func (p *played) pass(d time.Duration) { p.Time = p.Add(d) }

// allowed counts how many of n handshakes are.
func allowed(p *pacer, addr string, n int) (count int) {
	for range n {
		if p.allow(netip.MustParseAddr(addr)) {
			count++
		}
	}
	return count
}

func TestPace(t *testing.T) {
	clock := &played{time.Unix(1e9, 0)}
	p := newPacer(clock.now)
	for _, step := range []struct {
		what, addr string
		after      time.Duration
		want       int // of 1000
	}{
		{"at once", "192.0.2.1", 0, handshakesAtOnce},
		{"a second later", "192.0.2.1", time.Second, handshakesPerSecond},
		{"somebody else", "192.0.2.2", 0, handshakesAtOnce},
		{"after a minute", "192.0.2.1", time.Minute, handshakesAtOnce},
		{"IPv6", "2001:db8::1", 0, handshakesAtOnce},
		{"the same /64", "2001:db8::ffff:1", 0, 0},
		{"the next /64", "2001:db8:0:1::1", 0, handshakesAtOnce},
	} {
		clock.pass(step.after)
		if got := allowed(p, step.addr, 1000); got != step.want {
			t.Errorf("%s: %d of 1000 were allowed, want %d", step.what, got, step.want)
		}
	}
	// Without an address: all of them together.
	if !p.allow(netip.Addr{}) {
		t.Error("the first without an address is refused")
	}
}

// An attacker with a /48 has 65,536 networks. They make the table no larger, and
// one who comes often is not forgotten for it.
func TestPaceIsBounded(t *testing.T) {
	clock := &played{time.Unix(1e9, 0)}
	p := newPacer(clock.now)
	allowed(p, "192.0.2.1", 1000)
	attacker := netip.MustParseAddr("2001:db8::1").As16()
	for i := range 1 << 16 {
		binary.BigEndian.PutUint16(attacker[6:], uint16(i))
		if !p.allow(netip.AddrFrom16(attacker)) {
			t.Fatalf("the first of network %d is refused", i)
		}
		if i%1000 == 0 && p.allow(netip.MustParseAddr("192.0.2.1")) {
			t.Fatalf("forgotten after %d others", i)
		}
		if n := len(p.recent) + len(p.older); n > 2*knownAddresses {
			t.Fatalf("%d addresses are remembered", n)
		}
	}
}

func TestRateLimited(t *testing.T) {
	g := open(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	clock := &played{time.Unix(1e9, 0)}
	g.handshakes.now = clock.now
	from := func(addr string) func(*ask) { return with("X-Forwarded-For", addr) }
	allowed(g.handshakes, "192.0.2.1", handshakesAtOnce)
	raw := g.ticket("ws-1")
	for range 3 {
		p := g.ask(t, requestFor("ws-1", raw, from("192.0.2.1")))
		if p.status != http.StatusTooManyRequests || p.header.Get("Retry-After") != "1" {
			t.Fatalf("status %d, %v", p.status, p.header)
		}
		if b := p.problem(); b.Code != "rate_limited" {
			t.Errorf("problem %+v", b)
		}
	}
	g.wantMetric(3, "termgw_sessions_total", "code=rate_limited", "target=none")
	g.wantMetric(0, "termgw_ticket_rejections_total", "code=ticket_invalid")
	if len(g.store.sessions) > 0 {
		t.Error("the store was asked")
	}
	// A page elsewhere uses up nothing of its visitor's.
	clock.pass(time.Second / handshakesPerSecond)
	for range 3 {
		if p := g.ask(t, requestFor("ws-1", raw, from("192.0.2.1"), with("Origin", "https://evil.example"))); p.status != http.StatusForbidden {
			t.Errorf("status %d", p.status)
		}
	}
	g.ask(t, requestFor("ws-1", raw, v1, from("192.0.2.1"))).message("ready")
	g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1, from("192.0.2.2"))).message("ready")
}

// What is refused before the upgrade has a pace of its own, whatever is wrong with it, and also from this machine.
func TestStraysArePaced(t *testing.T) {
	for name, stray := range map[string]struct {
		ask    *ask
		status int
	}{
		"a foreign page":      {requestFor("ws-1", "x", with("Origin", "https://evil.example")), http.StatusForbidden},
		"no WebSocket":        {requestFor("ws-1", "x", with("Upgrade", "h2c")), http.StatusUpgradeRequired},
		"a bad handshake":     {requestFor("ws-1", "x", with("Sec-WebSocket-Key", "short")), http.StatusBadRequest},
		"an id that is none":  {requestFor("ws'1", "x"), http.StatusNotFound},
		"no path of ours":     {requestFor("ws-1", "x", func(a *ask) { a.target = "/wp-login.php" }), http.StatusNotFound},
		"a method of no path": {requestFor("ws-1", "x", func(a *ask) { a.method, a.target = http.MethodPost, "/readyz" }), http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			g, began := open(t), time.Now()
			g.others.now = (&played{time.Unix(1e9, 0)}).now
			for i := range handshakesAtOnce + 3 {
				want := stray.status
				if i >= handshakesAtOnce {
					want = http.StatusTooManyRequests
				}
				if p := g.ask(t, stray.ask); p.status != want {
					t.Fatalf("request %d: status %d, want %d", i, p.status, want)
				}
			}
			g.wantMetric(3, "termgw_sessions_total", "code=rate_limited", "target=none")
			// That pace is the clock's own: on a slow machine there are more.
			if n := strings.Count(g.logs.String(), `"msg":"request refused"`); n > 103+10*int(time.Since(began).Seconds()+1) { // three of the pace
				t.Errorf("%d lines were logged", n)
			}
			g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1)).message("ready")
		})
	}
}

// Only who connects from this machine and is no proxy that names its clients is free.
func TestWhoIsFree(t *testing.T) {
	for _, test := range []struct {
		name, remote, forwarded string
		free                    bool
	}{
		{"this machine", "127.0.0.1:1", "", true},
		{"this machine, IPv6", "[::1]:1", "", true},
		{"this machine, IPv4 on an IPv6 socket", "[::ffff:127.0.0.1]:1", "", true},
		{"a proxy here that nobody trusts", "127.0.0.2:1", "127.0.0.1", true},
		{"a trusted proxy here, whose client says so", "127.0.0.1:1", "127.0.0.1", false},
		{"a trusted proxy here, of another address here", "127.0.0.1:1", "127.0.0.2", false},
		{"a trusted network", "10.0.0.7:1", "127.0.0.1", false},
		{"a trusted network, IPv6", "10.0.0.7:1", "::1", false},
		{"a trusted network, mapped", "10.0.0.7:1", "::ffff:127.0.0.1", false},
		{"a trusted network, with a port", "10.0.0.7:1", "127.0.0.1:80", false},
		{"elsewhere", "192.0.2.1:1", "", false},
		{"elsewhere, and it claims to be here", "192.0.2.1:1", "127.0.0.1", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			rt := &Router{handshakes: newPacer((&played{time.Unix(1e9, 0)}).now), others: newPacer(time.Now)}
			rt.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.0.0.0/8")}
			r := &http.Request{RemoteAddr: test.remote, Header: http.Header{}}
			if test.forwarded != "" {
				r.Header.Set("X-Forwarded-For", test.forwarded)
			}
			free := true
			for range handshakesAtOnce + 1 {
				free = rt.allow(r, rt.clientAddr(r), true)
			}
			if free != test.free {
				t.Errorf("free: %t", free)
			}
		})
	}
}

// A handshake that only the library refuses is counted as one that is refused before.
func TestHandshakeThatCannotBeUpgraded(t *testing.T) {
	g := open(t)
	r := httptest.NewRequest(http.MethodGet, "/workspaces/ws-1/terminal", nil)
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
	} {
		r.Header.Set(name, value)
	}
	g.ServeHTTP(httptest.NewRecorder(), r) // which has no connection to take over
	g.wantMetric(1, "termgw_sessions_total", "code=bad_handshake", "target=none")
	if !strings.Contains(g.logs.String(), `"code":"bad_handshake"`) {
		t.Errorf("it is not logged:\n%s", g.logs.String())
	}
}
