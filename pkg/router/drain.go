package router

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// At the deadline sessions are cut a batch at a time, each at a moment of its own within the batch's time: clients
	// come back one by one, and Docker has one shell after the other to end, and to start again elsewhere. An engine on two
	// busy cores ends some 25 a second.
	batchSize = 8
	batchTime = 500 * time.Millisecond
	// batchesTime is the time in which all have their turn, however many they are, and how much later than that a session
	// is cut at most when the ends of others take long.
	batchesTime = 20 * time.Second
	// endingAtOnce bounds the sessions whose shells are being ended, unless they take too long.
	endingAtOnce = 32
	// noticeTime is what a notice has to leave in before its session is cut, also when somebody hurries.
	noticeTime = 250 * time.Millisecond
	// DrainTeardown is the longest that Drain takes once no session is waited for any more. It leaves the last to be cut
	// the time that a session's end may take if neither Docker nor the database nor the client answers.
	DrainTeardown = 2*batchesTime + 50*time.Second
)

// drainNotice is told at once, and again as the end comes near.
const drainNotice = "This gateway goes away for an update and closes this terminal in %s. What runs in it ends then: save your work. A new terminal opens on another gateway."

// Drain ends what the router carries, and returns when all of it is gone, shells included.
//
// At once new sessions are refused, with those that have no shell yet, and each client is told when its session ends:
// after the time given to people, in its turn. Sessions that end by themselves do so; what is left then is cut. When
// hurry ends nobody is waited for any more, and what is left is cut as fast as shells can be ended. If people are given
// no time there are no notices, and the same haste.
//
// It fails if sessions are left DrainTeardown after that.
func (rt *Router) Drain(hurry context.Context, grace time.Duration) error {
	rt.Metrics.draining.Set(1)
	defer rt.lines.Flush()
	return rt.live.drain(hurry.Done(), grace, rt.Log)
}

// turn is when a session is cut.
type turn struct {
	id string
	at time.Time
}

func (s *sessions) drain(hurry <-chan struct{}, grace time.Duration, log *slog.Logger) error {
	began := time.Now()
	turns := s.refuse(began, grace)
	if grace > 0 {
		s.wait(began.Add(noticeTime), nil, s.none)
		s.wait(began.Add(grace), hurry, s.none)
	} else {
		now := make(chan struct{})
		close(now)
		hurry = now
	}
	cutting := time.Now()
	early := max(0, began.Add(grace).Sub(cutting)) // somebody hurried
	if n := s.count(); n > 0 {
		log.Info("cutting sessions", "sessions", n)
	}
	for _, t := range turns {
		s.wait(t.at, hurry, s.none)
		s.wait(t.at.Add(batchesTime-early), nil, s.mayCut) // apart also when the ends take long
		s.cutOff(t.id)
	}
	if !s.wait(cutting.Add(DrainTeardown), nil, s.none) {
		return fmt.Errorf("%d sessions have not ended within %s", s.count(), DrainTeardown)
	}
	return nil
}

// refuse lets no session in any more, ends those that have no shell yet, and gives the others their turns, in order.
func (s *sessions) refuse(now time.Time, grace time.Duration) (turns []turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = ErrDraining
	step := min(batchTime, batchesTime/time.Duration(1+len(s.live)/batchSize))
	for id, l := range s.live {
		if l.warn == nil {
			l.cancel(ErrDraining)
			continue
		}
		left := grace + time.Duration(len(turns)/batchSize)*step + rand.N(step) //nolint:gosec // it spreads a load and hides nothing
		turns = append(turns, turn{id, now.Add(left)})
		if left > time.Second {
			left = left.Truncate(time.Second) // no session is cut before the second that it was told
		}
		if grace > 0 {
			l.warn(left)
		}
	}
	slices.SortFunc(turns, func(a, b turn) int { return a.at.Compare(b.at) })
	return turns
}

func (s *sessions) cutOff(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[id]; l != nil && !l.cut {
		l.cut = true
		s.cut++
		l.cancel(ErrDraining)
	}
}

func (s *sessions) none() bool { return len(s.live) == 0 }

func (s *sessions) mayCut() bool { return s.cut < endingAtOnce }

// wait waits for a time, or until somebody hurries, or until ok, which is asked with the lock held whenever a session
// has left; it tells whether it is.
func (s *sessions) wait(until time.Time, hurry <-chan struct{}, ok func() bool) bool {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		s.mu.Lock()
		done, gone := ok(), s.gone
		s.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-gone:
		case <-hurry:
			return false
		case <-timer.C:
			return false
		}
	}
}
