package runner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process is a child. It costs no OS thread (os/exec's Wait holds one a child) and no
// goroutine.
type Process struct {
	PID     int
	Exited  chan struct{} // closed once the next two fields are set
	Status  unix.WaitStatus
	WaitErr error

	onExit func()

	mu     sync.Mutex
	reaped bool // another process may have the pid
}

// Watch waits for a started child by its pidfd, which it owns. onExit is called just
// before Exited is closed, and must not wait.
func Watch(cmd *exec.Cmd, pidfd int, onExit func()) (*Process, error) {
	p := &Process{PID: cmd.Process.Pid, onExit: onExit, Exited: make(chan struct{})}
	if err := childWaiter.add(p, pidfd); err != nil {
		_ = unix.Close(pidfd)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("watching a child: %w", err)
	}
	_ = cmd.Process.Release() // waiter waits for the child
	return p, nil
}

// childWaiter waits for all children of the process.
var childWaiter waiter

// waiter reaps children. While there are any, one goroutine waits in Go's poller for
// an epoll instance with all their pidfds.
type waiter struct {
	mu     sync.Mutex
	epoll  *os.File // nil: there are no children
	raw    syscall.RawConn
	living map[int32]*Process // by pidfd
}

func (w *waiter) add(p *Process, pidfd int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.epoll == nil {
		if err := w.open(); err != nil {
			return err
		}
		go w.run()
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(pidfd)} //nolint:gosec // a descriptor
	if err := w.control(unix.EPOLL_CTL_ADD, pidfd, &event); err != nil {
		if len(w.living) == 0 {
			_ = w.epoll.Close() // ends run, which has nobody to wait for
		}
		return err
	}
	w.living[event.Fd] = p
	return nil
}

func (w *waiter) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("opening an epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // by which os.NewFile gives it to the poller
		_ = unix.Close(fd)
		return fmt.Errorf("opening an epoll instance: %w", err)
	}
	epoll := os.NewFile(uintptr(fd), "epoll")
	raw, err := epoll.SyscallConn()
	if err != nil {
		_ = epoll.Close()
		return err
	}
	w.epoll, w.raw, w.living = epoll, raw, map[int32]*Process{}
	return nil
}

func (w *waiter) control(op, pidfd int, event *unix.EpollEvent) error {
	var failed error
	err := w.raw.Control(func(fd uintptr) { failed = unix.EpollCtl(int(fd), op, pidfd, event) })
	return errors.Join(err, failed)
}

// run ends when there are no children any more; the next one starts it again.
func (w *waiter) run() {
	var events [32]unix.EpollEvent
	for {
		var n int
		err := w.raw.Read(func(fd uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(fd), events[:], 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err != nil {
			n = 0 // closed by add
		}
		for _, event := range events[:max(n, 0)] {
			w.reap(event.Fd)
		}
		if w.closed() {
			return
		}
	}
}

func (w *waiter) reap(pidfd int32) {
	w.mu.Lock()
	p := w.living[pidfd]
	delete(w.living, pidfd)
	_ = w.control(unix.EPOLL_CTL_DEL, int(pidfd), nil)
	_ = unix.Close(int(pidfd))
	w.mu.Unlock()

	p.mu.Lock()
	for {
		_, p.WaitErr = unix.Wait4(p.PID, &p.Status, 0, nil) // it is dead, so this does not wait
		if !errors.Is(p.WaitErr, unix.EINTR) {
			break
		}
	}
	p.reaped = true
	p.mu.Unlock()
	p.onExit()
	close(p.Exited)
}

func (w *waiter) closed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.living) > 0 {
		return false
	}
	_ = w.epoll.Close()
	w.epoll = nil
	return true
}

// Signal sends a signal to the child unless it is gone.
func (p *Process) Signal(sig unix.Signal) { p.kill(p.PID, sig) }

// SignalGroup sends a signal to the process group that the child leads, unless
// the child is gone.
func (p *Process) SignalGroup(sig unix.Signal) { p.kill(-p.PID, sig) }

func (p *Process) kill(pid int, sig unix.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = unix.Kill(pid, sig)
	}
}
