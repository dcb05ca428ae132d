// Package host is the kind of place that is a shell of the gateway's own machine.
// Only the demo uses it: whoever has such a terminal is the gateway's user.
package host

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Config says which shell of this machine to open.
type Config struct {
	// Command is run by `sh -c` as the gateway's own user, in Dir.
	Command string
	Dir     string
	// Env is the shell's whole environment, but for runner.TerminalEnv and runner.Marker: never the
	// gateway's own, which may hold a database URL or credentials.
	Env []string
	// KeepDetached spares what was told to stay, at a session's end.
	KeepDetached bool
	// Swept is told what each session's end found. May be nil.
	Swept  func(runner.Swept)
	Timing runner.Timing
}

// Kind opens shells of this machine.
type Kind struct{ cfg Config }

// New returns the kind whose shell is cfg.Command.
func New(cfg Config) *Kind {
	cfg.Timing = cfg.Timing.WithDefaults()
	return &Kind{cfg}
}

// Start opens a terminal. Its error is a *runner.Failure.
func (k *Kind) Start(_ context.Context, t runner.Target, size terminal.Size) (terminal.Terminal, error) {
	cmd := exec.Command("/bin/sh", "-c", k.cfg.Command)
	cmd.Dir = k.cfg.Dir
	cmd.Env = slices.Concat(k.cfg.Env, runner.TerminalEnv, []string{runner.Marker + "=" + t.Session})
	if !slices.ContainsFunc(cmd.Env, isLocale) {
		cmd.Env = append(cmd.Env, "LANG=C.UTF-8")
	}
	shell, err := runner.StartPty(cmd, size, t.Log)
	if err != nil {
		return nil, &runner.Failure{Step: "pty", Err: fmt.Errorf("starting a shell: %w", err)}
	}
	start, err := startTime(shell.PID)
	if err != nil {
		start = "0" // the shell has ended: whatever has its pid is another process
	}
	return &hostTerminal{Pty: shell, kind: k, session: t.Session, start: start}, nil
}

// isLocale reports whether a variable says which letters a terminal shows.
func isLocale(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	return name == "LANG" || name == "LC_ALL" || name == "LC_CTYPE"
}

// Reap finds nothing to end: the shells of a gateway that is gone were hung up.
func (k *Kind) Reap(context.Context, runner.Target) error { return nil }

// Steps are none but the shell itself.
func (k *Kind) Steps(runner.Target, func(context.Context) error) []runner.Step { return nil }

// hostTerminal is a shell of this machine.
type hostTerminal struct {
	*runner.Pty
	kind    *Kind
	session string
	start   string // /proc's start time: a pid is used again, the two together are not

	closing  sync.Once
	closeErr error
}

// Wait ends a shell that closed its terminal and runs on: nobody can reach it any
// more.
func (t *hostTerminal) Wait() (terminal.Exit, error) {
	select {
	case <-t.Exited:
	case <-time.After(t.kind.cfg.Timing.Grace):
		t.Log.Info("the shell closed its terminal and runs on")
		_ = t.Close() // which logs its own failure
	}
	return t.Pty.Wait()
}

// Close ends the shell and what belongs to its session.
func (t *hostTerminal) Close() error {
	t.closing.Do(func() { t.closeErr = t.end() })
	return t.closeErr
}

func (t *hostTerminal) end() error {
	swept, err := sweep(t.PID, t.start, runner.Marker+"="+t.session, t.kind.cfg.KeepDetached, t.kind.cfg.Timing.Grace)
	<-t.Exited
	t.HangUp()
	swept.Report(t.Log, t.kind.cfg.Swept, "shell ended", err)
	return err
}
