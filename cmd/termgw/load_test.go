package main

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What replicas do under load, in figures: benchmarks that the load generator in bench runs, and a soak. The shells are
// those of the other tests, bash in containers of a real engine, so an engine's 50 ms of CPU a start are part of it.

var (
	terminalsOpen = flag.Int("live", 60, "terminals that are open in the benchmarks")
	soak          = flag.Duration("soak", 0, "how long TestSoak holds 1,000 terminals; 0: a few, for some seconds")
)

// figures reports percentiles in milliseconds.
func figures(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	for unit, share := range map[string]float64{"p50": .5, "p99": .99, "max": 1} {
		at := max(0, int(math.Ceil(share*float64(len(took))))-1)
		b.ReportMetric(float64(took[at].Microseconds())/1e3, name+"-"+unit+"-ms")
	}
}

// settle opens terminals until there are n.
func (s *site) settle(tb testing.TB, n int) {
	tb.Helper()
	var mu sync.Mutex
	spread(tb, n-len(s.seats), 4, func(int) {
		i := int(s.visitors.Add(1))
		seat := s.open(tb, s.any, fmt.Sprint("ws", i%workspaces), fmt.Sprint("person", i/2), i)
		seat.wait(tb, "a prompt", func() bool { return len(seat.output) > 0 })
		mu.Lock()
		defer mu.Unlock()
		s.seats = append(s.seats, seat)
	})
}

// BenchmarkRevoke writes orders by SQL, one at a time, while -live terminals are open on three gateways: one that names a
// session and, every fifth time, one that names a person, who has two. It measures from the commit to the close frame at
// the client, by when the shell is gone.
func BenchmarkRevoke(b *testing.B) {
	s := newSite(b)
	s.serve(b)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		s.settle(b, *terminalsOpen)
		first := s.seats[i*7919%len(s.seats)]
		named := func(seat *seat) bool { return seat == first }
		order := "INSERT INTO termgw.revocations (session_id) VALUES ($1)"
		name := first.session
		if i%5 == 4 {
			named = func(seat *seat) bool { return seat.subject == first.subject }
			order, name = "INSERT INTO termgw.revocations (subject) VALUES ($1)", first.subject
		}
		var (
			committed time.Time
			closes    sync.WaitGroup
			mu        sync.Mutex
			ends      []time.Time
		)
		s.seats = slices.DeleteFunc(s.seats, func(seat *seat) bool {
			if !named(seat) {
				return false
			}
			closes.Go(func() {
				<-seat.done
				mu.Lock()
				defer mu.Unlock()
				ends = append(ends, time.Now())
				if code := seat.closed(b); code != 4423 {
					b.Errorf("closed with %d", code)
				}
			})
			return true
		})
		b.StartTimer()
		s.exec(b, order, name)
		committed = time.Now()
		closes.Wait()
		for _, end := range ends {
			took = append(took, end.Sub(committed))
		}
	}
	figures(b, "close", took)
	b.ReportMetric(float64(len(took)), "sessions")
	s.leave(b)
}

// BenchmarkRollingRestart restarts three gateways in turn under -live terminals.
func BenchmarkRollingRestart(b *testing.B) {
	s := newSite(b)
	s.serve(b)
	var late, down []time.Duration
	for b.Loop() {
		b.StopTimer()
		s.settle(b, *terminalsOpen)
		b.StartTimer()
		for _, m := range s.roll(b) {
			late, down = append(late, m.late()), append(down, m.down())
		}
	}
	if len(late) == 0 {
		return // it failed
	}
	figures(b, "late", late)
	figures(b, "down", down)
}

// TestSoak opens 1,000 terminals in a minute on one gateway, with the audit trail in Postgres, and holds them: each types now
// and then, and every second one goes and another comes. None may end by itself, and the gateway's memory must not grow.
func TestSoak(t *testing.T) {
	terminals, hold, every := 60, 4*time.Second, 1
	if *soak > 0 {
		terminals, hold, every = 1000, *soak, 15
	}
	s := newSite(t)
	g := s.platform.serve(t, "TERMGW_LOG_LEVEL=info")
	var (
		opening sync.WaitGroup
		mu      sync.Mutex
		opened  atomic.Int64
	)
	come := func(n int) {
		workspace := fmt.Sprint("ws", n%workspaces)
		c := g.dial(t, workspace, s.ticketOf(t, workspace, fmt.Sprint("person", n)), dialing{})
		m := c.answer(t)
		if m.Type != "ready" {
			t.Errorf("told %+v", m)
			return
		}
		opened.Add(1)
		mu.Lock()
		defer mu.Unlock()
		s.seats = append(s.seats, seated(c, m, ""))
	}
	pace := time.NewTicker(time.Minute / 1000)
	began := time.Now()
	for n := range terminals {
		<-pace.C
		opening.Go(func() { come(n) })
	}
	opening.Wait()
	pace.Stop()
	if t.Failed() {
		t.FailNow()
	}
	t.Logf("%d terminals opened in %s", terminals, time.Since(began).Round(100*time.Millisecond))

	var states []state
	began = time.Now()
	look := func() {
		now := state{
			int(time.Since(began).Seconds()), g.memory(t, "VmRSS") >> 20,
			int64(g.metric(t, "go_memstats_heap_inuse_bytes")) >> 20, g.resources(t).goroutines, len(s.seats),
		}
		states = append(states, now)
		t.Logf("%+v", now)
	}
	look()
	second, over := time.NewTicker(time.Second), time.After(hold)
	defer second.Stop()
	for n, holds := 1, true; holds; n++ {
		select {
		case <-over:
			holds = false
		case <-second.C:
			// All have their turn to type; one leaves, and another comes.
			for _, seat := range s.seats[:10] {
				seat.send(t, "echo $((6*7))\r")
			}
			s.seats = slices.Concat(s.seats[10:], s.seats[:10])
			s.seats[0].close(t)
			s.seats = s.seats[1:]
			come(terminals + n)
			if n%every == 0 {
				look()
			}
		}
	}
	for _, seat := range s.seats {
		select {
		case <-seat.done:
			t.Errorf("a terminal has ended: %v", seat.ended)
		default:
		}
	}
	// What the first samples hold is what the terminals take; pools and the collector's rhythm have some room.
	var rss int64
	goroutines := 0
	for _, st := range states[:(len(states)+2)/3] {
		rss, goroutines = max(rss, st.rss), max(goroutines, st.goroutines)
	}
	eventually(t, "the goroutines of those that have left are over", func() bool {
		look()
		return states[len(states)-1].goroutines <= goroutines+20
	})
	// The few that leave in some seconds would not show.
	if last := states[len(states)-1]; *soak > 0 && last.rss > rss+rss/8+8 {
		t.Errorf("it has grown: %+v", last)
	}
	s.leave(t)
	eventually(t, "the audit trail is complete", func() bool {
		var rows, closed int
		s.query(t, "SELECT count(*), count(*) FILTER (WHERE end_reason = 'client_closed') FROM termgw.sessions", &rows, &closed)
		if rows != int(opened.Load()) {
			t.Fatalf("%d rows of %d terminals", rows, opened.Load())
		}
		return closed == rows
	})
	if n := g.metric(t, orphansLeft); n != 0 {
		t.Errorf("%v processes were left", n)
	}
}

// state is what a gateway holds at a time.
type state struct {
	seconds           int
	rss, heap         int64 // MiB
	goroutines, seats int
}
