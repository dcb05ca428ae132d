package bridge

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// far simulates, in virtual time, a program, a window and a client some way
// off that renders at a known speed and acknowledges every 8 KiB.
type far struct {
	window
	now    time.Time
	rtt    time.Duration
	speed  float64       // bytes a second that the client renders
	output float64       // bytes a second that the program prints; 0: all that it may
	frame  time.Duration // acknowledgements leave together, once in this time; 0: each by itself

	toClient, toServer []parcel
	printed, budget    float64
	backlog            int     // arrived and not yet rendered
	rendered, told     int64   // bytes
	queued             []int64 // acknowledgements that wait for the frame's end
	peak               int     // of backlog, since the last measurement
}

type parcel struct {
	at time.Time
	n  int64
}

func newFar(rtt time.Duration, speed float64) *far {
	f := &far{now: time.Unix(0, 0), rtt: rtt, speed: speed}
	f.limit = initialWindow
	f.pong(rtt)
	return f
}

// run lets time pass and returns what was rendered in it, in bytes a second.
func (f *far) run(t *testing.T, d time.Duration) float64 {
	t.Helper()
	const step = 250 * time.Microsecond
	before := f.rendered
	f.peak = 0
	for end := f.now.Add(d); f.now.Before(end); f.now = f.now.Add(step) {
		for len(f.toClient) > 0 && !f.toClient[0].at.After(f.now) {
			f.backlog += int(f.toClient[0].n)
			f.toClient = f.toClient[1:]
		}
		f.peak = max(f.peak, f.backlog)
		f.budget += f.speed * step.Seconds()
		n := min(f.backlog, int(f.budget))
		f.backlog -= n
		f.rendered += int64(n)
		f.budget -= float64(n)
		if f.backlog == 0 {
			f.budget = 0
		}
		if f.rendered-f.told >= 8<<10 || f.backlog == 0 && f.rendered > f.told {
			for f.told < f.rendered {
				f.told = min(f.told+8<<10, f.rendered)
				f.queued = append(f.queued, f.told)
			}
		}
		if f.frame == 0 || f.now.UnixNano()%int64(f.frame) == 0 {
			for _, total := range f.queued {
				f.toServer = append(f.toServer, parcel{f.now.Add(f.rtt / 2), total})
			}
			f.queued = nil
		}
		for len(f.toServer) > 0 && !f.toServer[0].at.After(f.now) {
			if err := f.ack(f.now, f.toServer[0].n); err != nil {
				t.Fatal(err)
			}
			f.toServer = f.toServer[1:]
		}
		n = f.room()
		if f.output > 0 {
			f.printed += f.output * step.Seconds()
			n = min(n, int(f.printed))
			f.printed -= float64(n)
		}
		if n > 0 {
			f.send(n)
			f.toClient = append(f.toClient, parcel{f.now.Add(f.rtt / 2), int64(n)})
		}
	}
	return float64(f.rendered-before) / d.Seconds()
}

// settled is the limit that a speed and a distance deserve, and the bytes a
// second that it lets through.
func (f *far) settled() (limit, through float64) {
	limit = min(max(f.speed*(f.rtt+targetBacklog).Seconds(), minWindow), maxWindow)
	through = f.speed
	if f.rtt+f.frame > 0 {
		through = min(through, limit/(f.rtt+f.frame).Seconds())
	}
	return limit, through
}

func (f *far) assertSettled(t *testing.T) {
	t.Helper()
	limit, through := f.settled()
	got := f.run(t, 5*time.Second)
	if got < 0.9*through {
		t.Errorf("rendered %.2f MB/s of the %.2f possible", got/1e6, through/1e6)
	}
	if l := float64(f.limit); l < 0.75*limit || l > 1.25*limit {
		t.Errorf("the window is %d bytes, want about %.0f", f.limit, limit)
	}
	// What waits at the client: the target, or what the bounds leave of it.
	want := max(limit-through*f.rtt.Seconds(), 16<<10) + f.speed*f.frame.Seconds()
	if float64(f.peak) > 1.25*want {
		t.Errorf("%d bytes wait to be rendered (%.0f ms), want at most about %.0f",
			f.peak, 1000*float64(f.peak)/f.speed, want)
	}
}

var rtts = []time.Duration{0, 20 * time.Millisecond, 200 * time.Millisecond}

func TestWindowFollowsTheClient(t *testing.T) {
	for _, mb := range []float64{0.25, 1, 5, 30} {
		for _, rtt := range rtts {
			for _, frame := range []time.Duration{0, 16 * time.Millisecond} {
				t.Run(fmt.Sprintf("%g MB a second at %s in frames of %s", mb, rtt, frame), func(t *testing.T) {
					f := newFar(rtt, mb*1e6)
					f.frame = frame
					f.run(t, 10*time.Second)
					f.assertSettled(t)
				})
			}
		}
	}
}

func TestWindowFollowsAChangeOfSpeed(t *testing.T) {
	for _, rtt := range rtts {
		for _, mb := range [][2]float64{{5, 0.25}, {0.25, 5}} {
			t.Run(fmt.Sprintf("from %g to %g MB a second at %s", mb[0], mb[1], rtt), func(t *testing.T) {
				f := newFar(rtt, mb[0]*1e6)
				f.run(t, 10*time.Second)
				f.speed = mb[1] * 1e6
				f.run(t, 10*time.Second)
				f.assertSettled(t)
			})
		}
	}
}

// A program that prints slowly says nothing of the client's speed: when it
// starts to flood, the window must still be there.
func TestSlowOutputDoesNotShrinkTheWindow(t *testing.T) {
	for _, rtt := range rtts {
		for _, output := range []float64{1e3, 100e3, 500e3} {
			t.Run(fmt.Sprintf("%g B a second at %s", output, rtt), func(t *testing.T) {
				fresh := newFar(rtt, 5e6)
				fresh.output = output
				fresh.run(t, 10*time.Second)
				if fresh.limit < initialWindow {
					t.Errorf("a new session's window fell to %d", fresh.limit)
				}
				f := newFar(rtt, 5e6)
				f.run(t, 10*time.Second)
				before := f.limit
				f.output = output
				f.run(t, 10*time.Second)
				if float64(f.limit) < 0.9*float64(before) {
					t.Errorf("the window fell from %d to %d", before, f.limit)
				}
			})
		}
	}
}

func TestSilenceDoesNotShrinkTheWindow(t *testing.T) {
	for _, rtt := range rtts {
		f := newFar(rtt, 5e6)
		f.run(t, 10*time.Second)
		before := f.limit
		f.output = 1e-9
		f.run(t, 10*time.Second)
		f.output = 0
		for range 100 {
			f.run(t, 10*time.Millisecond)
			if float64(f.limit) < 0.9*float64(before) {
				t.Fatalf("at %s: the window fell from %d to %d", rtt, before, f.limit)
			}
		}
	}
}

// The same when the silence began just as a measurement did.
func TestSilenceIsNotMeasured(t *testing.T) {
	now := time.Unix(0, 0)
	w := window{limit: initialWindow}
	w.send(8 << 10)
	if err := w.ack(now, 8<<10); err != nil {
		t.Fatal(err)
	}
	w.send(initialWindow)
	if err := w.ack(now.Add(10*time.Second), 16<<10); err != nil {
		t.Fatal(err)
	}
	if w.limit != initialWindow {
		t.Errorf("the window went to %d", w.limit)
	}
}

// A browser slows what a hidden page does, down to a little once a minute: what it
// acknowledges then shrinks no window, neither then nor when it is shown again.
func TestHiddenPageIsNotMeasured(t *testing.T) {
	for _, rtt := range rtts {
		t.Run(rtt.String(), func(t *testing.T) {
			f := newFar(rtt, 1e6)
			f.run(t, 10*time.Second)
			shown := f.limit
			f.hide(true)
			f.speed = 16e3
			for range 2 {
				f.run(t, 5*time.Second)
				if f.limit != maxWindow {
					t.Fatalf("the hidden page's window is %d bytes", f.limit)
				}
				f.hide(true) // again, which changes nothing
			}
			f.hide(false)
			if f.limit != shown {
				t.Errorf("the window is %d bytes, before the page was hidden it was %d", f.limit, shown)
			}
			f.speed = 1e6
			f.run(t, 10*time.Second)
			f.assertSettled(t)
		})
	}
}

// The same for a page that was hidden from the start.
func TestHiddenPageFromTheStart(t *testing.T) {
	f := newFar(20*time.Millisecond, 16e3)
	f.hide(true)
	f.run(t, 5*time.Second)
	if f.limit != maxWindow {
		t.Errorf("the hidden page's window is %d bytes", f.limit)
	}
	f.hide(false)
	if f.limit != initialWindow {
		t.Errorf("the window is %d bytes when the page is shown", f.limit)
	}
	f.speed = 5e6
	f.run(t, 10*time.Second)
	f.assertSettled(t)
}

func TestWindowWithoutAcks(t *testing.T) {
	var raw window
	raw.send(10 << 20)
	if raw.room() == 0 || raw.backlog() != 0 {
		t.Errorf("raw mode: room %d, backlog %d", raw.room(), raw.backlog())
	}
	w := window{limit: initialWindow}
	w.send(initialWindow - 10)
	if w.room() != 10 || w.backlog() != initialWindow-10 {
		t.Errorf("room %d, backlog %d", w.room(), w.backlog())
	}
}

func TestWindowRefusesAcksThatLie(t *testing.T) {
	w := window{limit: initialWindow}
	w.send(100)
	for _, c := range []struct {
		total int64
		want  error
	}{{50, nil}, {49, errAckFalls}, {101, errAckAhead}, {1<<63 - 1, errAckAhead}, {-1, errAckFalls}, {100, nil}} {
		if err := w.ack(time.Unix(1, 0), c.total); !errors.Is(err, c.want) {
			t.Errorf("ack of %d: %v, want %v", c.total, err, c.want)
		}
	}
	if w.acked != 100 {
		t.Errorf("acked %d", w.acked)
	}
}

func TestWindowTakesTheSmallestOfTheLastPings(t *testing.T) {
	var w window
	for i, ms := range []int{50, 20, 90, 70, 60} {
		w.pong(time.Duration(ms) * time.Millisecond)
		if want := []int{50, 20, 20, 20, 60}[i]; w.rtt != time.Duration(want)*time.Millisecond {
			t.Errorf("after %d pings: %s, want %d ms", i+1, w.rtt, want)
		}
	}
}

// room is how many more bytes may be sent.
func (w *window) room() int {
	if w.limit == 0 {
		return maxWindow
	}
	return max(0, w.limit-w.backlog())
}
