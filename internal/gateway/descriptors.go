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
	// descriptorsBase is the number of descriptors of the rest: listeners, the pools of connections to the database and the
	// engine, probes, and clients without a request yet.
	descriptorsBase = 64
	// descriptorsEach is the number of descriptors of a session. In a container: the client's connection, the engine's, and
	// another of the engine's while the session ends. For a child process: the client's connection, the pty and the child's
	// pidfd; after much output also an epoll set, which the terminal can do without.
	descriptorsEach = 3
)

// sessionLimit returns the number of sessions that fit in the process's descriptors, or the configured number if that is
// smaller and not 0. Further clients are refused before their ticket is spent, and the ends of sessions have the
// descriptors that they need.
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

// sparing is a listener that keeps one descriptor in reserve. When no other is free, the next client is accepted with the
// reserve: the request then fails for want of a descriptor, and the client gets that error instead of no answer.
type sparing struct {
	net.Listener
	spare *os.File // nil: in use
}

func (l *sparing) Accept() (net.Conn, error) {
	if l.spare == nil {
		l.spare, _ = os.Open(os.DevNull) // a failure is repeated at the next Accept
	}
	conn, err := l.Listener.Accept()
	if l.spare != nil && errors.Is(err, unix.EMFILE) {
		_ = l.spare.Close()
		l.spare = nil
		conn, err = l.Listener.Accept()
	}
	return conn, err
}
