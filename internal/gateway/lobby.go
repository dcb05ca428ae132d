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
	// lobbyMemory bounds what the connections of a listener hold that are no terminals (yet), in bytes.
	lobbyMemory = 64 << 20
	// guestMemory is what such a connection holds, and an honest request with it.
	guestMemory = 8 << 10
	// honestRequest is what an honest request has, in bytes, and requestMemory what each byte beyond it may hold:
	// 32 KiB of names with nothing behind them hold 0.6 MiB (measured).
	honestRequest = 4 << 10
	requestMemory = 20
)

// lobby is a listener that bounds the memory of the connections on which a request is awaited, read or answered. When it
// is used up, those are closed that have held the most for the longest: a client whose handshake is under way needs a
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

	since     time.Time // it was accepted, or has had its last answer
	read      int       // bytes since then
	dismissed bool      // it reads nothing more
}

func newLobby(listener net.Listener) *lobby {
	return &lobby{Listener: listener, guests: map[net.Conn]*guest{}}
}

// Accept accepts a connection, which is a guest once the server tells its state.
func (l *lobby) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		conn = &guest{TCPConn: tcp, lobby: l}
	}
	return conn, err
}

// track is the server's ConnState.
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

// Read is the server's: whoever carries a terminal reads the descriptor.
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

// makeRoom dismisses guests until there is room for some more: each one's reader, which may wait, sees an end, and the
// server closes the connection. Close would wait for the reader. The lock is held.
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
