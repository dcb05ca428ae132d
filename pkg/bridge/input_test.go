package bridge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// A paste into a program that reads slowly arrives whole and in order, while
// everything else is still served.
func TestLargePaste(t *testing.T) {
	const size, piece = 16 << 20, 1 << 20
	paste := make([]byte, size)
	pattern(0, paste)
	term := newTerm()
	sum := sha256.New()
	term.sink = sum
	term.allowed = 0
	s := start(t, setup{term: term, noAck: true, opt: Options{Ready: someReady}})
	for i := 0; i < size; i += piece {
		s.input(t, string(paste[i:i+piece]))
	}
	s.barrier(t, "0") // the program has read nothing, and all of it was taken
	acked := int64(0)
	for read := 0; read < size; read += 1 << 20 {
		term.allow(1 << 20)
		term.until(t, "the program to read", func() bool { return term.taken == int64(read+1<<20) })
		s.control(t, fmt.Sprintf(`{"type":"resize","cols":%d,"rows":24}`, 1+read>>20))
		term.print(make([]byte, initialWindow))
		s.waitBytes(t, acked+initialWindow)
		acked += initialWindow
		s.ack(t, acked)
		s.barrier(t, fmt.Sprint(1+read>>20))
	}
	if got, want := sum.Sum(nil), sha256.Sum256(paste); !slices.Equal(got, want[:]) {
		t.Error("the paste did not arrive as it was sent")
	}
	term.until(t, "the last size", func() bool { return slices.Contains(term.events, fmt.Sprintf("resize %dx24", size>>20)) })
	s.term.quit(terminal.Exit{})
	if sum := s.wait(t); sum.BytesIn != size {
		t.Errorf("BytesIn = %d", sum.BytesIn)
	}
}

// More input than the bridge holds, for a program that reads no more while its
// output is not taken: the acks that would let output go are behind the input.
func TestPasteOverTheQueueIntoAnEcho(t *testing.T) {
	const size, piece = 16<<20 + 12<<20, 1 << 20
	term := newTerm()
	term.echo = true
	taken := sha256.New()
	term.sink = taken
	s := start(t, setup{term: term, deaf: true, noAck: true, opt: Options{Ready: someReady}})
	echoed := sha256.New()
	s.sink = echoed
	s.listen()
	sent := sha256.New()
	p := make([]byte, piece)
	for i := int64(0); i < size; i += piece {
		pattern(i, p)
		sent.Write(p)
		s.input(t, string(p))
	}
	// The last of the input has found room, so acks are heard again.
	for acked := int64(0); acked < size; {
		s.waitBytes(t, acked+1)
		s.with(func() { acked = s.received })
		s.ack(t, acked)
	}
	s.term.until(t, "all is typed", func() bool { return s.term.taken == size })
	if !slices.Equal(sent.Sum(nil), taken.Sum(nil)) {
		t.Error("the input did not arrive as it was sent")
	}
	if !slices.Equal(sent.Sum(nil), echoed.Sum(nil)) {
		t.Error("the output did not arrive as it was printed")
	}
	s.barrier(t, "1")
}

// While input waits for a program that reads nothing, the bridge cannot hear
// pongs. The client is not lost for that.
func TestPasteOverTheQueueIsNoLostClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, piece = 16<<20 + 8<<20, 1 << 20
		term := newTerm()
		term.allowed = 0
		taken := sha256.New()
		term.sink = taken
		s := startInBubble(t, setup{term: term, mute: true, opt: Options{Ready: someReady, PingInterval: 25 * time.Second}})
		sent := sha256.New()
		pasted := make(chan struct{})
		go func() {
			defer close(pasted)
			p := make([]byte, piece)
			for i := int64(0); i < size; i += piece {
				pattern(i, p)
				sent.Write(p)
				if err := s.ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
					t.Errorf("pasting: %v", err)
					return
				}
			}
		}()
		time.Sleep(10 * time.Minute)
		term.allow(-1)
		<-pasted
		synctest.Wait()
		if !slices.Equal(sent.Sum(nil), taken.Sum(nil)) {
			t.Error("the input did not arrive as it was sent")
		}
	})
}

// A client that goes is noticed while its input waits unread before its going.
func TestTheClientGoesWhileItsInputWaits(t *testing.T) {
	for _, how := range []string{"TCP end", "TCP reset"} {
		t.Run(how, func(t *testing.T) {
			term := newTerm()
			term.allowed = 0
			s := start(t, setup{term: term, opt: Options{Ready: someReady, PingInterval: time.Hour}})
			for range 16 << 20 / MaxInput {
				s.input(t, strings.Repeat("x", MaxInput))
			}
			s.input(t, "one more")
			s.input(t, "before the end")
			eventually(t, "the input waits, and the next ping's time", func() bool {
				s.bridge.mu.Lock()
				defer s.bridge.mu.Unlock()
				return s.bridge.choked && s.bridge.pings.number == 1
			})
			if how == "TCP reset" {
				_ = s.conn.(*net.TCPConn).SetLinger(0)
			}
			_ = s.conn.Close()
			eventually(t, "its going has arrived", s.bridge.ws.wire.hungUp)
			s.bridge.mu.Lock()
			s.bridge.pings.timer.Reset(0) // an hour is over
			s.bridge.mu.Unlock()
			if sum := s.wait(t); !errors.Is(sum.Cause, ErrLost) {
				t.Errorf("cause %v", sum.Cause)
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	ready := someReady
	ready.Mode = "ro"
	s := start(t, setup{opt: Options{Ready: ready}})
	s.input(t, "rm -rf /\r")
	s.input(t, strings.Repeat("rm -rf /\r", 10_000))
	s.control(t, `{"type":"resize","cols":90,"rows":30}`)
	s.term.until(t, "the size", func() bool { return len(s.term.events) > 0 })
	s.term.print([]byte("output"))
	s.waitBytes(t, 6)
	s.term.quit(terminal.Exit{})
	sum := s.wait(t)
	if got := s.term.log(); !slices.Equal(got, []string{"resize 90x30"}) || sum.BytesIn != 0 {
		t.Errorf("the terminal got %q, BytesIn %d", got, sum.BytesIn)
	}
}

func TestReadOnlyRaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ready := someReady
		ready.Mode = "ro"
		s := startInBubble(t, setup{raw: true, opt: Options{Ready: ready}})
		s.control(t, "text")
		s.input(t, "binary")
		synctest.Wait()
		if got := s.term.log(); len(got) != 0 {
			t.Errorf("the terminal got %q", got)
		}
	})
}

func TestInputInFragments(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: someReady}})
	w, err := s.ws.Writer(t.Context(), websocket.MessageBinary)
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{"l", "", "s -l", "a\r"} {
		if _, err := w.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s.term.until(t, "the input", func() bool { return s.term.taken == 7 })
	if got := s.term.typed(); got != "ls -la\r" {
		t.Errorf("input %q", got)
	}
}
