// Package shellplace is the smallest kind of place: for tests, and as an example for a
// new kind. The terminal of a workspace whose row has the column shell_dir is /bin/sh
// under a pty, in that directory of the gateway's machine.
package shellplace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Place is this kind's entry for a gateway's runner.Places.
var Place = runner.Place{Name: "shell", Column: "shell_dir", Kind: kind{}}

const (
	grace    = 200 * time.Millisecond
	sweepMax = 30 * time.Second
)

type kind struct{}

// Start starts the shell.
func (k kind) Start(_ context.Context, t runner.Target, size terminal.Size) (terminal.Terminal, error) {
	if err := k.look(t); err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh")
	cmd.Dir = t.Attributes[Place.Column]
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TERM=xterm-256color", "PS1=$ ", runner.Marker + "=" + t.Session}
	pty, err := runner.StartPty(cmd, size, t.Log)
	if err != nil {
		return nil, &runner.Failure{Step: "pty", Err: err}
	}
	return &shell{pty, t}, nil
}

// look returns the failure of a missing directory, or nil.
func (kind) look(t runner.Target) error {
	dir := t.Attributes[Place.Column]
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return &runner.Failure{
			Step: "shell_dir", Final: true, Err: errors.Join(fmt.Errorf("%q is no directory", dir), err),
			Sentence: "The workspace's directory is gone: ask for it to be made again.",
			Fix:      "Make the directory, or correct shell_dir in the workspace's row.",
		}
	}
	return nil
}

// Reap ends the processes of a session that have its marker.
func (kind) Reap(ctx context.Context, t runner.Target) error {
	swept, err := sweep(ctx, runner.Sweep{SID: "find", Session: t.Session, Grace: grace})
	swept.Report(t.Log, nil, "abandoned session ended", err)
	return err
}

// Steps returns one step, which looks at the directory.
func (k kind) Steps(t runner.Target, _ func(context.Context) error) []runner.Step {
	return []runner.Step{{Name: "directory", Run: func(context.Context) (string, error) { return t.Attributes[Place.Column], k.look(t) }}}
}

type shell struct {
	*runner.Pty
	target runner.Target
}

// Close ends the shell and the other processes of the session.
func (s *shell) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), sweepMax)
	defer cancel()
	swept, err := sweep(ctx, runner.Sweep{SID: "find", Session: s.target.Session, Grace: grace})
	s.HangUp()
	s.Signal(unix.SIGKILL)
	<-s.Exited
	swept.Report(s.target.Log, nil, "shell ended", err)
	return err
}

// sweep runs sweep.sh on this machine.
func sweep(ctx context.Context, s runner.Sweep) (runner.Swept, error) {
	argv := append([]string{"-c", runner.SweepScript, "termgw-sweep"}, s.Args()...)
	cmd := exec.CommandContext(ctx, "/bin/sh", argv...)
	cmd.Env = []string{}
	out, err := cmd.Output()
	swept, ok := runner.ReadSwept(strings.TrimSpace(string(out)))
	if !ok {
		return swept, errors.Join(fmt.Errorf("sweeping: %q", out), err)
	}
	return swept, nil
}
