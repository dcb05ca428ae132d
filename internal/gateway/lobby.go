package gateway

import (
	"cmp"
	"crypto/tls"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/molecule-ai/termgw/internal/logline"
)

const (
	// lobbyMemory bounds the memory of a listener's connections that are not terminals (yet), in bytes.
	lobbyMemory = 64 << 20
	// guestMemory is the memory of a connection with an honest request, in bytes, and tlsMemory what TLS adds.
	guestMemory = 8 << 10
	tlsMemory   = 32 << 10
	// honestRequest is the size of an honest request, and requestMemory the memory that each further byte may take, both in
	// bytes: 32 KiB of header names without values take 0.6 MiB (measured).
	honestRequest = 4 << 10
	requestMemory = 20
)

// lobby is a listener that bounds the memory of the connections on which a request is awaited, read or answered. When the
// memory is used up, the connections with the largest product of memory and time are closed: an honest client needs one
// round trip, and its request is small.
type lobby struct {
	net.Listener
	each    int                   // bytes of a guest with an honest request
	proxies func(netip.Addr) bool // whose connections begin with a PROXY header; nil: nobody's do
	refused func(proxy net.Addr, err error)

	mu     sync.Mutex
	guests map[net.Conn]*guest
	used   int
}

// stream is a net.TCPConn or a net.UnixConn.
type stream interface {
	net.Conn
	syscall.Conn
	SetReadBuffer(bytes int) error
	CloseRead() error
	CloseWrite() error
}

// guest is a connection in the lobby.
type guest struct {
	stream
	lobby *lobby

	proxied    bool // the connection begins with a PROXY header
	introduced sync.Once
	client     net.Addr // as the header says
	unknown    error    // of the header

	left atomic.Bool // the connection is a terminal's now

	since     time.Time // the time of the accept, or of the last answer
	read      int       // bytes read since then
	dismissed bool      // Read returns an error from now on
}

func newLobby(s server, log *slog.Logger) *lobby {
	lines := logline.NewBound(log)
	l := &lobby{Listener: s.listener, each: guestMemory, proxies: s.proxies, guests: map[net.Conn]*guest{}}
	l.refused = func(proxy net.Addr, err error) {
		lines.Do("proxy_header", func() {
			log.Warn("a trusted proxy's connection was closed: it has to begin with a PROXY protocol header of version 2 (TERMGW_PROXY_PROTOCOL)",
				"proxy", proxy.String(), "err", err)
		})
	}
	if s.tls != nil {
		l.each += tlsMemory
	}
	return l
}

// Accept accepts a connection. The connection's memory counts once the server calls track.
func (l *lobby) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if accepted, ok := conn.(stream); ok {
		conn = &guest{stream: accepted, lobby: l, proxied: l.proxies != nil && l.proxies(addrOf(accepted.RemoteAddr()))}
	}
	return conn, err
}

// track is the ConnState function of the server.
func (l *lobby) track(conn net.Conn, state http.ConnState) {
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	g, ok := conn.(*guest)
	if !ok || state == http.StateActive {
		return
	}
	g.left.Store(state == http.StateHijacked)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(g)
	if state == http.StateNew || state == http.StateIdle {
		g.since, g.read = time.Now(), 0
		l.guests[g] = g
		l.used += g.memory()
		l.makeRoom()
	}
}

// RemoteAddr returns the client's address. The server asks for it first of all, in the connection's own goroutine.
func (g *guest) RemoteAddr() net.Addr {
	g.introduced.Do(g.introduce)
	if g.client != nil {
		return g.client
	}
	return g.stream.RemoteAddr()
}

// Read is called by the server, and of TLS. The bytes of a terminal without TLS are read from the descriptor.
func (g *guest) Read(p []byte) (int, error) {
	if g.left.Load() {
		return g.stream.Read(p)
	}
	if g.introduced.Do(g.introduce); g.unknown != nil {
		return 0, g.unknown
	}
	n, err := g.stream.Read(p)
	g.lobby.mu.Lock()
	defer g.lobby.mu.Unlock()
	if g.lobby.guests[g] != nil {
		g.lobby.used -= g.memory()
		g.read += n
		g.lobby.used += g.memory()
		g.lobby.makeRoom()
	}
	if g.dismissed {
		return 0, net.ErrClosed
	}
	return n, err
}

func (g *guest) memory() int { return g.lobby.each + requestMemory*max(0, g.read-honestRequest) }

func (l *lobby) remove(g *guest) {
	if l.guests[g] != nil {
		delete(l.guests, g)
		l.used -= g.memory()
	}
}

// makeRoom dismisses guests until an eighth of the memory is free: a dismissed guest's Read returns, and the server closes
// the connection. Close would wait for Read. The caller holds the lock.
func (l *lobby) makeRoom() {
	if l.used <= lobbyMemory {
		return
	}
	now := time.Now()
	held := func(g *guest) float64 { return float64(g.memory()) * now.Sub(g.since).Seconds() }
	all := slices.SortedFunc(maps.Values(l.guests), func(a, b *guest) int { return cmp.Compare(held(b), held(a)) })
	for _, g := range all {
		if l.used <= lobbyMemory*7/8 {
			break
		}
		g.dismissed = true
		_ = g.CloseRead()
		l.remove(g)
	}
}
