package runner

import (
	"cmp"
	"time"
)

// Timing is how long a runner waits. Where a field is zero its default holds; tests wait less.
type Timing struct {
	// Grace is the time between the hang-up and the kill; 2 s.
	Grace time.Duration
	// Start bounds everything up to the shell's first byte; 15 s.
	Start time.Duration
	// Turn is how long the end of a session may keep those in other containers waiting for theirs; 1 s.
	Turn time.Duration
	// Unread is how long the end of a session in a container leaves a terminal open that nobody reads; Grace and 0.5 s.
	Unread time.Duration
	// End bounds the end of a session in a container, before it is put off; twice Start.
	End time.Duration
	// Retry is the pause between two tries of an end that was put off, and the first of those that grow, after the container's
	// own misconduct and on the instance, which takes whole seconds; 5 s.
	Retry time.Duration
	// RetryLast bounds the last tries, at shutdown; 5 s.
	RetryLast time.Duration

	// Of connections to instances.

	// Linger is how long a connection without a terminal stays open; 30 s.
	Linger time.Duration
	// Alive is the time between two of ssh's own probes, of which aliveCount go unanswered; whole seconds, 15 s.
	Alive time.Duration
	// Silent is longer than an instance that lives takes to answer that it opens a session; 5 s.
	Silent time.Duration
	// Lease is how long an instance hears nothing of the gateway before it ends the shells of a connection: nothing else
	// tells it of a tunnel that only went silent while the gateway died. So the gateway sends something every Renew, and
	// may be stopped for a minute. Whole seconds, 15 s and 90 s.
	Renew, Lease time.Duration
}

// withDefaults returns the timing with every field set.
func (t Timing) withDefaults() Timing {
	t.Grace = cmp.Or(t.Grace, 2*time.Second)
	t.Start = cmp.Or(t.Start, 15*time.Second)
	t.Turn = cmp.Or(t.Turn, time.Second)
	t.Unread = cmp.Or(t.Unread, t.Grace+500*time.Millisecond)
	t.End = cmp.Or(t.End, 2*t.Start)
	t.Retry = cmp.Or(t.Retry, 5*time.Second)
	t.RetryLast = cmp.Or(t.RetryLast, 5*time.Second)
	t.Linger = cmp.Or(t.Linger, 30*time.Second)
	t.Alive = cmp.Or(t.Alive, 15*time.Second)
	t.Silent = cmp.Or(t.Silent, 5*time.Second)
	t.Renew = cmp.Or(t.Renew, 15*time.Second)
	t.Lease = cmp.Or(t.Lease, 90*time.Second)
	return t
}

// open bounds the opening of a terminal on an instance: the promise is Start, and what was begun is ended after it.
func (t Timing) open() time.Duration { return t.Start - t.Start/15 }

// login bounds the opening of a connection, below open so that its own error is told.
func (t Timing) login() time.Duration { return t.open() - t.Start/15 }

// sweep bounds one sweep over a connection: three graces, and the way.
func (t Timing) sweep() time.Duration { return 3*t.Grace + 10*time.Second }
