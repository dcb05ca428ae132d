package testenv

import (
	"errors"
	"strings"
	"sync"
	"testing"
)

// engines lends engines to running tests. There are as many engines as tests have run at once.
type engines struct {
	mu   sync.Mutex
	all  []*Docker
	idle []*Docker
	lent map[string]*loan // by the name of the test
	err  error            // of a failed start, which tests wait for only once
}

// loan is an engine in use by a test and its subtests.
type loan struct {
	mu     sync.Mutex // held while the engine starts
	engine *Docker
	users  int // the test and its subtests that have not ended; guarded by engines.mu
}

// lend returns the engine of the top-level test that tb belongs to.
func (e *engines) lend(tb testing.TB) (*Docker, error) {
	test, _, _ := strings.Cut(tb.Name(), "/")
	e.mu.Lock()
	if e.lent == nil {
		e.lent = map[string]*loan{}
	}
	l := e.lent[test]
	if l == nil {
		l = &loan{}
		e.lent[test] = l
	}
	l.users++
	e.mu.Unlock()
	tb.Cleanup(func() { e.giveBack(test, l) })

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.engine == nil {
		engine, err := e.take()
		if err != nil {
			return nil, err
		}
		l.engine = engine
	}
	return l.engine, nil
}

// take returns an engine that is not in use.
func (e *engines) take() (*Docker, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := len(e.idle); n > 0 {
		engine := e.idle[n-1]
		e.idle = e.idle[:n-1]
		return engine, nil
	}
	if e.err != nil {
		return nil, e.err
	}
	engine, err := newDocker()
	if err != nil {
		e.err = err
		return nil, err
	}
	e.all = append(e.all, engine)
	return engine, nil
}

func (e *engines) giveBack(test string, l *loan) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l.users--
	if l.users > 0 {
		return
	}
	delete(e.lent, test)
	if l.engine != nil {
		e.idle = append(e.idle, l.engine)
	}
}

// remove stops all engines and deletes their data.
func (e *engines) remove() error {
	var errs []error
	for _, engine := range e.all {
		errs = append(errs, engine.remove())
	}
	return errors.Join(errs...)
}
