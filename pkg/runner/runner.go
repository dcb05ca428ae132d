// Package runner has what the kinds of place share in which a workspace can
// live: the request for a terminal, a failure on the way to it, a shell's child
// and pty, the sweep of what a shell leaves, and the retries of that sweep.
// Each kind is a package below this one and owns the processes that it starts:
// what it started it ends, with everything that belongs to it, and it counts
// what was left.
//
// A kind does not know what carries a shell's bytes, and knows who asked for the shell
// only to tell it to the place's own audit trail.
package runner

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Marker is the environment variable that marks a session's processes. Its
// value is the session's id.
const Marker = "TERMGW_SESSION"

// Target is the workspace to open a terminal in, and the session to open it for.
type Target struct {
	Session     string // marks the shell; 1 to 64 characters of [A-Za-z0-9_-]
	WorkspaceID string
	// Subject is the person who asked for the terminal, the ticket's sub. It decides
	// nothing here: AWS records it, where the row asks for that. Empty at Reap.
	Subject string
	// Attributes are the columns of the workspace's row, by name. A kind reads
	// those that it knows; an empty or missing one means the kind's own default.
	Attributes map[string]string
	Silent     time.Duration // of a session to reap: since its gateway was heard
	Trail      Trail         // takes what others know the session by; nil: nobody asks
	Log        *slog.Logger
}

// ErrNotRunning is the cause of a failure whose workspace has no running
// container.
var ErrNotRunning = errors.New("no container of this workspace is running")

// Failure is a step on the way to a shell, or of its life, that failed. All
// kinds return it, in whichever chain of errors.
type Failure struct {
	Step string // stable, and short enough for a client's detail: "docker", "ssh_auth"; empty: none is told
	// Sentence tells the person at the terminal what to do. Empty: the router's
	// table has one.
	Sentence string
	// Fix tells an operator what to do. Empty: Sentence does.
	Fix string
	// Final reports that no retry mends it before somebody has.
	Final bool
	Err   error // the cause, for operators; it may repeat another program's words
}

func (f *Failure) Error() string {
	if f.Step == "" {
		return f.Err.Error()
	}
	return fmt.Sprintf("%s: %v", f.Step, f.Err)
}

func (f *Failure) Unwrap() error { return f.Err }

// SignalOf names the signal in a shell's exit code, for those that end a shell
// from outside. Docker gives the code alone, in which a shell's own `exit 130`
// looks like an interrupt.
func SignalOf(code int) string {
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

// OneLine returns s with its white space, ends of lines too, as single blanks.
func OneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
