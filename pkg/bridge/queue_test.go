package bridge

import (
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/molecule-ai/termgw/pkg/session"
)

// When others hold all that may be held, a paste arrives whole all the same, while the program prints what the client
// cannot acknowledge, since its acks are behind its input.
func TestPasteWithoutBudget(t *testing.T) {
	const size = 5 << 20
	budget := session.NewBudget(0)
	term := newTerm()
	term.echo = true
	taken := sha256.New()
	term.sink = taken
	s := start(t, setup{term: term, noAck: true, opt: Options{Ready: someReady}, shell: session.Options{Budget: budget}})
	paste := make([]byte, size)
	pattern(0, paste)
	for piece := range slices.Chunk(paste, MaxInput) {
		s.input(t, string(piece))
	}
	for acked := int64(0); acked < size; { // the last of the input is taken, so acks are heard again
		s.waitBytes(t, acked+1)
		s.with(func() { acked = s.received })
		s.ack(t, acked)
	}
	s.term.until(t, "all is typed", func() bool { return s.term.taken == size })
	if want := sha256.Sum256(paste); !slices.Equal(taken.Sum(nil), want[:]) {
		t.Error("the input did not arrive as it was sent")
	}
	s.with(func() { same(t, "the echo", s.out, paste) })
	s.barrier(t, "1")
}

// Of a message over the limit no more than the limit is typed when it cannot be held, and the end is the same.
func TestInputOverTheLimitWithoutBudget(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: someReady}, shell: session.Options{Budget: session.NewBudget(0)}})
	s.input(t, strings.Repeat("x", MaxInput+1))
	code, reason := s.closed(t)
	if sum := s.wait(t); code != 1009 || reason != "too_large" || !errors.Is(sum.Cause, ErrTooLarge) {
		t.Errorf("closed with %d %q for %v", code, reason, sum.Cause)
	}
	if n := len(s.term.typed()); n > MaxInput {
		t.Errorf("%d bytes reached the terminal", n)
	}
}

// An interrupt loses nothing when there is no memory to read ahead with.
func TestInterruptWithoutBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := session.NewBudget(32 << 10)
		term := newTerm()
		term.tells = true
		s := startInBubble(t, setup{term: term, noAck: true, opt: Options{Ready: someReady}, shell: session.Options{Budget: budget}})
		flood := strings.Repeat("some line\r\n", 40_000)
		term.print([]byte(flood))
		s.waitBytes(t, initialWindow)
		synctest.Wait()
		s.input(t, "\x03")
		term.until(t, "the key", func() bool { return len(term.events) > 0 })
		term.print([]byte("^C\r\n$ "))
		synctest.Wait()
		s.ackAll(t)
		s.waitBytes(t, int64(len(flood)+6))
		synctest.Wait()
		same(t, "output", s.out, []byte(flood+"^C\r\n$ "))
	})
}
