package bridge

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/pollfd"
)

// wire is the connection under a WebSocket. The bridge's frames come by send and are
// written whole, in one system call; the library's come by Write.
type wire struct {
	net.Conn
	fd    *pollfd.FD  // nil: not a socket
	plain bool        // the bytes on fd are the WebSocket's own: without TLS
	heard atomic.Bool // bytes have come since the flag was cleared
	spoke atomic.Bool // bytes have come
	cut   atomic.Bool // the connection has ended or failed

	mu     sync.Mutex // held for one frame
	failed error      // no frame can follow: one was cut off, or the close frame was sent
}

// socket is a connection of the kernel: a net.TCPConn, or a type that embeds one.
// The wire reads and writes the descriptor directly, or through TLS, and asks it what became of the bytes.
type socket interface {
	syscall.Conn
	SetReadBuffer(bytes int) error
}

var errCloseSent = errors.New("the close frame was sent")

func newWire(conn net.Conn) (*wire, error) {
	w := &wire{Conn: conn, plain: true}
	under := conn
	if encrypted, ok := conn.(*tls.Conn); ok {
		under, w.plain = encrypted.NetConn(), false
	}
	if socket, ok := under.(socket); ok {
		var err error
		if w.fd, err = pollfd.New(socket); err != nil {
			return nil, err
		}
		_ = socket.SetReadBuffer(receiveBuffer) // without it the kernel may hold more
	}
	return w, nil
}

func (w *wire) Read(p []byte) (n int, err error) {
	if w.fd == nil || !w.plain {
		n, err = w.Conn.Read(p)
	} else {
		n, err = w.fd.Read(p)
	}
	if n > 0 {
		w.heard.Store(true)
		w.spoke.Store(true)
	}
	if err != nil {
		w.cut.Store(true)
	}
	return n, err
}

// left reports whether the client has closed its side, as far as the kernel knows, and sent
// nothing that was not read.
func (w *wire) left() (left bool) {
	if w.fd == nil {
		return false
	}
	_ = w.fd.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		left = n == 0 && err == nil || errors.Is(err, unix.ECONNRESET)
	})
	return left
}

// unacknowledged returns the bytes that were sent and not taken by the client's
// machine.
func (w *wire) unacknowledged() (n int) {
	if w.fd != nil {
		n, _ = pollfd.Unsent(w.fd)
	}
	return n
}

// hungUp reports whether the client has closed or reset the connection, also while
// bytes that came before are not read.
func (w *wire) hungUp() bool { return w.fd != nil && w.fd.HungUp() }

// Opcodes with the bit of a frame that is a whole message (RFC 6455, 5.2).
const (
	opText   = 0x80 | 0x1
	opBinary = 0x80 | 0x2
	opClose  = 0x80 | 0x8
	opPing   = 0x80 | 0x9
)

// headroom is the space before the payload in a frame's buffer, in bytes: the
// longest header of a server's frame (RFC 6455, 5.2: 64 bits of length, no mask).
const headroom = 10

// framed returns a payload in a buffer with headroom.
func framed(payload []byte) []byte {
	return append(make([]byte, headroom, headroom+len(payload)), payload...)
}

// send writes one frame, of a buffer with headroom.
func (w *wire) send(op byte, buf []byte) error {
	size := len(buf) - headroom
	switch {
	case size < 126:
		buf = buf[headroom-2:]
		buf[1] = byte(size) //nolint:gosec // under 126
	case size < 1<<16:
		buf = buf[headroom-4:]
		buf[1] = 126
		binary.BigEndian.PutUint16(buf[2:], uint16(size))
	default:
		buf = buf[headroom-10:]
		buf[1] = 127
		binary.BigEndian.PutUint64(buf[2:], uint64(size))
	}
	buf[0] = op
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(buf)
}

// Write takes a frame of the library: a close frame, or the answer to a ping or a
// close frame. Each fits the library's buffer, and so comes whole. After the bridge's
// close frame the answers are dropped: an error would end the library's reading.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.write(p); err != nil && !errors.Is(err, errCloseSent) {
		return 0, err
	}
	return len(p), nil
}

func (w *wire) write(frame []byte) error {
	if w.failed != nil {
		return w.failed
	}
	n, err := w.writeAll(frame)
	if err != nil {
		w.cut.Store(true)
	}
	if err != nil && n > 0 {
		w.failed = err // a next frame would be taken for the rest of this one
	}
	if err == nil && frame[0] == opClose {
		w.failed = errCloseSent // RFC 6455, 5.5.1: the last frame
	}
	return err
}

// writeAll makes large writes in turn (pollfd.InTurn), and waits for the client
// between two turns.
func (w *wire) writeAll(p []byte) (done int, err error) {
	switch {
	case w.fd == nil || !w.plain:
		return w.Conn.Write(p)
	case len(p) < pollfd.Large:
		return w.fd.Write(p)
	}
	for {
		var n int
		pollfd.InTurn(func() { n, err = w.fd.TryWrite(p[done:]) })
		if done += n; err != nil || done == len(p) {
			return done, err
		}
		if err := w.fd.WaitWrite(); err != nil {
			return done, err
		}
	}
}

// receiveBuffer is the input of a client that the kernel holds, in bytes, in up to
// twice as much memory (socket(7), SO_RCVBUF). The kernel's default is
// net.ipv4.tcp_rmem, 6 MiB and more, for a client that sends faster than a program reads.
const receiveBuffer = 128 << 10

// unsentLimit is the output that the kernel holds unsent, in bytes, in a session whose
// acknowledgements are not heard: nothing else bounds the backlog then. TCP bounds the
// output under way, and the client's receive buffer.
const unsentLimit = 16 << 10

func (w *wire) limitUnsent() {
	if w.fd != nil {
		_ = w.fd.Control(func(fd uintptr) { // a failure leaves more backlog, no harm else
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
		})
	}
}
