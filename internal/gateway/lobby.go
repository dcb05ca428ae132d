package gateway

import (
	"cmp"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// lobbyMemory bounds the memory of a listener's connections that are not terminals (yet), in bytes.
	lobbyMemory = 64 << 20
	// guestMemory is the memory of a connection with an honest request, in bytes.
	guestMemory = 8 << 10
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

	mu     sync.Mutex
	guests map[net.Conn]*guest
	used   int
}

// guest is a connection in the lobby.
type guest struct {
	*net.TCPConn
	lobby *lobby

	since     time.Time // the time of the accept, or of the last answer
	read      int       // bytes read since then
	dismissed bool      // Read returns an error from now on
}

func newLobby(listener net.Listener) *lobby {
	return &lobby{Listener: listener, guests: map[net.Conn]*guest{}}
}

// Accept accepts a connection. The connection's memory counts once the server calls track.
func (l *lobby) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		conn = &guest{TCPConn: tcp, lobby: l}
	}
	return conn, err
}

// track is the ConnState function of the server.
func (l *lobby) track(conn net.Conn, state http.ConnState) {
	g, ok := conn.(*guest)
	if !ok || state == http.StateActive {
		return
	}
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

// Read is called only by the server: the bytes of a terminal are read from the descriptor.
func (g *guest) Read(p []byte) (int, error) {
	n, err := g.TCPConn.Read(p)
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

func (g *guest) memory() int { return guestMemory + requestMemory*max(0, g.read-honestRequest) }

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
