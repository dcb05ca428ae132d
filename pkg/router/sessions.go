package router

import (
	"context"
	"sync"
	"time"
)

// sessions are the live ones of this replica.
type sessions struct {
	max int

	mu       sync.Mutex
	live     map[string]*live
	released int // of the live: they have no place
	draining error
	cut      int           // sessions that drain has cut and that are not gone yet
	gone     chan struct{} // of a draining replica: closed when the next one leaves
}

// live is one session.
type live struct {
	cancel context.CancelCauseFunc
	warn   func(left time.Duration) // announces the end; nil: it has no shell yet
	cut    bool                     // by drain
	// released: it has no place any more, its client is still told why it is refused, or is yet to take what was sent
	released bool
}

func newSessions(limit int) *sessions {
	return &sessions{max: limit, live: map[string]*live{}, gone: make(chan struct{})}
}

// add takes a session in. Its context comes from the process: that of a
// hijacked request is no one's.
func (s *sessions) add(id string) (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining != nil {
		return nil, s.draining
	}
	if s.max > 0 && len(s.live)-s.released >= s.max {
		return nil, errOverloaded
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s.live[id] = &live{cancel: cancel}
	return ctx, nil
}

// opened notes that a session has its shell, and how its client is warned. It
// fails when the replica began to drain meanwhile.
func (s *sessions) opened(id string, warn func(left time.Duration)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining != nil {
		return s.draining
	}
	s.live[id].warn = warn
	return nil
}

// release gives a session's place back, if it was taken in: it is refused, or its
// shell has ended, and its client may take its time to be told. Drain waits for
// that all the same.
func (s *sessions) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[id]; l != nil {
		l.released = true
		s.released++
	}
}

// remove lets a session go, if it was taken in.
func (s *sessions) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.live[id]
	if l == nil {
		return
	}
	l.cancel(nil)
	delete(s.live, id)
	if l.cut {
		s.cut--
	}
	if l.released {
		s.released--
	}
	if s.draining != nil {
		close(s.gone)
		s.gone = make(chan struct{})
	}
}

// end ends a session, if it is one of ours.
func (s *sessions) end(id string, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[id]; l != nil {
		l.cancel(cause)
	}
}

// count is how many have a place: what is refused has none.
func (s *sessions) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live) - s.released
}

func (s *sessions) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining != nil
}
