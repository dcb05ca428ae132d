package runner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
)

const (
	// endsAtOnce bounds the sweeps of a runner that run at a time, when hundreds of sessions end.
	endsAtOnce = 32
	// laneWidth bounds those of one container, or of one account on an instance. What hangs there keeps no more.
	laneWidth = 4
	// laneTime is how long a lane in which sweeps have failed is remembered when nobody uses it.
	laneTime = time.Hour
	// misconductTries is how often the sweeps of a container are tried again that answers nonsense or not at all. The pauses
	// between the tries grow: with Timing.Retry of 5 s they are 5, 10, 20, 40 and 80 s.
	misconductTries = 5
)

// misconduct is a sweep's error that is the container's own doing, where the engine does what it should: the sweep ran and did
// not answer, or answered nonsense. What a container does to its own sweeps gets few tries, and what an engine fails gets many.
type misconduct struct{ error }

func (m misconduct) Unwrap() error { return m.error }

func isMisconduct(err error) bool {
	var m misconduct
	return errors.As(err, &m) || errors.Is(err, errNoShell)
}

// growing is the pause before a try, of which so many went before.
func growing(pause time.Duration, tries int) time.Duration {
	return pause << min(tries, misconductTries)
}

// turns lets few sweeps run at a time: each reads every process of its container, so that hundreds at once, after a revocation
// or a proxy's end, would keep each other until all are late. A container can make its own sweeps wait for ever, so it has few
// at a time, and a sweep that takes longer than slow lets another one run beside it.
type turns struct {
	slow    time.Duration
	permits chan struct{}

	mu    sync.Mutex
	lanes map[string]*lane
}

// errHopeless is the error of a turn in a lane in which misconductTries tries have failed, one after the other.
var errHopeless = misconduct{errors.New("sweeping: all tries in the same place have failed")}

// lane has the sweeps of one container.
type lane struct {
	places chan struct{}
	users  int // of the lane, those that wait for a place too

	tries  int           // that have failed, in a row; sweeps that ran at the same time are one try
	failed time.Time     // the last
	pause  time.Duration // after the last
	until  time.Time     // no try before
	rested chan struct{} // closed when a try has worked
}

func newTurns(slow time.Duration) *turns {
	return &turns{slow: slow, permits: make(chan struct{}, endsAtOnce), lanes: map[string]*lane{}}
}

// take waits for a turn in a lane, also while the lane rests after a failure; its error is errHopeless where there were too
// many. The caller gives the turn back by done.
func (t *turns) take(ctx context.Context, name string) (done func(), err error) {
	var l *lane
	for l == nil {
		used, rest, rested := t.use(name, time.Now())
		switch {
		case used == nil && rest == 0:
			return nil, errHopeless
		case used == nil:
			select {
			case <-time.After(rest):
			case <-rested:
			case <-ctx.Done():
				return nil, fmt.Errorf("sweeping: another in the same place has just failed: %w", context.Cause(ctx))
			}
		}
		l = used
	}
	select {
	case l.places <- struct{}{}:
	case <-ctx.Done():
		t.leave(name)
		err := fmt.Errorf("sweeping: others in the same place do not end: %w", context.Cause(ctx))
		if errors.Is(err, context.DeadlineExceeded) {
			err = misconduct{err}
		}
		return nil, err
	}
	select {
	case t.permits <- struct{}{}:
	case <-ctx.Done():
		<-l.places
		t.leave(name)
		return nil, fmt.Errorf("sweeping: too many others end: %w", context.Cause(ctx))
	}
	pass := sync.OnceFunc(func() { <-t.permits })
	late := time.AfterFunc(t.slow, pass)
	return func() {
		late.Stop()
		pass()
		<-l.places
		t.leave(name)
	}, nil
}

// use returns the lane for the caller's try. While the lane rests it returns for how long, and what is closed when that ends
// sooner; and nothing if too many tries have failed.
func (t *turns) use(name string, now time.Time) (l *lane, rest time.Duration, rested <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.lanes, func(_ string, l *lane) bool { return l.users == 0 && now.Sub(l.until) > laneTime })
	l = t.lanes[name]
	if l == nil {
		l = &lane{places: make(chan struct{}, laneWidth), rested: make(chan struct{})}
		t.lanes[name] = l
	}
	if rest = l.until.Sub(now); rest > 0 {
		if l.tries >= misconductTries {
			return nil, 0, nil
		}
		return nil, rest, l.rested
	}
	if l.tries > 0 {
		l.until = now.Add(l.pause) // one try, alone
	}
	l.users++
	return l, 0, nil
}

func (t *turns) leave(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lanes[name]
	if l.users--; l.users == 0 && l.tries == 0 {
		delete(t.lanes, name)
	}
}

// failed has a lane rest in which its caller has a turn since began, longer after each failure.
func (t *turns) failed(name string, began time.Time, pause time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l, now := t.lanes[name], time.Now()
	if began.Before(l.failed) {
		return // the lane already rests for one that ran at the same time
	}
	l.pause = growing(pause, l.tries)
	l.tries++
	l.failed, l.until = now, now.Add(l.pause)
}

// worked ends a lane's rest.
func (t *turns) worked(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lanes[name]
	if l.tries > 0 {
		close(l.rested)
		l.rested = make(chan struct{})
	}
	l.tries, l.until = 0, time.Time{}
}
