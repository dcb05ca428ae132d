package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

func ready(idle, longest time.Duration) Ready {
	r := someReady
	r.IdleTimeout, r.MaxSession = idle, longest
	return r
}

// told is the notices of a session so far: code and seconds.
func told(t *testing.T, s *harness) (all []string) {
	t.Helper()
	for _, m := range s.messages(t, "notice") {
		all = append(all, fmt.Sprintf("%s %s", m["code"], m["seconds"]))
	}
	return all
}

func assertTold(t *testing.T, s *harness, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := told(t, s); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("notices %q, want %q", got, want)
	}
}

// assertEnds waits for the end and checks when and why it came.
func assertEnds(t *testing.T, s *harness, since time.Time, after time.Duration, cause error, code websocket.StatusCode) {
	t.Helper()
	<-s.ended
	if got := time.Since(since); got != after {
		t.Errorf("ended after %s, want %s", got, after)
	}
	if !errors.Is(s.sum.Cause, cause) {
		t.Errorf("cause %v, want %v", s.sum.Cause, cause)
	}
	if got, _ := s.closed(t); got != code {
		t.Errorf("closed with %d, want %d", got, code)
	}
	<-s.done
}

func TestIdleTimeIsCountedFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s := startInBubble(t, setup{opt: Options{Ready: ready(30*time.Minute, 0), PingInterval: 25 * time.Second}})
		// None of this is input.
		for i := range 28 {
			time.Sleep(time.Minute)
			s.barrier(t, fmt.Sprint(i))
			s.control(t, `{"type":"resize","cols":80,"rows":24}`)
			s.term.print([]byte("x"))
			s.input(t, "")
		}
		assertTold(t, s)
		time.Sleep(time.Minute) // at 29
		assertTold(t, s, "idle_timeout 60")
		time.Sleep(50 * time.Second)
		assertTold(t, s, "idle_timeout 60", "idle_timeout 10")
		assertEnds(t, s, begin, 30*time.Minute, session.ErrIdle, 4408)
		assertTold(t, s, "idle_timeout 60", "idle_timeout 10")
	})
}

func TestInputResetsTheIdleTime(t *testing.T) {
	for _, mode := range []string{"rw", "ro"} {
		synctest.Test(t, func(t *testing.T) {
			r := ready(30*time.Minute, 0)
			r.Mode = mode
			s := startInBubble(t, setup{opt: Options{Ready: r}})
			time.Sleep(29*time.Minute + 55*time.Second)
			assertTold(t, s, "idle_timeout 60", "idle_timeout 10")
			s.input(t, "x")
			synctest.Wait()
			begin := time.Now()
			time.Sleep(29 * time.Minute)
			assertTold(t, s, "idle_timeout 60", "idle_timeout 10", "idle_timeout 60")
			assertEnds(t, s, begin, 30*time.Minute, session.ErrIdle, 4408)
			assertTold(t, s, "idle_timeout 60", "idle_timeout 10", "idle_timeout 60", "idle_timeout 10")
		})
	}
}

// A program that asks its terminal again and again keeps no session open; whoever types between the answers does.
func TestAnswersDoNotResetTheIdleTime(t *testing.T) {
	clipboard := "\x1b]52;c;" + strings.Repeat("aGVsbG8=", 1<<12) + "\x1b\\" // in several reads
	for _, answer := range []string{"\x1b[5;1R", clipboard, "\x1b[I\x1b[O"} {
		for _, mode := range []string{"rw", "ro", "raw"} {
			synctest.Test(t, func(t *testing.T) {
				r := ready(30*time.Minute, 0)
				if mode != "raw" {
					r.Mode = mode
				}
				begin := time.Now()
				s := startInBubble(t, setup{raw: mode == "raw", opt: Options{Ready: r}})
				for range 29 {
					time.Sleep(time.Minute)
					s.input(t, answer)
				}
				synctest.Wait()
				if taken := len(s.term.typed()); taken == 0 != (mode == "ro") {
					t.Errorf("%s: the terminal was given %d bytes", mode, taken)
				}
				assertEnds(t, s, begin, 30*time.Minute, session.ErrIdle, 4408)
			})
			synctest.Test(t, func(t *testing.T) {
				s := startInBubble(t, setup{raw: mode == "raw", opt: Options{Ready: ready(30*time.Minute, 0)}})
				time.Sleep(29 * time.Minute)
				s.input(t, answer+"x")
				synctest.Wait()
				begin := time.Now()
				time.Sleep(time.Minute)
				s.input(t, answer)
				assertEnds(t, s, begin, 30*time.Minute, session.ErrIdle, 4408)
			})
		}
	}
}

func TestLongestSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s := startInBubble(t, setup{opt: Options{Ready: ready(10*time.Minute, time.Hour)}})
		for range 59 {
			s.input(t, "x")
			time.Sleep(time.Minute)
		}
		assertTold(t, s, "session_expired 60")
		s.input(t, "x")
		time.Sleep(50 * time.Second)
		assertTold(t, s, "session_expired 60", "session_expired 10")
		assertEnds(t, s, begin, time.Hour, session.ErrExpired, 4410)
	})
}

func TestTunnelEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		term := newTerm()
		term.expires = begin.Add(time.Hour)
		s := startInBubble(t, setup{term: term, opt: Options{Ready: ready(0, 8*time.Hour)}})
		time.Sleep(55 * time.Minute)
		assertTold(t, s, "tunnel_expired 300")
		time.Sleep(4 * time.Minute)
		assertTold(t, s, "tunnel_expired 300", "tunnel_expired 60")
		assertEnds(t, s, begin, time.Hour, session.ErrTunnel, 4504)
	})
}

func TestShortLimitsAreAnnouncedAtHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s := startInBubble(t, setup{opt: Options{Ready: ready(0, 8*time.Second)}})
		time.Sleep(3 * time.Second)
		assertTold(t, s)
		time.Sleep(time.Second)
		assertTold(t, s, "session_expired 4")
		assertEnds(t, s, begin, 8*time.Second, session.ErrExpired, 4410)
		assertTold(t, s, "session_expired 4")
	})
}

func TestRawModeGetsNoNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s := startInBubble(t, setup{raw: true, opt: Options{Ready: ready(time.Minute, 0)}})
		assertEnds(t, s, begin, time.Minute, session.ErrIdle, 4408)
		if got := s.texts(); len(got) != 1 {
			t.Errorf("text frames %q, want the closing sentence alone", got)
		}
	})
}

// An end that somebody else brings about is told at once, and again as it comes near. Pings go on meanwhile, and after
// the time, for it is not the bridge that ends the session.
func TestWarn(t *testing.T) {
	const message = "It ends in %s."
	for _, c := range []struct {
		name string
		opt  Options
	}{
		{"nothing else to wait for", Options{Ready: ready(0, 0)}},
		{"pings", Options{Ready: ready(0, 0), PingInterval: 25 * time.Second}},
		{"limits", Options{Ready: ready(time.Hour, time.Hour)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := startInBubble(t, setup{opt: c.opt})
				time.Sleep(time.Minute + time.Millisecond)
				s.session.Warn("draining", message, 5*time.Minute)
				assertTold(t, s, "draining 300")
				time.Sleep(4 * time.Minute)
				assertTold(t, s, "draining 300", "draining 60")
				time.Sleep(50 * time.Second)
				assertTold(t, s, "draining 300", "draining 60", "draining 10")
				time.Sleep(time.Minute)
				s.barrier(t, "1")
				assertTold(t, s, "draining 300", "draining 60", "draining 10")
				if m := s.messages(t, "notice")[0]; m["message"] != "It ends in 300 seconds." {
					t.Errorf("told %s", m["message"])
				}
			})
		})
	}
	t.Run("in a hurry", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := startInBubble(t, setup{opt: Options{Ready: ready(0, 0)}})
			s.session.Warn("draining", message, 2*time.Second)
			assertTold(t, s, "draining 2")
			time.Sleep(time.Minute)
			assertTold(t, s, "draining 2")
		})
	})
	t.Run("raw mode", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := startInBubble(t, setup{raw: true, opt: Options{Ready: ready(0, 0)}})
			s.session.Warn("draining", message, 5*time.Minute)
			time.Sleep(time.Hour)
			if got := s.texts(); len(got) > 0 {
				t.Errorf("text frames %q", got)
			}
		})
	})
	t.Run("after the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := startInBubble(t, setup{opt: Options{Ready: ready(time.Minute, 0)}})
			s.term.quit(terminal.Exit{})
			s.wait(t)
			s.session.Warn("draining", message, time.Minute)
			assertTold(t, s)
		})
	})
}

// A warning that comes before the session has begun, or ends, is joined like all else.
func TestWarningsRaceWithSessions(t *testing.T) {
	for i := range 50 {
		s := start(t, setup{opt: Options{Ready: someReady, PingInterval: time.Millisecond}})
		var warned sync.WaitGroup
		for range 3 {
			warned.Go(func() { s.session.Warn("draining", "%s", time.Duration(i)*time.Second) })
		}
		s.term.quit(terminal.Exit{})
		s.wait(t)
		warned.Wait()
	}
}

// A notice reaches a client whose window is used up.
func TestNoticesDoNotWaitForTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		term := newTerm()
		term.flood = true
		s := startInBubble(t, setup{term: term, noAck: true, opt: Options{Ready: ready(time.Hour, 0)}})
		time.Sleep(59 * time.Minute)
		assertTold(t, s, "idle_timeout 60")
		assertEnds(t, s, begin, time.Hour, session.ErrIdle, 4408)
	})
}

func TestNoLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{opt: Options{Ready: ready(0, 0)}})
		time.Sleep(1000 * time.Hour)
		s.barrier(t, "1")
		assertTold(t, s)
	})
}

func TestAPeerThatAnswersPingsStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pings int
		s := startInBubble(t, setup{opt: Options{
			Ready: ready(0, 0), PingInterval: 25 * time.Second,
			RTT: func(time.Duration) { pings++ },
		}})
		time.Sleep(time.Hour + time.Second)
		s.barrier(t, "1")
		if want := int(time.Hour/(25*time.Second)) + 1; pings != want {
			t.Errorf("%d round trips were told, want %d", pings, want)
		}
	})
}

func TestTwoUnansweredPings(t *testing.T) {
	const every = 25 * time.Second
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s := startInBubble(t, setup{mute: true, opt: Options{Ready: someReady, PingInterval: every}})
		assertEnds(t, s, begin, 2*every, ErrLost, 1012)
	})
	// Whatever comes from the client is a sign of life.
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{mute: true, opt: Options{Ready: ready(0, 0), PingInterval: every}})
		for i := range 100 {
			time.Sleep(every)
			s.barrier(t, fmt.Sprint(i))
		}
		time.Sleep(every / 2)
		s.input(t, "x")
		synctest.Wait()
		begin := time.Now() // half way to the next ping
		assertEnds(t, s, begin, 2*every+every/2, ErrLost, 1012)
	})
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s := startInBubble(t, setup{raw: true, mute: true, opt: Options{Ready: someReady, PingInterval: every}})
		assertEnds(t, s, begin, 2*every, ErrLost, 1012)
	})
}

// A client that is in the middle of a long message answers no ping, but lives.
func TestASlowMessageIsALifeSign(t *testing.T) {
	const every = 25 * time.Second
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{deaf: true, opt: Options{Ready: ready(0, 0), PingInterval: every}})
		s.reading.Go(func() { _, _ = io.Copy(io.Discard, s.conn) })
		message := make([]byte, MaxInput)
		header := []byte{opBinary, 0x80 | 127, 0, 0, 0, 0, 0, MaxInput >> 16, 0, 0, 0, 0, 0, 0} // RFC 6455, 5.2
		if _, err := s.conn.Write(header); err != nil {
			t.Fatal(err)
		}
		for len(message) > 0 {
			time.Sleep(every)
			n := min(len(message), 32<<10)
			if _, err := s.conn.Write(message[:n]); err != nil {
				t.Fatalf("%d bytes before the end: %v", len(message), err)
			}
			message = message[n:]
		}
		synctest.Wait()
		if n := s.term.typed(); len(n) != MaxInput {
			t.Errorf("%d bytes were typed", len(n))
		}
	})
}

// The timer of a session that is over does not run on.
func TestNothingHappensAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{opt: Options{Ready: ready(time.Minute, time.Hour), PingInterval: 7 * time.Second}})
		time.Sleep(30 * time.Second)
		s.term.quit(terminal.Exit{Code: 1})
		sum := s.wait(t)
		time.Sleep(2 * time.Hour)
		if sum.Cause != nil || s.sum != sum {
			t.Errorf("summary %+v", sum)
		}
	})
}

func TestLifetimesOverTCP(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: ready(20*time.Millisecond, 0), PingInterval: 5 * time.Millisecond}})
	if code, reason := s.closed(t); code != 4408 || reason != "idle_timeout" {
		t.Errorf("closed with %d %q", code, reason)
	}
	if sum := s.wait(t); !errors.Is(sum.Cause, session.ErrIdle) {
		t.Errorf("cause %v", sum.Cause)
	}
}

// A ping that is under way when the session ends is joined, not waited out.
func TestAnEndDoesNotWaitForPongs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{mute: true, opt: Options{Ready: someReady, PingInterval: time.Hour}})
		synctest.Wait()
		begin := time.Now()
		s.cancel(context.Canceled)
		<-s.done
		if d := time.Since(begin); d != 0 {
			t.Errorf("the end took %s", d)
		}
	})
}
