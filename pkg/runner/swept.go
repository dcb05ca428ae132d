package runner

import (
	_ "embed"
	"log/slog"
	"regexp"
	"strconv"
	"time"
)

// Swept is the report of a session's end: numbers of processes besides the shell.
type Swept struct {
	Killed int // background jobs that were ended
	Kept   int // told to stay: they ignore SIGHUP or have a session of their own
	Left   int // meant to end and still there; should be 0
}

// ClaimLimit bounds the processes that one session's end may report as killed, or as kept.
const ClaimLimit = 1000

// Claimed bounds the report of a container or an instance, which may claim anything, for a metric with an alert. Any number
// left counts as one: the session.
func (s Swept) Claimed() Swept {
	return Swept{min(s.Killed, ClaimLimit), min(s.Kept, ClaimLimit), min(s.Left, 1)}
}

// Report logs the report of a session's end and calls count, which may be nil.
func (s Swept) Report(log *slog.Logger, count func(Swept), message string, err error, attrs ...any) {
	if count != nil {
		count(s)
	}
	write := log.Info
	if err != nil || s.Left > 0 {
		write = log.Error
	}
	attrs = append(attrs, "killed", s.Killed, "kept", s.Kept, "left", s.Left)
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	write(message, attrs...)
}

// SweepScript is sweep.sh. It runs where a session's processes are, ends them, and
// prints the report.
//
//go:embed sweep.sh
var SweepScript string

// Sweep holds the words of sweep.sh for one session.
type Sweep struct {
	SID, Start   string // of the shell: its pid and its start time in /proc/PID/stat
	Session      string
	KeepDetached bool // spare what was told to stay
	Grace        time.Duration
	Yield        bool // signal nothing if something is another user's
}

// Args returns the arguments of sweep.sh.
func (s Sweep) Args() []string {
	return []string{
		"sid=" + s.SID, "start=" + s.Start, "marker=" + Marker + "=" + s.Session,
		"keep_detached=" + strconv.FormatBool(s.KeepDetached), "grace=" + Hundredths(s.Grace), "yield=" + strconv.FormatBool(s.Yield),
	}
}

// FindArgs returns the arguments with which sweep.sh only looks for a session's shell by
// the marker, and prints "SID START"; "none 0" without a shell.
func FindArgs(session string) []string {
	return []string{"find_only=true", "marker=" + Marker + "=" + session}
}

var sweepReport = regexp.MustCompile(`^([0-9]{1,7}) ([0-9]{1,7}) ([0-9]{1,7})$`) // Linux has no more processes

// ReadSwept parses the report of a sweep. A container or an account may print anything:
// only numbers pass.
func ReadSwept(line string) (s Swept, ok bool) {
	m := sweepReport.FindStringSubmatch(line)
	if m == nil {
		return Swept{}, false
	}
	for i, n := range []*int{&s.Killed, &s.Kept, &s.Left} {
		*n, _ = strconv.Atoi(m[i+1]) // seven digits at most
	}
	return s, true
}

// Hundredths returns a time for the scripts in hundredths of a second.
func Hundredths(d time.Duration) string {
	return strconv.FormatInt(int64(d/(10*time.Millisecond)), 10)
}

// WholeSeconds returns a time for the scripts in whole seconds, rounded up.
func WholeSeconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
