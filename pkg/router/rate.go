package router

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What an address may do before anybody knows who it is. A handshake with a ticket that is refused takes 0.36 ms, with the
// client's part and the TCP connection (measured; 0.13 if it is not upgraded), so this is less than two percent of a
// processor. Whole companies share an address, and 200 of their terminals may come back in the same instant when a gateway
// died; one that drains sends them away slower than 50 a second (drain.go). Who is refused is let in a second later.
const (
	handshakesPerSecond = 50
	handshakesAtOnce    = 200
	// knownAddresses bounds those that are remembered, twice: some 150 bytes each.
	knownAddresses = 4096
)

// pacer bounds the requests of each client address.
//
// It forgets what it has not seen for the longest, so that one who has more addresses than it remembers makes it larger
// by nothing and shuts nobody out. He has to be bounded by something before it.
type pacer struct {
	now func() time.Time

	mu            sync.Mutex
	recent, older map[netip.Prefix]*rate.Limiter
}

func newPacer(now func() time.Time) *pacer {
	return &pacer{now: now, recent: map[netip.Prefix]*rate.Limiter{}}
}

// allow counts a request of an address, and reports whether there may be one more: a handshake that is well made, or
// anything else.
//
// Handshakes of this machine's own address are free. No packet from elsewhere carries that address, so it is a process
// here, or a proxy here that is not trusted and hides everybody behind itself. One that is trusted and names its client
// is not meant: the name can be anybody's claim.
func (rt *Router) allow(r *http.Request, addr netip.Addr, handshake bool) bool {
	switch {
	case !handshake:
		return rt.strays.allow(addr)
	case peerAddr(r).IsLoopback() && (len(r.Header["X-Forwarded-For"]) == 0 || !rt.trusts(peerAddr(r))):
		return true
	}
	return rt.pace.allow(addr)
}

func (p *pacer) allow(addr netip.Addr) bool {
	network := client(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	limiter := p.recent[network]
	if limiter == nil {
		if limiter = p.older[network]; limiter == nil {
			limiter = rate.NewLimiter(handshakesPerSecond, handshakesAtOnce)
		}
		if len(p.recent) >= knownAddresses {
			p.recent, p.older = map[netip.Prefix]*rate.Limiter{}, p.recent
		}
		p.recent[network] = limiter
	}
	return limiter.AllowN(p.now(), 1)
}

// client is the least that one customer of a provider has: an IPv4 address, or a /64 (RFC 6177).
func client(addr netip.Addr) netip.Prefix {
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	network, _ := addr.Prefix(bits) // fails for no address, which is then one of its own
	return network
}
