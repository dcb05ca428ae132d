// Package shelltest is for tests of the kinds of place: terminals whose output is read
// all the time, and processes whose arguments name their session.
package shelltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Patience is the longest time that a test waits for a busy machine.
const Patience = 3 * time.Minute

// Timing is the timing of kinds under test: short where a test waits for all of the time, and long where a busy machine
// may be late.
var Timing = runner.Timing{
	Grace: 500 * time.Millisecond, Unread: 5 * time.Second, Retry: 500 * time.Millisecond, RetryLast: Patience,
	Start: time.Minute, Call: time.Minute,
}

// DefaultSize is the size of a terminal that Open starts.
var DefaultSize = terminal.Size{Cols: 80, Rows: 24}

var sessions atomic.Int64

// NewTarget returns a target with a new session id. The id occurs nowhere else on the
// machine, and no other id begins with it.
func NewTarget(tb testing.TB, container string) runner.Target {
	tb.Helper()
	return runner.Target{
		Session:    fmt.Sprintf("t%d-%04d-%d", os.Getpid(), sessions.Add(1), time.Now().UnixNano()),
		Attributes: map[string]string{"container": container},
		Log:        slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}
}

// Starter is the method of a runner.Kind that opens terminals.
type Starter interface {
	Start(context.Context, runner.Target, terminal.Size) (terminal.Terminal, error)
}

// Session is a terminal whose output is read all the time.
type Session struct {
	terminal.Terminal
	ID     string
	Closed bool // by the test

	Swept *runner.Swept // set after Close

	mu      sync.Mutex
	Out     []byte // all output
	taken   int    // bytes of Out that Expect has passed
	ReadErr error  // set once Done is closed
	changed chan struct{}
	Done    chan struct{} // closed at the end of the output
}

// Open starts a terminal of the kind that kind returns. The terminal is closed at the
// end of the test, unless the test has closed it.
func Open(tb testing.TB, kind func(swept func(runner.Swept)) Starter, target runner.Target) *Session {
	tb.Helper()
	var swept runner.Swept
	term, err := kind(func(s runner.Swept) { swept = s }).Start(tb.Context(), target, DefaultSize)
	if err != nil {
		tb.Fatal(err)
	}
	s := Start(tb, term)
	s.ID, s.Swept = target.Session, &swept
	return s
}

// Start returns the Session of a terminal, and begins to read.
func Start(tb testing.TB, term terminal.Terminal) *Session {
	s := &Session{Terminal: term, Swept: new(runner.Swept), changed: make(chan struct{}, 1), Done: make(chan struct{})}
	go s.read()
	tb.Cleanup(func() {
		if !s.Closed {
			s.End(tb)
		}
	})
	return s
}

func (s *Session) read() {
	defer close(s.Done)
	buf := make([]byte, 16<<10)
	for {
		n, err := s.Read(buf)
		s.mu.Lock()
		s.Out = append(s.Out, buf[:n]...)
		s.ReadErr = err
		s.mu.Unlock()
		select {
		case s.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// Send types input.
func (s *Session) Send(tb testing.TB, input string) {
	tb.Helper()
	if _, err := io.WriteString(s, input); err != nil {
		tb.Fatal(err)
	}
}

// Expect waits for text in the output. The next Expect looks behind that text.
func (s *Session) Expect(tb testing.TB, text string) {
	tb.Helper()
	timeout := time.After(Patience)
	for {
		s.mu.Lock()
		at := bytes.Index(s.Out[s.taken:], []byte(text))
		if at >= 0 {
			s.taken += at + len(text)
		}
		rest, err := string(s.Out[s.taken:]), s.ReadErr
		s.mu.Unlock()
		if at >= 0 {
			return
		}
		if err != nil {
			tb.Fatalf("no %q before %v in %q", text, err, rest)
		}
		select {
		case <-s.changed:
		case <-timeout:
			tb.Fatalf("no %q in %q", text, rest)
		}
	}
}

// Output returns all output so far. It is not to be changed.
func (s *Session) Output() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Out
}

// Rest waits for the end of the output, and returns the output that Expect has not passed.
func (s *Session) Rest(tb testing.TB) []byte {
	tb.Helper()
	select {
	case <-s.Done:
	case <-time.After(Patience):
		tb.Fatal("the output has no end")
	}
	if !errors.Is(s.ReadErr, io.EOF) {
		tb.Errorf("the output ended with %v", s.ReadErr)
	}
	return s.Out[s.taken:]
}

// Exit waits for the end of the output, and returns how the shell ended.
func (s *Session) Exit(tb testing.TB) terminal.Exit {
	tb.Helper()
	s.Rest(tb)
	exit, err := s.Wait()
	if err != nil {
		tb.Fatal(err)
	}
	return exit
}

// End closes the terminal, and returns the report of the sweep.
func (s *Session) End(tb testing.TB) runner.Swept {
	tb.Helper()
	s.Closed = true
	if err := s.Close(); err != nil {
		tb.Error(err)
	}
	s.Rest(tb)
	return *s.Swept
}

// EndSoon is End where the session's end may be put off, because the end of another in
// the same place is.
func (s *Session) EndSoon(tb testing.TB) {
	tb.Helper()
	s.Closed = true
	if err := s.Close(); err != nil && !errors.Is(err, runner.ErrPutOff) {
		tb.Error(err)
	}
}

// Living returns the names of a session's living processes, sorted. A process's name is
// the label in its arguments, "<session>.label", or else its command. Living reads this
// machine's /proc, which has the processes of containers too: so it needs no program in
// the container, and the container need not run.
func Living(tb testing.TB, session string) []string {
	tb.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for _, dir := range dirs {
		stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
		_, state, ok := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
		if !ok || strings.ContainsAny(state[:1], "ZX") {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if _, label, ok := strings.Cut(string(cmdline), session+"."); ok {
			label, _, _ = strings.Cut(label, "\x00")
			names = append(names, label)
		} else if bytes.Contains(environ, []byte(runner.Marker+"="+session)) {
			command, _, _ := strings.Cut(string(cmdline), "\x00")
			names = append(names, filepath.Base(command))
		}
	}
	slices.Sort(names)
	return names
}

// WantLiving compares the names of a session's living processes with want, which is sorted.
func WantLiving(tb testing.TB, session string, want ...string) {
	tb.Helper()
	if got := Living(tb, session); !slices.Equal(got, want) {
		tb.Errorf("alive: %q, want %q", got, want)
	}
}

// KillLiving kills the session's processes that have a label.
func KillLiving(tb testing.TB, session string) {
	tb.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if !strings.Contains(string(cmdline), session+".") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			tb.Fatal(err)
		}
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill() // it may have ended by itself
			_ = p.Release()
		}
	}
}

// Eventually waits until ok returns true, and fails the test after Patience.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	Within(tb, Patience, what, ok)
}

// Within is Eventually with a limit of its own.
func Within(tb testing.TB, limit time.Duration, what string, ok func() bool) {
	tb.Helper()
	// The pause grows because ok is costly: most often it reads /proc.
	pause := 5 * time.Millisecond
	for timeout := time.After(limit); !ok(); pause = min(pause*3/2, 100*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-timeout:
			tb.Fatalf("not so after %s: %s", limit, what)
		}
	}
}

// Descriptors counts this process's open files.
func Descriptors(tb testing.TB) int { return Entries(tb, "/proc/self/fd") }

// Tasks counts this process's OS threads.
func Tasks(tb testing.TB) int { return Entries(tb, "/proc/self/task") }

// Entries counts the files of a directory.
func Entries(tb testing.TB, dir string) int {
	tb.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	return len(names)
}

// Job returns a command line of one process, with the label <session>.label, that
// prints up=42 when it is ready, and lives until a signal ends it. setup is Perl, which
// Debian and Ubuntu always have: Perl forks, handles signals and renames itself without a
// second process, so a test counts the processes that it has asked for. The process is
// not ready while its parent is about to exit and would be counted too: setsid(1), a
// subshell, or the process from which setup has forked.
func Job(label, setup string) string {
	return `perl -e '` + setup + `; while (open P, "/proc/" . getppid . "/stat") { ` +
		`last unless <P> =~ /\((setsid|perl|bash|dash|sh)\) [^Z] \d+ \d+ (\d+)/ && ($1 =~ /^[sp]e/ || $2 != getppid); ` +
		`select undef, undef, undef, .01 } ` +
		`open T, ">&=9"; syswrite T, "up=" . 6*7 . "\n"; close T; sleep 1 while 1' ` +
		`"$TERMGW_SESSION.` + label + `"`
}

// Ready types a line with a Job, and waits until the process is ready.
func (s *Session) Ready(tb testing.TB, line string) {
	tb.Helper()
	s.Send(tb, "exec 9>/dev/tty\n"+line+"\n")
	s.Expect(tb, "up=42")
}

// Started waits until the shell does what is typed: the engine says that it runs a little before it is the shell.
func (s *Session) Started(tb testing.TB) {
	tb.Helper()
	s.Send(tb, "echo up=$((6*7))\n")
	s.Expect(tb, "up=42")
}

// WantStep fails the test unless err is a runner.Failure of the step.
func WantStep(tb testing.TB, err error, step string) {
	tb.Helper()
	var e *runner.Failure
	if !errors.As(err, &e) || e.Step != step {
		tb.Errorf("got %v, want a failure of step %q", err, step)
	}
}

// By returns the argument of Open for a kind whose sweeps the test does not look at.
func By(s Starter) func(func(runner.Swept)) Starter {
	return func(func(runner.Swept)) Starter { return s }
}

// WantNameRefused fails the test unless the kind refuses the container that was found by
// the workspace's name, and tells the person why.
func WantNameRefused(tb testing.TB, kind Starter, target runner.Target) {
	tb.Helper()
	term, err := kind.Start(tb.Context(), target, DefaultSize)
	if err == nil {
		tb.Errorf("a workspace named %q opens another workspace's container", target.Attributes["name"])
		_ = term.Close()
		return
	}
	var told *runner.Failure
	if !errors.Is(err, runner.ErrNotRunning) || !errors.As(err, &told) || !strings.Contains(told.Sentence, "let the workspace query return container") {
		tb.Error(err)
	}
}
