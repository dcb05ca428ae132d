package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

var errDrained = errors.New("the replica is going away")

// leave is a way in which a client goes.
var leave = map[string]struct {
	how   func(s *harness)
	cause error
}{
	"close":      {func(s *harness) { _ = s.ws.Close(websocket.StatusNormalClosure, "") }, ErrClosed},
	"going away": {func(s *harness) { _ = s.ws.Close(websocket.StatusGoingAway, "tab closed") }, ErrClosed},
	"TCP end":    {func(s *harness) { _ = s.ws.CloseNow() }, ErrLost},
	"TCP reset": {func(s *harness) {
		_ = s.conn.(*net.TCPConn).SetLinger(0)
		_ = s.conn.Close()
	}, ErrLost},
}

// Whatever the session is busy with, the client's going ends it and the shell.
func TestTheClientGoes(t *testing.T) {
	flood := func() *fakeTerm {
		f := newTerm()
		f.flood, f.tells = true, true
		return f
	}
	deafTerm := func() *fakeTerm {
		f := newTerm()
		f.allowed = 0
		return f
	}
	busy := map[string]func() setup{
		"idle":              func() setup { return setup{} },
		"raw":               func() setup { return setup{raw: true} },
		"flood":             func() setup { return setup{term: flood()} },
		"flood, no acks":    func() setup { return setup{term: flood(), noAck: true} },
		"raw flood, unread": func() setup { return setup{term: flood(), raw: true, deaf: true} },
		"input unread":      func() setup { return setup{term: deafTerm()} },
	}
	for doing, with := range busy {
		for how, l := range leave {
			t.Run(doing+", "+how, func(t *testing.T) {
				c := with()
				c.opt = Options{Ready: someReady, PingInterval: time.Minute}
				s := start(t, c)
				if doing == "input unread" {
					s.input(t, "nobody reads this")
				}
				if c.deaf && errors.Is(l.cause, ErrClosed) {
					// Who closes by a frame reads.
					s.waitFlood(t)
					s.listen()
				}
				l.how(s)
				if sum := s.wait(t); !errors.Is(sum.Cause, l.cause) || sum.Exit == nil {
					t.Errorf("summary %+v, want cause %v", sum, l.cause)
				}
			})
		}
	}
}

// waitFlood waits until a flood is well under way.
func (s *harness) waitFlood(t *testing.T) {
	t.Helper()
	s.term.until(t, "a flood", func() bool { return s.term.given > 1<<17 })
}

func TestACauseEndsTheSession(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: someReady}})
	s.term.print([]byte("output"))
	s.waitBytes(t, 6)
	s.cancel(fmt.Errorf("wrapped: %w", errDrained))
	if code, reason := s.closed(t); code != 1012 || reason != "draining" {
		t.Errorf("closed with %d %q", code, reason)
	}
	sum := s.wait(t)
	if !errors.Is(sum.Cause, errDrained) || sum.Exit == nil || sum.BytesOut != 6 {
		t.Errorf("summary %+v", sum)
	}
	texts := s.texts()
	want := `{"type":"error","code":"draining","message":"The terminal ended.","retryable":false}`
	if len(texts) != 2 || texts[1] != want {
		t.Errorf("text frames %q", texts)
	}
}

// Between the end and the close frame the client may still send: in vain.
func TestInputAfterTheEndIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{}
		p.init()
		h := &pipeTransport{accepted: make(chan *Socket, 1)}
		p.dial(t, setup{}, h, "http://in.memory")
		p.listen()
		term := newTerm()
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errDrained)
		b, shell := join(<-h.accepted, term, setup{opt: Options{Ready: someReady, PingInterval: time.Second}})
		if sum := shell.Run(ctx); !errors.Is(sum.Cause, errDrained) {
			t.Errorf("summary %+v", sum)
		}
		p.input(t, "rm -rf /\r")
		p.control(t, `{"type":"resize","cols":9,"rows":9}`)
		p.control(t, `{"type":"ack","bytes":99}`)
		synctest.Wait()
		if got := term.log(); len(got) != 0 {
			t.Errorf("the terminal got %q", got)
		}
		b.Close(t.Context(), 1012, &Error{Code: "draining"})
		shell.Join()
		if code, _ := p.closed(t); code != 1012 {
			t.Errorf("closed with %d", code)
		}
		p.reading.Wait()
	})
}

// A cut session's client reads what had left the terminal, and the error last.
func TestACutFloodIsDrained(t *testing.T) {
	term := newTerm()
	term.flood = true
	s := start(t, setup{term: term, opt: Options{Ready: someReady}})
	s.waitBytes(t, 1<<20)
	s.cancel(errDrained)
	if code, _ := s.closed(t); code != 1012 {
		t.Errorf("closed with %d", code)
	}
	sum := s.wait(t)
	want := make([]byte, s.received)
	pattern(0, want)
	same(t, "output", s.out, want)
	if sum.BytesOut != s.received {
		t.Errorf("BytesOut = %d, the client got %d", sum.BytesOut, s.received)
	}
	if last := s.frames[len(s.frames)-1]; decode(t, last.text)["type"] != "error" {
		t.Errorf("last frame %+v", last)
	}
}

func TestACutDoesNotWaitForAClientThatDoesNotRead(t *testing.T) {
	for _, raw := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			term := newTerm()
			term.flood = true
			s := startInBubble(t, setup{term: term, raw: raw, deaf: true, opt: Options{Ready: ready(0, 0)}})
			time.Sleep(time.Hour)
			begin := time.Now()
			s.cancel(errDrained)
			<-s.ended
			if d := time.Since(begin); d > flushTime {
				t.Errorf("the end took %s", d)
			}
			<-s.done
			if d := time.Since(begin); d > 2*flushTime {
				t.Errorf("the close took %s", d)
			}
			if !errors.Is(s.sum.Cause, errDrained) {
				t.Errorf("cause %v", s.sum.Cause)
			}
		})
	}
}

// A client that reads, but never answers the close frame.
func TestACloseFrameWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{deaf: true, opt: Options{Ready: ready(0, 0)}})
		s.reading.Go(func() { _, _ = io.Copy(io.Discard, s.conn) })
		s.term.quit(terminal.Exit{})
		<-s.ended
		begin := time.Now()
		<-s.done
		if d := time.Since(begin); d > closeTime {
			t.Errorf("the close took %s", d)
		}
	})
}

// endUnanswered ends a session by its shell's own end, before a client that
// reads everything and does not answer the close frame by itself.
func endUnanswered(t *testing.T, every time.Duration) *harness {
	t.Helper()
	s := startInBubble(t, setup{deaf: true, opt: Options{Ready: ready(0, 0), PingInterval: every}})
	s.reading.Go(func() { _, _ = io.Copy(io.Discard, s.conn) })
	s.term.quit(terminal.Exit{})
	<-s.ended
	return s
}

// clientFrame is a frame as a client masks it (RFC 6455, 5.2), with a mask of 0.
func clientFrame(op byte, payload string) []byte {
	return append([]byte{op, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
}

// say sends a frame in a client's place.
func (s *harness) say(t *testing.T, op byte, payload string) {
	t.Helper()
	if _, err := s.conn.Write(clientFrame(op, payload)); err != nil {
		t.Fatal(err)
	}
}

// A slow client is waited for as long as it says something, in whatever way: its
// acks must not meet a closed socket, whose reset would drop what it has yet to
// read. The answer ends the wait.
func TestTheCloseWaitsForASlowClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 25 * time.Second
		s := endUnanswered(t, every)
		begin := time.Now()
		for range 5 {
			time.Sleep(every)
			s.say(t, opText, `{"type":"ack","bytes":0}`)
			s.say(t, opText, `{"type":"ping","id":1}`)
			s.say(t, opPing, "x")
			synctest.Wait()
		}
		s.say(t, opClose, "\x03\xe8")
		<-s.done
		if d := time.Since(begin); d != 5*every {
			t.Errorf("the close took %s", d)
		}
	})
}

// But not for ever.
func TestTheCloseIsBounded(t *testing.T) {
	const every = 25 * time.Second
	for name, c := range map[string]struct {
		during func(t *testing.T, s *harness)
		most   time.Duration
	}{
		"a silent client": {func(*testing.T, *harness) {}, 2 * every},
		"a client that says this and that": {func(t *testing.T, s *harness) {
			for {
				select {
				case <-s.done:
					return
				case <-time.After(time.Second):
					_, _ = s.conn.Write(clientFrame(opText, "{}"))
				}
			}
		}, answerTime + time.Second},
		"a caller that waits no longer": {func(_ *testing.T, s *harness) { s.cancel(errDrained) }, closeTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := endUnanswered(t, every)
				begin := time.Now()
				c.during(t, s)
				<-s.done
				if d := time.Since(begin); d > c.most || d < c.most-2*time.Second {
					t.Errorf("the close took %s, want %s", d, c.most)
				}
			})
		})
	}
}

// It is seen what the client's machine has not taken, and that it takes it.
func TestUnacknowledged(t *testing.T) {
	term := newTerm()
	term.flood = true
	s := start(t, setup{term: term, raw: true, deaf: true, opt: Options{Ready: someReady}})
	wire := s.bridge.ws.wire
	eventually(t, "the client's machine takes no more", func() bool { return wire.unacknowledged() > unsentLimit })
	s.term.with(func() { s.term.flood = false })
	s.listen()
	eventually(t, "it has all", func() bool { return wire.unacknowledged() == 0 })
	s.term.quit(terminal.Exit{})
	s.wait(t)
}

// A client that stalls in the middle of a message and then sends nothing more.
func TestAMessageThatNeverEnds(t *testing.T) {
	const every = 25 * time.Second
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{deaf: true, opt: Options{Ready: someReady, PingInterval: every}})
		s.reading.Go(func() { _, _ = io.Copy(io.Discard, s.conn) })
		synctest.Wait() // the first ping was sent
		begin := time.Now()
		header := []byte{0x82, 0x80 | 100, 0, 0, 0, 0} // binary, masked, 100 bytes
		if _, err := s.conn.Write(append(header, "rm -rf /\r"...)); err != nil {
			t.Fatal(err)
		}
		<-s.ended
		if d := time.Since(begin); d != 3*every || !errors.Is(s.sum.Cause, ErrLost) {
			t.Errorf("ended after %s for %v", d, s.sum.Cause)
		}
		<-s.done
		if d := time.Since(begin); d > 3*every+5*time.Second {
			t.Errorf("closed after %s", d)
		}
		if got := s.term.log(); len(got) != 0 {
			t.Errorf("the terminal got %q", got)
		}
	})
}

func TestTheTerminalFails(t *testing.T) {
	errBroken := errors.New("broken pipe to the engine")
	for name, fail := range map[string]func(*fakeTerm){
		"read": func(f *fakeTerm) { f.fail(errBroken) },
		"wait": func(f *fakeTerm) {
			f.with(func() { f.waitErr = errBroken })
			f.quit(terminal.Exit{})
		},
		"both": func(f *fakeTerm) {
			f.with(func() { f.waitErr = errors.New("not known") })
			f.fail(errBroken)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, setup{opt: Options{Ready: someReady}})
			s.term.print([]byte("last words"))
			fail(s.term)
			if code, _ := s.closed(t); code != 4502 {
				t.Errorf("closed with %d", code)
			}
			sum := s.wait(t)
			if !errors.Is(sum.Cause, session.ErrTerminal) || !errors.Is(sum.Cause, errBroken) {
				t.Errorf("cause %v", sum.Cause)
			}
			if name == "read" && sum.Exit == nil || name != "read" && sum.Exit != nil {
				t.Errorf("exit %v", sum.Exit)
			}
			if string(s.out) != "last words" {
				t.Errorf("output %q", s.out)
			}
			if exits := s.messages(t, "exit"); len(exits) != 0 {
				t.Errorf("exit messages %v", exits)
			}
		})
	}
}

// A write fails because the shell has just ended: its exit is what is told.
func TestAFailedWriteIsNoFailure(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: someReady}})
	s.term.with(func() { s.term.writeErr = errors.New("input/output error") })
	s.input(t, "x")
	s.barrier(t, "1")
	s.input(t, "y")
	s.barrier(t, "2")
	s.term.print([]byte("bye"))
	s.term.quit(terminal.Exit{Code: 7})
	if sum := s.wait(t); sum.Cause != nil || sum.Exit == nil || sum.Exit.Code != 7 || sum.BytesIn != 0 || sum.BytesOut != 3 {
		t.Errorf("summary %+v", sum)
	}
}

// The shell's end waits for a slow client, not for one that is gone.
func TestOutputOfAnEndedShellWaitsForAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := make([]byte, 3*initialWindow)
		pattern(0, all)
		s := startInBubble(t, setup{noAck: true, opt: Options{Ready: ready(0, 0)}})
		s.term.print(all)
		s.term.quit(terminal.Exit{Code: 2})
		for acked := int64(0); acked < int64(len(all)); acked += 8 << 10 {
			time.Sleep(time.Minute)
			synctest.Wait()
			if s.received < int64(len(all)) && len(s.messages(t, "exit")) != 0 {
				t.Fatalf("the exit was told after %d bytes", s.received)
			}
			if s.received == int64(len(all)) {
				acked = s.received - 8<<10 // the rest at once
			}
			s.ack(t, acked+8<<10)
		}
		s.waitText(t, `{"type":"exit","code":2}`)
		same(t, "output", s.out, all)
	})
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{noAck: true, opt: Options{Ready: ready(0, 0)}})
		s.term.print(make([]byte, 3*initialWindow))
		s.term.quit(terminal.Exit{Code: 2})
		s.waitBytes(t, initialWindow)
		_ = s.ws.CloseNow()
		if sum := s.wait(t); !errors.Is(sum.Cause, ErrLost) || sum.Exit == nil || sum.Exit.Code != 2 {
			t.Errorf("summary %+v", sum)
		}
	})
}

// 200 sessions at once, ended in every way. TestMain finds what they leave.
func TestManySessionsEndInManyWays(t *testing.T) {
	ways := []func(s *harness){
		leave["close"].how, leave["TCP end"].how, leave["TCP reset"].how,
		func(s *harness) { s.cancel(errDrained) },
		func(s *harness) { s.term.quit(terminal.Exit{Code: 1}) },
		func(s *harness) { s.term.fail(errors.New("broken")) },
		func(s *harness) { _ = s.ws.Write(context.Background(), websocket.MessageText, []byte("{}")) },
		func(s *harness) {
			_ = s.ws.Write(context.Background(), websocket.MessageBinary, make([]byte, MaxInput+1))
		},
	}
	var all sync.WaitGroup
	for i := range 200 {
		term := newTerm()
		term.flood = i%3 == 0
		if i%5 == 0 {
			term.allowed = 0
		}
		s := start(t, setup{term: term, opt: Options{Ready: someReady, PingInterval: time.Second}})
		if i%2 == 0 {
			s.input(t, "typed")
		}
		all.Go(func() {
			term.with(func() { term.flood = false })
			ways[i%len(ways)](s)
			<-s.done
		})
	}
	all.Wait()
}

// Once it waits for the client's close frame, the library skips whatever frame
// the client has announced, without a limit in time: one of 1 GiB, say, of which
// nothing comes.
func TestAnAnnouncedFrameDoesNotHoldTheClose(t *testing.T) {
	announced := []byte{0x82, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4} // RFC 6455, 5.2
	synctest.Test(t, func(t *testing.T) {
		for _, refused := range []bool{true, false} {
			p := &peer{}
			p.init()
			h := &pipeTransport{accepted: make(chan *Socket, 1)}
			p.dial(t, setup{}, h, "http://in.memory")
			var sides sync.WaitGroup
			sides.Go(func() { _, _ = io.Copy(io.Discard, h.client) }) // and never an answer
			sides.Go(func() {
				ws, e := <-h.accepted, Error{Code: "draining"}
				if refused {
					ws.Refuse(1012, e)
					return
				}
				b, shell := join(ws, newTerm(), setup{opt: Options{Ready: someReady}})
				ctx, cancel := context.WithCancelCause(t.Context())
				cancel(errDrained)
				shell.Run(ctx)
				b.Close(ctx, 1012, &e)
				shell.Join()
			})
			synctest.Wait() // the close frame was sent
			if _, err := h.client.Write(announced); err != nil {
				t.Fatal(err)
			}
			sides.Wait()
		}
	})
}
