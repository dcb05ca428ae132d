// Package runner starts shells and owns their processes: a Docker exec in a
// workspace's container on this machine, a shell on an instance by ssh, and for
// the demo a shell of this machine under a pty. What it started it ends, with
// everything that belongs to it, and it counts what was left.
//
// It does not know who asked for the shell, nor what carries its bytes.
package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Marker is the environment variable that marks a session's processes. Its
// value is the session's id.
const Marker = "TERMGW_SESSION"

// Target is the workspace to open a terminal in, as its row says.
type Target struct {
	Session     string // marks the shell; 1 to 64 characters of [A-Za-z0-9_-]
	WorkspaceID string
	Name        string
	Container   string // empty: chosen by id and name
	Log         *slog.Logger

	// Of a remote workspace. But for InstanceID, empty means the gateway's own.
	InstanceID   string
	Region       string
	OSUser       string
	HostKey      string // public key of the instance's sshd; empty: the first use is kept
	RemoteTarget string // "container" or "host"
}

// ErrNotRunning means that no container of the workspace runs.
var ErrNotRunning = errors.New("no container of this workspace is running")

// Error is a step of the way to a shell that failed, for operators; its cause
// may come from the engine's own words.
type Error struct {
	Step string // "docker", "shell", "pty": short enough for a client's detail
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Step, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Swept is what the end of a session found besides its shell, in processes.
type Swept struct {
	Killed int // background jobs that were ended
	Kept   int // told to stay: they ignore SIGHUP or have a session of their own
	Left   int // meant to end and still there; should be 0
}

// claimLimit bounds the processes that one session's end may claim to have ended, or kept.
const claimLimit = 1000

// claimed bounds what a container or an instance says of a session's end, for a count that somebody is paged by: it may say
// anything. Of what is left only the session counts, as one.
func (s Swept) claimed() Swept {
	return Swept{min(s.Killed, claimLimit), min(s.Kept, claimLimit), min(s.Left, 1)}
}

var toldSwept = regexp.MustCompile(`^([0-9]{1,7}) ([0-9]{1,7}) ([0-9]{1,7})$`) // Linux has no more processes

// readSwept reads the report of a sweep, which is the container's own word, or the
// account's: only counts pass.
func readSwept(line string) (s Swept, ok bool) {
	m := toldSwept.FindStringSubmatch(line)
	if m == nil {
		return Swept{}, false
	}
	for i, n := range []*int{&s.Killed, &s.Kept, &s.Left} {
		*n, _ = strconv.Atoi(m[i+1]) // seven digits at most
	}
	return s, true
}

// Starter starts a shell. The context bounds the start alone.
type Starter interface {
	Start(context.Context, Target, terminal.Size) (terminal.Terminal, error)
}

// signalOf names the signal in a shell's exit code, for those that end a shell
// from outside. Docker gives the code alone, in which a shell's own `exit 130`
// looks like an interrupt.
func signalOf(code int) string {
	switch code {
	case 128 + 1:
		return "SIGHUP"
	case 128 + 9:
		return "SIGKILL"
	case 128 + 15:
		return "SIGTERM"
	}
	return ""
}

// failure is a log attribute that is there only when there is an error.
func failure(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return slog.Any("err", err)
}

// hundredths is a time as the scripts take it, in hundredths of a second.
func hundredths(d time.Duration) string { return strconv.FormatInt(int64(d/(10*time.Millisecond)), 10) }

// wholeSeconds is a time as the scripts take it in whole seconds, rounded up.
func wholeSeconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
