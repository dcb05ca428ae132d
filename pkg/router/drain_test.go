package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/store"
)

func TestDrain(t *testing.T) {
	g := open(t)
	leaves := g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1))
	leaves.message("ready")
	shell := <-g.local.asked
	stays := g.ask(t, requestFor("ws-2", g.ticket("ws-2"), v1))
	stays.message("ready")
	raw := g.ask(t, requestFor("ws-1", g.ticket("ws-1")))
	<-g.local.asked
	<-g.local.asked
	g.wantMetric(0, "termgw_draining")

	hurry, hurried := context.WithCancel(context.Background())
	drained := make(chan error, 1)
	go func() { drained <- g.Drain(hurry, 10*time.Minute) }()
	for _, p := range []*peer{leaves, stays} {
		if n := p.message("notice"); n["code"] != "draining" || n["seconds"] != 600.0 || n["message"] != fmt.Sprintf(drainNotice, "600 seconds") {
			t.Errorf("told %v", n)
		}
	}
	g.wantMetric(1, "termgw_draining")
	if p := g.ask(t, requestFor("", "", func(a *ask) { a.target, a.header = "/readyz", nil })); p.status != 503 {
		t.Errorf("/readyz answers %d", p.status)
	}
	if code, number := g.ask(t, requestFor("ws-1", g.ticket("ws-1"))).outcome(); code != "draining" || number != 1012 {
		t.Errorf("a new session is told %s, %d", code, number)
	}
	shell.quit()
	if f := leaves.rest(); f.code != 1000 {
		t.Errorf("a shell that ended by itself: %+v", f)
	}

	hurried()
	if e := stays.message("error"); e["code"] != "draining" || e["retryable"] != true {
		t.Errorf("told %v", e)
	}
	if f := stays.rest(); f.code != 1012 || f.reason != "draining" || len(f.text) > 0 {
		t.Errorf("the end is %+v", f)
	}
	if f := raw.rest(); f.code != 1012 || len(f.text) != 1 {
		t.Errorf("the end in raw mode is %+v", f)
	}
	if err := <-drained; err != nil {
		t.Errorf("Drain: %v", err)
	}
	g.wantMetric(2, "termgw_sessions_total", "code=draining", "target=local")
	g.wantMetric(1, "termgw_sessions_total", "code=exit", "target=local")
	if err := g.Drain(context.Background(), time.Hour); err != nil {
		t.Errorf("a second Drain: %v", err)
	}
}

// TestDrainDuringStart: a request that was let in and has no shell yet is told
// why it gets none, whatever the step that it was in makes of it, and never that
// it is ready.
func TestDrainDuringStart(t *testing.T) {
	for _, step := range []string{"redeem", "start", "started"} {
		t.Run(step, func(t *testing.T) {
			g := open(t)
			entered := make(chan struct{})
			wait := func(ctx context.Context) error {
				close(entered)
				<-ctx.Done()
				if step == "started" {
					return nil
				}
				return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
			}
			if step == "redeem" {
				g.store.during = wait
			} else {
				g.local.before = wait
			}
			drained := make(chan error, 1)
			p := g.ask(t, requestFor("ws-1", g.ticket("ws-1"), v1))
			<-entered
			go func() { drained <- g.Drain(context.Background(), time.Hour) }()
			if e := p.message("error"); e["code"] != "draining" {
				t.Errorf("told %v", e)
			}
			if f := p.rest(); f.code != 1012 {
				t.Errorf("the end is %+v", f)
			}
			if err := <-drained; err != nil {
				t.Errorf("Drain: %v", err)
			}
			if step == "started" {
				<-(<-g.local.asked).over
			}
			g.wantMetric(0, "termgw_sessions_active", "target=local")
		})
	}
}

// TestAddRacesDrain: each session is either refused or ended, and drain returns
// when the last has left.
func TestAddRacesDrain(t *testing.T) {
	s := newSessions(0)
	var wg sync.WaitGroup
	for i := range 100 {
		id := fmt.Sprint(i)
		wg.Go(func() {
			ctx, err := s.add(id)
			if err != nil {
				if !errors.Is(err, ErrDraining) {
					t.Errorf("add: %v", err)
				}
				return
			}
			defer s.remove(id)
			if err := s.opened(id, func(time.Duration) {}, nil); err != nil && !errors.Is(err, ErrDraining) {
				t.Errorf("opened: %v", err)
			}
			<-ctx.Done()
			if err := context.Cause(ctx); !errors.Is(err, ErrDraining) {
				t.Errorf("ended by %v", err)
			}
		})
		if i == 50 {
			wg.Go(func() {
				if err := s.drain(nil, 0, slog.New(slog.DiscardHandler)); err != nil || s.count() != 0 {
					t.Errorf("drain: %v, %d are left", err, s.count())
				}
			})
		}
	}
	wg.Wait()
}

// ends is what became of sessions that stay until they are cut, and take some
// time to end.
type ends struct {
	mu     sync.Mutex
	told   map[string]time.Time // when the end will be
	cut    map[string]time.Time
	ending int
	most   int // that ended at once
}

func (e *ends) stay(t *testing.T, s *sessions, wg *sync.WaitGroup, n int, takes func() time.Duration) {
	t.Helper()
	e.told, e.cut = map[string]time.Time{}, map[string]time.Time{}
	for i := range n {
		id := fmt.Sprint(i)
		ctx, err := s.add(id)
		if err != nil {
			t.Fatal(err)
		}
		warn := func(left time.Duration) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.told[id] = time.Now().Add(left)
		}
		if err := s.opened(id, warn, nil); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer s.remove(id)
			<-ctx.Done()
			e.mu.Lock()
			e.cut[id] = time.Now()
			e.ending++
			e.most = max(e.most, e.ending)
			e.mu.Unlock()
			time.Sleep(takes())
			e.mu.Lock()
			e.ending--
			e.mu.Unlock()
		})
	}
}

func TestDrainInBatches(t *testing.T) {
	const grace = 30 * time.Second
	quick := func() time.Duration { return rand.N(200 * time.Millisecond) }
	slow := func() time.Duration { return 3 * time.Second }
	for _, test := range []struct {
		name          string
		sessions      int
		takes         func() time.Duration
		grace, hurry  time.Duration // hurry 0: nobody does
		first, within time.Duration // when sessions are cut
		late          bool          // later than they were told
	}{
		{"a hundred", 100, quick, grace, 0, grace, grace + 7*time.Second, false},
		{"ten thousand", 10_000, quick, grace, 0, grace, grace + 2*batchesTime, true},
		{"slow to end", 1000, slow, grace, 0, grace, grace + 2*batchesTime, true},
		{"hurried", 100, quick, grace, 5 * time.Second, 5 * time.Second, 6 * time.Second, false},
		{"hurried among the batches", 100, quick, grace, 31 * time.Second, grace, 32 * time.Second, false},
		{"hurried from the start", 100, quick, grace, time.Nanosecond, noticeTime, 2 * time.Second, false},
		{"hurried and slow to end", 1000, slow, grace, 5 * time.Second, 5 * time.Second, 5*time.Second + 2*batchesTime, true},
		{"no time", 100, quick, 0, 0, 0, time.Second, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var (
					e  ends
					wg sync.WaitGroup
					s  = newSessions(0)
				)
				e.stay(t, s, &wg, test.sessions, test.takes)
				hurry := context.Background()
				if test.hurry > 0 {
					var cancel context.CancelFunc
					hurry, cancel = context.WithTimeout(hurry, test.hurry)
					defer cancel()
				}
				began := time.Now()
				if err := s.drain(hurry.Done(), test.grace, slog.New(slog.DiscardHandler)); err != nil {
					t.Error(err)
				}
				wg.Wait()
				if want := test.sessions; len(e.cut) != want || test.grace > 0 && len(e.told) != want || test.grace == 0 && len(e.told) != 0 {
					t.Errorf("%d sessions: %d warned, %d cut", want, len(e.told), len(e.cut))
				}
				batches := map[time.Duration]int{}
				for id, cut := range e.cut {
					after := cut.Sub(began)
					if after < test.first || after > test.within {
						t.Errorf("cut after %s", after)
					}
					if d := cut.Sub(e.told[id]); test.hurry == 0 && test.grace > 0 && (d < 0 || d >= time.Second && !test.late) {
						t.Errorf("cut %s after the time that its notice told", d)
					}
					batches[after/batchTime]++
				}
				for _, n := range batches {
					if test.hurry == 0 && test.grace > 0 && n > max(batchSize, 2*test.sessions*int(batchTime)/int(batchesTime)) {
						t.Errorf("%d were cut within %s", n, batchTime)
					}
				}
				if e.most > endingAtOnce && !test.late {
					t.Errorf("%d shells were ended at once", e.most)
				}
			})
		})
	}
}

// What does not end does not keep the process.
func TestDrainGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			e  ends
			wg sync.WaitGroup
			s  = newSessions(0)
		)
		e.stay(t, s, &wg, 2*endingAtOnce, func() time.Duration { return time.Hour })
		began := time.Now()
		if err := s.drain(nil, time.Second, slog.New(slog.DiscardHandler)); err == nil {
			t.Error("drained")
		}
		if d := time.Since(began); d != time.Second+DrainTeardown {
			t.Errorf("gave up after %s", d)
		}
		wg.Wait()
		for _, cut := range e.cut {
			if after := cut.Sub(began); after > time.Second+2*batchesTime {
				t.Errorf("a session was cut after %s", after)
			}
		}
	})
}

// A refused session has no place, and is waited for all the same: its client is still being told.
func TestDrainWaitsForTheRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSessions(1)
		for _, id := range []string{"1", "2"} {
			if _, err := s.add(id); err != nil {
				t.Fatal(err)
			}
			s.release(id)
		}
		if n := s.count(); n != 0 {
			t.Errorf("%d have a place", n)
		}
		s.remove("1")
		if _, err := s.add("3"); err != nil {
			t.Error(err)
		}
		if _, err := s.add("4"); !errors.Is(err, errOverloaded) {
			t.Errorf("past the limit: %v", err)
		}
		s.remove("3")
		began := time.Now()
		time.AfterFunc(time.Second, func() { s.remove("2") })
		if err := s.drain(nil, time.Hour, slog.New(slog.DiscardHandler)); err != nil || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// Who has left is not waited for.
func TestDrainEndsWithTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSessions(0)
		began := time.Now()
		if err := s.drain(nil, time.Hour, slog.New(slog.DiscardHandler)); err != nil || !time.Now().Equal(began) {
			t.Errorf("draining nothing: %v after %s", err, time.Since(began))
		}
		s = newSessions(0)
		for _, id := range []string{"1", "2"} {
			if _, err := s.add(id); err != nil {
				t.Fatal(err)
			}
			if err := s.opened(id, func(time.Duration) {}, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.AfterFunc(time.Minute, func() { s.remove("1") })
		time.AfterFunc(2*time.Minute, func() { s.remove("2") })
		if err := s.drain(nil, time.Hour, slog.New(slog.DiscardHandler)); err != nil || time.Since(began) != 2*time.Minute {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}
