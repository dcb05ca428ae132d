package router

import (
	"encoding/binary"
	"net/http"
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
		{"this machine", "127.0.0.1", 0, 1000},
		{"this machine, IPv6", "::1", 0, 1000},
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
	g.pace.now = clock.now
	from := func(addr string) func(*ask) { return with("X-Forwarded-For", addr) }
	allowed(g.pace, "192.0.2.1", handshakesAtOnce)
	raw := g.ticket("ws-1")
	for range 3 {
		p := g.ask(t, terminal("ws-1", raw, from("192.0.2.1")))
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
	if n := strings.Count(g.logs.String(), `"code":"rate_limited"`); n != 1 {
		t.Errorf("%d lines were logged", n)
	}
	// A page elsewhere uses up nothing of its visitor's.
	clock.pass(time.Second / handshakesPerSecond)
	for range 3 {
		if p := g.ask(t, terminal("ws-1", raw, from("192.0.2.1"), with("Origin", "https://evil.example"))); p.status != http.StatusForbidden {
			t.Errorf("status %d", p.status)
		}
	}
	g.ask(t, terminal("ws-1", raw, v1, from("192.0.2.1"))).message("ready")
	g.ask(t, terminal("ws-1", g.ticket("ws-1"), v1, from("192.0.2.2"))).message("ready")
}
