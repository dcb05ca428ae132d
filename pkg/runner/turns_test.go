package runner

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestLaneRests: a sweep that has failed makes those of its container wait, and none of them is given up for it.
func TestLaneRests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const pause = 5 * time.Second
		turns := newTurns(time.Second)
		take := func() (began time.Time, done func()) {
			done, err := turns.take(t.Context(), "container")
			if err != nil {
				t.Fatal(err)
			}
			return time.Now(), done
		}

		// Those that fail side by side are one failure.
		began := time.Now()
		var dones []func()
		for range laneWidth {
			_, done := take()
			dones = append(dones, done)
		}
		time.Sleep(time.Second)
		for _, done := range dones {
			turns.failed("container", began, pause)
			done()
		}
		failed := time.Now()
		waiting := make(chan time.Duration)
		for range 3 {
			go func() {
				at, done := take()
				time.Sleep(time.Second)
				turns.worked("container")
				done()
				waiting <- at.Sub(failed)
			}()
		}
		for i, want := range []time.Duration{pause, pause + time.Second, pause + time.Second} {
			if got := <-waiting; got != want {
				t.Errorf("waiter %d began after %s, want %s", i, got, want)
			}
		}

		// Without an end to the failures, the pauses grow and then no more is tried.
		for i := range misconductTries {
			before := time.Now()
			began, done := take()
			var want time.Duration
			if i > 0 {
				want = growing(pause, i-1)
			}
			if began.Sub(before) != want {
				t.Errorf("try %d began after %s, want %s", i, began.Sub(before), want)
			}
			turns.failed("container", began, pause)
			done()
		}
		before := time.Now()
		if _, err := turns.take(t.Context(), "container"); !errors.Is(err, errHopeless) || time.Since(before) > 0 {
			t.Errorf("after %d failures: %v, after %s", misconductTries, err, time.Since(before))
		}
		time.Sleep(growing(pause, misconductTries-1))
		_, done := take()
		turns.worked("container")
		done()
		before = time.Now()
		if began, done := take(); began.Sub(before) > 0 {
			t.Error("a lane rests in which a try has worked")
		} else {
			done()
		}
	})
}
