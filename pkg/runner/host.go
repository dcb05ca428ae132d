package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/bridge"
)

// HostConfig says which shell of this machine to open.
type HostConfig struct {
	// Command is run by `sh -c` as the gateway's own user, in Dir.
	Command string
	Dir     string
	// Env is the shell's whole environment, but for TERM and Marker: never the
	// gateway's own, which may hold a database URL or credentials.
	Env []string
	// EndDetached ends also what was told to stay.
	EndDetached bool
	// Swept is told what each session's end found. May be nil.
	Swept func(Swept)
}

// Host opens shells of this machine. Only the demo uses it: whoever has such a
// terminal is the gateway's user.
type Host struct{ cfg HostConfig }

// NewHost returns a runner of cfg.Command.
func NewHost(cfg HostConfig) *Host { return &Host{cfg} }

// Start opens a terminal. Its errors are an *Error.
func (h *Host) Start(_ context.Context, t Target, size bridge.Size) (bridge.Terminal, error) {
	pidfd := -1
	cmd := exec.Command("/bin/sh", "-c", h.cfg.Command)
	cmd.Dir = h.cfg.Dir
	cmd.Env = append(slices.Clone(h.cfg.Env), "TERM=xterm-256color", Marker+"="+t.Session)
	ptmx, err := pty.StartWithAttrs(cmd, &pty.Winsize{Cols: size.Cols, Rows: size.Rows}, &syscall.SysProcAttr{
		Setsid: true, Setctty: true, PidFD: &pidfd,
	})
	if err != nil {
		return nil, &Error{"pty", fmt.Errorf("starting a shell: %w", err)}
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // the pidfd below is ours to wait on
	term := &hostTerminal{host: h, pid: pid, session: t.Session, log: t.Log, exited: make(chan struct{}), tail: tailTime, tailBytes: tailSize}
	if term.start, err = startTime(pid); err == nil {
		term.ptmx, err = pollable(ptmx)
	}
	var exit *os.File
	if err == nil {
		exit, err = pollable(os.NewFile(uintptr(pidfd), "pidfd"))
	}
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
		_ = ptmx.Close()
		return nil, &Error{"pty", fmt.Errorf("watching a shell: %w", err)}
	}
	go term.watch(exit) // ends with the shell, which Close ends
	return term, nil
}

// pollable hands a descriptor to Go's poller, so that reading it costs no OS
// thread and Close wakes a pending Read. creack/pty leaves the pty in blocking
// mode, and so does every later File.Fd.
func pollable(f *os.File) (*os.File, error) {
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating %s: %w", f.Name(), err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("unblocking %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// hostTerminal is a shell under a pty.
type hostTerminal struct {
	host    *Host
	ptmx    *os.File
	pid     int
	start   string // /proc's start time: a pid is used again, the two together are not
	session string
	log     *slog.Logger
	exited  chan struct{} // closed after the next two were set
	status  unix.WaitStatus
	waitErr error

	tail      time.Duration // Read's own: what is left of tailTime
	tailBytes int           // and of tailSize
}

// After the shell's end another process may hold the terminal, so that its end
// never shows. What the shell wrote is in the kernel then, which holds 20 KB at
// most (measured), and arrives within milliseconds, by a worker; but Read may
// come for it much later. So the output is over when Read waited for quiet in
// vain, or if the other process writes on, after tailTime of waiting in all or
// tailSize bytes.
const (
	quiet    = 100 * time.Millisecond
	tailTime = time.Second
	tailSize = 64 << 10
)

// watch reaps the shell. The pidfd in the poller is what says that it is time:
// a blocking wait would hold one OS thread a session.
func (t *hostTerminal) watch(pidfd *os.File) {
	defer func() { _ = pidfd.Close() }()
	conn, err := pidfd.SyscallConn()
	if err == nil {
		err = conn.Read(func(uintptr) bool {
			for {
				reaped, err := unix.Wait4(t.pid, &t.status, unix.WNOHANG, nil)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				t.waitErr = err
				return err != nil || reaped == t.pid
			}
		})
	}
	if err != nil {
		t.waitErr = err
	}
	_ = t.ptmx.SetReadDeadline(time.Unix(1, 0)) // wakes a Read, which sets its own then
	close(t.exited)
}

func (t *hostTerminal) Read(p []byte) (int, error) {
	n, err := t.ptmx.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		<-t.exited
		n, err = t.readTail(p)
	}
	if errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) {
		err = io.EOF // EIO: Linux's way to say that nobody holds the other side any more
	}
	return n, err
}

// readTail reads after the shell's end. It leaves a deadline in the past, so
// that the next Read comes here too.
func (t *hostTerminal) readTail(p []byte) (int, error) {
	if t.tail <= 0 || t.tailBytes <= 0 {
		return 0, io.EOF
	}
	began := time.Now()
	_ = t.ptmx.SetReadDeadline(began.Add(min(quiet, t.tail)))
	n, err := t.ptmx.Read(p[:min(len(p), t.tailBytes)])
	_ = t.ptmx.SetReadDeadline(time.Unix(1, 0))
	t.tail -= time.Since(began)
	t.tailBytes -= n
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.log.Info("the shell left a process that holds the terminal")
		return n, io.EOF
	}
	return n, err
}

func (t *hostTerminal) Write(p []byte) (int, error) { return t.ptmx.Write(p) }

// Resize does not use pty.Setsize, whose File.Fd undoes the non-blocking mode.
func (t *hostTerminal) Resize(s bridge.Size) error {
	conn, err := t.ptmx.SyscallConn()
	if err != nil {
		return fmt.Errorf("resizing: %w", err)
	}
	var ioctl error
	err = conn.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: s.Cols, Row: s.Rows})
	})
	if err = errors.Join(err, ioctl); err != nil {
		return fmt.Errorf("resizing: %w", err)
	}
	return nil
}

func (t *hostTerminal) Wait() (bridge.Exit, error) {
	<-t.exited
	switch {
	case t.waitErr != nil:
		return bridge.Exit{}, &Error{"pty", fmt.Errorf("waiting for the shell: %w", t.waitErr)}
	case t.status.Signaled():
		sig := t.status.Signal()
		return bridge.Exit{Code: 128 + int(sig), Signal: unix.SignalName(sig)}, nil
	default:
		return bridge.Exit{Code: t.status.ExitStatus()}, nil
	}
}

// Close ends the shell and what belongs to its session.
func (t *hostTerminal) Close() error {
	swept, err := sweepHost(t.pid, t.start, Marker+"="+t.session, t.host.cfg.EndDetached)
	<-t.exited
	_ = t.ptmx.Close()
	if t.host.cfg.Swept != nil {
		t.host.cfg.Swept(swept)
	}
	log := t.log.Info
	if err != nil || swept.Left > 0 {
		log = t.log.Error
	}
	log("shell ended", "killed", swept.Killed, "kept", swept.Kept, "left", swept.Left, failure(err))
	return err
}
