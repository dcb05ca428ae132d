package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/pollfd"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// execTerminal is the terminal of one exec.
type execTerminal struct {
	kind            *Kind
	conn            net.Conn
	fd              *pollfd.FD // of conn; nil: TLS lies between
	early           []byte     // output that was read with the handshake
	container, exec string
	shell, session  string
	pid, start      string // of the shell, as the container counts
	log             *slog.Logger
	abandoned       bool // by another gateway: only the session is known
	closing         atomic.Bool
	keys            []byte // the detach keys
	held            int    // how many of them are typed and not sent
}

// launch starts the exec and makes it the shell. The engine starts the process even
// when its client goes, and no sweep finds a process before its start: so a cancelled
// start also waits for the process's pid.
func (t *execTerminal) launch(ctx context.Context, size terminal.Size) error {
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.kind.cfg.Timing.Start)
	defer cancel()
	stream, err := t.kind.cli.ExecAttach(patient, t.exec, client.ExecAttachOptions{TTY: true})
	if err != nil {
		return failed("docker", fmt.Errorf("starting an exec: %w", err))
	}
	t.conn = stream.Conn
	// The stream knows no context.
	deadline, _ := patient.Deadline()
	_ = t.conn.SetReadDeadline(deadline)
	if err := t.handshake(patient); err != nil {
		return err
	}
	if err := t.begin(ctx, size); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return failed("shell", fmt.Errorf("starting %s: %w", t.shell, context.Cause(ctx)))
	}
	return t.goDirect()
}

// handshake is the gateway's side of opening, up to the size.
func (t *execTerminal) handshake(ctx context.Context) error {
	var got []byte
	buf := make([]byte, 1024)
	for len(got) < 16<<10 { // a shell may print before: a warning of its locale, say
		n, err := t.conn.Read(buf)
		got = append(got, buf[:n]...)
		pid, start, _, ok, malformed := runner.Opened(got)
		if malformed != nil {
			return failed("shell", malformed)
		}
		if ok {
			t.pid, t.start = pid, start
			return nil
		}
		if errors.Is(err, io.EOF) {
			return t.neverOpened(ctx, got)
		}
		if err != nil {
			return failed("shell", fmt.Errorf("waiting for %s: %w", t.shell, err))
		}
	}
	return failed("shell", fmt.Errorf("%s prints without end before it starts", t.shell))
}

// begin gives the terminal its size and lets the shell begin.
func (t *execTerminal) begin(ctx context.Context, size terminal.Size) error {
	if err := t.resize(ctx, size); err != nil {
		return err
	}
	if _, err := t.conn.Write([]byte("\n")); err != nil {
		return failed("docker", fmt.Errorf("writing to the terminal: %w", err))
	}
	// The echo of the newline, which is not the person's, unless the terminal echoes
	// nothing.
	var first [2]byte
	for n := range first {
		if _, err := t.conn.Read(first[n : n+1]); err != nil {
			return failed("docker", fmt.Errorf("reading from the terminal: %w", err))
		}
		if first[n] != "\r\n"[n] {
			t.early = append(t.early, first[:n+1]...)
			break
		}
	}
	return nil
}

// neverOpened returns why an exec ended before it became a shell. The engine reports
// a missing shell only when the exec starts.
func (t *execTerminal) neverOpened(ctx context.Context, output []byte) error {
	code, err := t.kind.exitCode(ctx, t.exec)
	said := runner.OneLine(string(output[:min(len(output), 200)]))
	if err == nil && runner.NoShell(code, said) {
		return fmt.Errorf("%w: %s", errNoShell, said)
	}
	return failed("shell", fmt.Errorf("%s ended at once: %w", t.shell, errors.Join(err, fmt.Errorf("exit code %d, %q", code, said))))
}

func (t *execTerminal) Read(p []byte) (n int, err error) {
	switch {
	case len(t.early) > 0:
		return t.readEarly(p), nil
	case t.fd != nil:
		n, err = t.fd.Read(p)
	default:
		n, err = t.conn.Read(p)
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF), t.closing.Load(): // after Close
		err = io.EOF
	default:
		err = failed("docker", fmt.Errorf("reading from the terminal: %w", err))
	}
	return n, err
}

// TryRead returns the output that is there now. Through TLS it waits for a
// millisecond: the socket does not show what TLS holds.
func (t *execTerminal) TryRead(p []byte, gather bool) (n int, err error) {
	switch {
	case len(t.early) > 0:
		return t.readEarly(p), nil
	case t.fd == nil:
		_ = t.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err = t.conn.Read(p)
		_ = t.conn.SetReadDeadline(time.Time{})
	case gather:
		n, err = pollfd.Gather(p, t.fd.TryRead)
	default:
		n, err = t.fd.TryRead(p)
	}
	if err != nil && n == 0 { // a failed connection fails Read, too
		err = nil
	}
	return n, err
}

func (t *execTerminal) readEarly(p []byte) int {
	n := copy(p, t.early)
	if t.early = t.early[n:]; len(t.early) == 0 {
		t.early = nil
	}
	return n
}

func (t *execTerminal) Resize(s terminal.Size) error {
	ctx, cancel := context.WithTimeout(context.Background(), t.kind.cfg.Timing.Call)
	defer cancel()
	return t.resize(ctx, s)
}

func (t *execTerminal) resize(ctx context.Context, s terminal.Size) error {
	_, err := t.kind.cli.ExecResize(ctx, t.exec, client.ExecResizeOptions{Width: uint(s.Cols), Height: uint(s.Rows)})
	if err != nil {
		return failed("docker", fmt.Errorf("resizing the terminal: %w", err))
	}
	return nil
}

// Wait asks the engine for the exit code. The engine forgets the execs of a removed
// container, whose processes were killed.
func (t *execTerminal) Wait() (terminal.Exit, error) {
	ctx, cancel := context.WithTimeout(context.Background(), t.kind.cfg.Timing.Call)
	defer cancel()
	code, err := t.kind.exitCode(ctx, t.exec)
	if errdefs.IsNotFound(err) {
		code, err = 137, nil
	}
	if err != nil {
		return terminal.Exit{}, failed("docker", err)
	}
	return terminal.Exit{Code: code, Signal: runner.SignalOf(code)}, nil
}

var errRunsOn = errors.New("the engine closed the stream of an exec that runs on")

// exitCode waits until the engine has noted an exec's end, which may be some
// milliseconds after the end of its output.
func (k *Kind) exitCode(ctx context.Context, exec string) (int, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 200 {
		r, err := k.inspectExec(ctx, exec)
		if err != nil {
			return 0, err
		}
		if !r.Running {
			return r.ExitCode, nil
		}
		<-tick.C
	}
	return 0, errRunsOn
}

// Close ends the shell and what belongs to it inside the container. No engine ends an
// exec when its client goes (moby#35703: there is no API to kill one).
//
// While a terminal's output is full and not read, the engine reports the end of no
// other exec, not even the sweep's (measured). So the stream is closed after
// Timing.Unread.
func (t *execTerminal) Close() error {
	t.closing.Store(true)
	stuck := time.AfterFunc(t.kind.cfg.Timing.Unread, func() { _ = t.conn.Close() })
	err := t.end(t.kind.cfg.KeepDetached)
	stuck.Stop()
	_ = t.conn.Close()
	return err
}
