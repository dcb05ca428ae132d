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
	// At the deadline sessions are cut in batches, each session at a random moment of its batch's time: so clients come
	// back one by one, and Docker ends one shell after the other and starts one after the other elsewhere. An engine on
	// two busy cores ends some 25 shells a second.
	batchSize = 8
	batchTime = 500 * time.Millisecond
	// batchesTime bounds the time from the first cut to the last, for any number of sessions, and also the further delay
	// of a cut that waits because the ends of other sessions take long.
	batchesTime = 20 * time.Second
	// endingAtOnce bounds the sessions whose shells are being ended at once, unless the ends take too long (batchesTime).
	endingAtOnce = 32
	// noticeTime is the time that a notice has to be sent before its session is cut, also in a hurry.
	noticeTime = 250 * time.Millisecond
	// DrainTeardown bounds the time that Drain takes after the grace time or the hurry. It includes the longest time that
	// the end of the last session takes if neither Docker nor the database nor the client answers.
	DrainTeardown = 2*batchesTime + 50*time.Second
)

// drainNotice is sent to each client when the drain begins, and again shortly before the session is cut.
const drainNotice = "This gateway goes away for an update and closes this terminal in %s. What runs in it ends then: save your work. A new terminal opens on another gateway."

// Drain ends all sessions, and returns when they are gone, shells included.
//
// At once Drain refuses new sessions and sessions that have no shell yet, and sends each other client a notice of the
// time when its session is cut. Sessions may end by themselves for the grace time; then the rest are cut, in batches.
// When hurry is done the grace time is over, and sessions are cut as fast as shells can be ended. A grace of 0 is the
// same hurry, without notices.
//
// Drain returns an error if sessions are left DrainTeardown after the grace time or the hurry.
func (rt *Router) Drain(hurry context.Context, grace time.Duration) error {
	rt.Metrics.draining.Set(1)
	defer rt.lines.Flush()
	return rt.live.drain(hurry.Done(), grace, rt.Log)
}

// cutTime is the time at which a session is cut.
type cutTime struct {
	id string
	at time.Time
}

func (s *sessions) drain(hurry <-chan struct{}, grace time.Duration, log *slog.Logger) error {
	began := time.Now()
	cutTimes := s.refuse(began, grace)
	if grace > 0 {
		s.wait(began.Add(noticeTime), nil, s.none)
		s.wait(began.Add(grace), hurry, s.none)
	} else {
		now := make(chan struct{})
		close(now)
		hurry = now
	}
	cutting := time.Now()
	early := max(0, began.Add(grace).Sub(cutting)) // the grace time that hurry took away
	if n := s.count(); n > 0 {
		log.Info("cutting sessions", "sessions", n)
	}
	for _, t := range cutTimes {
		s.wait(t.at, hurry, s.none)
		s.wait(t.at.Add(batchesTime-early), nil, s.mayCut) // while endingAtOnce shells are being ended
		s.cutOff(t.id)
	}
	if !s.wait(cutting.Add(DrainTeardown), nil, s.none) {
		return fmt.Errorf("%d sessions have not ended within %s", s.count(), DrainTeardown)
	}
	return nil
}

// refuse lets no session in any more, ends sessions that have no shell yet or nobody there, and returns when to cut the others, in order.
func (s *sessions) refuse(now time.Time, grace time.Duration) (cutTimes []cutTime) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = ErrDraining
	step := min(batchTime, batchesTime/time.Duration(1+len(s.live)/batchSize))
	for id, l := range s.live {
		if l.warn == nil || l.req != nil && l.req.session.Waits() { // nobody comes back to a replica that drains
			l.cancel(ErrDraining)
			continue
		}
		left := grace + time.Duration(len(cutTimes)/batchSize)*step + rand.N(step) //nolint:gosec // it spreads a load and hides nothing
		cutTimes = append(cutTimes, cutTime{id, now.Add(left)})
		if left > time.Second {
			left = left.Truncate(time.Second) // no session is cut before the second in its notice
		}
		if grace > 0 {
			l.warn(left)
		}
	}
	slices.SortFunc(cutTimes, func(a, b cutTime) int { return a.at.Compare(b.at) })
	return cutTimes
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

func (s *sessions) none() bool { return len(s.live) == 0 && s.leaving == 0 }

func (s *sessions) mayCut() bool { return s.cut < endingAtOnce }

// wait waits for a time, for hurry, or until ok returns true, and reports whether ok did. ok is called with the lock
// held, at first and whenever a session has left.
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
