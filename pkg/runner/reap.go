package runner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Reap ends what is left of a session whose gateway is gone: its shell and what belongs to it, in the workspace's
// container. It is found by the session's marker alone, so that it is done by any gateway on the container's engine.
//
// Its error is ErrNotRunning when no container of the workspace runs on this engine: then another engine may have it, and
// nothing is known. Without an error nothing is left that could be ended, and the session is over.
func (d *Docker) Reap(ctx context.Context, t Target) error {
	ctx, cancel := context.WithTimeout(ctx, 2*d.cfg.Timing.Start)
	defer cancel()
	container, err := d.findContainer(ctx, t)
	if err != nil {
		return err
	}
	term := &dockerTerminal{docker: d, container: container, session: t.Session, log: t.Log}
	if err := term.findShell(ctx); err != nil {
		return &Error{"shell", err}
	}
	swept, err := term.sweepAll(ctx, d.cfg.EndDetached)
	if err != nil {
		return &Error{"docker", err}
	}
	if term.pid != "none" && swept.Left == 0 {
		swept.Killed++ // the shell, which nobody else has ended
	}
	if swept != (Swept{}) { // else another gateway was sooner, or the shell had ended
		term.report("abandoned session ended", swept, nil)
	}
	return nil
}

// findShell looks for the shell that carries the marker, by the first shell that is there to look. A shell that became
// root (by su, say) shows its environment to root only.
func (t *dockerTerminal) findShell(ctx context.Context) error {
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
	return fmt.Errorf("none of %s is in the container", strings.Join(t.docker.cfg.Shells, ", "))
}

const (
	// owedTime is how long a session's end is tried that was put off. A workspace may be paused overnight.
	owedTime = 24 * time.Hour
	// owedAtOnce bounds how many are tried at once, on an engine that may just have come back.
	owedAtOnce = 8
)

// owed are the ends of sessions that could not be done.
type owed struct {
	mu      sync.Mutex
	running bool // Run is there to pay
	ends    []owedEnd
}

type owedEnd struct {
	term  *dockerTerminal
	all   bool
	until time.Time
}

// add takes in an end that failed, if there is somebody to try it again. The shell that would do it is missing in a
// container that is just stopping, and where it was deleted: then there are fewer tries.
func (o *owed) add(t *dockerTerminal, all bool, err error) bool {
	wait := owedTime
	if errors.Is(err, errNoShell) {
		wait = t.docker.cfg.Timing.RetryShell
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running {
		o.ends = append(o.ends, owedEnd{t, all, time.Now().Add(wait)})
	}
	return o.running
}

// take empties the list.
func (o *owed) take(running bool) []owedEnd {
	o.mu.Lock()
	defer o.mu.Unlock()
	ends := o.ends
	o.ends, o.running = nil, running
	return ends
}

// Run ends what Close could not, until ctx ends; then it tries once more. What it gives up is counted as left.
func (d *Docker) Run(ctx context.Context) error {
	d.owed.take(true)
	tick := time.NewTicker(d.cfg.Timing.Retry)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.settle(ctx, d.owed.take(true), false)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.Timing.RetryLast)
			defer cancel()
			d.settle(last, d.owed.take(false), true)
			return nil
		}
	}
}

// settle tries the ends that are owed; those that fail again are owed on, unless it is the last time.
func (d *Docker) settle(ctx context.Context, ends []owedEnd, last bool) {
	var tries errgroup.Group
	tries.SetLimit(owedAtOnce)
	for _, end := range ends {
		tries.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*d.cfg.Timing.Start)
			defer cancel()
			swept, err := end.term.sweepAll(ctx, end.all)
			if err == nil || last || time.Now().After(end.until) {
				end.term.report("shell ended", swept, err)
				return nil
			}
			d.owed.mu.Lock()
			defer d.owed.mu.Unlock()
			d.owed.ends = append(d.owed.ends, end)
			return nil
		})
	}
	_ = tries.Wait() // no try returns an error
}
