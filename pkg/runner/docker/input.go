package docker

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"reflect"
	"slices"
	"syscall"
	"time"

	"github.com/molecule-ai/termgw/internal/pollfd"
)

// pieceSize is less than half of what the engine reads at once (32 KiB).
const pieceSize = 15 << 10

// Write writes to the terminal past the engine's search for the detach keys,
// which cannot be turned off and repeats bytes: when one of its reads ends in a
// beginning of the keys, and the next one has more of them and then something
// else, what that one had of them comes twice. When the next one is full
// besides, its last bytes stay behind until something else is typed (moby/term,
// proxy.go, from Engine 20.10 to this day). So none of its reads may end there:
// what has a first key in it goes in pieces, none of which ends in a beginning
// of the keys, each when the engine has read the one before. A beginning waits
// for what comes next, as it would in the engine.
func (t *execTerminal) Write(p []byte) (int, error) {
	if t.held == 0 && bytes.IndexByte(p, t.keys[0]) < 0 {
		return t.conn.Write(p)
	}
	rest := slices.Concat(t.keys[:t.held], p)
	for len(rest) > 0 {
		piece := rest[:min(len(rest), pieceSize)]
		t.held = matched(t.keys, piece)
		if t.held == len(rest) {
			break
		}
		n, err := 0, t.taken()
		if err == nil {
			n, err = t.conn.Write(piece[:len(piece)-t.held])
		}
		rest = rest[n:]
		if err != nil {
			return max(0, len(p)-len(rest)), err
		}
	}
	return len(p), nil
}

// TryWrite writes what there is room for now, unless it may be the beginning of
// the detach keys.
func (t *execTerminal) TryWrite(p []byte) (int, error) {
	if t.fd == nil || t.held > 0 || bytes.IndexByte(p, t.keys[0]) >= 0 {
		return 0, nil
	}
	return t.fd.TryWrite(p)
}

// matched counts the keys that the engine has matched after p. As it does, it
// takes the key that breaks a match for no beginning of another.
func matched(keys, p []byte) int {
	n := 0
	for _, b := range p {
		if n < len(keys) && b == keys[n] {
			n++
		} else {
			n = 0
		}
	}
	return n % len(keys)
}

// taken waits until the engine has read what was written, or the stream is
// closed. Over TCP it is what the engine's machine has received: more nobody can
// tell there.
func (t *execTerminal) taken() error {
	socket, _ := below(t.conn)
	if socket == nil {
		return nil // nothing can be asked
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // closed, which the write tells
	}
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		switch n, err := pollfd.Unsent(raw); {
		case err != nil:
			return fmt.Errorf("waiting for the engine to read: %w", err)
		case n == 0:
			return nil
		}
		time.Sleep(pause)
	}
}

// goDirect has the terminal read and write the connection's descriptor, past the
// buffers of the engine's client. What those hold goes before.
func (t *execTerminal) goDirect() error {
	defer func() { _ = t.conn.SetReadDeadline(time.Time{}) }()
	socket, direct := below(t.conn)
	if !direct {
		return nil
	}
	_ = t.conn.SetReadDeadline(time.Unix(1, 0)) // so the buffers alone are read
	buf := make([]byte, 1024)
	for {
		n, err := t.conn.Read(buf)
		t.early = append(t.early, buf[:n]...)
		if err != nil {
			break
		}
	}
	fd, err := pollfd.New(socket)
	if err != nil {
		return failed("docker", fmt.Errorf("reaching the terminal: %w", err))
	}
	t.fd = fd
	return nil
}

// below is the socket below a connection, and direct reports whether the
// connection's bytes are the socket's own: nothing lies between but the wrapper
// that the engine's client puts around a connection when a shell's first words
// came with its answer. The wrapper shows what it embeds to nobody but reflection.
// Socket is nil where there is none.
func below(conn net.Conn) (socket syscall.Conn, direct bool) {
	direct = true
	for {
		switch c := conn.(type) {
		case syscall.Conn:
			return c, direct
		case *tls.Conn:
			conn, direct = c.NetConn(), false
		default:
			v := reflect.Indirect(reflect.ValueOf(conn))
			if v.Kind() != reflect.Struct || !v.FieldByName("Conn").IsValid() {
				return nil, false
			}
			conn, _ = v.FieldByName("Conn").Interface().(net.Conn)
		}
	}
}
