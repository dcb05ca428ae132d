package bridge

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/pollfd"
)

// wire is the connection under a WebSocket. The session's own frames are
// written to it whole, in one system call, and are told from the library's by
// their coming through send.
type wire struct {
	net.Conn
	fd    *pollfd.FD  // nil: not a socket
	heard atomic.Bool // something has come; cleared by whoever asks

	mu     sync.Mutex // held for one frame
	failed error      // nothing can follow: a frame was cut off, or the close frame was sent
}

// socket is a connection of the kernel's: net.TCPConn, and what embeds it. Its
// descriptor is read and written past it.
type socket interface {
	syscall.Conn
	SetReadBuffer(bytes int) error
}

var errCloseSent = errors.New("the close frame was sent")

func newWire(conn net.Conn) (*wire, error) {
	w := &wire{Conn: conn}
	if socket, ok := conn.(socket); ok {
		var err error
		if w.fd, err = pollfd.New(socket); err != nil {
			return nil, err
		}
		_ = socket.SetReadBuffer(receiveBuffer) // without it the kernel may hold more
	}
	return w, nil
}

func (w *wire) Read(p []byte) (n int, err error) {
	if w.fd == nil {
		n, err = w.Conn.Read(p)
	} else {
		n, err = w.fd.Read(p)
	}
	if n > 0 {
		w.heard.Store(true)
	}
	return n, err
}

// unacknowledged is what was sent and the client's machine has not taken, in
// bytes.
func (w *wire) unacknowledged() (n int) {
	if w.fd != nil {
		n, _ = pollfd.Unsent(w.fd)
	}
	return n
}

// hungUp tells whether the client has closed or reset the connection, also
// while what it sent before that is not read.
func (w *wire) hungUp() bool { return w.fd != nil && w.fd.HungUp() }

// Opcodes, RFC 6455, 5.2; with the bit that says that a frame is a whole
// message.
const (
	opText   = 0x80 | 0x1
	opBinary = 0x80 | 0x2
	opClose  = 0x80 | 0x8
	opPing   = 0x80 | 0x9
)

// headroom is what a frame's buffer has before its payload, for the header of
// a frame from a server (RFC 6455, 5.2: 64 bits of length, no mask).
const headroom = 10

// framed is a payload in a buffer with headroom.
func framed(payload []byte) []byte {
	return append(make([]byte, headroom, headroom+len(payload)), payload...)
}

// send writes one frame, whose payload follows the headroom.
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

// Write takes a frame of the library's: a close frame, or the answer to a ping
// or a close. Each fits its buffer, and so comes whole. After our own close
// frame the answers are dropped: an error would end the library's reading.
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
	if err != nil && n > 0 {
		w.failed = err // what followed would be taken for the frame's rest
	}
	if err == nil && frame[0] == opClose {
		w.failed = errCloseSent // RFC 6455, 5.5.1: nothing may follow it
	}
	return err
}

// writeAll takes turns with other large writes. A turn is held for one system
// call, never while the client is waited for.
func (w *wire) writeAll(p []byte) (done int, err error) {
	switch {
	case w.fd == nil:
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

// receiveBuffer is what the kernel holds of a client's input, in bytes; it takes
// up to twice that of memory (socket(7), SO_RCVBUF). By itself it would hold
// net.ipv4.tcp_rmem of a client that sends faster than a program reads: 6 MiB and more.
const receiveBuffer = 128 << 10

// unsentLimit is what the kernel takes of output before it has sent the rest, in
// bytes, in a session whose acknowledgements are not heard: nothing else bounds the
// backlog then. What is under way, and the client's own receive buffer, are TCP's.
const unsentLimit = 16 << 10

func (w *wire) limitUnsent() {
	if w.fd != nil {
		_ = w.fd.Control(func(fd uintptr) { // without it there is more backlog, no more
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
		})
	}
}
