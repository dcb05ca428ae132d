package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// sshTerminal is a terminal on an instance.
type sshTerminal struct {
	stream
	request request
	early   []byte // output that was read with the handshake
	closing atomic.Bool
	lost    error // Read's last error
}

// open opens a terminal by remote.sh in a mode. Its error is errRefused or errGone if another connection may do what this
// one cannot.
func (c *connection) open(ctx context.Context, r *request, size terminal.Size, mode string, words ...string) (*sshTerminal, error) {
	s, err := c.openStream(ctx, r, size, mode, words...)
	if err != nil {
		return nil, err
	}
	t := &sshTerminal{stream: s, request: *r}
	stop := context.AfterFunc(ctx, t.stopReading)
	got, err := t.handshake()
	if !stop() {
		err = t.late(c, got, context.Cause(ctx))
	}
	if err != nil {
		t.hangUp()
		if toldPlace.Match(got) && !errors.Is(err, errNoShell) && !errors.Is(err, runner.ErrNotRunning) {
			c.kind.ends.PutOff(t.request.end(false, t.request.sweepElsewhere), err)
		}
		return nil, err
	}
	t.opened()
	return t, nil
}

// openStream starts remote.sh under a pty: the keeper's, or else sshd's.
func (c *connection) openStream(ctx context.Context, r *request, size terminal.Size, mode string, words ...string) (stream, error) {
	opening, stopWatch := c.watchOpening(ctx)
	defer stopWatch()
	keepDetached := c.kind.cfg.KeepDetached
	if c.kind.cfg.Keepers != nil {
		s, err := c.openKept(opening, size, r.remote(keepDetached, mode, append([]string{"lease=0"}, words...)...).argv())
		var refused *denied
		switch {
		case err == nil:
			return s, nil
		case ctx.Err() != nil:
			return nil, failed("ssh_timeout", fmt.Errorf("reaching the keeper: %w", context.Cause(ctx)))
		case errors.Is(err, errGone), errors.Is(err, errRefused):
			return nil, err
		case errors.As(err, &refused):
			return nil, failed("keeper", err)
		}
		r.log.Debug("nothing holds the terminal on the instance", "instance", r.to.instance, "err", err)
	}
	c.kind.asks(c)
	ch, err := c.openChannel(opening, &size, r.remote(keepDetached, mode, words...).line())
	c.kind.answered(c, err == nil, errors.Is(err, errRefused))
	switch {
	case ctx.Err() != nil: // over a connection that went silent, say
		if ch != nil {
			c.closeOpened(ch)
		}
		return nil, failed("ssh_timeout", fmt.Errorf("opening a session: %w", context.Cause(ctx)))
	case errors.Is(err, errGone), errors.Is(err, errRefused):
		return nil, err
	case errors.Is(err, errNoPty):
		return nil, r.accountFault("sshd gives the account no terminal", nil)
	case err != nil:
		return nil, failed("ssh", err)
	}
	return &plainStream{channel: ch, conn: c}, nil
}

// closeOpened closes the channel of a terminal that sshd has opened.
func (c *connection) closeOpened(ch *channel) {
	c.close(ch)
	c.kind.hasClosed(c)
}

// What remote.sh reports, in this order; an error instead of what follows.
var (
	toldRuns  = regexp.MustCompile(`\x1eruns\x1e`)
	toldPlace = regexp.MustCompile(`\x1ein ([^\x1e]*)\x1e`) // from here there may be a shell
	toldError = regexp.MustCompile(`\x1eerror (docker|not_running) ([^\x1e]*)\x1e`)
)

// openingLimit bounds what is printed before the shell starts: the account's .bashrc
// may print.
const openingLimit = 32 << 10

// handshake reads what remote.sh and the shell report, and keeps the output after
// that. It also returns what it has read.
func (t *sshTerminal) handshake() (got []byte, err error) {
	buf := make([]byte, 4<<10)
	for len(got) < openingLimit {
		n, err := t.stream.Read(buf)
		got = append(got, buf[:n]...)
		if m := toldPlace.FindSubmatch(got); m != nil {
			if t.request.target == TargetContainer {
				t.request.container = string(m[1])
				t.request.trail.Set(runner.TrailContainer, t.request.container)
			}
			sid, start, rest, ok, malformed := runner.Opened(got)
			if malformed != nil {
				return got, failed("shell", malformed)
			}
			if ok {
				t.request.sid, t.request.start, t.early = sid, start, rest
				return got, nil
			}
		}
		if err != nil {
			return got, t.neverOpened(got)
		}
	}
	if toldPlace.Match(got) {
		return got, failed("shell", fmt.Errorf("the container's shell prints more than %d bytes before it starts", openingLimit))
	}
	return got, t.request.accountFault(fmt.Sprintf("it printed more than %d bytes before", openingLimit), got)
}

// late returns the meaning of a handshake that was cut short: the first part that has
// not answered is at fault.
func (t *sshTerminal) late(c *connection, got []byte, cause error) error {
	r := &t.request
	switch {
	case c.pump.silence() >= 2*c.kind.cfg.Timing.Alive: // ssh has probed the instance meanwhile
		return failed("ssh_timeout", fmt.Errorf("the connection is silent: %w", cause))
	case toldPlace.Match(got) && r.target == TargetHost:
		return failed("shell", fmt.Errorf("starting a shell: %w", cause))
	case toldPlace.Match(got):
		return r.noDocker(fmt.Errorf("docker exec on the instance has started no shell: docker hangs, or the container's shell does: %w", cause))
	case toldRuns.Match(got):
		return r.noDocker(fmt.Errorf("the docker command on the instance does not answer: %w", cause))
	}
	return r.accountFault("it did something else until the time was over", got, cause)
}

// neverOpened returns why a session ended before there was a shell.
func (t *sshTerminal) neverOpened(got []byte) error {
	r := &t.request
	if m := toldError.FindSubmatch(got); m != nil {
		said := shorten(string(m[2]))
		if string(m[1]) == "not_running" {
			return runner.NotRunning(said)
		}
		return r.noDocker(errors.New(said))
	}
	exit := t.told()
	if exit == nil {
		return errGone
	}
	code := exit.Code
	_, said, begun := strings.Cut(string(got), "\x1ein ")
	switch {
	case begun && r.target == TargetContainer:
		_, said, _ = strings.Cut(said, "\x1e")
		said = shorten(said)
		switch {
		case runner.NoShell(code, said):
			return fmt.Errorf("%w: %s", errNoShell, said)
		case notRunning.MatchString(said):
			return runner.NotRunning(said)
		case code == 126 || code == 127:
			return failed("shell", fmt.Errorf("%s ended at once: exit code %d, %q", r.shell, code, said))
		}
		return r.noDocker(fmt.Errorf("docker exec on the instance: exit code %d, %q", code, said))
	case begun:
		return failed("shell", fmt.Errorf("the login shell ended at once: exit code %d, %q", code, shorten(string(got))))
	case toldRuns.Match(got):
		return r.noDocker(fmt.Errorf("what asks docker on the instance ended: exit code %d, %q", code, shorten(string(got))))
	}
	return r.accountFault(fmt.Sprintf("it ended with exit code %d", code), got)
}

// notRunning is what docker commands say when they cannot run anything in a container.
var notRunning = regexp.MustCompile(`(?i)no such container|is not running|is paused|container state improper`)

// isGone reports whether a connection has ended. It waits a moment for that: its
// sessions may notice first.
func (c *connection) isGone() bool {
	select {
	case <-c.gone:
		return true
	case <-time.After(500 * time.Millisecond):
		return false
	}
}

// Expires returns when the terminal's tunnel is cut; zero: never.
func (t *sshTerminal) Expires() time.Time { return t.expires() }

// Silence returns how long nothing has come from the instance.
func (t *sshTerminal) Silence() terminal.Silence { return t.silence() }

// OnLost has a function called when the connection is lost and another one is made.
func (t *sshTerminal) OnLost(do func()) { t.onLost(do) }

func (t *sshTerminal) Read(p []byte) (int, error) {
	if len(t.early) > 0 {
		return t.readEarly(p), nil
	}
	n, err := t.stream.Read(p)
	if err != nil && t.closing.Load() {
		err = io.EOF
	}
	t.lost = err
	return n, err
}

// TryRead returns the output that is there now.
func (t *sshTerminal) TryRead(p []byte, gather bool) (int, error) {
	if len(t.early) > 0 {
		return t.readEarly(p), nil
	}
	return t.stream.TryRead(p, gather)
}

func (t *sshTerminal) readEarly(p []byte) int {
	n := copy(p, t.early)
	t.early = t.early[n:]
	if len(t.early) == 0 {
		t.early = nil
	}
	return n
}

// Wait returns how the shell ended; SIGHUP if Close came first.
func (t *sshTerminal) Wait() (terminal.Exit, error) {
	switch exit := t.told(); {
	case exit != nil:
		return *exit, nil
	case t.closing.Load():
		return *exitBySignal("SIGHUP"), nil
	}
	return terminal.Exit{}, t.lost
}

// exitOf returns the Exit of a shell's exit status.
func exitOf(code int) *terminal.Exit {
	return &terminal.Exit{Code: code, Signal: runner.SignalOf(code)}
}

// exitBySignal returns the Exit of a shell that a signal ended. A name that the instance made up is none.
func exitBySignal(name string) *terminal.Exit {
	if unix.SignalNum(name) == 0 {
		return &terminal.Exit{Code: 255}
	}
	return &terminal.Exit{Code: 128 + int(unix.SignalNum(name)), Signal: name}
}

// Close hangs up, and then sweeps over the same connection. The guard on the instance
// sweeps too, a little later, in case the gateway is dead; its sweep is not counted.
// A failed sweep is repeated over another connection: the instance notices a closed
// connection, but not a silent one.
func (t *sshTerminal) Close() error {
	t.closing.Store(true)
	r, k := &t.request, t.request.kind
	var conn atomic.Pointer[connection] // with the session that is still reserved
	conn.Store(t.hangUp())
	end := r.end(k.cfg.KeepDetached, func(ctx context.Context, keepDetached bool) (runner.Swept, error) {
		c := conn.Swap(nil)
		if c == nil {
			return r.sweepElsewhere(ctx, keepDetached)
		}
		defer k.release(c)
		return c.sweep(ctx, r, keepDetached)
	})
	err := k.ends.Do(end)
	if c := conn.Swap(nil); c != nil {
		k.release(c)
	}
	if err != nil {
		r.log.Warn("the shell's end is put off", "instance", r.to.instance, "err", err)
	}
	return err
}

// end returns the end of the request's session by a sweep, in the lane of its
// container or account.
func (r *request) end(keepDetached bool, sweep func(ctx context.Context, keepDetached bool) (runner.Swept, error)) runner.End {
	return runner.End{
		Session: r.session, Lane: r.to.instance + " " + r.to.user + " " + r.container,
		Try: func(ctx context.Context) (runner.Swept, error) { return sweep(ctx, keepDetached) },
		Report: func(swept runner.Swept, err error) {
			swept.Claimed().Report(r.log, r.kind.cfg.Swept, "shell ended", err, "instance", r.to.instance, "container", r.container)
		},
	}
}

// sweepElsewhere sweeps over any connection.
func (r *request) sweepElsewhere(ctx context.Context, keepDetached bool) (runner.Swept, error) {
	c := r.kind.any(ctx, r.to)
	if c == nil {
		var err error
		if c, err = r.kind.connect(ctx, r.to, nil); err != nil {
			return runner.Swept{}, err
		}
	}
	defer r.kind.release(c)
	return c.sweep(ctx, r, keepDetached)
}

// sweep runs remote.sh in mode end over a connection, in a session that the caller
// has reserved, and tries again while sshd has not noticed that the session is free.
// A connection that is silent meanwhile gets no more terminals.
func (c *connection) sweep(ctx context.Context, r *request, keepDetached bool) (runner.Swept, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	watched, over := make(chan struct{}), ctx.Done()
	defer func() { cancel(nil); <-watched }()
	go func() {
		defer close(watched)
		select {
		case <-c.gone:
			cancel(errGone)
		case <-over:
		}
	}()
	ctx, stop := context.WithTimeout(ctx, sweepTime(c.kind.cfg.Timing))
	defer stop()
	silent := c.listen()
	command := r.remote(keepDetached, "end", "container="+r.container, "shell="+r.shell, "sid="+r.sid, "start="+r.start).line()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 400*time.Millisecond) {
		said, exit, err := c.run(ctx, command)
		if errors.Is(err, context.DeadlineExceeded) && (silent() || !c.answers()) {
			c.kind.retire(c)
		}
		switch {
		case err == nil:
			last := lastLine(said)
			if s, ok := runner.ReadSwept(last); ok && exit != nil && exit.Code == 0 {
				return s, nil
			}
			if last == "nonsense" {
				return runner.Swept{}, &runner.Misconduct{Err: errors.New("sweeping: the container on the instance does not answer as it should")}
			}
			return runner.Swept{}, fmt.Errorf("sweeping: the instance answered %q", shorten(said))
		case !errors.Is(err, errRefused):
			return runner.Swept{}, fmt.Errorf("sweeping: %w", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return runner.Swept{}, fmt.Errorf("sweeping: %w", err)
		}
	}
}

// lastLine returns what remote.sh printed; the account's .bashrc may print before.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
