package session

import (
	"context"
	"errors"
	"slices"
)

// maxKept bounds the output that is kept for observers who are behind, in bytes.
const maxKept = 1 << 20

// ErrBehind is the error of an observer that took too long: more output came than
// is kept.
var ErrBehind = errors.New("the observer is too far behind")

// ErrNotKept is the error of an observer that wants output that is not kept.
var ErrNotKept = errors.New("the output is no longer kept")

// Observer is told what a shell prints, and slows nobody.
type Observer interface {
	// Output is given what the shell has printed, from the byte at on. The session
	// goes on meanwhile.
	Output(at int64, p []byte) error
}

// observer is an Observer at work.
type observer struct {
	at     int64 // the next byte that it gets
	behind bool  // dropped
}

// Observe gives an observer all that the shell prints from the byte from on, as
// the owner is given it, in the caller's goroutine. It returns nil after the last
// of it, ErrBehind when the observer is more than 1 MiB behind, or sooner when the
// process holds too much, and otherwise the observer's own error or the context's
// cause. From may be 0 before Run, and else no older than what is kept for others.
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

// show gives an observer the next piece. What is kept may be dropped meanwhile, so
// the piece is a copy. The lock is held, but not while the observer has it.
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

// keep keeps what is printed for the observers. Where there is no room, those that
// are furthest behind are dropped. The lock is held.
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

// forget drops what every observer has. The lock is held.
func (s *Session) forget() {
	oldest := s.keptFrom + int64(s.kept.size())
	for _, o := range s.observers {
		oldest = min(oldest, o.at)
	}
	s.kept.drop(int(oldest - s.keptFrom))
	s.keptFrom = oldest
}
