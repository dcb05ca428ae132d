package runner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"
)

// process is a child that the poller waits for: os/exec's Wait holds one OS
// thread a child.
type process struct {
	pid     int
	exited  chan struct{} // closed after the next two were set
	status  unix.WaitStatus
	waitErr error

	mu     sync.Mutex
	reaped bool // the pid may be another's
}

// watch waits for a started child by its pidfd, which it takes. Just before
// exited is closed, onExit is called.
func watch(cmd *exec.Cmd, pidfd int, onExit func()) (*process, error) {
	p := &process{pid: cmd.Process.Pid, exited: make(chan struct{})}
	exit, err := pollable(os.NewFile(uintptr(pidfd), "pidfd"))
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("watching a child: %w", err)
	}
	_ = cmd.Process.Release() // the pidfd is ours to wait on
	go func() {               // ends with the child, which whoever started it ends
		p.reap(exit)
		onExit()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) reap(pidfd *os.File) {
	defer func() { _ = pidfd.Close() }()
	conn, err := pidfd.SyscallConn()
	if err == nil {
		err = conn.Read(func(uintptr) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			for {
				reaped, err := unix.Wait4(p.pid, &p.status, unix.WNOHANG, nil)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				p.waitErr = err
				p.reaped = err != nil || reaped == p.pid
				return p.reaped
			}
		})
	}
	if err != nil {
		p.waitErr = err
	}
}

// signal sends a signal to the child unless it is gone, and signalGroup to the
// process group that it leads.
func (p *process) signal(sig unix.Signal)      { p.kill(p.pid, sig) }
func (p *process) signalGroup(sig unix.Signal) { p.kill(-p.pid, sig) }

func (p *process) kill(pid int, sig unix.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = unix.Kill(pid, sig)
	}
}
