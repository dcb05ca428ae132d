package bridge

import (
	"errors"
	"time"
)

// The window bounds the output that has left the terminal and is not yet
// rendered. It follows the client: what it renders in targetBacklog, plus what
// is on its way there and back.
const (
	initialWindow = 64 << 10
	minWindow     = 16 << 10
	maxWindow     = 1 << 20
	targetBacklog = 100 * time.Millisecond
)

// rateInterval is the least time over which the client's speed is measured:
// longer than a browser's frame, in which acknowledgements come in bursts.
const rateInterval = 20 * time.Millisecond

// window decides how much output may be under way to the client, from the
// acknowledgements of what it has rendered. A client that never acknowledges
// (raw mode) has no window: TCP is its only bound.
//
// limit = rate x (rtt + targetBacklog). The round trip has to be in it: a far
// client's rate is bounded by limit/rtt, so by rate alone the window would
// shrink at each step. And it has to come from WebSocket pings, which the
// client answers without rendering anything: acknowledgements cannot tell a
// slow renderer from a long way.
type window struct {
	limit       int   // bytes; 0: no acknowledgement is expected
	sent, acked int64 // bytes since the start

	rtt  time.Duration // smallest of the last pings; 0: not known yet
	rtts [3]time.Duration

	rate       float64   // bytes a second, smoothed; 0: not known yet
	since      time.Time // start of the measured interval; zero: none
	sinceAcked int64
	slack      bool // less than half the window was in use at some time in the interval
}

var (
	errAckFalls = errors.New("ack: bytes fell")
	errAckAhead = errors.New("ack: more bytes than were sent")
)

// room tells how many more bytes may be read from the terminal.
func (w *window) room() int {
	if w.limit == 0 {
		return maxWindow
	}
	return max(0, w.limit-w.backlog())
}

// backlog is the output sent and not yet known to be rendered, in bytes.
func (w *window) backlog() int {
	if w.limit == 0 {
		return 0
	}
	return int(w.sent - w.acked)
}

// send notes that n bytes leave.
func (w *window) send(n int) {
	w.slack = w.slack || w.sent == w.acked
	w.sent += int64(n)
}

// pong notes a WebSocket ping's round trip.
func (w *window) pong(rtt time.Duration) {
	w.rtts[2], w.rtts[1], w.rtts[0] = w.rtts[1], w.rtts[0], max(rtt, 1)
	w.rtt = 0
	for _, d := range w.rtts {
		if d > 0 && (w.rtt == 0 || d < w.rtt) {
			w.rtt = d
		}
	}
}

// ack notes that the client has rendered total bytes since the start.
func (w *window) ack(now time.Time, total int64) error {
	if total < w.acked {
		return errAckFalls
	}
	if total > w.sent {
		return errAckAhead
	}
	w.slack = w.slack || w.backlog() < w.limit/2
	w.acked = total
	if w.since.IsZero() {
		w.measureFrom(now)
		return nil
	}
	elapsed := now.Sub(w.since)
	if elapsed < rateInterval {
		return nil
	}
	rate := float64(w.acked-w.sinceAcked) / elapsed.Seconds()
	// With slack the program was slow, not the client (BBR's application-limited
	// rule): the client renders that much at least, so the window may only grow.
	if !w.slack || w.fitting(rate) > w.limit {
		if w.rate == 0 {
			w.rate = rate
		}
		w.rate += (rate - w.rate) / 2
		w.limit = w.fitting(w.rate)
	}
	w.measureFrom(now)
	return nil
}

// fitting is the limit for a client that renders rate bytes a second.
func (w *window) fitting(rate float64) int {
	return int(min(max(rate*(w.rtt+targetBacklog).Seconds(), minWindow), maxWindow))
}

func (w *window) measureFrom(now time.Time) {
	w.since, w.sinceAcked, w.slack = now, w.acked, false
}
