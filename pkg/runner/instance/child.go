package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// startChild starts a program without a terminal, which dies with the gateway. The
// file is the program's stderr.
func startChild(argv, env []string, stdin, stdout *os.File) (*runner.Process, *os.File, error) {
	stderr, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("starting %s: %w", argv[0], err)
	}
	defer func() { _ = w.Close() }()
	pidfd := -1
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stderr = env, w
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if stdout != nil {
		cmd.Stdout = stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL, PidFD: &pidfd}
	var p *runner.Process
	if err = cmd.Start(); err == nil {
		p, err = runner.Watch(cmd, pidfd, func() {})
	}
	if err != nil {
		_ = stderr.Close()
		return nil, nil, fmt.Errorf("starting %s: %w", argv[0], err)
	}
	return p, stderr, nil
}

// output runs a program to its end and returns its output, bounded. When ctx ends,
// the program's process group is killed; the error comes with the output so far.
func output(ctx context.Context, argv []string) (stdout, stderr string, status unix.WaitStatus, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", "", 0, fmt.Errorf("running %s: %w", argv[0], err)
	}
	defer func() { _ = r.Close() }()
	p, errs, err := startChild(argv, sshEnv, nil, w)
	_ = w.Close()
	if err != nil {
		return "", "", 0, err
	}
	said := newTail(errs)
	defer said.close()
	stop := context.AfterFunc(ctx, func() { p.SignalGroup(unix.SIGKILL) })
	defer stop()
	out, _ := io.ReadAll(io.LimitReader(r, 64<<10))
	_ = r.Close() // ends a program that prints more
	<-p.Exited
	if ctx.Err() != nil {
		return string(out), "", 0, fmt.Errorf("running %s: %w", argv[0], context.Cause(ctx))
	}
	return string(out), said.textWithin(busyTime), p.Status, p.WaitErr
}

// logPipe makes a named pipe, to which a program writes its log. The pipe has an end once the program and end are closed.
func logPipe(path string) (pipe, end *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, nil, fmt.Errorf("making a pipe for a log: %w", err)
	}
	pipe, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a pipe for a log: %w", err)
	}
	end, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("opening a pipe for a log: %w", err), pipe.Close())
	}
	return pipe, end, nil
}

// tail keeps the end of a child's stderr. A goroutine reads it all the time: a full
// pipe would stop the child.
type tail struct {
	pipe *os.File
	done chan struct{}
	sees func(debug string) // if not nil, is called with the lines of debugging, which are not kept

	mu   sync.Mutex
	last []byte
	line []byte // begun, where lines are looked at
	rest bool   // the line goes on one of debugging that was too long
}

const tailLength = 4 << 10

func newTail(pipe *os.File) *tail { return newLog(pipe, nil) }

// newLog is newTail for ssh's log at level DEBUG1.
func newLog(pipe *os.File, sees func(debug string)) *tail {
	t := &tail{pipe: pipe, done: make(chan struct{}), sees: sees}
	go t.read() // ends with close
	return t
}

func (t *tail) read() {
	defer close(t.done)
	buf := make([]byte, 512)
	for {
		n, err := t.pipe.Read(buf)
		t.mu.Lock()
		t.take(buf[:n], err != nil)
		t.last = append(t.last[:0], t.last[max(0, len(t.last)-tailLength):]...)
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// take keeps what was read, of lines of debugging nothing. The lock is held.
func (t *tail) take(p []byte, end bool) {
	if t.sees == nil {
		t.last = append(t.last, p...)
		return
	}
	t.line = append(t.line, p...)
	for {
		n := bytes.IndexByte(t.line, '\n') + 1
		if n == 0 && !end && len(t.line) < tailLength {
			return
		}
		if n == 0 {
			n = len(t.line)
		}
		line := t.line[:n]
		if debug, ok := bytes.CutPrefix(line, []byte("debug1: ")); ok || t.rest {
			t.sees(string(debug))
			t.rest = !bytes.HasSuffix(line, []byte("\n"))
		} else {
			t.last = append(t.last, line...)
		}
		if t.line = append(t.line[:0], t.line[n:]...); len(t.line) == 0 {
			return
		}
	}
}

// text returns the last words of a child that has ended.
func (t *tail) text() string { return t.textWithin(runner.Quiet) }

// busyTime bounds the wait for the end of what a child said that has ended. On a busy machine that is read late.
const busyTime = 2 * time.Second

// textWithin is text with a bound for the wait: another process may hold the pipe.
func (t *tail) textWithin(d time.Duration) string {
	select {
	case <-t.done:
	case <-time.After(d):
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.last)
}

func (t *tail) close() {
	_ = t.pipe.Close()
	<-t.done
}
