package instance

import (
	"container/heap"
	"fmt"
	"testing"
	"time"
)

// playedTunnel is a tunnel from an sshd, in simulated time: bytes wait for those before them, and then travel.
type playedTunnel struct {
	speed  float64       // bytes a second
	oneWay time.Duration // of a byte that waits for none
	now    time.Duration
	free   time.Duration // when the tunnel has taken all bytes
	events events
	n      int
}

type event struct {
	at time.Duration
	n  int // of events at the same time the first goes first
	do func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }

func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func (t *playedTunnel) after(d time.Duration, do func()) {
	t.n++
	heap.Push(&t.events, event{t.now + d, t.n, do})
}

// run runs the tunnel for a time.
func (t *playedTunnel) run(d time.Duration) {
	for end := t.now + d; ; {
		if len(t.events) == 0 || t.events[0].at > end {
			t.now = end
			return
		}
		next := heap.Pop(&t.events).(event)
		t.now = next.at
		next.do()
	}
}

// queue is how long a byte waits that sshd sends now.
func (t *playedTunnel) queue() time.Duration { return max(t.free-t.now, 0) }

// carry has arrive called when n bytes and ssh's overhead have come through the tunnel.
func (t *playedTunnel) carry(n int, arrive func()) {
	const overhead = 40
	t.free = max(t.free, t.now) + time.Duration(float64(n+overhead)/t.speed*float64(time.Second))
	t.after(t.free-t.now+t.oneWay, arrive)
}

// playedTerminal is a terminal whose program prints rate bytes a second, and sshd sends what the window allows.
type playedTerminal struct {
	t       *playedTunnel
	flow    flow
	window  int // sshd's
	printed int // and not sent
	read    int
	slow    bool // the gateway reads late
}

func (t *playedTunnel) terminal(w *way) *playedTerminal {
	f := newFlow(w)
	return &playedTerminal{t: t, flow: f, window: f.window}
}

func (p *playedTerminal) print(n int) {
	p.printed += n
	p.send()
}

func (p *playedTerminal) send() {
	for p.window > 0 && p.printed > 0 {
		n := min(p.window, p.printed, maxOutput)
		p.window -= n
		p.printed -= n
		p.t.carry(n, func() { p.came(n) })
	}
}

var playedEpoch = time.Unix(1e9, 0)

func (p *playedTerminal) came(n int) {
	p.read += n
	more, probe := p.flow.received(n, playedEpoch.Add(p.t.now))
	p.t.after(p.t.oneWay, func() {
		p.window += more
		p.send()
		if probe {
			p.t.carry(0, func() { p.flow.answered(playedEpoch.Add(p.t.now), !p.slow) })
		}
	})
}

// settled lets floods find their windows, and then returns the share of the tunnel's speed that they have, and how long
// another's byte waits on average.
func settled(t *playedTunnel, floods ...*playedTerminal) (share float64, waits time.Duration) {
	t.run(5 * time.Second)
	read := 0
	for _, p := range floods {
		read -= p.read
	}
	const looks, pause = 1000, 5 * time.Millisecond
	for range looks {
		t.run(pause)
		waits += t.queue() / looks
	}
	for _, p := range floods {
		read += p.read
	}
	return float64(read) / (looks * pause).Seconds() / t.speed, waits
}

// Floods use their tunnel whole, and what else comes through the tunnel waits about as long as a round trip.
func TestFlowOfFloods(t *testing.T) {
	for _, speed := range []float64{0.2e6, 1e6, 5e6, 50e6} {
		for _, trip := range []time.Duration{2 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond} {
			for _, floods := range []int{1, 3} {
				tunnel := &playedTunnel{speed: speed, oneWay: trip / 2}
				w := &way{}
				w.took(trip)
				all := make([]*playedTerminal, floods)
				for n := range all {
					all[n] = tunnel.terminal(w)
					all[n].print(1 << 40)
				}
				share, waits := settled(tunnel, all...)
				wanted := min(max(trip, leastQueue), mostQueue)
				least := time.Duration(float64(floods*leastWindow+maxOutput) / speed * float64(time.Second)) // of the least windows
				name := fmt.Sprintf("%g MB/s, %s, %d floods: %.3f of the speed, a byte waits %s", speed/1e6, trip, floods, share, waits)
				if waits > max(wanted*6/5, least) {
					t.Error(name)
				}
				if full := float64(floods*mostWindow) / trip.Seconds() / speed; share < min(0.94, 0.95*full) {
					t.Error(name)
				}
			}
		}
	}
}

// A tunnel that becomes slower, or faster, has its windows after a while.
func TestFlowFollowsTheTunnel(t *testing.T) {
	tunnel := &playedTunnel{speed: 1e6, oneWay: 10 * time.Millisecond}
	w := &way{}
	w.took(20 * time.Millisecond)
	p := tunnel.terminal(w)
	p.print(1 << 40)
	for _, speed := range []float64{1e6, 10e6, 0.2e6, 1e6} {
		tunnel.speed = speed
		if share, waits := settled(tunnel, p); share < 0.94 || waits > 30*time.Millisecond {
			t.Errorf("%g MB/s: %.3f of the speed, a byte waits %s", speed/1e6, share, waits)
		}
	}
}

// A program that prints less than the tunnel carries, and a gateway that reads late, say nothing of the tunnel.
func TestFlowOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		rate int // bytes a second
		slow bool
	}{
		"a program that prints little": {20e3, false},
		"a gateway that reads late":    {1 << 40, true},
	} {
		tunnel := &playedTunnel{speed: 1e6, oneWay: 10 * time.Millisecond}
		w := &way{}
		w.took(20 * time.Millisecond)
		p := tunnel.terminal(w)
		p.slow = c.slow
		for range 500 {
			p.print(c.rate / 100)
			tunnel.run(10 * time.Millisecond)
		}
		if p.flow.window != firstWindow {
			t.Errorf("%s: a window of %d", name, p.flow.window)
		}
	}
}
