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
	return os.NewFile(uintptr(fds[0]), "tunnel"), os.NewFile(uintptr(fds[1]), "ssh"), nil
}

// pump carries bytes between ssh and a tunnel until either ends, and then ends
// both.
type pump struct {
	ssh, tunnel net.Conn
	wg          sync.WaitGroup

	heard atomic.Int64  // bytes out of the tunnel
	came  chan struct{} // has one when some came, or the tunnel ended
	first atomic.Bool   // the next that ssh says is the first since its login
	spoke int64         // heard when ssh spoke last; the writer's own

	mu     sync.Mutex
	closed bool
	err    error // the tunnel's first
}

func newPump(ssh, tunnel net.Conn) *pump {
	p := &pump{ssh: ssh, tunnel: tunnel, came: make(chan struct{}, 1)}
	p.wg.Go(func() {
		defer p.hangUp()
		_, _ = io.Copy(tunnelSide{tunnel, p}, ssh) // ssh's end is told by its exit, the tunnel's by tunnelSide
	})
	p.wg.Go(func() {
		defer p.hangUp()
		_, _ = io.Copy(ssh, tunnelSide{tunnel, p})
	})
	return p
}

// tunnelSide notes what goes wrong with the tunnel.
type tunnelSide struct {
	net.Conn
	pump *pump
}

func (t tunnelSide) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.pump.heard.Add(int64(n))
	select {
	case t.pump.came <- struct{}{}:
	default:
	}
	t.pump.note(err)
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

// hasLoggedIn says that the next words of ssh are its first since the login.
func (p *pump) hasLoggedIn() { p.first.Store(true) }

// knockTime bounds the wait for what a first byte sets free.
const knockTime = 20 * time.Millisecond

// lettingIn is more than the message by which sshd lets somebody in, and less than
// that and the next one, its host keys.
const lettingIn = 128

// isHeldBack tells, before ssh's first words since the login, whether sshd has
// more to say and waits. It lets somebody in and tells its host keys in two small
// packets; Nagle's algorithm keeps the second until the first is acknowledged,
// for which the tunnel's far end takes its 40 ms, and with it sshd's next answer.
func (p *pump) isHeldBack() bool {
	heard := p.heard.Load()
	held := p.first.CompareAndSwap(true, false) && heard-p.spoke < lettingIn
	p.spoke = heard
	return held
}

// knock sends a byte ahead, with which the far end acknowledges at once, and waits
// until something comes. When nothing does, that costs a connection knockTime,
// once. A terminal's first prompt comes 40 ms sooner.
func (p *pump) knock(b []byte) (n int) {
	select {
	case <-p.came: // of before
	default:
	}
	n, err := p.tunnel.Write(b)
	if err != nil {
		return n // the next Write has it too
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
