package router

import (
	"context"
	"sync"
)

// sessions are the live ones of this replica, each with what ends it.
type sessions struct {
	max int

	mu       sync.Mutex
	live     map[string]context.CancelCauseFunc
	draining error
	empty    chan struct{} // closed when a draining replica has none left
}

func newSessions(limit int) *sessions {
	return &sessions{max: limit, live: map[string]context.CancelCauseFunc{}, empty: make(chan struct{})}
}

// add takes a session in. Its context comes from the process: that of a
// hijacked request is no one's.
func (s *sessions) add(id string) (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining != nil {
		return nil, s.draining
	}
	if s.max > 0 && len(s.live) >= s.max {
		return nil, errOverloaded
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s.live[id] = cancel
	return ctx, nil
}

// remove lets a session go, if it was taken in.
func (s *sessions) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.live[id]; cancel != nil {
		cancel(nil)
	}
	delete(s.live, id)
	s.checkEmpty()
}

func (s *sessions) checkEmpty() {
	if s.draining == nil || len(s.live) > 0 {
		return
	}
	select {
	case <-s.empty:
	default:
		close(s.empty)
	}
}

// cut ends a session, if it is one of ours.
func (s *sessions) cut(id string, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.live[id]; cancel != nil {
		cancel(cause)
	}
}

func (s *sessions) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

func (s *sessions) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining != nil
}

// drain refuses new sessions, ends the live ones with the cause, and waits
// until they are gone.
func (s *sessions) drain(ctx context.Context, cause error) error {
	s.mu.Lock()
	s.draining = cause
	for _, cancel := range s.live {
		cancel(cause)
	}
	s.checkEmpty()
	s.mu.Unlock()
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
