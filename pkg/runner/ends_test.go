package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// played are ends whose tries a test decides, and what is told of them.
type played struct {
	*Ends
	answer func(n int) error // of the nth try of all

	mu      sync.Mutex
	took    time.Duration   // by each try
	tried   []time.Duration // when, since the first
	began   time.Time
	reports map[string][]Swept // by session
}

func play(timing Timing, keep time.Duration, answer func(n int) error) *played {
	timing = timing.WithDefaults()
	return &played{
		Ends:   NewEnds(EndsConfig{Timing: &timing, For: keep, RetryMost: 4 * timing.Retry}),
		answer: answer, began: time.Now(), reports: map[string][]Swept{},
	}
}

func (p *played) end(lane, session string) End {
	return End{
		Session: session, Lane: lane,
		Try: func(context.Context) (Swept, error) {
			p.mu.Lock()
			p.tried = append(p.tried, time.Since(p.began))
			n, took := len(p.tried), p.took
			p.mu.Unlock()
			time.Sleep(took)
			if err := p.answer(n); err != nil {
				return Swept{}, err
			}
			return Swept{Killed: 1}, nil
		},
		Report: func(s Swept, _ error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.reports[session] = append(p.reports[session], s)
		},
	}
}

func (p *played) want(t *testing.T, tried []time.Duration, reports map[string]Swept) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.tried, tried) {
		t.Errorf("tried at %v, want %v", p.tried, tried)
	}
	for session, want := range reports {
		if got := p.reports[session]; !slices.Equal(got, []Swept{want}) {
			t.Errorf("of %s is told %+v, want %+v", session, got, want)
		}
	}
	if len(p.reports) != len(reports) {
		t.Errorf("told %+v", p.reports)
	}
}

func seconds(all ...int) (times []time.Duration) {
	for _, s := range all {
		times = append(times, time.Duration(s)*time.Second)
	}
	return times
}

var (
	errAway  = errors.New("the engine is away")
	errHangs = &Misconduct{errors.New("the container hangs")}
	always   = func(err error) func(int) error { return func(int) error { return err } }
	untilTry = func(n int, err error) func(int) error {
		return func(m int) error { return map[bool]error{true: err}[m < n] }
	}
	killedOne = Swept{Killed: 1}
	leftOne   = Swept{Left: 1}
)

func TestEndsAreTriedAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		answer  func(int) error
		keep    time.Duration
		tried   []time.Duration
		swept   Swept
		forEver time.Duration // that the test lasts
	}{
		{"at once", always(nil), time.Hour, seconds(0), killedOne, time.Minute},
		{"the engine's fault grows to a bound", untilTry(6, errAway), time.Hour, seconds(0, 5, 15, 35, 55, 75), killedOne, time.Hour},
		{"the engine's fault is given up", always(errAway), time.Minute, seconds(0, 5, 15, 35, 55, 75), leftOne, time.Hour},
		{"the container's fault", untilTry(4, errHangs), time.Hour, seconds(0, 5, 15, 35), killedOne, time.Hour},
		{"the container's fault is given up", always(errHangs), 24 * time.Hour, seconds(0, 5, 15, 35, 75, 155), leftOne, 24 * time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := play(Timing{}, c.keep, c.answer)
				if err := p.Do(p.end("box", "one")); (err == nil) != (len(c.tried) == 1) {
					t.Errorf("Do says %v", err)
				}
				time.Sleep(c.forEver)
				p.want(t, c.tried, map[string]Swept{"one": c.swept})
				p.Close()
			})
		})
	}
}

// TestEndsOfALaneAreTriedTogether: those that come while others are put off wait with them, and the first is tried alone.
// Another lane's do not wait.
func TestEndsOfALaneAreTriedTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := play(Timing{}, time.Hour, untilTry(4, errHangs))
		if err := p.Do(p.end("box", "one")); !errors.Is(err, errHangs) {
			t.Errorf("the first: %v", err)
		}
		if err := p.Do(p.end("box", "two")); !errors.Is(err, ErrPutOff) {
			t.Errorf("the second: %v", err)
		}
		if err := p.Reap(t.Context(), p.end("box", "three")); err != nil {
			t.Errorf("the third: %v", err)
		}
		if err := p.Reap(t.Context(), p.end("box", "one")); err != nil {
			t.Errorf("the first, again: %v", err)
		}
		time.Sleep(16 * time.Second) // two tries of one
		p.mu.Lock()
		if len(p.tried) != 3 {
			t.Errorf("tried at %v", p.tried)
		}
		p.mu.Unlock()
		if err := p.Do(p.end("another box", "four")); err != nil {
			t.Errorf("another's: %v", err)
		}
		time.Sleep(time.Hour)
		p.want(t, seconds(0, 5, 15, 16, 35, 35, 35), map[string]Swept{"one": killedOne, "two": killedOne, "three": killedOne, "four": killedOne})
		p.Close()
	})
}

// TestEndsAreTriedOnceAtATime: a session that is found again while its end is tried has one end all the same.
func TestEndsAreTriedOnceAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := play(Timing{}, time.Hour, func(n int) error {
			if n > 1 {
				time.Sleep(3 * time.Second)
				return nil
			}
			return errHangs
		})
		if err := p.Do(p.end("box", "one")); !errors.Is(err, errHangs) {
			t.Errorf("the first: %v", err)
		}
		time.Sleep(6 * time.Second) // the second try runs
		if err := p.Reap(t.Context(), p.end("box", "one")); err != nil {
			t.Errorf("meanwhile: %v", err)
		}
		time.Sleep(time.Hour)
		p.want(t, seconds(0, 5), map[string]Swept{"one": killedOne})
		p.Close()
	})
}

// TestEndsReapIsTheCallersToRepeat: but for what a container does to itself.
func TestEndsReapIsTheCallersToRepeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := play(Timing{}, time.Hour, untilTry(2, errAway))
		if err := p.Reap(t.Context(), p.end("box", "one")); !errors.Is(err, errAway) {
			t.Errorf("the engine away: %v", err)
		}
		time.Sleep(time.Hour)
		p.want(t, seconds(0), nil)
		p.Close()
	})
}

// TestEndsClose: what is put off is tried once more, and a try that runs is not cut short: its sweep would go on.
func TestEndsClose(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer func(int) error
		swept  Swept
	}{"done at last": {untilTry(2, errAway), killedOne}, "left": {always(errAway), leftOne}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := play(Timing{}, time.Hour, c.answer)
				_ = p.Do(p.end("box", "one"))
				time.Sleep(time.Second)
				p.Close()
				p.want(t, seconds(0, 1), map[string]Swept{"one": c.swept})
				p.PutOff(p.end("box", "late"), errAway)
				if got := p.reports["late"]; !slices.Equal(got, []Swept{leftOne}) {
					t.Errorf("after Close is told %+v", got)
				}
			})
		})
	}
	t.Run("during a try", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := play(Timing{}, time.Hour, untilTry(2, errAway))
			_ = p.Do(p.end("box", "one"))
			p.mu.Lock()
			p.took = 2 * time.Second
			p.mu.Unlock()
			time.Sleep(6 * time.Second) // the second try began a second ago
			p.Close()
			p.want(t, seconds(0, 5), map[string]Swept{"one": killedOne})
		})
	})
}

// TestEndsTakeTurns: few of a lane, few of all, and what takes long lets another one run beside it.
func TestEndsTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := play(Timing{}, time.Hour, always(nil))
		running := func(lanes, each int, hold time.Duration) (most int) {
			var mu sync.Mutex
			var now int
			var all sync.WaitGroup
			for lane := range lanes {
				for range each {
					all.Go(func() {
						done, err := p.Turn(t.Context(), fmt.Sprint("lane ", lane))
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						now++
						most = max(most, now)
						mu.Unlock()
						time.Sleep(hold)
						mu.Lock()
						now--
						mu.Unlock()
						done()
					})
				}
			}
			all.Wait()
			return most
		}
		if got := running(1, 50, time.Millisecond); got != LaneWidth {
			t.Errorf("%d run of one lane", got)
		}
		if got := running(50, 4, time.Millisecond); got != EndsAtOnce {
			t.Errorf("%d run of all", got)
		}
		if got := running(50, 4, time.Hour); got != 50*LaneWidth {
			t.Errorf("%d run that take long", got)
		}
		if len(p.lanes) > 0 {
			t.Errorf("%d lanes are remembered", len(p.lanes))
		}
		p.Close()
	})
}

// TestEndsWaitInTheirOwnLane: whose time has passed in its lane, the lane is to blame, also where a place in it and all
// permits are free by then.
func TestEndsWaitInTheirOwnLane(t *testing.T) {
	t.Parallel()
	p := play(Timing{}, time.Hour, always(nil))
	defer p.Close()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for range 200 {
		done, err := p.Turn(late, "box")
		if err == nil {
			done()
		}
		if !isMisconduct(err) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("late: %v", err)
		}
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := p.Turn(gone, "box"); isMisconduct(err) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Hundreds of ends in one container wait for as long as those before them end, and are nobody's fault.
func TestEndsWaitWhileTheLaneMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := play(Timing{End: 10 * time.Second}, time.Hour, func(int) error { return nil })
		p.took = 8 * time.Second
		var done sync.WaitGroup
		var failed sync.Map
		for n := range 100 {
			done.Go(func() {
				if err := p.Do(p.end("box", fmt.Sprint(n))); err != nil {
					failed.Store(n, err)
				}
			})
		}
		done.Wait()
		failed.Range(func(n, err any) bool {
			t.Errorf("%d: %v", n, err)
			return true
		})
		if took := time.Since(p.began); took != 100/LaneWidth*8*time.Second {
			t.Errorf("it took %s", took)
		}
		p.Close()
	})
}
