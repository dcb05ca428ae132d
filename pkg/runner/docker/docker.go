// Package docker is the kind of place that is a container of one Docker engine, by
// the Engine API.
package docker

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Config says how to open terminals in containers.
type Config struct {
	// Shells are tried in order; the first that is in the container is used.
	// Absolute paths of POSIX shells.
	Shells []string
	// KeepDetached spares, at a session's end, what was told to stay.
	KeepDetached bool
	// Swept is called with the report of each session's end. May be nil.
	Swept  func(runner.Swept)
	Timing runner.Timing
}

// Kind opens terminals in the containers of one engine.
type Kind struct {
	cli   *client.Client
	cfg   Config
	ends  *runner.Ends
	stray strays
}

// endFor bounds the retries of a session's end that fails for the engine's sake. A workspace may be paused overnight.
const endFor = 24 * time.Hour

// Open returns the kind for the engine that DOCKER_HOST and its like name,
// whether it answers or not. The caller closes it.
func Open(cfg Config) (*Kind, error) {
	cli, err := client.New(client.FromEnv)
	if err != nil {
		return nil, fmt.Errorf("DOCKER_HOST: %w", err)
	}
	return newKind(cli, cfg), nil
}

func newKind(cli *client.Client, cfg Config) *Kind {
	cfg.Timing = cfg.Timing.WithDefaults()
	k := &Kind{cli: cli, cfg: cfg}
	k.ends = runner.NewEnds(runner.EndsConfig{Timing: &k.cfg.Timing, For: endFor, RetryMost: cfg.Timing.Retry})
	return k
}

// Close tries the ends that are put off once more, and closes the connections to the
// engine. Terminals stay open.
func (k *Kind) Close() error {
	k.ends.Close()
	return k.cli.Close()
}

// address returns the engine's address, without a user and a password.
func (k *Kind) address() string {
	u, err := url.Parse(k.cli.DaemonHost())
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

// Ping returns an error if the engine does not answer.
func (k *Kind) Ping(ctx context.Context) error {
	if _, err := k.cli.Ping(ctx, client.PingOptions{}); err != nil {
		return failed("docker", err)
	}
	return nil
}

// Steps returns the steps to the engine and the container.
func (k *Kind) Steps(t runner.Target, open func(context.Context) error) []runner.Step {
	return []runner.Step{
		{Name: "docker", Run: func(ctx context.Context) (string, error) { return "answers", k.Ping(ctx) }},
		{Name: "container", Run: func(ctx context.Context) (string, error) {
			err := open(ctx)
			if step := runner.StepOf(err); err == nil || step == "shell" {
				return "runs" + k.aboutInit(ctx, t), nil
			}
			if running, listErr := k.Containers(ctx); listErr == nil && errors.Is(err, runner.ErrNotRunning) {
				names := make([]string, len(running))
				for i, c := range running {
					names[i] = c.Name
				}
				err = fmt.Errorf("%w\nrunning on this engine: %s", err, strings.Join(names, ", "))
			}
			return "", err
		}},
	}
}

// lookAtInit says how many zombies process 1 has not reaped, whether it does
// anything about its children's ends (it ignores, blocks or catches SIGCHLD, bit 16),
// and what it is.
const lookAtInit = `zombies=0 heeds=0
for stat in /proc/[0-9]*/stat; do
	read -r line <"$stat" || continue
	case ${line##*) } in "Z 1 "*) zombies=$((zombies + 1)) ;; esac
done
while read -r key mask; do
	case $key$mask in Sig[BIC]*:*[13579bdf]????) heeds=1 ;; esac
done </proc/1/status
read -r name </proc/1/comm
echo "$zombies $heeds $name"`

// aboutInit warns of a container whose first process reaps nothing: what its
// programs orphan stays as zombies, until it can start no further process.
func (k *Kind) aboutInit(ctx context.Context, t runner.Target) string {
	id, err := k.findContainer(ctx, t)
	if err != nil {
		return ""
	}
	term := &execTerminal{kind: k, container: id}
	for _, shell := range term.sweepShells() {
		said, err := term.runSweep(ctx, shell, "", lookAtInit, nil)
		if errors.Is(err, errNoShell) {
			continue
		}
		if words := strings.Fields(said); err == nil && len(words) > 2 && (words[0] != "0" || words[1] == "0") {
			return fmt.Sprintf("; its first process, %.20q, leaves zombies (%.7s now): start the container with --init", words[2], words[0])
		}
		break
	}
	return ""
}

// fixes tell an operator what to do, by the step that failed.
var fixes = map[string]string{
	"docker": "Check DOCKER_HOST, that the engine runs, and that the gateway's user may use its socket (`docker info`).",
	"shell":  runner.FixShell,
}

func failed(step string, err error) error {
	return &runner.Failure{Step: step, Fix: fixes[step], Err: err}
}

// final returns a failure that no retry mends before somebody has.
func final(step string, err error) error {
	return &runner.Failure{Step: step, Fix: fixes[step], Final: true, Err: err}
}

// opening is the script that the exec runs before it becomes the shell. It prints its
// pid and start time, by which a sweep finds the session's processes when the shell
// is gone. Then it waits for a line, so that the terminal has its size before the
// shell prints a byte, also on engines that take no first size (API 1.41).
const opening = `IFS= read -r s </proc/$$/stat; printf '\036%s\036' "$s"; ` + runner.OpeningPrelude + `; IFS= read -r s; exec "$0"`

var errNoShell = errors.New("no such shell")

// Start opens a terminal in the workspace's container. Its error is a
// *runner.Failure. A process that a failed start may have left is ended, at once or
// later.
func (k *Kind) Start(ctx context.Context, t runner.Target, size terminal.Size) (terminal.Terminal, error) {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timing.Start)
	defer cancel()
	term, err := k.start(ctx, t, size)
	if err != nil {
		return nil, starved(err)
	}
	return term, nil
}

func (k *Kind) start(ctx context.Context, t runner.Target, size terminal.Size) (terminal.Terminal, error) {
	finding, found := runner.BeginStep(ctx, "container")
	id, err := k.findContainer(finding, t)
	found(err)
	if err != nil {
		return nil, err
	}
	t.Trail.Set(runner.TrailContainer, id)
	t.Trail.Set(runner.TrailEngine, k.address())
	if n := k.strays(ctx, id); n >= strayLimit {
		return nil, final("shell", fmt.Errorf("%d shells and sweeps that were ended still run in container %s: restart it", n, id))
	}
	opening, opened := runner.BeginStep(ctx, "shell")
	term, err := k.openFound(opening, id, t, size)
	opened(err)
	return term, err
}

// openFound opens a terminal in a container that ran when it was found.
func (k *Kind) openFound(ctx context.Context, id string, t runner.Target, size terminal.Size) (terminal.Terminal, error) {
	term, err := k.openFirst(ctx, id, t, size)
	switch {
	case err == nil:
		return term, nil
	case k.ended(ctx, id): // engines differ in what they answer then
		return nil, runner.NotRunning(err.Error())
	}
	return nil, err
}

// openFirst opens a terminal by the first shell that is in the container.
func (k *Kind) openFirst(ctx context.Context, id string, t runner.Target, size terminal.Size) (*execTerminal, error) {
	var last error
	for _, dir := range []string{"", "/"} { // a working directory that is gone looks like a shell that is not there
		for _, shell := range k.cfg.Shells {
			term, err := k.open(ctx, id, shell, dir, t, size)
			if !errors.Is(err, errNoShell) {
				return term, err
			}
			last = err
		}
	}
	err := fmt.Errorf("none of %s is in the container: %w", strings.Join(k.cfg.Shells, ", "), last)
	if runner.ShellMissing(last.Error()) {
		return nil, final("shell", err)
	}
	return nil, failed("shell", err)
}

// starved adds EMFILE or ENFILE to a failed connection's error if this process has no
// descriptor for a socket: the engine's client leaves that out.
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

func (k *Kind) open(ctx context.Context, id, shell, dir string, t runner.Target, size terminal.Size) (*execTerminal, error) {
	list, keys := runner.DetachKeys()
	exec, err := k.cli.ExecCreate(ctx, id, client.ExecCreateOptions{
		TTY: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
		DetachKeys: list, WorkingDir: dir,
		Env: append([]string{runner.Marker + "=" + t.Session}, runner.TerminalEnv...),
		Cmd: runner.ShellCommand(shell, opening, shell),
	})
	if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
		return nil, runner.NotRunning(err.Error()) // the container has stopped since findContainer
	}
	if err != nil {
		return nil, failed("docker", fmt.Errorf("creating an exec: %w", err))
	}
	t.Trail.Set(runner.TrailExec, exec.ID)
	term := &execTerminal{
		kind: k, container: id, exec: exec.ID, shell: shell,
		session: t.Session, log: t.Log, pid: "none", keys: keys,
	}
	if err := term.launch(ctx, size); err != nil {
		if term.conn != nil {
			_ = term.conn.Close()
		}
		// The end of a start that hung hangs too, and the client should not wait for
		// it: a container that is paused while an exec starts can hang for good, with
		// all requests to the engine about it (20.10).
		hung := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
		switch {
		case errors.Is(err, errNoShell):
		case hung:
			term.putOff(false, err)
		default:
			_ = term.end(false) // which logs its own failure
		}
		return nil, err
	}
	return term, nil
}
