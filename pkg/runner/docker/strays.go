package docker

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// strayLimit is the number of strays at which a container opens no terminal.
	strayLimit = 32
	// strayTime is the time after its last stray at which a container is forgotten.
	strayTime = 24 * time.Hour
)

// strays are execs that were to end and ran on when they were last looked at, by container: sweeps that hang, and shells that
// their sweeps have not ended. Each costs the engine and the container's shim descriptors and memory, and no engine ends one.
type strays struct {
	mu sync.Mutex
	of map[string]*strayExecs
}

type strayExecs struct {
	sweep map[string]bool // by the exec's id
	since time.Time       // of the last that was added
}

func (s *strays) add(container, exec string, sweep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(s.of, func(_ string, e *strayExecs) bool { return now.Sub(e.since) > strayTime })
	if s.of == nil {
		s.of = map[string]*strayExecs{}
	}
	if s.of[container] == nil {
		s.of[container] = &strayExecs{sweep: map[string]bool{}}
	}
	s.of[container].sweep[exec], s.of[container].since = sweep, now
}

// list returns a container's strays, only sweeps or all.
func (s *strays) list(container string, sweeps bool) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[container] == nil {
		return nil
	}
	execs := slices.Collect(maps.Keys(s.of[container].sweep))
	return slices.DeleteFunc(execs, func(exec string) bool { return sweeps && !s.of[container].sweep[exec] })
}

func (s *strays) remove(container, exec string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.of[container]; e != nil {
		delete(e.sweep, exec)
		if len(e.sweep) == 0 {
			delete(s.of, container)
		}
	}
}

// noteStray notes the shell as one that was to end and may run on.
func (t *execTerminal) noteStray() {
	if t.exec != "" {
		t.kind.stray.add(t.container, t.exec, false)
	}
}

// strays counts a container's strays that still run, up to the limit.
func (k *Kind) strays(ctx context.Context, container string) (n int) {
	for _, exec := range k.stray.list(container, false) {
		if n < strayLimit && k.stillRuns(ctx, container, exec) {
			n++
		}
	}
	return n
}

// sweepHangs reports whether a sweep still runs in the container that was given up.
func (k *Kind) sweepHangs(ctx context.Context, container string) bool {
	return slices.ContainsFunc(k.stray.list(container, true), func(exec string) bool { return k.stillRuns(ctx, container, exec) })
}

// stillRuns reports whether a stray still runs, as far as the engine tells, and forgets it if not.
func (k *Kind) stillRuns(ctx context.Context, container, exec string) bool {
	r, err := k.inspectExec(ctx, exec)
	if errdefs.IsNotFound(err) || err == nil && !r.Running {
		k.stray.remove(container, exec)
		return false
	}
	return true
}
