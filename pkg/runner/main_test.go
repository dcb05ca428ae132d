package runner

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
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

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

var env testenv.Env

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests mostly wait for the grace between hang-up and kill.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	env.Main(m)
}

// patience is how long a test waits for what a busy machine does late.
const patience = 3 * time.Minute

// timing is how long the runners of these tests wait: short where that is waited out, and long where a busy machine has
// its work done late.
var timing = Timing{
	Grace: 500 * time.Millisecond, Unread: 5 * time.Second, Retry: 500 * time.Millisecond, RetryLast: patience,
	Start: time.Minute,
}

// testDocker is newDocker with that timing, but for what cfg sets.
func testDocker(cli *client.Client, cfg DockerConfig) *Docker {
	cfg.Timing.Grace = cmp.Or(cfg.Timing.Grace, timing.Grace)
	cfg.Timing.Retry = cmp.Or(cfg.Timing.Retry, timing.Retry)
	cfg.Timing.RetryLast = cmp.Or(cfg.Timing.RetryLast, timing.RetryLast)
	cfg.Timing.Unread = cmp.Or(cfg.Timing.Unread, timing.Unread)
	cfg.Timing.Start = cmp.Or(cfg.Timing.Start, timing.Start)
	return newDocker(cli, cfg)
}

var defaultSize = terminal.Size{Cols: 80, Rows: 24}

var sessions atomic.Int64

// newTarget is a target with a session of its own, whose id is found nowhere
// else on the machine, and is the beginning of no other's.
func newTarget(tb testing.TB, container string) Target {
	tb.Helper()
	return Target{
		Session:   fmt.Sprintf("t%d-%04d-%d", os.Getpid(), sessions.Add(1), time.Now().UnixNano()),
		Container: container,
		Log:       slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}
}

// session is a terminal whose output is read all the time.
type session struct {
	terminal.Terminal
	id     string
	swept  *Swept // after Close
	closed bool

	mu      sync.Mutex
	out     []byte
	taken   int   // how much of out expect has passed
	readErr error // set when the reader has ended
	changed chan struct{}
	done    chan struct{}
}

// open starts a terminal by what runner makes; at the test's end it is
// closed, if the test did not.
func open(tb testing.TB, runner func(swept func(Swept)) Starter, target Target) *session {
	tb.Helper()
	var swept Swept
	term, err := runner(func(s Swept) { swept = s }).Start(tb.Context(), target, defaultSize)
	if err != nil {
		tb.Fatal(err)
	}
	s := start(tb, term)
	s.id, s.swept = target.Session, &swept
	return s
}

// start begins to read a terminal.
func start(tb testing.TB, term terminal.Terminal) *session {
	s := &session{Terminal: term, swept: new(Swept), changed: make(chan struct{}, 1), done: make(chan struct{})}
	go s.read()
	tb.Cleanup(func() {
		if !s.closed {
			s.end(tb)
		}
	})
	return s
}

func (s *session) read() {
	defer close(s.done)
	buf := make([]byte, 16<<10)
	for {
		n, err := s.Read(buf)
		s.mu.Lock()
		s.out = append(s.out, buf[:n]...)
		s.readErr = err
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

func (s *session) send(tb testing.TB, input string) {
	tb.Helper()
	if _, err := io.WriteString(s, input); err != nil {
		tb.Fatal(err)
	}
}

// expect waits for text in the output, and passes it.
func (s *session) expect(tb testing.TB, text string) {
	tb.Helper()
	timeout := time.After(patience)
	for {
		s.mu.Lock()
		at := bytes.Index(s.out[s.taken:], []byte(text))
		if at >= 0 {
			s.taken += at + len(text)
		}
		rest, err := string(s.out[s.taken:]), s.readErr
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

// rest waits for the end of the output and returns what expect has not passed.
func (s *session) rest(tb testing.TB) []byte {
	tb.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		tb.Fatal("the output has no end")
	}
	if !errors.Is(s.readErr, io.EOF) {
		tb.Errorf("the output ended with %v", s.readErr)
	}
	return s.out[s.taken:]
}

// exit waits for the output's end and returns how the shell ended.
func (s *session) exit(tb testing.TB) terminal.Exit {
	tb.Helper()
	s.rest(tb)
	exit, err := s.Wait()
	if err != nil {
		tb.Fatal(err)
	}
	return exit
}

// end closes the terminal and returns what that found.
func (s *session) end(tb testing.TB) Swept {
	tb.Helper()
	s.closed = true
	if err := s.Close(); err != nil {
		tb.Error(err)
	}
	s.rest(tb)
	return *s.swept
}

// living names the living processes of a session, in order: by the label in
// their arguments, "<session>.label", and those that have none by their
// command. It sees what the processes of a container have too, by this
// machine's /proc, so that it needs no program in the container, nor one that
// runs.
func living(tb testing.TB, session string) []string {
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
		} else if bytes.Contains(environ, []byte(Marker+"="+session)) {
			command, _, _ := strings.Cut(string(cmdline), "\x00")
			names = append(names, filepath.Base(command))
		}
	}
	slices.Sort(names)
	return names
}

// wantLiving compares what is alive of a session with labels, in order.
func wantLiving(tb testing.TB, session string, want ...string) {
	tb.Helper()
	if got := living(tb, session); !slices.Equal(got, want) {
		tb.Errorf("alive: %q, want %q", got, want)
	}
}

// killLiving ends what a test has made to stay.
func killLiving(tb testing.TB, session string) {
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

// eventually waits until ok.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	within(tb, patience, what, ok)
}

// within is eventually, of what takes its time.
func within(tb testing.TB, limit time.Duration, what string, ok func() bool) {
	tb.Helper()
	// Looking costs: most of what is waited for is read from /proc.
	pause := 5 * time.Millisecond
	for timeout := time.After(limit); !ok(); pause = min(pause*3/2, 100*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-timeout:
			tb.Fatalf("not so after %s: %s", limit, what)
		}
	}
}

// descriptors counts this process's open files, and tasks its OS threads.
func descriptors(tb testing.TB) int { return entries(tb, "/proc/self/fd") }
func tasks(tb testing.TB) int       { return entries(tb, "/proc/self/task") }

func entries(tb testing.TB, dir string) int {
	tb.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	return len(names)
}
