package instance

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair makes a stream with two ends.
func socketPair() (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far"), nil
}

// pump carries bytes between ssh and a tunnel until one of them ends, and then ends
// both.
type pump struct {
	ssh, tunnel net.Conn
	sees        func([]byte) error // is called with what comes from the tunnel, before ssh has it
	wg          sync.WaitGroup

	began time.Time
	waits atomic.Int64  // when the Read of the tunnel began that waits, since began; 0: none does
	heard atomic.Int64  // bytes read from the tunnel
	came  chan struct{} // has a value once bytes came, or the tunnel ended
	first atomic.Bool   // ssh has sent nothing since its login
	spoke int64         // value of heard when ssh sent last; the writer's own

	mu     sync.Mutex
	closed bool
	err    error // the tunnel's first
}

// newPump starts a pump. An error of sees ends it.
func newPump(ssh, tunnel net.Conn, sees func([]byte) error) *pump {
	p := &pump{ssh: ssh, tunnel: tunnel, sees: sees, began: time.Now(), came: make(chan struct{}, 1)}
	p.wg.Go(func() {
		defer p.hangUp()
		_, _ = io.Copy(tunnelSide{tunnel, p}, ssh) // ssh's error is in its exit, the tunnel's is noted by tunnelSide
	})
	p.wg.Go(func() {
		defer p.hangUp()
		_, _ = io.Copy(ssh, tunnelSide{tunnel, p})
	})
	return p
}

// tunnelSide notes the errors of the tunnel.
type tunnelSide struct {
	net.Conn
	pump *pump
}

func (t tunnelSide) Read(b []byte) (int, error) {
	t.pump.waits.Store(max(int64(time.Since(t.pump.began)), 1))
	n, err := t.Conn.Read(b)
	t.pump.waits.Store(0)
	t.pump.heard.Add(int64(n))
	select {
	case t.pump.came <- struct{}{}:
	default:
	}
	t.pump.note(err)
	if refused := t.pump.sees(b[:n]); refused != nil {
		return 0, refused
	}
	return n, err
}

func (t tunnelSide) Write(b []byte) (int, error) {
	n := 0
	if t.pump.isHeldBack() && len(b) > 1 {
		n = t.pump.knock(b[:1])
	}
	rest, err := t.Conn.Write(b[n:])
	t.pump.note(err)
	return n + rest, err
}

// silence returns how long the pump has waited for the tunnel's next byte. While ssh takes no bytes, the pump does not
// wait for the tunnel.
func (p *pump) silence() time.Duration {
	waits := p.waits.Load()
	if waits == 0 {
		return 0
	}
	return max(time.Since(p.began)-time.Duration(waits), 0)
}

// hasLoggedIn is called between ssh's login and its next bytes.
func (p *pump) hasLoggedIn() { p.first.Store(true) }

// knockTime bounds the wait after a first byte.
const knockTime = 20 * time.Millisecond

// lettingIn is larger than sshd's message that a login has succeeded, and smaller
// than this message and the next one, the host keys, together; in bytes.
const lettingIn = 128

// isHeldBack reports, before ssh's first bytes since the login, whether a packet of
// sshd is held back. sshd sends the success of the login and its host keys as two
// small packets; Nagle's algorithm holds the second back, and with it sshd's next
// answer, until the tunnel's far end acknowledges the first, after 40 ms.
func (p *pump) isHeldBack() bool {
	heard := p.heard.Load()
	held := p.first.CompareAndSwap(true, false) && heard-p.spoke < lettingIn
	p.spoke = heard
	return held
}

// knock sends one byte ahead, with which the far end acknowledges at once, and waits
// for the packet that was held back. A connection's first prompt comes 43 ms sooner
// (measured); if no packet was held back, it comes knockTime later.
func (p *pump) knock(b []byte) (n int) {
	select {
	case <-p.came: // earlier bytes
	default:
	}
	n, err := p.tunnel.Write(b)
	if err != nil {
		return n // the next Write fails too
	}
	timeout := time.NewTimer(knockTime)
	defer timeout.Stop()
	select {
	case <-p.came:
	case <-timeout.C:
	}
	return n
}

func (p *pump) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && !errors.Is(err, io.EOF) && !p.closed && p.err == nil {
		p.err = err
	}
}

func (p *pump) fault() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *pump) hangUp() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.ssh.Close()
	_ = p.tunnel.Close()
}

func (p *pump) close() {
	p.hangUp()
	p.wg.Wait()
}
