package gateway

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// descriptorsBase are kept for what is no session: listeners, the pools of connections to the database and the engine,
	// probes, and clients that have yet to say what they want.
	descriptorsBase = 64
	// descriptorsEach are a session's. A container's: its client's connection, the engine's, and one that its end borrows.
	// A child's: its client's connection, its terminal and the child itself; once it has printed much, an epoll set too,
	// without which it costs more.
	descriptorsEach = 3
)

// sessionLimit is how many sessions fit in the process's descriptors, or fewer if so configured (0: not). Past it clients
// are refused before their ticket is spent, and there is something left to end the others with.
func sessionLimit(configured int) (int, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 0, fmt.Errorf("reading the limit of descriptors: %w", err)
	}
	fit := (int(min(files.Cur, math.MaxInt32)) - descriptorsBase) / descriptorsEach
	if fit < 1 {
		return 0, fmt.Errorf("a limit of %d descriptors holds no session: raise it (ulimit -n, LimitNOFILE)", files.Cur)
	}
	if configured > 0 {
		fit = min(fit, configured)
	}
	return fit, nil
}

// sparing is a listener that keeps a descriptor in reserve. When there is no other, a client is taken in with it: what it
// wants then fails for want of a descriptor too, and it is told so. It would wait unheard instead.
type sparing struct {
	net.Listener
	spare *os.File // nil: in use
}

func (l *sparing) Accept() (net.Conn, error) {
	if l.spare == nil {
		l.spare, _ = os.Open(os.DevNull) // the next time, then
	}
	conn, err := l.Listener.Accept()
	if l.spare != nil && errors.Is(err, unix.EMFILE) {
		_ = l.spare.Close()
		l.spare = nil
		conn, err = l.Listener.Accept()
	}
	return conn, err
}
