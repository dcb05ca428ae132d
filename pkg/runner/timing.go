package runner

import (
	"cmp"
	"time"
)

// Timing is how long a kind of place waits. Where a field is zero its default holds; tests wait less.
type Timing struct {
	// Grace is the time between the hang-up and the kill; 2 s.
	Grace time.Duration
	// Start bounds everything up to the shell's first byte; 15 s.
	Start time.Duration
	// Call bounds a question to the engine, or a size for it; 15 s.
	Call time.Duration
	// Turn is how long the end of a session may keep those in other places waiting for theirs; 1 s.
	Turn time.Duration
	// Unread is how long the end of a session in a container leaves a terminal open that nobody reads; Grace and 0.5 s.
	Unread time.Duration
	// End bounds one try of a session's end, with the wait for its turn; twice Start.
	End time.Duration
	// Retry is the first pause before an end that has failed is tried again, here and on the instance, which takes whole
	// seconds; 5 s.
	Retry time.Duration
	// RetryLast bounds the last tries, at shutdown; 5 s.
	RetryLast time.Duration

	// Of connections to instances.

	// Linger is how long a connection without a terminal stays open; 30 s.
	Linger time.Duration
	// Alive is the time after which ssh probes an instance that sends nothing; whole seconds, 5 s.
	Alive time.Duration
	// Silent is longer than an instance that lives takes to answer that it opens a session; 5 s.
	Silent time.Duration
	// Lease is how long an instance hears nothing of the gateway before it ends the shells of a connection: nothing else
	// tells it of a tunnel that only went silent while the gateway died. So the gateway sends something every Renew, and
	// may be stopped for a minute. Whole seconds, 5 s and 90 s.
	Renew, Lease time.Duration
	// Cross is how long before the end of a tunnel its terminals go over to another; 3 min.
	Cross time.Duration
}

// Patience is how long a gateway hears nothing of an instance before it gives the connection up; 82 s. The gateway gives up
// first: what the instance heard last may be older by Renew than what the gateway did.
func (t Timing) Patience() time.Duration { return max(t.Lease-t.Renew-t.Lease/30, t.Lease/2) }

// WithDefaults returns the timing with every field set.
func (t Timing) WithDefaults() Timing {
	t.Grace = cmp.Or(t.Grace, 2*time.Second)
	t.Start = cmp.Or(t.Start, 15*time.Second)
	t.Call = cmp.Or(t.Call, 15*time.Second)
	t.Turn = cmp.Or(t.Turn, time.Second)
	t.Unread = cmp.Or(t.Unread, t.Grace+500*time.Millisecond)
	t.End = cmp.Or(t.End, 2*t.Start)
	t.Retry = cmp.Or(t.Retry, 5*time.Second)
	t.RetryLast = cmp.Or(t.RetryLast, 5*time.Second)
	t.Linger = cmp.Or(t.Linger, 30*time.Second)
	t.Alive = cmp.Or(t.Alive, 5*time.Second)
	t.Silent = cmp.Or(t.Silent, 5*time.Second)
	t.Renew = cmp.Or(t.Renew, 5*time.Second)
	t.Lease = cmp.Or(t.Lease, 90*time.Second)
	t.Cross = cmp.Or(t.Cross, 3*time.Minute)
	return t
}
