package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// EndsAtOnce bounds the sweeps of a kind that run at a time, when hundreds of sessions end.
	EndsAtOnce = 32
	// LaneWidth bounds those of one container, or of one account on an instance. What hangs there keeps no more.
	LaneWidth = 4
	// MisconductTries is how often the ends of a container are tried again that answers nonsense or not at all. The pauses
	// between the tries grow: with Timing.Retry of 5 s they are 5, 10, 20, 40 and 80 s.
	MisconductTries = 5
)

// Misconduct is the error of a sweep that the container itself made fail: the engine ran it, and it did not answer, or answered
// nonsense. Such a sweep is repeated a few times, one that the engine made fail many times.
type Misconduct struct{ Err error }

func (m *Misconduct) Error() string { return m.Err.Error() }
func (m *Misconduct) Unwrap() error { return m.Err }

func isMisconduct(err error) bool {
	var m *Misconduct
	return errors.As(err, &m)
}

// End is the end of one session.
type End struct {
	Session string
	Lane    string // the container, or account, whose ends are tried and put off together
	// Try sweeps. A *Misconduct in its error says that the lane's container is to blame.
	Try func(context.Context) (Swept, error)
	// Report is called once, with the end's report. An end that is given up has left the session.
	Report func(Swept, error)
}

func (e *End) giveUp(err error) { e.Report(Swept{Left: 1}, err) }

// EndsConfig says how the ends of a kind's sessions are tried.
type EndsConfig struct {
	Timing *Timing // the kind's own, with its defaults
	// For bounds the retries of an end whose container is not to blame.
	For time.Duration
	// RetryMost is the longest pause between these retries; the first is Timing.Retry.
	RetryMost time.Duration
}

// Ends sees that sessions end. Few ends are tried at a time: each sweep reads every process of its container, so that
// hundreds at once, after a revocation or a proxy's end, would keep each other until all are late. A container can make its
// own sweeps wait for ever, so it has few at a time, and a sweep that takes longer than Timing.Turn lets another one run
// beside it.
//
// An end that fails is put off, and with it those of its lane that come later: they are tried again until they are done or
// given up. No lane waits for another.
type Ends struct {
	cfg     EndsConfig
	permits chan struct{}
	ctx     context.Context // of retries; over with Close
	stop    context.CancelFunc
	closing chan struct{} // closed when no more ends are put off
	retries sync.WaitGroup

	mu     sync.Mutex
	lanes  map[string]*lane
	closed bool
}

// lane has the ends of one container.
type lane struct {
	places   chan struct{}
	users    int       // of the lane, those that wait for a place too
	moved    time.Time // when a turn was given back last
	retrying bool
	putOff   []putOff
	trying   []putOff // those that were put off, while they are tried
}

type putOff struct {
	End
	until time.Time
}

// NewEnds returns an Ends for one kind of place. The caller closes it.
func NewEnds(cfg EndsConfig) *Ends {
	e := &Ends{cfg: cfg, permits: make(chan struct{}, EndsAtOnce), closing: make(chan struct{}), lanes: map[string]*lane{}}
	e.ctx, e.stop = context.WithCancel(context.Background())
	return e
}

// ErrPutOff is the error of an end that was put off untried, because others of its lane are put off.
var ErrPutOff = errors.New("sweeping: other ends in the same place are put off")

// Do tries an end, and puts it off if that fails; the error says why.
func (e *Ends) Do(end End) error {
	if e.join(end) {
		return ErrPutOff
	}
	swept, err := e.try(context.Background(), end)
	if err == nil {
		end.Report(swept, nil)
		return nil
	}
	e.PutOff(end, err)
	return err
}

// Reap is Do for a session of another gateway, whose end is put off only for its container's misconduct. With any other error
// the caller tries again.
func (e *Ends) Reap(ctx context.Context, end End) error {
	if e.join(end) {
		return nil
	}
	swept, err := e.try(ctx, end)
	switch {
	case err == nil:
		end.Report(swept, nil)
	case isMisconduct(err):
		e.PutOff(end, err)
	default:
		return err
	}
	return nil
}

// PutOff puts an end off: it is tried again, until it is done or given up.
func (e *Ends) PutOff(end End, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		end.giveUp(err)
		return
	}
	l := e.lane(end.Lane)
	l.add(end, e.cfg.For)
	if !l.retrying {
		l.retrying = true
		e.retries.Go(func() { e.retry(end.Lane, l, isMisconduct(err)) })
	}
}

// join puts an end off, untried, if others of its lane are.
func (e *Ends) join(end End) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.lanes[end.Lane]
	if l == nil || !l.retrying {
		return false
	}
	l.add(end, e.cfg.For)
	return true
}

func (l *lane) add(end End, patience time.Duration) {
	same := func(p putOff) bool { return p.Session == end.Session } // of one that is reaped, again
	if !slices.ContainsFunc(l.putOff, same) && !slices.ContainsFunc(l.trying, same) {
		l.putOff = append(l.putOff, putOff{end, time.Now().Add(patience)})
	}
}

// retry tries the ends of a lane until none is put off; once Close is called, once more.
func (e *Ends) retry(name string, l *lane, misconduct bool) {
	var failures, misconducts int
	if misconduct {
		misconducts = 1
	}
	for pause := e.cfg.Timing.Retry; ; {
		closing := false
		select {
		case <-time.After(pause):
		case <-e.closing:
			closing = true
		}
		e.mu.Lock()
		ends := l.putOff
		l.putOff, l.trying = nil, ends
		e.mu.Unlock()
		if closing {
			e.last(ends)
			return
		}
		worked, rest, err := e.tryAll(ends)
		if worked {
			failures, misconducts = 0, 0
		}
		var givenUp []putOff
		e.mu.Lock()
		l.putOff, l.trying = append(rest, l.putOff...), nil
		switch {
		case isMisconduct(err) && misconducts == MisconductTries:
			givenUp, l.putOff = l.putOff, nil
		case isMisconduct(err):
			pause = growing(e.cfg.Timing.Retry, misconducts)
			misconducts++
		case err != nil:
			failures++
			pause = min(growing(e.cfg.Timing.Retry, failures), e.cfg.RetryMost)
			late := func(p putOff) bool { return time.Now().After(p.until) }
			givenUp = slices.DeleteFunc(slices.Clone(l.putOff), func(p putOff) bool { return !late(p) })
			l.putOff = slices.DeleteFunc(l.putOff, late)
		default:
			pause = e.cfg.Timing.Retry // for those that have come meanwhile
		}
		done := len(l.putOff) == 0
		if done {
			l.retrying = false
			e.tidy(name, l)
		}
		e.mu.Unlock()
		for _, p := range givenUp {
			p.giveUp(err)
		}
		if done {
			return
		}
	}
}

// growing returns the pause before a try, after so many tries.
func growing(pause time.Duration, tries int) time.Duration {
	return pause << min(tries, MisconductTries)
}

// tryAll tries the ends of a lane. The first is tried alone: if it fails, the others would fail too.
func (e *Ends) tryAll(ends []putOff) (worked bool, rest []putOff, err error) {
	if err := e.tryAgain(ends[0]); err != nil {
		return false, ends, err
	}
	var (
		tries errgroup.Group
		mu    sync.Mutex
	)
	tries.SetLimit(LaneWidth)
	for _, p := range ends[1:] {
		tries.Go(func() error {
			failed := e.tryAgain(p)
			if failed != nil {
				mu.Lock()
				defer mu.Unlock()
				rest, err = append(rest, p), failed
			}
			return nil
		})
	}
	_ = tries.Wait() // no try returns an error
	return true, rest, err
}

func (e *Ends) tryAgain(p putOff) error {
	swept, err := e.try(e.ctx, p.End)
	switch {
	case err != nil && e.ctx.Err() != nil:
		return fmt.Errorf("sweeping: %w", context.Cause(e.ctx)) // the gateway's doing, and not the container's
	case err == nil:
		p.Report(swept, nil)
	}
	return err
}

// last tries what is put off once more.
func (e *Ends) last(ends []putOff) {
	var tries sync.WaitGroup
	for _, p := range ends {
		tries.Go(func() {
			if err := e.tryAgain(p); err != nil {
				p.giveUp(err)
			}
		})
	}
	tries.Wait()
}

// Close tries once more what is put off, within Timing.RetryLast, and gives up what fails then, as what comes later does. What
// is being tried goes on meanwhile: no engine ends the sweep of a try that is cancelled.
func (e *Ends) Close() {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		close(e.closing)
	}
	e.mu.Unlock()
	late := time.AfterFunc(e.cfg.Timing.RetryLast, e.stop)
	defer late.Stop()
	e.retries.Wait()
	e.stop()
}

func (e *Ends) try(ctx context.Context, end End) (Swept, error) {
	done, err := e.Turn(ctx, end.Lane)
	if err != nil {
		return Swept{}, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timing.End)
	defer cancel()
	return end.Try(ctx)
}

// Turn waits for a turn in a lane, which the caller gives back by done. It waits for as long as turns of the lane are given
// back, with Timing.End between two at most.
func (e *Ends) Turn(ctx context.Context, name string) (done func(), err error) {
	e.mu.Lock()
	l := e.lane(name)
	l.users++
	e.mu.Unlock()
	held := false
	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if held {
			<-l.places
			l.moved = time.Now()
		}
		l.users--
		e.tidy(name, l)
	}
	patience := time.NewTimer(e.cfg.Timing.End)
	defer patience.Stop()
	stuck := false
	for !held && !stuck && ctx.Err() == nil {
		select {
		case l.places <- struct{}{}:
			held = true
		case <-ctx.Done():
		case now := <-patience.C:
			left := e.untilStuck(l, now)
			stuck = left <= 0
			patience.Reset(left)
		}
	}
	// It may have both now: the time that has passed is the lane's doing in any case.
	if stuck || ctx.Err() != nil {
		leave()
		err := fmt.Errorf("sweeping: others in the same place do not end: %w", cmp.Or(context.Cause(ctx), context.DeadlineExceeded))
		if errors.Is(err, context.DeadlineExceeded) {
			err = &Misconduct{err}
		}
		return nil, err
	}
	patience.Reset(e.cfg.Timing.End)
	select {
	case e.permits <- struct{}{}:
	case <-patience.C:
		leave()
		return nil, fmt.Errorf("sweeping: too many others end: %w", context.DeadlineExceeded)
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("sweeping: too many others end: %w", context.Cause(ctx))
	}
	pass := sync.OnceFunc(func() { <-e.permits })
	late := time.AfterFunc(e.cfg.Timing.Turn, pass)
	return func() {
		late.Stop()
		pass()
		leave()
	}, nil
}

// untilStuck is how long a lane may still take until it counts as stuck.
func (e *Ends) untilStuck(l *lane, now time.Time) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return l.moved.Add(e.cfg.Timing.End).Sub(now)
}

// lane returns a lane. The lock is held.
func (e *Ends) lane(name string) *lane {
	l := e.lanes[name]
	if l == nil {
		l = &lane{places: make(chan struct{}, LaneWidth)}
		e.lanes[name] = l
	}
	return l
}

// tidy forgets a lane that nobody uses. The lock is held.
func (e *Ends) tidy(name string, l *lane) {
	if l.users == 0 && !l.retrying {
		delete(e.lanes, name)
	}
}
