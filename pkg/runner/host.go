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
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/pollfd"
	"github.com/molecule-ai/termgw/pkg/terminal"
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
	Swept  func(Swept)
	Timing Timing
}

// Host opens shells of this machine. Only the demo uses it: whoever has such a
// terminal is the gateway's user.
type Host struct{ cfg HostConfig }

// NewHost returns a runner of cfg.Command.
func NewHost(cfg HostConfig) *Host {
	cfg.Timing = cfg.Timing.withDefaults()
	return &Host{cfg}
}

// Start opens a terminal. Its errors are an *Error.
func (h *Host) Start(_ context.Context, t Target, size terminal.Size) (terminal.Terminal, error) {
	cmd := exec.Command("/bin/sh", "-c", h.cfg.Command)
	cmd.Dir = h.cfg.Dir
	cmd.Env = append(slices.Clone(h.cfg.Env), "TERM=xterm-256color", Marker+"="+t.Session)
	shell, err := startPty(cmd, size, &syscall.SysProcAttr{}, t.Log)
	if err != nil {
		return nil, &Error{"pty", fmt.Errorf("starting a shell: %w", err)}
	}
	return &hostTerminal{ptyTerminal: shell, host: h, session: t.Session}, nil
}

// startPty starts a child under a pty of its own.
func startPty(cmd *exec.Cmd, size terminal.Size, attr *syscall.SysProcAttr, log *slog.Logger) (*ptyTerminal, error) {
	pidfd := -1
	attr.Setsid, attr.Setctty, attr.PidFD = true, true, &pidfd
	ptmx, err := pty.StartWithAttrs(cmd, &pty.Winsize{Cols: size.Cols, Rows: size.Rows}, attr)
	if err != nil {
		return nil, fmt.Errorf("opening a pty: %w", err)
	}
	t := &ptyTerminal{log: log, tail: tailTime, tailBytes: tailSize}
	if t.ptmx, err = pollfd.NewPty(ptmx); err == nil {
		t.start, err = startTime(cmd.Process.Pid) // before it is reaped
	}
	if err != nil {
		_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
		_ = unix.Close(pidfd)
		if t.ptmx != nil {
			_ = t.ptmx.Close()
		}
		return nil, fmt.Errorf("opening a pty: %w", err)
	}
	t.process, err = watch(cmd, pidfd, func() {
		_ = t.ptmx.SetReadDeadline(time.Unix(1, 0)) // wakes a Read, which sets its own then
	})
	if err != nil {
		_ = t.ptmx.Close()
		return nil, err
	}
	return t, nil
}

// hostTerminal is a shell of this machine.
type hostTerminal struct {
	*ptyTerminal
	host    *Host
	session string

	closing  sync.Once
	closeErr error
}

// ptyTerminal is a child under a pty.
type ptyTerminal struct {
	*process
	start string // /proc's start time: a pid is used again, the two together are not
	ptmx  *pollfd.Pty
	log   *slog.Logger

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

func (t *ptyTerminal) Read(p []byte) (int, error) {
	n, err := t.read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		<-t.exited
		n, err = t.readTail(p)
	}
	if errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) {
		err = io.EOF // EIO: Linux's way to say that nobody holds the other side any more
	}
	return n, err
}

// read waits for output and takes all that is there, where one read of a pty
// gives 4,095 bytes at most.
func (t *ptyTerminal) read(p []byte) (int, error) {
	n, err := t.ptmx.Read(p)
	if err == nil && n >= pollfd.Large {
		m, _ := t.readOn(p[n:])
		n += m
	}
	return n, err
}

// readOn reads what is there now. That nothing will come any more is Read's to
// find.
func (t *ptyTerminal) readOn(p []byte) (n int, _ error) {
	for n < len(p) {
		m, err := t.ptmx.TryRead(p[n:])
		n += m
		if err != nil || m < pollfd.Large {
			break
		}
	}
	return n, nil
}

// TryRead returns what is there now; nothing after the child's end, when Read has
// its bounds.
func (t *ptyTerminal) TryRead(p []byte, gather bool) (int, error) {
	select {
	case <-t.exited:
		return 0, nil
	default:
		if gather {
			return pollfd.Gather(p, t.readOn)
		}
		return t.readOn(p)
	}
}

// readTail reads after the shell's end. It leaves a deadline in the past, so
// that the next Read comes here too.
func (t *ptyTerminal) readTail(p []byte) (int, error) {
	if t.tail <= 0 || t.tailBytes <= 0 {
		return 0, io.EOF
	}
	began := time.Now()
	_ = t.ptmx.SetReadDeadline(began.Add(min(quiet, t.tail)))
	n, err := t.read(p[:min(len(p), t.tailBytes)])
	_ = t.ptmx.SetReadDeadline(time.Unix(1, 0))
	t.tail -= time.Since(began)
	t.tailBytes -= n
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.log.Info("the shell left a process that holds the terminal")
		return n, io.EOF
	}
	return n, err
}

func (t *ptyTerminal) Write(p []byte) (int, error) { return t.ptmx.Write(p) }

// TryWrite is Write of what there is room for now.
func (t *ptyTerminal) TryWrite(p []byte) (int, error) { return t.ptmx.TryWrite(p) }

// Resize does not use pty.Setsize, whose File.Fd undoes the non-blocking mode.
func (t *ptyTerminal) Resize(s terminal.Size) error {
	var ioctl error
	err := t.ptmx.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: s.Cols, Row: s.Rows})
	})
	if err = errors.Join(err, ioctl); err != nil {
		return fmt.Errorf("resizing: %w", err)
	}
	return nil
}

func (t *ptyTerminal) Wait() (terminal.Exit, error) {
	<-t.exited
	switch {
	case t.waitErr != nil:
		return terminal.Exit{}, &Error{"pty", fmt.Errorf("waiting for the shell: %w", t.waitErr)}
	case t.status.Signaled():
		sig := t.status.Signal()
		return terminal.Exit{Code: 128 + int(sig), Signal: unix.SignalName(sig)}, nil
	default:
		return terminal.Exit{Code: t.status.ExitStatus()}, nil
	}
}

// Wait ends a shell that closed its terminal and runs on: nobody can reach it any
// more.
func (t *hostTerminal) Wait() (terminal.Exit, error) {
	select {
	case <-t.exited:
	case <-time.After(t.host.cfg.Timing.Grace):
		t.log.Info("the shell closed its terminal and runs on")
		_ = t.Close() // which logs its own failure
	}
	return t.ptyTerminal.Wait()
}

// Close ends the shell and what belongs to its session.
func (t *hostTerminal) Close() error {
	t.closing.Do(func() { t.closeErr = t.end() })
	return t.closeErr
}

func (t *hostTerminal) end() error {
	swept, err := sweepHost(t.pid, t.start, Marker+"="+t.session, t.host.cfg.EndDetached, t.host.cfg.Timing.Grace)
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
