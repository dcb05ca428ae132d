// Package testenv starts the real parts that tests run against: a Postgres cluster, a Docker engine with an imported
// workspace image, and an OpenSSH server, each in a directory of its own. It owns their processes and files from start to
// removal, and knows nothing of what is tested.
//
// As root the tests of a package run in a sandbox (package sandbox): no part touches the machine, and each package sees
// the processes of its own parts alone.
//
// A part that this machine cannot run is skipped by name, and so are all parts with -short; with TERMGW_TEST_REQUIRE=1 a
// part that is missing fails the test instead.
//
// One part for one test is [StartPostgres] or [StartDocker]. The tests of a package share theirs by an [Env]:
//
//	var env testenv.Env
//
//	func TestMain(m *testing.M) { env.Main(m) }
//
//	func TestRedeem(t *testing.T) {
//		url := env.Postgres(t).NewDatabase(t)
package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/molecule-ai/termgw/internal/sandbox"
)

// Env holds the parts that the tests of one package share: each started by the first test that asks, all stopped by
// [Env.Main]. The zero value is ready.
type Env struct {
	// OwnDocker gives every test that runs an engine that no other test uses meanwhile, because names of containers are
	// the same in many tests. Subtests have their test's engine. A test that has ended hands its engine on.
	OwnDocker bool

	postgres lazy[*Postgres]
	docker   lazy[*Docker]
	engines  engines
}

// Main runs the package's tests in a sandbox, stops what they shared, fails the run when a goroutine is left, and exits.
func (e *Env) Main(m *testing.M) {
	sandbox.Enter()
	code := m.Run()
	if p, ok := e.postgres.running(); ok {
		code = report(code, p.remove())
	}
	if d, ok := e.docker.running(); ok {
		code = report(code, d.remove())
	}
	code = report(code, e.engines.remove())
	if code == 0 {
		// Only after tests that passed: a test that failed half-way leaves goroutines that explain nothing.
		code = report(code, goleak.Find())
	}
	os.Exit(code)
}

// Postgres returns the package's cluster. A test wants [Postgres.NewDatabase]; one that stops the server starts its
// own by [StartPostgres], so that it disturbs no other.
func (e *Env) Postgres(tb testing.TB) *Postgres {
	tb.Helper()
	p, err := e.postgres.start(newPostgres)
	check(tb, err)
	return p
}

// Docker returns the package's engine, or the test's. A test that stops the engine starts its own by [StartDocker].
func (e *Env) Docker(tb testing.TB) *Docker {
	tb.Helper()
	start := func() (*Docker, error) { return e.docker.start(newDocker) }
	if e.OwnDocker {
		start = func() (*Docker, error) { return e.engines.lend(tb) }
	}
	d, err := start()
	check(tb, err)
	return d
}

// lazy is a part that is started once; a failure to start is remembered too, so that it is waited for once.
type lazy[T any] struct {
	mu      sync.Mutex
	started bool
	part    T
	err     error
}

func (l *lazy[T]) start(start func() (T, error)) (T, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started {
		l.part, l.err = start()
		l.started = true
	}
	return l.part, l.err
}

func (l *lazy[T]) running() (part T, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.part, l.started && l.err == nil
}

func report(code int, err error) int {
	if err == nil {
		return code
	}
	fmt.Fprintln(os.Stderr, "testenv:", err)
	return 1
}

// missingError names what this machine lacks, in words that say what to do.
type missingError string

func (e missingError) Error() string { return string(e) }

// errShort is told of every part in a run of -short.
const errShort = missingError("needs a part that takes long to start: run without -short")

// own says why a part cannot run here although its program is there; nil: it can. needs names the part.
func own(needs string) error {
	switch {
	case testing.Short():
		return errShort
	case os.Geteuid() != 0:
		return missingError("needs " + needs + " of its own: run the tests as root")
	case !sandbox.Inside():
		return missingError("needs " + needs + " in namespaces of its own, which this root may not make (CAP_SYS_ADMIN)")
	}
	return nil
}

// check ends the test when err says that its part is missing or did not start.
func check(tb testing.TB, err error) {
	tb.Helper()
	var missing missingError
	switch {
	case err == nil:
	case errors.As(err, &missing) && (missing == errShort || os.Getenv("TERMGW_TEST_REQUIRE") != "1"):
		tb.Skip(missing)
	default:
		tb.Fatal(err)
	}
}

// sbin is where distributions keep daemons that a login's PATH may lack.
const sbin = "/usr/local/sbin:/usr/sbin:/sbin"

// lookPath is [exec.LookPath] that also looks where daemons are kept.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range filepath.SplitList(sbin) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}
