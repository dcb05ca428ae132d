// Package testenv starts the real parts that tests run against: a Postgres cluster and a Docker engine with an
// imported workspace image, each in a directory of its own. It owns their processes and files from start to
// removal, and knows nothing of what is tested.
//
// A part that this machine cannot run is skipped by name; with TERMGW_TEST_REQUIRE=1 it fails the test instead.
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
)

// Env holds the parts that the tests of one package share: each started by the first test that asks, all stopped by
// [Env.Main]. The zero value is ready.
type Env struct {
	postgres lazy[*Postgres]
	docker   lazy[*Docker]
}

// Main runs the package's tests, stops what they shared, fails the run when a goroutine is left, and exits.
func (e *Env) Main(m *testing.M) {
	code := m.Run()
	if p, ok := e.postgres.running(); ok {
		code = report(code, p.remove())
	}
	if d, ok := e.docker.running(); ok {
		code = report(code, d.remove())
	}
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

// Docker returns the package's engine. A test that stops the engine starts its own by [StartDocker].
func (e *Env) Docker(tb testing.TB) *Docker {
	tb.Helper()
	d, err := e.docker.start(newDocker)
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

// check ends the test when err says that its part is missing or did not start.
func check(tb testing.TB, err error) {
	tb.Helper()
	var missing missingError
	switch {
	case err == nil:
	case errors.As(err, &missing) && os.Getenv("TERMGW_TEST_REQUIRE") != "1":
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
