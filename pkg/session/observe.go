package session

import (
	"context"
	"errors"
	"slices"
)

// Errors of Observe.
var (
	ErrBehind  = errors.New("the observer is too far behind")
	ErrNotKept = errors.New("the output is no longer kept")
)

// Observer gets a shell's output, and slows nobody.
type Observer interface {
	// Output takes the output that begins at offset at. The session goes on
	// meanwhile.
	Output(at int64, p []byte) error
}

// observer is an Observer at work.
type observer struct {
	at     int64 // the offset of the next byte for the observer
	behind bool  // the observer was dropped
}

// Observe gives an observer the output from the offset from on, as the owner is
// given the output, in the caller's goroutine. Observe returns nil after the last
// byte, ErrBehind when the observer is more than 1 MiB behind, or sooner when the
// budget is used up, ErrNotKept when the output at from is neither kept for other
// observers nor the next, the observer's own error, or the cause of ctx.
func (s *Session) Observe(ctx context.Context, o Observer, from int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.keeps() {
		s.kept.begin(s.printed)
	}
	if from > s.printed || from < s.kept.from {
		return ErrNotKept
	}
	me := &observer{at: from}
	s.observers = append(s.observers, me)
	defer func() {
		s.observers = slices.DeleteFunc(s.observers, func(other *observer) bool { return other == me })
		s.forget()
	}()
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.observing.Broadcast()
	})
	defer stop()
	for {
		switch {
		case me.behind:
			return ErrBehind
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case me.at < s.printed:
			if err := s.show(o, me); err != nil {
				return err
			}
		case s.over:
			return nil
		default:
			s.observing.Wait()
		}
	}
}

// show gives an observer the next piece: a copy, since kept output may be dropped
// meanwhile. The lock is held, but not during Output.
func (s *Session) show(o Observer, me *observer) error {
	piece := blocks.Get().(*block)
	defer blocks.Put(piece)
	at := me.at
	n := copy(piece[:], s.kept.at(at))
	s.mu.Unlock()
	err := o.Output(at, piece[:n])
	s.mu.Lock()
	me.at += int64(n)
	s.forget()
	return err
}

// keeps reports whether output is kept. The lock is held.
func (s *Session) keeps() bool { return s.mayResume() || len(s.observers) > 0 }

// keep keeps output for who may ask for it. Where a client can come back there is
// room (awaitRoom); else, when there is none, the observers that are furthest behind
// are dropped. The lock is held.
func (s *Session) keep(p []byte) {
	if s.mayResume() {
		s.kept.mustAdd(p)
	} else {
		for p = p[s.kept.add(p):]; len(p) > 0 && s.dropSlowest(); p = p[s.kept.add(p):] {
		}
		s.forget()
	}
	s.observing.Broadcast()
}

// dropSlowest drops the observers that are furthest behind, if they are all that the
// oldest kept output is for, and reports whether there were any. The lock is held.
func (s *Session) dropSlowest() bool {
	before := len(s.observers)
	for _, o := range s.observers {
		o.behind = o.behind || o.at == s.kept.from
	}
	s.observers = slices.DeleteFunc(s.observers, func(o *observer) bool { return o.behind })
	s.forget()
	return len(s.observers) < before
}

// forget drops the output that nobody may ask for any more. The lock is held.
func (s *Session) forget() {
	oldest := s.kept.to
	if s.opt.Resume > 0 && !s.over {
		oldest = s.held
	}
	for _, o := range s.observers {
		oldest = min(oldest, o.at)
	}
	if s.mayResume() {
		for at := s.kept.from; at < oldest; {
			p := s.kept.at(at)
			p = p[:min(int64(len(p)), oldest-at)]
			s.past.add(p)
			at += int64(len(p))
		}
	}
	s.kept.forget(oldest)
}
