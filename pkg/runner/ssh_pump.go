package runner

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

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

	mu     sync.Mutex
	closed bool
	err    error // the tunnel's first
}

func newPump(ssh, tunnel net.Conn) *pump {
	p := &pump{ssh: ssh, tunnel: tunnel}
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
	t.pump.note(err)
	return n, err
}

func (t tunnelSide) Write(b []byte) (int, error) {
	n, err := t.Conn.Write(b)
	t.pump.note(err)
	return n, err
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
