// Package testenv starts the real parts that tests run against: a Postgres cluster, with standbys and PgBouncer, a Docker
// engine and Podman, with an imported workspace image, and an OpenSSH server, each in a directory of its own. It owns their
// processes and files from start to removal, and knows nothing of the code under test.
//
// As root the tests of a package run in a sandbox (package sandbox): no part touches the machine, and a package sees
// only the processes of its own parts.
//
// A test is skipped if this machine cannot run its part, and the part is named. -short skips all such tests; with
// TERMGW_TEST_REQUIRE=1 a missing part fails the test instead.
//
// [StartPostgres], [StartDocker], [StartPodman] and [StartSSHD] start a part for one test. Tests of a package share parts by an [Env]:
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

// Env holds the parts that the tests of one package share: the first test that asks for a part starts it, and
// [Env.Main] stops all parts. The zero value is ready.
type Env struct {
	// OwnDocker gives each running test an engine that no other test uses, because many tests give containers the same
	// names. Subtests use their test's engine. The next test gets the engine of a test that has ended.
	OwnDocker bool

	postgres lazy[*Postgres]
	docker   lazy[*Docker]
	engines  engines
}

// Main runs the package's tests in a sandbox, stops the shared parts, fails the run if a goroutine is left, and exits.
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
		// Only after passed tests: a test that fails half-way may leave goroutines, which explain nothing.
		code = report(code, goleak.Find())
	}
	os.Exit(code)
}

// Postgres returns the package's cluster. A test uses [Postgres.NewDatabase]; a test that stops the server calls
// [StartPostgres] instead, so as not to disturb other tests.
func (e *Env) Postgres(tb testing.TB) *Postgres {
	tb.Helper()
	p, err := e.postgres.start(func() (*Postgres, error) { return newPostgres(0) })
	check(tb, err)
	return p
}

// Docker returns the package's engine, or with OwnDocker the test's. A test that stops the engine calls [StartDocker].
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

// lazy is a part that is started once. A failed start is remembered, so that tests wait for the part only once.
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

// missingError says what this machine lacks, and what to do.
type missingError string

func (e missingError) Error() string { return string(e) }

// errShort is the error of every part in a run with -short.
const errShort = missingError("needs a part that takes long to start: run without -short")

// unavailable returns the reason why a part cannot run here although its program is installed, or nil.
func unavailable(part string) error {
	switch {
	case testing.Short():
		return errShort
	case os.Geteuid() != 0:
		return missingError("needs " + part + " of its own: run the tests as root")
	case !sandbox.Inside():
		return missingError("needs " + part + " in namespaces of its own, which this root may not make (CAP_SYS_ADMIN)")
	}
	return nil
}

// check skips or fails the test if err says that a part is missing. Any other error fails the test.
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

// sbin lists directories of daemons, which the PATH of a login may lack.
const sbin = "/usr/local/sbin:/usr/sbin:/sbin"

// lookPath is [exec.LookPath] that searches sbin too.
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

// Needs skips a test, or fails it, on a machine without a command, which a package of Debian has.
func Needs(tb testing.TB, command, pack string) {
	tb.Helper()
	if _, err := lookPath(command); err != nil {
		check(tb, missingError("needs "+command+": apt-get install "+pack))
	}
}
