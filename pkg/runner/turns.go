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

// lane has the sweeps of one container.
type lane struct {
	places chan struct{}
	users  int // of the lane, those that wait too

	tries int           // that have failed, in a row
	pause time.Duration // after the last
	until time.Time     // no try before
}

func newTurns(slow time.Duration) *turns {
	return &turns{slow: slow, permits: make(chan struct{}, endsAtOnce), lanes: map[string]*lane{}}
}

// take waits for a turn in a lane, and refuses one soon after others in it have failed. The caller gives it back by done.
func (t *turns) take(ctx context.Context, name string) (done func(), err error) {
	l, ok := t.use(name, time.Now())
	if !ok {
		return nil, misconduct{errors.New("sweeping: others in the same place have just failed")}
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

func (t *turns) use(name string, now time.Time) (l *lane, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.lanes, func(_ string, l *lane) bool { return l.users == 0 && now.Sub(l.until) > laneTime })
	l = t.lanes[name]
	if l == nil {
		l = &lane{places: make(chan struct{}, laneWidth)}
		t.lanes[name] = l
	}
	if now.Before(l.until) {
		return nil, false
	}
	if l.tries > 0 {
		l.until = now.Add(l.pause) // one try, alone
	}
	l.users++
	return l, true
}

func (t *turns) leave(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lanes[name]
	if l.users--; l.users == 0 && l.tries == 0 {
		delete(t.lanes, name)
	}
}

// failed has a lane rest that its caller has a turn in, longer after each failure.
func (t *turns) failed(name string, pause time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lanes[name]
	l.pause = growing(pause, l.tries)
	l.tries++
	l.until = time.Now().Add(l.pause)
}

// worked ends a lane's rest.
func (t *turns) worked(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lanes[name]
	l.tries, l.until = 0, time.Time{}
}
