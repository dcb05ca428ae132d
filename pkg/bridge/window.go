package bridge

import (
	"errors"
	"time"
)

// The window bounds the output that has left the terminal and is not yet rendered: as
// much as the client renders in targetBacklog, plus the output and the
// acknowledgements on their way.
const (
	initialWindow = 64 << 10
	minWindow     = 16 << 10
	maxWindow     = 1 << 20
	targetBacklog = 100 * time.Millisecond
)

// rateInterval is the shortest time over which the client's speed is measured: longer
// than a browser's frame, in which acknowledgements come together.
const rateInterval = 20 * time.Millisecond

// window decides how much output may be under way to the client, by the
// acknowledgements. A client that never acknowledges (raw mode) has no window, and is
// bounded by TCP alone.
//
// limit = rate x (rtt + targetBacklog). The round trip belongs in the product: a far
// client's rate is bounded by limit/rtt, so by rate alone the window would shrink at
// each step. The round trip is measured by WebSocket pings, which a client answers
// without rendering: acknowledgements cannot tell a slow renderer from a long way.
type window struct {
	limit       int   // bytes; 0: no acknowledgement is expected
	sent, acked int64 // offsets in the session's output
	from        int64 // the offset where the client begins

	rtt  time.Duration // the smallest of rtts; 0: not known yet
	rtts [3]time.Duration

	rate       float64   // bytes a second, smoothed; 0: not known yet
	since      time.Time // start of the measured interval; zero: none
	sinceAcked int64
	slack      bool // less than half the window was in use at some time in the interval

	hidden     bool // the client's page is hidden
	shownLimit int  // the limit before that, in bytes
}

var (
	errAckFalls = errors.New("ack: bytes fell")
	errAckAhead = errors.New("ack: more bytes than were sent")
)

// backlog returns the output sent and not acknowledged, in bytes.
func (w *window) backlog() int {
	if w.limit == 0 {
		return 0
	}
	return int(w.sent - w.acked)
}

// begin notes where the client begins: it has the output up to there.
func (w *window) begin(at int64) { w.sent, w.acked, w.from = at, at, at }

// send notes that n bytes are sent.
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

// ack notes that the client has rendered the output up to the offset total. A client
// that comes back may still be rendering what it has.
func (w *window) ack(now time.Time, total int64) error {
	if total < w.from && w.acked == w.from {
		return nil
	}
	if total < w.acked {
		return errAckFalls
	}
	if total > w.sent {
		return errAckAhead
	}
	w.slack = w.slack || w.backlog() < w.limit/2
	w.acked = total
	if w.hidden {
		return nil
	}
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
	// rule): the client's rate is at least this one, so the window may only grow.
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

// hide notes whether the client's page is hidden. Browsers slow a hidden page, so
// its acknowledgements tell nothing of the speed at which it renders: the window is
// the largest, and is not measured. When the page is shown again, the window is the
// former one and is measured from then on.
func (w *window) hide(hidden bool) {
	if hidden == w.hidden {
		return
	}
	w.hidden, w.since = hidden, time.Time{}
	if hidden {
		w.shownLimit, w.limit = w.limit, maxWindow
	} else {
		w.limit = w.shownLimit
	}
}

// fitting returns the limit for a client that renders rate bytes a second.
func (w *window) fitting(rate float64) int {
	return int(min(max(rate*(w.rtt+targetBacklog).Seconds(), minWindow), maxWindow))
}

func (w *window) measureFrom(now time.Time) {
	w.since, w.sinceAcked, w.slack = now, w.acked, false
}
