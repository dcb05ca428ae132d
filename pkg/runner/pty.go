package runner

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/pollfd"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Pty is a child under a pty of its own: a terminal.Terminal without Close. A kind's
// Close ends what else belongs to the child, and calls HangUp.
type Pty struct {
	*Process
	Master *pollfd.Pty
	Log    *slog.Logger

	tail      time.Duration // Read's own: what is left of tailTime
	tailBytes int           // and of tailSize
}

// StartPty starts cmd under a pty, as the leader of a session.
func StartPty(cmd *exec.Cmd, size terminal.Size, log *slog.Logger) (*Pty, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	pidfd := -1
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty, cmd.SysProcAttr.PidFD = true, true, &pidfd
	master, err := openPty(size, func(tty *os.File) error {
		cmd.Stdin, cmd.Stdout = tty, tty
		if cmd.Stderr == nil {
			cmd.Stderr = tty
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("opening a pty: %w", err)
	}
	t := &Pty{Log: log, tail: tailTime, tailBytes: tailSize}
	if t.Master, err = pollfd.NewPty(master); err != nil {
		_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
		_ = unix.Close(pidfd)
		return nil, fmt.Errorf("opening a pty: %w", err)
	}
	t.Process, err = Watch(cmd, pidfd, func() {
		_ = t.Master.SetReadDeadline(time.Unix(1, 0)) // wakes a Read, which sets its own then
	})
	if err != nil {
		t.HangUp()
		return nil, err
	}
	return t, nil
}

// openPty opens a pty that erases whole characters of UTF-8 (IUTF8, termios(3);
// ssh hands that on, RFC 8160), and starts a child on its other side.
func openPty(size terminal.Size, start func(tty *os.File) error) (master *os.File, err error) {
	master, tty, err := pty.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = tty.Close() }()
	mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err == nil {
		mode.Iflag |= unix.IUTF8
		err = errors.Join(
			unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, mode),
			unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: size.Cols, Row: size.Rows}),
			start(tty),
		)
	}
	if err != nil {
		_ = master.Close()
		return nil, err
	}
	return master, nil
}

// HangUp closes the pty's master: the kernel hangs the terminal up.
func (t *Pty) HangUp() { _ = t.Master.Close() }

// After the shell's end another process may hold the terminal, so that its end
// never shows. What the shell wrote is in the kernel then, which holds 20 KB at
// most (measured), and arrives within milliseconds, by a worker; but Read may
// come for it much later. So the output is over when Read waited for Quiet in
// vain, or if the other process writes on, after tailTime of waiting in all or
// tailSize bytes.
const (
	// Quiet is how long a pipe or a pty is silent that has nothing more to say.
	Quiet    = 100 * time.Millisecond
	tailTime = time.Second
	tailSize = 64 << 10
)

// Read waits for output; its error is io.EOF at the end, with the bounds above.
func (t *Pty) Read(p []byte) (int, error) {
	n, err := t.read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		<-t.Exited
		n, err = t.readTail(p)
	}
	if errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) {
		err = io.EOF // EIO: Linux's way to say that nobody holds the other side any more
	}
	return n, err
}

// read waits for output and takes all that is there, where one read of a pty
// gives 4,095 bytes at most.
func (t *Pty) read(p []byte) (int, error) {
	n, err := t.Master.Read(p)
	if err == nil && n >= pollfd.Large {
		m, _ := t.readOn(p[n:])
		n += m
	}
	return n, err
}

// readOn reads what is there now. That nothing will come any more is Read's to
// find.
func (t *Pty) readOn(p []byte) (n int, _ error) {
	for n < len(p) {
		m, err := t.Master.TryRead(p[n:])
		n += m
		if err != nil || m < pollfd.Large {
			break
		}
	}
	return n, nil
}

// TryRead returns what is there now; nothing after the child's end, when Read has
// its bounds.
func (t *Pty) TryRead(p []byte, gather bool) (int, error) {
	select {
	case <-t.Exited:
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
func (t *Pty) readTail(p []byte) (int, error) {
	if t.tail <= 0 || t.tailBytes <= 0 {
		return 0, io.EOF
	}
	began := time.Now()
	_ = t.Master.SetReadDeadline(began.Add(min(Quiet, t.tail)))
	n, err := t.read(p[:min(len(p), t.tailBytes)])
	_ = t.Master.SetReadDeadline(time.Unix(1, 0))
	t.tail -= time.Since(began)
	t.tailBytes -= n
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Log.Info("the shell left a process that holds the terminal")
		return n, io.EOF
	}
	return n, err
}

// Write waits while there is no room.
func (t *Pty) Write(p []byte) (int, error) { return t.Master.Write(p) }

// TryWrite is Write of what there is room for now.
func (t *Pty) TryWrite(p []byte) (int, error) { return t.Master.TryWrite(p) }

// Resize does not use pty.Setsize, whose File.Fd undoes the non-blocking mode.
func (t *Pty) Resize(s terminal.Size) error {
	var ioctl error
	err := t.Master.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: s.Cols, Row: s.Rows})
	})
	if err = errors.Join(err, ioctl); err != nil {
		return fmt.Errorf("resizing: %w", err)
	}
	return nil
}

// Wait returns how the child ended, and waits for that.
func (t *Pty) Wait() (terminal.Exit, error) {
	<-t.Exited
	switch {
	case t.WaitErr != nil:
		return terminal.Exit{}, &Failure{Step: "pty", Err: fmt.Errorf("waiting for the shell: %w", t.WaitErr)}
	case t.Status.Signaled():
		sig := t.Status.Signal()
		return terminal.Exit{Code: 128 + int(sig), Signal: unix.SignalName(sig)}, nil
	default:
		return terminal.Exit{Code: t.Status.ExitStatus()}, nil
	}
}
