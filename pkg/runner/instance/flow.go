package instance

import (
	"sync"
	"time"
)

// This file bounds the output of a terminal that is under way from sshd to the gateway.
//
// A tunnel carries the bytes of all its terminals one after the other. When a program prints faster than the tunnel is,
// all that sshd may send waits in the tunnel: before the keys of the others, and before the ^C of this terminal. sshd
// may send what the channel's window allows (RFC 4254, section 5.2). So the window is what the tunnel holds in one round
// trip, and as much more as keeps the tunnel busy: then a queue of some milliseconds stands in the tunnel whatever its
// speed.
//
// The round trip is measured while output comes: with a window's adjustment, or each second, goes a request that sshd
// answers in turn with the output, one at a time. The shortest round trip of a connection is that of an empty tunnel; what a round trip
// takes beyond it is the queue. With window w and round trip t the tunnel carries w/t, so a window of w/t × (shortest +
// queue) leads to the wanted queue (FAST TCP, Jin, Wei and Low 2004, has the same rule). Of two round trips in a row the
// shorter counts: a busy machine makes one long, a queue makes both long. A window that was not used up says nothing of
// the tunnel; nor does an answer that the gateway has read late, because the person's client is slower than the tunnel.
//
// sshd's messages are small beside the window (maxOutput): of a large one, all would come at once, and go on as one lump.
//
// A connection's terminals share the shortest round trip, and all see the same queue, so several floods share it.
const (
	// firstWindow is a terminal's window before its first round trip with output: a screen.
	firstWindow = 16 << 10
	leastWindow = 2 * maxOutput
	// mostWindow is OpenSSH's own window (CHAN_SES_WINDOW_DEFAULT, channels.h).
	mostWindow = 2 << 20
	// The wanted queue is as long as the shortest round trip, within these bounds: beside a flood a key takes twice its
	// time, or less.
	leastQueue = 8 * time.Millisecond
	mostQueue  = 50 * time.Millisecond
	// probeEvery is the time between the probes of a terminal that prints little: they show the empty tunnel.
	probeEvery = time.Second
	// promptly is the longest time that an answer may have waited for the gateway to read it.
	promptly = 5 * time.Millisecond
)

// way is what is known of a connection's round trip.
type way struct {
	mu       sync.Mutex
	shortest time.Duration // 0: not known yet
}

// took notes a round trip, and returns the shortest.
func (w *way) took(t time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t = max(t, time.Microsecond); w.shortest == 0 || t < w.shortest {
		w.shortest = t
	}
	return w.shortest
}

// flow is the window of one terminal's output.
type flow struct {
	way     *way
	window  int           // bytes that may be under way
	allowed int           // bytes that sshd may send or has sent, and that have not come
	steep   bool          // the window doubles: no queue was seen yet
	probing bool          // a probe is under way
	asked   time.Time     // when the last probe was sent
	came    int           // bytes since then
	last    time.Duration // the last round trip; 0: none yet
}

func newFlow(w *way) flow {
	return flow{way: w, window: firstWindow, allowed: firstWindow, steep: true}
}

// wideFlow is the flow of a channel that holds nothing back: it has a window of OpenSSH's size, and no probes.
func wideFlow(w *way) flow {
	return flow{way: w, window: mostWindow, allowed: mostWindow, probing: true}
}

// received notes n bytes of output that came. It returns how many more bytes sshd may send, and whether a probe goes
// with them.
func (f *flow) received(n int, now time.Time) (more int, probe bool) {
	f.allowed -= n
	f.came += n
	if more = f.window - f.allowed; more < max(f.window/16, min(maxOutput, f.window/4)) {
		more = 0
	}
	f.allowed += more
	if !f.probing && (more > 0 || now.Sub(f.asked) >= probeEvery) {
		f.asked, f.came, f.probing, probe = now, 0, true, true
	}
	return more, probe
}

// answered notes the answer to the probe. prompt reports whether the answer was read when it came.
func (f *flow) answered(now time.Time, prompt bool) {
	t := max(now.Sub(f.asked), time.Microsecond)
	f.probing = false
	if !prompt {
		return
	}
	shortest := f.way.took(t)
	queue := min(max(shortest, leastQueue), mostQueue)
	previous := f.last
	if f.last = t; previous > 0 {
		t = min(t, previous)
	}
	if f.came < f.window/2 {
		return
	}
	next := int(float64(f.window) * float64(shortest+queue) / float64(t))
	if f.steep = f.steep && t < shortest+queue; f.steep {
		next = 2 * f.window
	}
	f.window = min(max(next, leastWindow), 2*f.window, mostWindow)
}
