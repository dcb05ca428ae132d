package bridge

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestNoAckNoMoreThanTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerm()
		term.flood = true
		s := startInBubble(t, setup{term: term, noAck: true, opt: Options{Ready: someReady}})
		synctest.Wait()
		assertStopped := func(want int64) {
			t.Helper()
			synctest.Wait()
			if got := term.read(); got != want {
				t.Errorf("%d bytes were read from the terminal, want %d", got, want)
			}
			if s.received != want {
				t.Errorf("the client got %d bytes, want %d", s.received, want)
			}
		}
		assertStopped(initialWindow)
		time.Sleep(time.Minute)
		assertStopped(initialWindow)
		// What was acknowledged may follow, not a byte more.
		s.ack(t, 1)
		assertStopped(initialWindow + 1)
		s.ack(t, 8<<10)
		assertStopped(initialWindow + 8<<10)
		// Pings are answered though the window is used up.
		s.barrier(t, "1")
		if n := s.backlog.Load(); n != initialWindow {
			t.Errorf("the backlog's gauge is at %d", n)
		}
		want := make([]byte, initialWindow+8<<10)
		pattern(0, want)
		same(t, "output", s.out, want)
	})
}

// A page that is hidden gets the largest window at once, and keeps what it has
// when it is shown again.
func TestHiddenPageHasTheLargestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerm()
		term.flood = true
		s := startInBubble(t, setup{term: term, noAck: true, opt: Options{Ready: someReady}})
		assertStopped := func(want int64) {
			t.Helper()
			synctest.Wait()
			if got := term.read(); got != want {
				t.Errorf("%d bytes were read from the terminal, want %d", got, want)
			}
		}
		assertStopped(initialWindow)
		s.control(t, `{"type":"hidden","hidden":true}`)
		assertStopped(maxWindow)
		for acked := int64(8 << 10); acked <= 64<<10; acked += 8 << 10 {
			time.Sleep(time.Minute) // once a minute is a hidden page's pace
			s.ack(t, acked)
			assertStopped(maxWindow + acked)
		}
		s.control(t, `{"type":"hidden","hidden":false}`)
		s.ack(t, maxWindow)
		assertStopped(maxWindow + 64<<10) // as much is under way as the former window allows
		s.ack(t, maxWindow+1)
		assertStopped(maxWindow + 64<<10 + 1)
	})
}

// The same over TCP, where what the kernel holds must not count.
func TestNoAckNoMoreThanTheWindowOverTCP(t *testing.T) {
	term := newTerm()
	term.flood = true
	s := start(t, setup{term: term, noAck: true, opt: Options{Ready: someReady}})
	s.waitBytes(t, initialWindow)
	for i := range 20 {
		s.barrier(t, fmt.Sprint(i))
	}
	if got := term.read(); got != initialWindow {
		t.Errorf("%d bytes were read from the terminal", got)
	}
	s.ack(t, 100)
	s.waitBytes(t, initialWindow+100)
}

func TestAFloodLeavesInLargeFrames(t *testing.T) {
	term := newTerm()
	term.tells = true
	s := start(t, setup{term: term, opt: Options{Ready: someReady}})
	all := make([]byte, 8<<20)
	pattern(0, all)
	s.term.print(all)
	s.waitBytes(t, int64(len(all)))
	same(t, "output", s.out, all)
	binary := 0
	for _, f := range s.frames {
		if f.size > 0 && f.text == "" {
			binary++
		}
	}
	if mean := len(all) / binary; mean < 8<<10 {
		t.Errorf("frames of %d bytes", mean)
	}
}

// A session that is quiet holds no large buffer, whatever it printed before.
func TestQuietSessionsHoldNoBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerm()
		term.tells = true
		s := startInBubble(t, setup{term: term, opt: Options{Ready: someReady}})
		for _, n := range []int{1, 200, 255, 256, 257, 300, 5000, 1 << 20, 1} {
			before := s.received
			term.print(make([]byte, n))
			s.waitBytes(t, before+int64(n))
			synctest.Wait()
			if term.waiting != 256 {
				t.Errorf("after %d bytes at once %d are waited for", n, term.waiting)
			}
		}
	})
}

// What a terminal prints at once leaves at once, in one frame.
func TestAScreenLeavesInOneFrame(t *testing.T) {
	for _, raw := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			term := newTerm()
			term.tells = true
			s := startInBubble(t, setup{term: term, raw: raw, opt: Options{Ready: someReady}})
			synctest.Wait()
			screen := make([]byte, 8000)
			pattern(0, screen)
			term.print(screen)
			synctest.Wait()
			if last := s.frames[len(s.frames)-1]; last.size != len(screen) {
				t.Errorf("the last frame has %d bytes of %d", last.size, len(screen))
			}
			same(t, "output", s.out, screen)
		})
	}
}
