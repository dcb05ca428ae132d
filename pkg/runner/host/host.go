// Package host is the kind of place for shells of the gateway's own machine. Only the
// demo uses this kind: such a shell runs as the gateway's user.
package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Config describes the shell of this machine.
type Config struct {
	// Command is run by `sh -c` as the gateway's own user, in Dir.
	Command string
	Dir     string
	// Env is the shell's whole environment, except for runner.TerminalEnv and runner.Marker. It must not
	// be the gateway's own, which may hold a database URL or credentials.
	Env []string
	// KeepDetached spares processes that were told to outlive their terminal (nohup, setsid).
	KeepDetached bool
	// Swept is called with the report of each session's end. May be nil.
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

// Start starts cfg.Command under a pty. The error is a *runner.Failure.
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
		start = "0" // the shell has ended: a process that has its pid is another
	}
	machine, _ := os.Hostname() // empty: the trail is without it
	t.Trail.Set(runner.TrailHost, machine)
	t.Trail.Set(runner.TrailPID, strconv.Itoa(shell.PID))
	return &hostTerminal{Pty: shell, kind: k, session: t.Session, start: start}, nil
}

// isLocale reports whether a variable sets the terminal's encoding.
func isLocale(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	return name == "LANG" || name == "LC_ALL" || name == "LC_CTYPE"
}

// Reap does nothing: when a gateway ends, the kernel hangs up its shells.
func (k *Kind) Reap(context.Context, runner.Target) error { return nil }

// Steps returns no steps: there is nothing to check before the shell is started.
func (k *Kind) Steps(runner.Target, func(context.Context) error) []runner.Step { return nil }

// hostTerminal is a shell of this machine.
type hostTerminal struct {
	*runner.Pty
	kind    *Kind
	session string
	start   string // the start time in /proc: a pid is used again, pid and start time together are not

	closing  sync.Once
	closeErr error
}

// Wait returns how the shell ended. A shell that closed its terminal and still runs after
// the grace is ended: nobody can reach it.
func (t *hostTerminal) Wait() (terminal.Exit, error) {
	select {
	case <-t.Exited:
	case <-time.After(t.kind.cfg.Timing.Grace):
		t.Log.Info("the shell closed its terminal and runs on")
		_ = t.Close() // Close logs its error
	}
	return t.Pty.Wait()
}

// Close ends the shell and the other processes of its session.
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
