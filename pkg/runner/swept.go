package runner

import (
	_ "embed"
	"log/slog"
	"regexp"
	"strconv"
	"time"
)

// Swept is what the end of a session found besides its shell, in processes.
type Swept struct {
	Killed int // background jobs that were ended
	Kept   int // told to stay: they ignore SIGHUP or have a session of their own
	Left   int // meant to end and still there; should be 0
}

// ClaimLimit bounds the processes that one session's end may claim to have ended, or kept.
const ClaimLimit = 1000

// Claimed bounds what a container or an instance says of a session's end, for a count that somebody is paged by: it may say
// anything. Of what is left only the session counts, as one.
func (s Swept) Claimed() Swept {
	return Swept{min(s.Killed, ClaimLimit), min(s.Kept, ClaimLimit), min(s.Left, 1)}
}

// Report logs what a session's end found, and tells it to count, which may be
// nil.
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

// SweepScript is sweep.sh: it ends what belongs to a session, where the session's
// processes are, and reports what it found.
//
//go:embed sweep.sh
var SweepScript string

// Sweep says which session's processes a run of sweep.sh ends, and how. Its
// fields are the script's words.
type Sweep struct {
	SID, Start   string // of the shell: its pid and its start time in /proc/PID/stat
	Session      string
	KeepDetached bool // spare what was told to stay
	Grace        time.Duration
	Yield        bool // signal nothing if something is another user's
}

// Args are the arguments of sweep.sh.
func (s Sweep) Args() []string {
	return []string{
		"sid=" + s.SID, "start=" + s.Start, "marker=" + Marker + "=" + s.Session,
		"keep_detached=" + strconv.FormatBool(s.KeepDetached), "grace=" + Hundredths(s.Grace), "yield=" + strconv.FormatBool(s.Yield),
	}
}

// FindArgs are the arguments of a sweep.sh that only looks for a session's shell
// by its marker, and says "SID START"; "none 0" if it is not there.
func FindArgs(session string) []string {
	return []string{"find_only=true", "marker=" + Marker + "=" + session}
}

var sweepReport = regexp.MustCompile(`^([0-9]{1,7}) ([0-9]{1,7}) ([0-9]{1,7})$`) // Linux has no more processes

// ReadSwept reads the report of a sweep, which is the container's own word, or the
// account's: only counts pass.
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

// Hundredths is a time as the scripts take it, in hundredths of a second.
func Hundredths(d time.Duration) string {
	return strconv.FormatInt(int64(d/(10*time.Millisecond)), 10)
}

// WholeSeconds is a time as the scripts take it in whole seconds, rounded up.
func WholeSeconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
