package session

import (
	"context"
	"errors"
	"slices"
)

// maxKept bounds the output that is kept for slow observers, in bytes.
const maxKept = 1 << 20

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
	if from > s.printed || from < s.printed && (len(s.observers) == 0 || from < s.keptFrom) {
		return ErrNotKept
	}
	if len(s.observers) == 0 {
		s.keptFrom = from
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
	n := copy(piece[:], s.kept.from(int(at-s.keptFrom)))
	s.mu.Unlock()
	err := o.Output(at, piece[:n])
	s.mu.Lock()
	me.at += int64(n)
	s.forget()
	return err
}

// keep keeps output for the observers. When there is no room, the observers that are
// furthest behind are dropped. The lock is held.
func (s *Session) keep(p []byte) {
	for p = p[s.kept.push(p):]; len(p) > 0 && len(s.observers) > 0; p = p[s.kept.push(p):] {
		for _, o := range s.observers {
			o.behind = o.behind || o.at == s.keptFrom
		}
		s.observers = slices.DeleteFunc(s.observers, func(o *observer) bool { return o.behind })
		s.forget()
	}
	s.observing.Broadcast()
}

// forget drops the output that every observer was given. The lock is held.
func (s *Session) forget() {
	oldest := s.keptFrom + int64(s.kept.size())
	for _, o := range s.observers {
		oldest = min(oldest, o.at)
	}
	s.kept.drop(int(oldest - s.keptFrom))
	s.keptFrom = oldest
}
