package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// end ends what belongs to the session, or puts that off: the container may be paused
// or stopping, its engine away, or the container may prevent it.
func (t *execTerminal) end(keepDetached bool) error {
	err := t.kind.ends.Do(t.endOf(keepDetached))
	if err != nil {
		t.notePutOff(err)
	}
	return err
}

// putOff puts the session's end off without a try.
func (t *execTerminal) putOff(keepDetached bool, err error) {
	t.notePutOff(err)
	t.kind.ends.PutOff(t.endOf(keepDetached), err)
}

func (t *execTerminal) notePutOff(err error) {
	t.noteStray()
	t.log.Warn("the shell's end is put off", "container", t.container, "err", err)
}

func (t *execTerminal) endOf(keepDetached bool) runner.End {
	return runner.End{
		Session: t.session, Lane: t.container, Report: t.report,
		Try: func(ctx context.Context) (runner.Swept, error) { return t.tryEnd(ctx, keepDetached) },
	}
}

func (t *execTerminal) tryEnd(ctx context.Context, keepDetached bool) (runner.Swept, error) {
	if t.abandoned {
		if err := t.findShell(ctx); err != nil {
			return runner.Swept{}, t.blame(err)
		}
	}
	swept, err := t.sweepAll(ctx, keepDetached)
	if err != nil {
		return runner.Swept{}, t.blame(err)
	}
	switch {
	case swept.Left > 0:
	case t.abandoned && t.pid != "none":
		swept.Killed++ // the shell itself
	case t.runsOn():
		swept.Left = 1 // whatever the container says
	}
	if swept.Left > 0 {
		t.noteStray()
	}
	return swept, nil
}

// runsOn reports whether the shell still runs after a sweep, by the engine's own
// record.
func (t *execTerminal) runsOn() bool {
	if t.exec == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.kind.cfg.Timing.Call)
	defer cancel()
	for {
		_, err := t.kind.exitCode(ctx, t.exec)
		switch {
		case err == nil, errdefs.IsNotFound(err):
			return false
		case ctx.Err() != nil:
			return true
		case !errors.Is(err, errRunsOn): // the engine does not know
			return false
		}
	}
}

// sweepAll sweeps: as the shell's own user, who may read the environment of what
// he started. When something there runs as another user, who is not his to
// signal, root sweeps first, by the session alone: root of a container may signal
// all, and read the environment of nothing but root's. So another user's process
// that has left the session is not found, whatever is to end.
func (t *execTerminal) sweepAll(ctx context.Context, keepDetached bool) (runner.Swept, error) {
	swept, err := t.sweep(ctx, "", keepDetached, true)
	if err == nil && swept.Left > 0 {
		root, rootErr := t.sweep(ctx, "0", keepDetached, false)
		var own runner.Swept
		own, err = t.sweep(ctx, "", keepDetached, false)
		swept.Killed, swept.Left = swept.Killed+root.Killed+own.Killed, own.Left
		if err == nil && swept.Left > 0 {
			err = rootErr
		}
	}
	return swept, err
}

// engineFault is an error of the engine itself, before a sweep started.
type engineFault struct{ error }

func (e engineFault) Unwrap() error { return e.error }

// blame returns a failed sweep's error: nil if the container has ended, and with it all
// its processes; a *runner.Misconduct if the engine started the sweep, answers, and has
// not paused the container, whose programs and limits the sweep depends on; err
// otherwise.
func (t *execTerminal) blame(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), t.kind.cfg.Timing.Call)
	defer cancel()
	c, lookErr := t.kind.cli.ContainerInspect(ctx, t.container, client.ContainerInspectOptions{})
	known := lookErr == nil && c.Container.State != nil
	var fault engineFault
	switch {
	case errdefs.IsNotFound(lookErr), known && !c.Container.State.Running:
		return nil
	case errors.Is(err, errNoShell):
	case known && c.Container.State.Paused, errors.As(err, &fault):
		return err
	case !known:
		ping, cancel := context.WithTimeout(context.Background(), t.kind.cfg.Timing.Call)
		defer cancel()
		if t.kind.Ping(ping) != nil {
			return err
		}
	}
	return &runner.Misconduct{Err: err}
}

// report counts and logs the report of a session's end, unless another gateway was
// the first to end an abandoned session.
func (t *execTerminal) report(swept runner.Swept, err error) {
	message := "shell ended"
	if t.abandoned {
		message = "abandoned session ended"
	}
	if !t.abandoned || swept != (runner.Swept{}) {
		swept.Claimed().Report(t.log, t.kind.cfg.Swept, message, err, "container", t.container)
	}
}

func (t *execTerminal) sweep(ctx context.Context, user string, keepDetached, yield bool) (runner.Swept, error) {
	args := runner.Sweep{
		SID: t.pid, Start: t.start, Session: t.session,
		KeepDetached: keepDetached, Grace: t.kind.cfg.Timing.Grace, Yield: yield,
	}.Args()
	var said string
	err := errNoShell
	for _, shell := range t.sweepShells() {
		if said, err = t.runSweep(ctx, shell, user, runner.SweepScript, args); !errors.Is(err, errNoShell) {
			break
		}
	}
	if err != nil {
		return runner.Swept{}, err
	}
	s, ok := runner.ReadSwept(said)
	if !ok {
		return runner.Swept{}, fmt.Errorf("sweeping: the container answered %q", said[:min(len(said), 200)])
	}
	return s, nil
}

var errHung = errors.New("sweeping: the last sweep still runs in the container")

// sweepShells are the shells that may run a sweep: the session's own first, which may
// be gone.
func (t *execTerminal) sweepShells() (shells []string) {
	for _, shell := range slices.Concat([]string{t.shell}, t.kind.cfg.Shells, []string{"/bin/sh"}) {
		if shell != "" && !slices.Contains(shells, shell) {
			shells = append(shells, shell)
		}
	}
	return shells
}

// runSweep runs sweep.sh, or another script, in the container and returns what it says, on one line.
// A shell that is not there is errNoShell, and so is one that the engine could not
// run just then: the exit codes are the same.
//
// Nothing of the image's decides but the shell: the working directory may be gone,
// and some variables would have the shell run or load other things first.
//
// Nothing ends a sweep that hangs: no engine ends an exec, or a program that prints
// without end when nobody listens. So no other is started while one does.
func (t *execTerminal) runSweep(ctx context.Context, shell, user, script string, args []string) (said string, err error) {
	k := t.kind
	if k.sweepHangs(ctx, t.container) {
		return "", errHung
	}
	exec, err := k.cli.ExecCreate(ctx, t.container, client.ExecCreateOptions{
		User: user, AttachStdout: true, AttachStderr: true, WorkingDir: "/",
		Env: []string{"BASH_ENV=", "ENV=", "LD_PRELOAD="},
		Cmd: runner.ShellCommand(shell, script, append([]string{"termgw-sweep"}, args...)...),
	})
	if err != nil {
		err = fmt.Errorf("sweeping: %w", err)
		if ctx.Err() == nil { // else the engine may answer for every other container
			err = engineFault{err}
		}
		return "", err
	}
	stream, err := k.cli.ExecAttach(ctx, exec.ID, client.ExecAttachOptions{})
	if err != nil {
		k.stray.add(t.container, exec.ID, true) // it may have started
		return "", fmt.Errorf("sweeping: %w", err)
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, stream.Close)
	defer stop()
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, io.LimitReader(stream.Reader, 64<<10)); err != nil {
		k.stray.add(t.container, exec.ID, true)
		return "", fmt.Errorf("sweeping: %w", errors.Join(err, context.Cause(ctx)))
	}
	code, endErr := k.exitCode(ctx, exec.ID)
	if endErr != nil {
		k.stray.add(t.container, exec.ID, true)
	}
	said = runner.OneLine(stdout.String() + stderr.String())
	if !strings.HasPrefix(said, "none") && !strings.ContainsAny(said[:min(len(said), 1)], "0123456789") {
		if endErr == nil && runner.NoShell(code, said) {
			return "", fmt.Errorf("sweeping: %w: %s", errNoShell, shell)
		}
		return "", fmt.Errorf("sweeping: the container answered %q", said[:min(len(said), 200)])
	}
	return said, nil
}

// Reap ends what is left of a session whose gateway is gone: its shell and what belongs to it, in the workspace's
// container. It is found by the session's marker alone, so that it is done by any gateway on the container's engine.
//
// Its error is runner.ErrUnknown when no container of the workspace runs on this engine: another engine may have it. Without an error the session is over: nothing is left that could be ended, or what the container has
// made fail is tried again here, and counted if it is given up.
func (k *Kind) Reap(ctx context.Context, t runner.Target) error {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timing.End)
	defer cancel()
	done, err := k.ends.Turn(ctx, "workspace "+t.WorkspaceID)
	if err != nil {
		return failed("docker", err)
	}
	container, err := k.findContainer(ctx, t)
	done()
	switch {
	case errors.Is(err, runner.ErrNotRunning):
		return fmt.Errorf("%w: %w", runner.ErrUnknown, err)
	case err != nil:
		return err
	}
	term := &execTerminal{kind: k, container: container, session: t.Session, log: t.Log, abandoned: true}
	if err := k.ends.Reap(ctx, term.endOf(k.cfg.KeepDetached)); err != nil {
		return failed("docker", err)
	}
	return nil
}

// findShell looks for the shell that carries the marker, by the first shell that is there to look. A shell that became
// root (by su, say) shows its environment to root only.
func (t *execTerminal) findShell(ctx context.Context) error {
	t.pid, t.start = "", ""
	for _, shell := range t.sweepShells() {
		for _, user := range []string{"", "0"} {
			said, err := t.runSweep(ctx, shell, user, runner.SweepScript, runner.FindArgs(t.session))
			if errors.Is(err, errNoShell) {
				break
			}
			if err != nil {
				return err
			}
			if _, err := fmt.Sscan(said, &t.pid, &t.start); err != nil {
				return fmt.Errorf("sweeping: the container answered %q", said[:min(len(said), 200)])
			}
			if t.pid != "none" {
				return nil
			}
		}
		if t.pid != "" {
			return nil
		}
	}
	return fmt.Errorf("%w: none of %s is in the container", errNoShell, strings.Join(t.kind.cfg.Shells, ", "))
}
