package router

import (
	"context"
	"sync"
	"time"
)

// sessions are the sessions of this replica, also those without a shell yet. Each has
// one of max slots until it is released.
type sessions struct {
	max int

	mu       sync.Mutex
	live     map[string]*live
	released int // the sessions in live that have no slot any more
	draining error
	cut      int           // the sessions in live that drain has cut
	leaving  int           // clients that sessions go on without, and whose connections are not closed yet
	gone     chan struct{} // of a draining replica: closed when the next session leaves
}

// live is one session.
type live struct {
	cancel context.CancelCauseFunc
	warn   func(left time.Duration) // announces the end; nil: there is no shell yet
	cut    bool                     // by drain
	req    *request                 // that opened it; nil: there is no shell yet, or nobody can come back to it

	released bool // the slot is free again; the client may still have output or an error to receive
}

func newSessions(limit int) *sessions {
	return &sessions{max: limit, live: map[string]*live{}, gone: make(chan struct{})}
}

// add gives a session a slot, and returns the session's context. Nobody cancels the
// context of a hijacked request, so the session's comes from the process.
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

// opened notes that a session has its shell, how its client is warned, and the request
// that opened it, if its person may come back. opened returns an error if the replica
// began to drain meanwhile.
func (s *sessions) opened(id string, warn func(left time.Duration), req *request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining != nil {
		return s.draining
	}
	s.live[id].warn, s.live[id].req = warn, req
	return nil
}

// resumable returns the request that opened a session to which its person may come back;
// nil if there is none.
func (s *sessions) resumable(id string) *request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[id]; l != nil && s.draining == nil {
		return l.req
	}
	return nil
}

// has reports whether a session is of this replica.
func (s *sessions) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id] != nil
}

// waiting returns the ids of the sessions that wait for their persons.
func (s *sessions) waiting() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.live {
		if l.req != nil && !l.released && l.req.session.Waits() {
			ids = append(ids, id)
		}
	}
	return ids
}

// leave counts a client that a session goes on without, until left is called.
func (s *sessions) leave() (left func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leaving--
		s.tell()
	}
}

// tell wakes a drain that waits. The lock is held.
func (s *sessions) tell() {
	if s.draining != nil {
		close(s.gone)
		s.gone = make(chan struct{})
	}
}

// release gives a session's slot back, if the session has one: the session is refused,
// or its shell has ended, and the client may take its time to receive the rest. Drain
// waits for the client all the same.
func (s *sessions) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[id]; l != nil {
		l.released = true
		s.released++
	}
}

// remove forgets a session, if add took it in.
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
	s.tell()
}

// end ends a session, if it is of this replica.
func (s *sessions) end(id string, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[id]; l != nil {
		l.cancel(cause)
	}
}

// count returns the number of sessions that have a slot.
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
