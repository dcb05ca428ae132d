package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Reap ends what is left of a session whose gateway is gone: its shell and what belongs to it, in the workspace's
// container. It is found by the session's marker alone, so that it is done by any gateway on the container's engine.
//
// Its error is ErrNotRunning when no container of the workspace runs on this engine: then another engine may have it, and
// nothing is known. Without an error the session is over: nothing is left that could be ended, or Run tries again what the
// container has made fail, and counts what it gives up.
func (d *Docker) Reap(ctx context.Context, t Target) error {
	ctx, cancel := context.WithTimeout(ctx, 2*d.cfg.Timing.Start)
	defer cancel()
	done, err := d.turns.take(ctx, "workspace "+t.WorkspaceID)
	if err != nil {
		return &Error{"docker", err}
	}
	container, err := d.findContainer(ctx, t)
	done()
	if err != nil {
		return err
	}
	term := &dockerTerminal{docker: d, container: container, session: t.Session, log: t.Log, abandoned: true}
	if d.owed.join(term, d.cfg.EndDetached) {
		return nil
	}
	swept, err := term.sweepInTurn(ctx, d.cfg.EndDetached)
	switch {
	case isMisconduct(err) && d.owed.add(term, d.cfg.EndDetached, err):
		return nil
	case err != nil:
		return &Error{"docker", err}
	}
	term.report(swept, nil)
	return nil
}

// findShell looks for the shell that carries the marker, by the first shell that is there to look. A shell that became
// root (by su, say) shows its environment to root only.
func (t *dockerTerminal) findShell(ctx context.Context) error {
	t.pid, t.start = "", ""
	for _, t.shell = range t.docker.cfg.Shells {
		for _, user := range []string{"", "0"} {
			said, err := t.runSweep(ctx, user, "find", "print", Marker+"="+t.session)
			if errors.Is(err, errNoShell) {
				break
			}
			if err != nil {
				return err
			}
			if _, err := fmt.Sscan(said, &t.pid, &t.start); err != nil {
				return fmt.Errorf("sweeping: the container answered %q", said[:min(len(said), 200)])
			}
			if t.pid != "none" {
				return nil
			}
		}
		if t.pid != "" {
			return nil
		}
	}
	return fmt.Errorf("%w: none of %s is in the container", errNoShell, strings.Join(t.docker.cfg.Shells, ", "))
}

// owedTime is how long a session's end is tried that the engine has failed. A workspace may be paused overnight.
const owedTime = 24 * time.Hour

// errOwed is the error of an end that is put off because others of its container are.
var errOwed = errors.New("sweeping: other ends in the container are put off")

// owed are the ends of sessions that could not be done, by container: each container is tried by itself, by one sweep after
// the other.
type owed struct {
	retry time.Duration

	mu      sync.Mutex
	running bool // Run is there to pay
	debts   map[string]*debt
}

// debt is what is owed to one container.
type debt struct {
	ends  []owedEnd
	tries int       // that have failed by the container's misconduct, in a row
	next  time.Time // of the next try
	busy  bool      // it is being tried
}

type owedEnd struct {
	term  *dockerTerminal
	all   bool
	until time.Time
}

// join takes in an end if others of its container are owed, without a try of its own.
func (o *owed) join(t *dockerTerminal, all bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.debts[t.container] != nil && o.take(t, all)
}

// add takes in an end that failed, if there is somebody to try it again.
func (o *owed) add(t *dockerTerminal, all bool, err error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.take(t, all) {
		return false
	}
	if d := o.debts[t.container]; d.next.IsZero() {
		d.next = time.Now().Add(o.retry)
		if isMisconduct(err) {
			d.tries = 1
		}
	}
	return true
}

func (o *owed) take(t *dockerTerminal, all bool) bool {
	if !o.running {
		return false
	}
	d := o.debts[t.container]
	if d == nil {
		d = &debt{}
		o.debts[t.container] = d
	}
	if !slices.ContainsFunc(d.ends, func(e owedEnd) bool { return e.term.session == t.session }) { // of one that is reaped, again
		d.ends = append(d.ends, owedEnd{t, all, time.Now().Add(owedTime)})
	}
	return true
}

// open lets ends be taken in.
func (o *owed) open() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running, o.debts = true, map[string]*debt{}
}

// close lets no more in, and returns what is owed.
func (o *owed) close() (ends []owedEnd) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range o.debts {
		ends = append(ends, d.ends...)
	}
	o.running, o.debts = false, nil
	return ends
}

// due returns what is to be tried now, by container. Each is given back by settle.
func (o *owed) due(now time.Time) map[string][]owedEnd {
	o.mu.Lock()
	defer o.mu.Unlock()
	due := map[string][]owedEnd{}
	for container, d := range o.debts {
		if !d.busy && !now.Before(d.next) {
			due[container] = d.ends
			d.ends, d.busy = nil, true
		}
	}
	return due
}

// settle takes back what a try has not paid because of an error, and returns what is given up.
func (o *owed) settle(container string, paid bool, unpaid []owedEnd, err error) (givenUp []owedEnd) {
	o.mu.Lock()
	defer o.mu.Unlock()
	d, now := o.debts[container], time.Now()
	d.busy = false
	d.ends = append(unpaid, d.ends...)
	if paid {
		d.tries = 0
	}
	switch {
	case isMisconduct(err) && d.tries == misconductTries:
		givenUp, d.ends = d.ends, nil
	case isMisconduct(err):
		d.next = now.Add(growing(o.retry, d.tries))
		d.tries++
	case err != nil:
		d.next = now.Add(o.retry)
		for _, end := range d.ends {
			if now.After(end.until) {
				givenUp = append(givenUp, end)
			}
		}
		d.ends = slices.DeleteFunc(d.ends, func(e owedEnd) bool { return now.After(e.until) })
	}
	if len(d.ends) == 0 {
		delete(o.debts, container)
	}
	return givenUp
}

// Run ends what Close could not, until ctx ends; then it tries once more. What it gives up is counted as left.
//
// What the engine has failed, because it is away or the container is paused, is tried for a day. What a container makes fail
// itself is tried misconductTries times, and no container waits for another.
func (d *Docker) Run(ctx context.Context) error {
	d.owed.open()
	tick := time.NewTicker(d.cfg.Timing.Retry)
	defer tick.Stop()
	var tries sync.WaitGroup
	for {
		select {
		case <-tick.C:
			for container, ends := range d.owed.due(time.Now()) {
				tries.Go(func() {
					paid, rest, err := d.pay(ctx, ends)
					for _, end := range d.owed.settle(container, paid, rest, err) {
						end.term.report(Swept{}, err)
					}
				})
			}
		case <-ctx.Done():
			tries.Wait()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.Timing.RetryLast)
			defer cancel()
			for _, end := range d.owed.close() {
				tries.Go(func() {
					if err := d.payOne(last, end); err != nil {
						end.term.report(Swept{}, err)
					}
				})
			}
			tries.Wait()
			return nil
		}
	}
}

// pay tries the ends that are owed to one container. The first is tried alone: when it fails, so would the others.
func (d *Docker) pay(ctx context.Context, ends []owedEnd) (paid bool, rest []owedEnd, err error) {
	if err := d.payOne(ctx, ends[0]); err != nil {
		return false, ends, err
	}
	var (
		tries errgroup.Group
		mu    sync.Mutex
	)
	tries.SetLimit(laneWidth)
	for _, end := range ends[1:] {
		tries.Go(func() error {
			failed := d.payOne(ctx, end)
			if failed != nil {
				mu.Lock()
				defer mu.Unlock()
				rest, err = append(rest, end), failed
			}
			return nil
		})
	}
	_ = tries.Wait() // no try returns an error
	return true, rest, err
}

func (d *Docker) payOne(ctx context.Context, end owedEnd) error {
	try, cancel := context.WithTimeout(ctx, 2*d.cfg.Timing.Start)
	defer cancel()
	swept, err := end.term.sweepInTurn(try, end.all)
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("sweeping: %w", context.Cause(ctx)) // the gateway's doing, and not the container's
	case err == nil:
		end.term.report(swept, nil)
	}
	return err
}
