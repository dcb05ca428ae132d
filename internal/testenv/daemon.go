package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startTimeout bounds the time until a daemon answers: a second is usual, a busy CI machine takes longer.
	startTimeout = 60 * time.Second
	// stopTimeout bounds the time until a daemon has ended; then its process group is killed.
	stopTimeout = 30 * time.Second
	// pollInterval is the time between two checks of a condition.
	pollInterval = 20 * time.Millisecond
)

// daemon is a child process that serves until it is stopped. It starts no goroutine, so that a leak check finds only
// the test's own goroutines.
type daemon struct {
	argv       []string
	env        []string
	credential *syscall.Credential
	stopSignal syscall.Signal // for an orderly end: sent by stop, and by the kernel when the test process dies
	dir        *dir

	cmd *exec.Cmd // nil while stopped
}

// start starts the child and waits until ready returns nil.
func (d *daemon) start(ready func(context.Context) error) error {
	if d.cmd != nil {
		return fmt.Errorf("starting %s: it runs already", d.name())
	}
	log, err := os.OpenFile(d.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("starting %s: %w", d.name(), err)
	}
	defer log.Close()

	cmd := exec.Command(d.argv[0], d.argv[1:]...)
	cmd.Env = d.env
	cmd.Dir = d.dir.path
	cmd.Stdout, cmd.Stderr = log, log // a file, not a pipe: no copying goroutine
	cmd.ExtraFiles = []*os.File{d.dir.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true, // the Ctrl-C that ends the tests does not reach the daemon
		Pdeathsig:  d.stopSignal,
		Credential: d.credential,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", d.name(), err)
	}
	d.cmd = cmd

	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if d.exited() || ctx.Err() != nil {
			err = fmt.Errorf("starting %s: %w; its log ends:\n%s", d.name(), err, d.logTail())
			return errors.Join(err, d.stop())
		}
		time.Sleep(pollInterval)
	}
}

// stop ends the child and waits for its end. It does nothing if the child is stopped.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	pid := d.cmd.Process.Pid
	if err := d.cmd.Process.Signal(d.stopSignal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", d.name(), err)
	}
	// The group is the child's own (Setpgid). Its number stays the child's until Wait has reaped the child.
	kill := time.AfterFunc(stopTimeout, func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	err := d.cmd.Wait()
	inTime := kill.Stop()
	d.cmd = nil
	if !inTime {
		return fmt.Errorf("stopping %s: killed after %s; its log ends:\n%s", d.name(), stopTimeout, d.logTail())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("stopping %s: %w", d.name(), err)
	}
	return nil
}

// exited reports whether the child has ended, without reaping it.
func (d *daemon) exited() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, d.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}

func (d *daemon) name() string    { return filepath.Base(d.argv[0]) }
func (d *daemon) logPath() string { return filepath.Join(d.dir.path, d.name()+".log") }

func (d *daemon) logTail() string {
	raw, err := os.ReadFile(d.logPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// service is a daemon that a test may stop and start again.
type service struct {
	mu     sync.Mutex
	daemon daemon
	ping   func(context.Context) error
	// outlived tells that processes whose command lines name the daemon's directory go on without the daemon.
	outlived bool
}

// Stop ends the server and what runs in it. Open connections are cut, new ones refused.
func (s *service) Stop(tb testing.TB) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.daemon.stop(); err != nil {
		tb.Fatal(err)
	}
}

// Start starts a stopped server again, with the same address and data.
func (s *service) Start(tb testing.TB) {
	tb.Helper()
	if err := s.start(); err != nil {
		tb.Fatal(err)
	}
}

// Suspend stops the server's processes without ending them, as a machine does that hangs, until Resume or the test's end:
// connections stay open, new ones are taken by the kernel, and nothing answers.
func (s *service) Suspend(tb testing.TB) {
	tb.Helper()
	tb.Cleanup(func() { s.Resume(tb) }) // a suspended process does not end by itself
	s.signalAll(tb, syscall.SIGSTOP)
}

// Resume lets suspended processes go on.
func (s *service) Resume(tb testing.TB) {
	tb.Helper()
	s.signalAll(tb, syscall.SIGCONT)
}

// signalAll sends a signal to the server and its descendants, unless the server is stopped. The server comes first: it must
// not replace its children.
func (s *service) signalAll(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon.cmd == nil {
		return
	}
	for family := []int{s.daemon.cmd.Process.Pid}; len(family) > 0; family = family[1:] {
		if err := syscall.Kill(family[0], sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			tb.Errorf("sending %s to %s: %v", sig, s.daemon.name(), err)
		}
		children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", family[0])) // none of an ended process
		for _, list := range children {
			pids, _ := os.ReadFile(list)
			for _, field := range strings.Fields(string(pids)) {
				if pid, err := strconv.Atoi(field); err == nil {
					family = append(family, pid)
				}
			}
		}
	}
}

func (s *service) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemon.start(s.ping)
}

// whileUp calls do unless the server is stopped. Stop waits meanwhile.
func (s *service) whileUp(do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon.cmd == nil {
		return nil
	}
	return do()
}

// remove stops the server, and deletes its data.
func (s *service) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.daemon.stop()
	if s.outlived {
		err = errors.Join(err, s.daemon.dir.endProcesses())
	}
	return errors.Join(err, s.daemon.dir.remove())
}
