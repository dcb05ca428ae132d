package runner

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/pollfd"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// DockerConfig says how to open terminals in containers.
type DockerConfig struct {
	// Shells are tried in order; the first that is in the container is used.
	// Absolute paths of POSIX shells.
	Shells []string
	// EndDetached ends also what was told to stay.
	EndDetached bool
	// Swept is told what each session's end found. May be nil.
	Swept  func(Swept)
	Timing Timing
}

// Docker opens terminals in the containers of one engine.
type Docker struct {
	cli  *client.Client
	cfg  DockerConfig
	owed owed

	turns *turns
	stray strays
}

// OpenDocker returns a runner on the engine that DOCKER_HOST and its like name,
// whether it answers or not. The caller closes it.
func OpenDocker(cfg DockerConfig) (*Docker, error) {
	cli, err := client.New(client.FromEnv)
	if err != nil {
		return nil, fmt.Errorf("DOCKER_HOST: %w", err)
	}
	return newDocker(cli, cfg), nil
}

func newDocker(cli *client.Client, cfg DockerConfig) *Docker {
	cfg.Timing = cfg.Timing.withDefaults()
	return &Docker{cli: cli, cfg: cfg, owed: owed{retry: cfg.Timing.Retry}, turns: newTurns(cfg.Timing.Turn)}
}

// Close closes the connections to the engine. Terminals stay open, and Run has
// ended.
func (d *Docker) Close() error { return d.cli.Close() }

// Ping asks whether the engine answers.
func (d *Docker) Ping(ctx context.Context) error {
	if _, err := d.cli.Ping(ctx, client.PingOptions{}); err != nil {
		return &Error{"docker", err}
	}
	return nil
}

// opening is what the exec runs before it becomes the shell. It tells its pid
// and start time, by which the session's processes are found again when the
// shell itself is gone; then it waits for a line, by which the terminal has its
// size before the shell prints a byte, on engines that take no first size too
// (API 1.41).
const opening = `IFS= read -r s </proc/$$/stat; printf '\036%s\036' "$s"; IFS= read -r s; exec "$0"`

var opened = regexp.MustCompile(`\x1e(\d{1,10}) \([^\x1e]*\) ([^\x1e]*)\x1e`)

var errNoShell = errors.New("no such shell")

// Start opens a terminal in the workspace's container. Its errors are
// ErrNotRunning or an *Error; when it fails, nothing is left in the container, or
// what may be is owed.
func (d *Docker) Start(ctx context.Context, t Target, size terminal.Size) (terminal.Terminal, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timing.Start)
	defer cancel()
	term, err := d.start(ctx, t, size)
	if err != nil {
		return nil, starved(err)
	}
	return term, nil
}

func (d *Docker) start(ctx context.Context, t Target, size terminal.Size) (terminal.Terminal, error) {
	id, err := d.findContainer(ctx, t)
	if err != nil {
		return nil, err
	}
	if n := d.strays(ctx, id); n >= strayLimit {
		return nil, &Error{"shell", fmt.Errorf("%d shells and sweeps that were ended still run in container %s: restart it", n, id)}
	}
	for _, shell := range d.cfg.Shells {
		term, err := d.open(ctx, id, shell, t, size)
		if errors.Is(err, errNoShell) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return term, nil
	}
	return nil, &Error{"shell", fmt.Errorf("none of %s is in the container", strings.Join(d.cfg.Shells, ", "))}
}

// starved adds to a failed connection's error what the engine's client leaves
// out of it: that this process had no descriptor for a socket (EMFILE, ENFILE).
func starved(err error) error {
	if !client.IsErrConnectionFailed(err) {
		return err
	}
	f, openErr := os.Open(os.DevNull)
	if openErr != nil {
		return fmt.Errorf("%w: %w", err, openErr)
	}
	_ = f.Close()
	return err
}

func (d *Docker) open(ctx context.Context, id, shell string, t Target, size terminal.Size) (*dockerTerminal, error) {
	list, keys := dockerKeys()
	exec, err := d.cli.ExecCreate(ctx, id, client.ExecCreateOptions{
		TTY: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
		DetachKeys: list,
		Env:        []string{"TERM=xterm-256color", Marker + "=" + t.Session},
		Cmd:        []string{shell, "-c", opening, shell},
	})
	if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err) // stopped since we looked
	}
	if err != nil {
		return nil, &Error{"docker", fmt.Errorf("creating an exec: %w", err)}
	}
	term := &dockerTerminal{
		docker: d, container: id, exec: exec.ID, shell: shell,
		session: t.Session, log: t.Log, pid: "none", keys: keys,
	}
	if err := term.launch(ctx, size); err != nil {
		if term.conn != nil {
			_ = term.conn.Close()
		}
		// Where a start has hung so does its end, for which nobody should wait: a
		// container that is paused while an exec starts can hang so for good, with
		// all that the engine is asked about it (20.10).
		hung := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
		if !errors.Is(err, errNoShell) && (!hung || !term.putOff(true, err)) {
			_ = term.end(true) // which logs its own failure
		}
		return nil, err
	}
	return term, nil
}

// dockerTerminal is the terminal of one exec.
type dockerTerminal struct {
	docker          *Docker
	conn            net.Conn
	fd              *pollfd.FD // of conn; nil: TLS lies between
	early           []byte     // output that was read before the terminal was there
	container, exec string
	shell, session  string
	pid, start      string // of the shell, as the container counts
	log             *slog.Logger
	abandoned       bool // by another gateway: only the session is known
	closing         atomic.Bool
	keys            []byte // the detach keys
	held            int    // how many of them are typed and not sent
}

// launch starts the exec and makes it the shell. Once asked, the engine starts a
// process whatever becomes of its client, and while it is not there no sweep
// finds it: so a cancelled start too waits until the process has told its pid.
func (t *dockerTerminal) launch(ctx context.Context, size terminal.Size) error {
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.docker.cfg.Timing.Start)
	defer cancel()
	stream, err := t.docker.cli.ExecAttach(patient, t.exec, client.ExecAttachOptions{TTY: true})
	if err != nil {
		return &Error{"docker", fmt.Errorf("starting an exec: %w", err)}
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
		return &Error{"shell", fmt.Errorf("starting %s: %w", t.shell, context.Cause(ctx))}
	}
	return t.goDirect()
}

// handshake is the gateway's side of opening, up to the size.
func (t *dockerTerminal) handshake(ctx context.Context) error {
	var got []byte
	buf := make([]byte, 1024)
	for len(got) < 16<<10 { // a container's BASH_ENV may print before we do
		n, err := t.conn.Read(buf)
		got = append(got, buf[:n]...)
		if m := opened.FindSubmatch(got); m != nil {
			fields := strings.Fields(string(m[2]))
			if len(fields) < 20 || !toldStart.MatchString(fields[19]) {
				return &Error{"shell", errors.New("its /proc has no start times")}
			}
			t.pid, t.start = string(m[1]), fields[19]
			return nil
		}
		if errors.Is(err, io.EOF) {
			return t.neverOpened(ctx, got)
		}
		if err != nil {
			return &Error{"shell", fmt.Errorf("waiting for %s: %w", t.shell, err)}
		}
	}
	return &Error{"shell", fmt.Errorf("%s prints without end before it starts", t.shell)}
}

// begin gives the terminal its size and lets the shell begin.
func (t *dockerTerminal) begin(ctx context.Context, size terminal.Size) error {
	if err := t.resize(ctx, size); err != nil {
		return err
	}
	if _, err := t.conn.Write([]byte("\n")); err != nil {
		return &Error{"docker", fmt.Errorf("writing to the terminal: %w", err)}
	}
	var echo [2]byte // of the newline, which is ours and not the person's
	if _, err := io.ReadFull(t.conn, echo[:]); err != nil {
		return &Error{"docker", fmt.Errorf("reading from the terminal: %w", err)}
	}
	return nil
}

// neverOpened tells why an exec ended before it became a shell. The engine
// accepts a shell that is not there and says so when it starts.
func (t *dockerTerminal) neverOpened(ctx context.Context, output []byte) error {
	code, err := t.exitCode(ctx)
	if err == nil && (code == 126 || code == 127) {
		return errNoShell
	}
	said := oneLine(string(output[:min(len(output), 200)]))
	return &Error{"shell", fmt.Errorf("%s ended at once: %w", t.shell, errors.Join(err, fmt.Errorf("exit code %d, %q", code, said)))}
}

func (t *dockerTerminal) Read(p []byte) (n int, err error) {
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
	case errors.Is(err, io.EOF), t.closing.Load(): // the latter is our own doing
		err = io.EOF
	default:
		err = &Error{"docker", fmt.Errorf("reading from the terminal: %w", err)}
	}
	return n, err
}

// TryRead returns what is there now. Through TLS it waits for a moment, since
// nothing tells there what has come.
func (t *dockerTerminal) TryRead(p []byte, gather bool) (n int, err error) {
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

func (t *dockerTerminal) readEarly(p []byte) int {
	n := copy(p, t.early)
	if t.early = t.early[n:]; len(t.early) == 0 {
		t.early = nil
	}
	return n
}

func (t *dockerTerminal) Resize(s terminal.Size) error {
	ctx, cancel := context.WithTimeout(context.Background(), t.docker.cfg.Timing.Start)
	defer cancel()
	return t.resize(ctx, s)
}

func (t *dockerTerminal) resize(ctx context.Context, s terminal.Size) error {
	_, err := t.docker.cli.ExecResize(ctx, t.exec, client.ExecResizeOptions{Width: uint(s.Cols), Height: uint(s.Rows)})
	if err != nil {
		return &Error{"docker", fmt.Errorf("resizing the terminal: %w", err)}
	}
	return nil
}

// Wait asks the engine for the exit code. It knows that of an exec whose
// container was stopped, and nothing of one whose container was removed, which
// kills.
func (t *dockerTerminal) Wait() (terminal.Exit, error) {
	ctx, cancel := context.WithTimeout(context.Background(), t.docker.cfg.Timing.Start)
	defer cancel()
	code, err := t.exitCode(ctx)
	if errdefs.IsNotFound(err) {
		code, err = 137, nil
	}
	if err != nil {
		return terminal.Exit{}, &Error{"docker", err}
	}
	return terminal.Exit{Code: code, Signal: signalOf(code)}, nil
}

// exitCode waits until the engine has noted the terminal's end, which may be some
// milliseconds after the end of its output.
func (t *dockerTerminal) exitCode(ctx context.Context) (int, error) {
	return t.docker.exitCode(ctx, t.exec)
}

var errRunsOn = errors.New("the engine closed the stream of an exec that runs on")

func (d *Docker) exitCode(ctx context.Context, exec string) (int, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 200 {
		r, err := d.cli.ExecInspect(ctx, exec, client.ExecInspectOptions{})
		if err != nil {
			return 0, fmt.Errorf("inspecting an exec: %w", err)
		}
		if !r.Running {
			return r.ExitCode, nil
		}
		<-tick.C
	}
	return 0, errRunsOn
}

// Close ends the shell and what belongs to it inside the container. No engine
// ends an exec when its client goes (moby#35703: there is no API to kill one).
//
// While nobody reads a terminal that is full, the engine tells no other exec's
// end, the sweep's neither (measured): such a reader has the time of the sweep,
// and then the stream is closed.
func (t *dockerTerminal) Close() error {
	t.closing.Store(true)
	stuck := time.AfterFunc(t.docker.cfg.Timing.Unread, func() { _ = t.conn.Close() })
	err := t.end(t.docker.cfg.EndDetached)
	stuck.Stop()
	_ = t.conn.Close()
	return err
}

//go:embed sweep.sh
var sweepScript string

// end ends what belongs to the session. What cannot be done now, because the
// container is paused or just stopping or its engine away, or because the
// container does not let it, Run does later; without Run it is left.
func (t *dockerTerminal) end(all bool) error {
	if t.docker.owed.join(t, all) {
		t.noteStray()
		t.log.Warn("the shell's end is put off", "container", t.container, failure(errOwed))
		return errOwed
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.docker.cfg.Timing.End)
	defer cancel()
	swept, err := t.sweepInTurn(ctx, all)
	if err != nil && t.putOff(all, err) {
		return err
	}
	t.report(swept, err)
	return err
}

// putOff leaves an end to Run, if it is there.
func (t *dockerTerminal) putOff(all bool, err error) bool {
	t.noteStray()
	if !t.docker.owed.add(t, all, err) {
		return false
	}
	t.log.Warn("the shell's end is put off", "container", t.container, failure(err))
	return true
}

// sweepInTurn sweeps when few others do. Its error is a misconduct when the
// container is to blame.
func (t *dockerTerminal) sweepInTurn(ctx context.Context, all bool) (Swept, error) {
	done, err := t.docker.turns.take(ctx, t.container)
	if err != nil {
		return Swept{}, err
	}
	defer done()
	if t.abandoned {
		if err := t.findShell(ctx); err != nil {
			return Swept{}, t.blame(err)
		}
	}
	swept, err := t.sweepAll(ctx, all)
	if err != nil {
		return Swept{}, t.blame(err)
	}
	switch {
	case swept.Left > 0:
	case t.abandoned && t.pid != "none":
		swept.Killed++ // the shell, which nobody else has ended
	case t.runsOn():
		swept.Left = 1 // whatever the container says
	}
	if swept.Left > 0 {
		t.noteStray()
	}
	return swept, nil
}

// runsOn reports whether the shell runs, as the engine says, after a sweep that
// has left nothing.
func (t *dockerTerminal) runsOn() bool {
	if t.exec == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.docker.cfg.Timing.Start)
	defer cancel()
	for {
		_, err := t.exitCode(ctx)
		switch {
		case err == nil, errdefs.IsNotFound(err):
			return false
		case ctx.Err() != nil:
			return true
		case !errors.Is(err, errRunsOn): // of the engine, which cannot tell
			return false
		}
	}
}

// sweepAll sweeps: as the shell's own user, who may read the environment of what
// he started. When something there runs as another user, who is not his to
// signal, root sweeps first, by the session alone: root of a container may signal
// all, and read the environment of nothing but root's. So another user's process
// that has left the session is not found, whatever is to end.
func (t *dockerTerminal) sweepAll(ctx context.Context, all bool) (Swept, error) {
	swept, err := t.sweep(ctx, "", all, true)
	if err == nil && swept.Left > 0 {
		root, rootErr := t.sweep(ctx, "0", all, false)
		var own Swept
		own, err = t.sweep(ctx, "", all, false)
		swept.Killed, swept.Left = root.Killed+own.Killed, own.Left
		if err == nil && swept.Left > 0 {
			err = rootErr
		}
	}
	return swept, err
}

// engineFault is a sweep's error that is the engine's own word, before anything of
// the container runs.
type engineFault struct{ error }

func (e engineFault) Unwrap() error { return e.error }

// blame tells whose doing a failed sweep is. Nobody's is one in a container that
// has ended, and everything in it with it. The container's is one that the engine
// has started, if the engine still answers and has not paused the container: the
// sweep runs on its programs, and in its limits.
func (t *dockerTerminal) blame(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), t.docker.cfg.Timing.Start)
	defer cancel()
	c, lookErr := t.docker.cli.ContainerInspect(ctx, t.container, client.ContainerInspectOptions{})
	known := lookErr == nil && c.Container.State != nil
	var fault engineFault
	switch {
	case errdefs.IsNotFound(lookErr), known && !c.Container.State.Running:
		return nil
	case known && c.Container.State.Paused, errors.As(err, &fault):
		return err
	case !known:
		ping, cancel := context.WithTimeout(context.Background(), t.docker.cfg.Timing.Start)
		defer cancel()
		if t.docker.Ping(ping) != nil {
			return err
		}
	}
	return misconduct{err}
}

// report counts and logs what a session's end found. An end that failed has left
// the shell at least. Of an abandoned session another gateway, which was sooner,
// has told.
func (t *dockerTerminal) report(swept Swept, err error) {
	message := "shell ended"
	if t.abandoned {
		message = "abandoned session ended"
	}
	if err != nil {
		swept.Left++
	}
	if t.abandoned && swept == (Swept{}) {
		return
	}
	swept = swept.claimed()
	if t.docker.cfg.Swept != nil {
		t.docker.cfg.Swept(swept)
	}
	log := t.log.Info
	if swept.Left > 0 {
		log = t.log.Error
	}
	log(message, "container", t.container, "killed", swept.Killed, "kept", swept.Kept, "left", swept.Left, failure(err))
}

func (t *dockerTerminal) sweep(ctx context.Context, user string, all, yield bool) (Swept, error) {
	flag := map[bool]string{false: "0", true: "1"}
	said, err := t.runSweep(ctx, user, t.pid, t.start, Marker+"="+t.session,
		flag[!all], hundredths(t.docker.cfg.Timing.Grace), flag[yield])
	if err != nil {
		return Swept{}, err
	}
	s, ok := readSwept(said)
	if !ok {
		return Swept{}, fmt.Errorf("sweeping: the container answered %q", said[:min(len(said), 200)])
	}
	return s, nil
}

var errHung = errors.New("sweeping: the last sweep still runs in the container")

// runSweep runs sweep.sh in the container and returns what it says, on one line.
// A shell that is not there is errNoShell, and so is one that the engine could not
// run just then: the exit codes are the same.
//
// Nothing ends a sweep that hangs: no engine ends an exec, or a program that prints
// without end when nobody listens. So no other is started while one does.
func (t *dockerTerminal) runSweep(ctx context.Context, user string, args ...string) (said string, err error) {
	d := t.docker
	if d.sweepHangs(ctx, t.container) {
		return "", errHung
	}
	exec, err := d.cli.ExecCreate(ctx, t.container, client.ExecCreateOptions{
		User: user, AttachStdout: true, AttachStderr: true,
		Env: []string{"BASH_ENV=", "ENV="},
		Cmd: append([]string{t.shell, "-c", sweepScript, "termgw-sweep"}, args...),
	})
	if err != nil {
		err = fmt.Errorf("sweeping: %w", err)
		if ctx.Err() == nil { // else the engine may answer for every other container
			err = engineFault{err}
		}
		return "", err
	}
	stream, err := d.cli.ExecAttach(ctx, exec.ID, client.ExecAttachOptions{})
	if err != nil {
		d.stray.add(t.container, exec.ID, true) // it may have started
		return "", fmt.Errorf("sweeping: %w", err)
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, stream.Close)
	defer stop()
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, io.LimitReader(stream.Reader, 64<<10)); err != nil {
		d.stray.add(t.container, exec.ID, true)
		return "", fmt.Errorf("sweeping: %w", errors.Join(err, context.Cause(ctx)))
	}
	code, endErr := d.exitCode(ctx, exec.ID)
	if endErr != nil {
		d.stray.add(t.container, exec.ID, true)
	}
	said = oneLine(stdout.String() + stderr.String())
	if !strings.HasPrefix(said, "none") && !strings.ContainsAny(said[:min(len(said), 1)], "0123456789") {
		if endErr == nil && (code == 126 || code == 127) {
			return "", fmt.Errorf("sweeping: %w: %s", errNoShell, t.shell)
		}
		return "", fmt.Errorf("sweeping: the container answered %q", said[:min(len(said), 200)])
	}
	return said, nil
}
