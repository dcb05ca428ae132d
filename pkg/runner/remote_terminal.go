package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// remoteTerminal is an ssh under a pty, which carries one session of a
// connection.
type remoteTerminal struct {
	*ptyTerminal
	conn    *connection
	order   order
	stderr  *os.File // ssh's own; the shell's goes to the terminal
	early   []byte   // output that came with the handshake
	closing atomic.Bool
	hungUp  atomic.Bool // ssh did not end by itself
}

// open opens a terminal by a command line that runs remote.sh.
func (c *connection) open(ctx context.Context, o *order, size terminal.Size, command string) (*remoteTerminal, error) {
	stderr, w, err := os.Pipe()
	if err != nil {
		return nil, &Error{"pty", fmt.Errorf("starting ssh: %w", err)}
	}
	cmd := exec.Command(c.remote.ssh, sessionArgs(c.control, c.to.user, c.to.instance, true, command)...)
	cmd.Env, cmd.Stderr = sshEnv, w
	ssh, err := startPty(cmd, size, &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}, o.log)
	_ = w.Close()
	if err != nil {
		_ = stderr.Close()
		return nil, &Error{"pty", fmt.Errorf("starting ssh: %w", err)}
	}
	t := &remoteTerminal{ptyTerminal: ssh, conn: c, order: *o, stderr: stderr}
	stop := context.AfterFunc(ctx, func() { t.signal(unix.SIGKILL) })
	began, err := t.handshake()
	if err == nil {
		t.awaitRaw()
	}
	if !stop() {
		step := "ssh_timeout" // over a connection that went silent, say
		if began {
			step = "shell"
		}
		err = &Error{step, fmt.Errorf("starting a shell: %w", context.Cause(ctx))}
	}
	if err != nil {
		t.disconnect()
		if began && !errors.Is(err, errNoShell) && !errors.Is(err, ErrNotRunning) {
			t.order.endLater(true)
		}
		return nil, err
	}
	return t, nil
}

var (
	toldPlace = regexp.MustCompile(`\x1ein ([^\x1e]*)\x1e`)
	toldError = regexp.MustCompile(`\x1eerror (docker|not_running) ([^\x1e]*)\x1e`)
	toldStart = regexp.MustCompile(`^[0-9]{1,15}$`)
)

// handshake reads what remote.sh and the shell tell of themselves, and keeps
// what the shell has printed since. began says that there may be a shell.
func (t *remoteTerminal) handshake() (began bool, err error) {
	var got []byte
	buf := make([]byte, 4<<10)
	for len(got) < 32<<10 { // the account's .bashrc may print before we do
		n, err := t.ptyTerminal.Read(buf)
		got = append(got, buf[:n]...)
		if m := toldPlace.FindSubmatch(got); m != nil {
			t.order.container, began = string(m[1]), true
		}
		if m := opened.FindSubmatchIndex(got); m != nil && began {
			fields := strings.Fields(string(got[m[4]:m[5]]))
			if len(fields) < 20 || !toldStart.MatchString(fields[19]) {
				return true, &Error{"shell", errors.New("its /proc has no start times")}
			}
			t.order.sid, t.order.start = string(got[m[2]:m[3]]), fields[19]
			t.early = got[m[1]:]
			return true, nil
		}
		if err != nil {
			return began, t.neverOpened(string(got), began)
		}
	}
	return began, &Error{"shell", errors.New("the account prints without end before its shell starts")}
}

// awaitRaw waits until ssh has made this end's pty raw, or has ended. The connection's own ssh carries the shell's bytes
// before the terminal's has done that: on a busy machine what is typed until then would be echoed here too.
func (t *remoteTerminal) awaitRaw() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		var mode *unix.Termios
		var failed error
		err := t.ptmx.Control(func(fd uintptr) { mode, failed = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
		if err != nil || failed != nil || mode.Oflag&unix.OPOST == 0 {
			return
		}
		select {
		case <-t.exited:
			return
		case <-tick.C:
		}
	}
}

// neverOpened tells why ssh ended before there was a shell.
func (t *remoteTerminal) neverOpened(got string, began bool) error {
	<-t.exited
	code := t.status.ExitStatus()
	if m := toldError.FindStringSubmatch(got); m != nil {
		if m[1] == "not_running" {
			return fmt.Errorf("%w: %s", ErrNotRunning, shorten(m[2]))
		}
		return &Error{m[1], errors.New(shorten(m[2]))}
	}
	stderr := saidTo(t.stderr)
	if code == 255 {
		if err := sessionFault(stderr); err != nil {
			return err
		}
	}
	if t.status.Signaled() || code == 255 && t.conn.isGone() {
		return errGone
	}
	if began && t.order.target == TargetContainer {
		_, said, _ := strings.Cut(got, "\x1ein ")
		_, said, _ = strings.Cut(said, "\x1e")
		switch {
		case code == 126 || code == 127:
			return errNoShell
		case strings.Contains(said, "No such container"), strings.Contains(said, "is not running"), strings.Contains(said, "is paused"):
			return fmt.Errorf("%w: %s", ErrNotRunning, shorten(said))
		}
		return &Error{"docker", fmt.Errorf("docker exec on the instance: exit code %d, %q", code, shorten(said))}
	}
	return &Error{"shell", fmt.Errorf("the account's shell ended at once: exit code %d, %q", code, shorten(got+" "+stderr))}
}

// isGone waits for a connection to notice its end, which its sessions may do
// first.
func (c *connection) isGone() bool {
	select {
	case <-c.gone:
		return true
	case <-time.After(500 * time.Millisecond):
		return false
	}
}

// Expires is when the terminal's tunnel is cut; zero: never.
func (t *remoteTerminal) Expires() time.Time { return t.conn.expires }

func (t *remoteTerminal) Read(p []byte) (int, error) {
	if len(t.early) > 0 {
		return t.readEarly(p), nil
	}
	n, err := t.ptyTerminal.Read(p)
	if errors.Is(err, io.EOF) && !t.closing.Load() {
		if lost := t.lost(); lost != nil && !t.closing.Load() {
			err = lost
		}
	}
	return n, err
}

// TryRead returns what is there now.
func (t *remoteTerminal) TryRead(p []byte, gather bool) (int, error) {
	if len(t.early) > 0 {
		return t.readEarly(p), nil
	}
	return t.ptyTerminal.TryRead(p, gather)
}

func (t *remoteTerminal) readEarly(p []byte) int {
	n := copy(p, t.early)
	t.early = t.early[n:]
	if len(t.early) == 0 {
		t.early = nil
	}
	return n
}

// lost waits for ssh's end and tells whether it was no end of the shell. ssh
// says 255 then, as a shell may too.
func (t *remoteTerminal) lost() error {
	<-t.exited
	switch {
	case t.waitErr != nil:
		return &Error{"pty", fmt.Errorf("waiting for ssh: %w", t.waitErr)}
	case t.status.Signaled():
		return spoke(&Error{"ssh", fmt.Errorf("ssh was ended by %s", unix.SignalName(t.status.Signal()))})
	case t.status.ExitStatus() == 255 && t.conn.isGone():
		return spoke(t.conn.lost)
	}
	return nil
}

// Resize also has the connection look at the sizes of its terminals. The session's
// ssh tells it of a new one, but listens for that only some time after the shell's
// first words.
func (t *remoteTerminal) Resize(s terminal.Size) error {
	if err := t.ptyTerminal.Resize(s); err != nil {
		return err
	}
	t.conn.master.signal(unix.SIGWINCH)
	return nil
}

// Wait tells of a shell whose terminal we closed what it would tell itself; what
// ssh says then is its own end.
func (t *remoteTerminal) Wait() (terminal.Exit, error) {
	<-t.exited
	if t.hungUp.Load() && (t.status.Signaled() || t.status.ExitStatus() == 255) {
		return terminal.Exit{Code: 128 + int(unix.SIGHUP), Signal: unix.SignalName(unix.SIGHUP)}, nil
	}
	if err := t.lost(); err != nil {
		return terminal.Exit{}, err
	}
	code := t.status.ExitStatus()
	return terminal.Exit{Code: code, Signal: signalOf(code)}, nil
}

// disconnect ends ssh, by which the instance's sshd hangs up.
func (t *remoteTerminal) disconnect() {
	select {
	case <-t.exited:
	default:
		t.hungUp.Store(true)
	}
	_ = t.ptmx.Close()
	t.signal(unix.SIGHUP)
	select {
	case <-t.exited:
	case <-time.After(time.Second):
		t.signal(unix.SIGKILL)
		<-t.exited
	}
	_ = t.stderr.Close()
}

// Close hangs up, and then sees over the same connection that the shell and what
// belongs to it end. The instance does that too, a little later, so that it is
// done also without us: what it finds then, it does not count.
func (t *remoteTerminal) Close() error {
	t.closing.Store(true)
	t.disconnect()
	o, r := &t.order, t.conn.remote
	swept, err := t.conn.sweep(context.Background(), o, !r.cfg.EndDetached)
	r.release(t.conn)
	if err != nil {
		o.log.Warn("the shell's end is put off", "instance", o.to.instance, failure(err))
		o.endLater(r.cfg.EndDetached)
		return err
	}
	o.report(swept, nil)
	return nil
}

// sweep runs remote.sh's end over a connection, in a session that the caller has
// reserved. sshd may not have noticed yet that it is free. A connection on which
// nothing at all comes meanwhile gets no more terminals.
func (c *connection) sweep(ctx context.Context, o *order, keep bool) (Swept, error) {
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
	turns, lane := c.remote.turns, o.lane()
	patient, stop := context.WithTimeout(ctx, c.remote.cfg.Timing.End)
	done, err := turns.take(patient, lane)
	stop()
	if err != nil {
		return Swept{}, err
	}
	defer done()
	began := time.Now()
	ctx, stop = context.WithTimeout(ctx, c.remote.cfg.Timing.sweep())
	defer stop()
	silent := c.listen()
	command := o.command(keep, "end", o.container, o.shell, o.sid, o.start)
	argv := append([]string{c.remote.ssh}, sessionArgs(c.control, c.to.user, c.to.instance, false, command)...)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 400*time.Millisecond) {
		stdout, stderr, status, err := output(ctx, argv)
		if errors.Is(err, context.DeadlineExceeded) && silent() {
			c.remote.retire(c)
		}
		if err != nil {
			return Swept{}, fmt.Errorf("sweeping: %w", err)
		}
		last := lastLine(stdout)
		if s, ok := readSwept(last); ok && status.ExitStatus() == 0 {
			turns.worked(lane)
			return s, nil
		}
		if last == "nonsense" {
			turns.failed(lane, began, c.remote.cfg.Timing.Retry)
			return Swept{}, misconduct{errors.New("sweeping: the container on the instance does not answer as it should")}
		}
		fault := sessionFault(stderr)
		if status.ExitStatus() != 255 || !errors.Is(fault, errRefused) {
			return Swept{}, fmt.Errorf("sweeping: %w", errors.Join(fault, fmt.Errorf("the instance answered %q", shorten(stdout+" "+stderr))))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return Swept{}, fmt.Errorf("sweeping: %w", fault)
		}
	}
}

// lastLine is what remote.sh says, after what the account's .bashrc may say.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// endLater sweeps over another connection, and tries for a while. A connection
// that was closed has told the instance, but not one that only went silent.
func (o order) endLater(all bool) {
	r := o.remote
	later := r.background(func() {
		ctx, cancel := context.WithTimeout(r.ctx, endLaterTime)
		defer cancel()
		for wait := time.Second; ; wait = min(2*wait, 15*time.Second) {
			swept, err := o.endElsewhere(ctx, all)
			if err == nil {
				o.report(swept, nil)
				return
			}
			if errors.Is(err, errHopeless) {
				o.report(Swept{Left: 1}, err)
				return
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				o.report(Swept{Left: 1}, err)
				return
			}
		}
	})
	if !later {
		o.report(Swept{Left: 1}, errClosed)
	}
}

func (o *order) endElsewhere(ctx context.Context, all bool) (Swept, error) {
	c, err := o.remote.connect(ctx, o.to)
	if err != nil {
		return Swept{}, err
	}
	defer o.remote.release(c)
	return c.sweep(ctx, o, !all)
}

// lane is what the sweep shares turns with: the container, or the account.
func (o *order) lane() string { return o.to.instance + " " + o.to.user + " " + o.container }

// report counts and logs what a session's end found.
func (o *order) report(swept Swept, err error) {
	swept = swept.claimed()
	if o.remote.cfg.Swept != nil {
		o.remote.cfg.Swept(swept)
	}
	log := o.log.Info
	if swept.Left > 0 {
		log = o.log.Error
	}
	log("shell ended", "instance", o.to.instance, "container", o.container,
		"killed", swept.Killed, "kept", swept.Kept, "left", swept.Left, failure(err))
}
