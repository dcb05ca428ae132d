package router

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The requests that an address may make before a ticket was checked. A handshake with a bad ticket takes 0.36 ms, with
// the client's part and the TCP connection (measured; 0.13 ms without the upgrade), so 50 a second take less than two
// percent of a processor. A whole company may share an address: when a gateway died, 200 terminals may come back in one
// instant; a gateway that drains sends away fewer than 50 a second (drain.go). A refused client is let in a second later.
const (
	handshakesPerSecond = 50
	handshakesAtOnce    = 200
	// knownAddresses is half the number of addresses that a pacer remembers, at some 150 bytes each.
	knownAddresses = 4096
)

// pacer bounds the requests of each client address.
//
// A pacer forgets the addresses that it has not seen for the longest. An attacker with more addresses than a pacer
// remembers neither makes it larger nor shuts anybody out, but is not paced: a part before the gateway has to do that.
type pacer struct {
	now func() time.Time

	mu            sync.Mutex
	recent, older map[netip.Prefix]*rate.Limiter
}

func newPacer(now func() time.Time) *pacer {
	return &pacer{now: now, recent: map[netip.Prefix]*rate.Limiter{}}
}

// allow counts a request of an address, and reports whether the request is within the pace: that of well-made
// handshakes, or that of all other requests.
//
// Handshakes from a loopback address, or by a unix socket, are free. No packet from another machine carries such an address, so the peer is a
// local process, or a local proxy that is not trusted and hides all its clients. A trusted proxy that names its client
// is not free: the client can have forged the name.
func (rt *Router) allow(r *http.Request, addr netip.Addr, handshake bool) bool {
	switch {
	case !handshake:
		return rt.others.allow(addr)
	case isLocal(peerAddr(r)) && (len(r.Header["X-Forwarded-For"]) == 0 || !rt.Trusts(peerAddr(r))):
		return true
	}
	return rt.handshakes.allow(addr)
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

// client returns the smallest network that a provider gives to one customer: an IPv4 address, or a /64 (RFC 6177).
func client(addr netip.Addr) netip.Prefix {
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	network, _ := addr.Prefix(bits) // all requests without a valid address share the zero Prefix
	return network
}
