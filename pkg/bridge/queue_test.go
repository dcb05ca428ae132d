package bridge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// A queue is a bytes.Buffer with a limit, and gives back all that it took.
func TestQueue(t *testing.T) {
	const all = 40 * blockSize
	budget := NewBudget(all)
	q := queue{budget: budget, limit: 16 * blockSize}
	var model []byte
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 4_000 {
		if r.IntN(2) == 0 {
			p := make([]byte, r.IntN(3*blockSize))
			pattern(int64(i), p)
			n := q.push(p)
			if n < len(p) && len(model)+n <= q.limit-2*blockSize {
				t.Fatalf("%d bytes of %d found no space after %d", len(p)-n, len(p), len(model))
			}
			model = append(model, p[:n]...)
		} else {
			n := min(r.IntN(4*blockSize), len(model))
			q.drop(n)
			model = model[n:]
		}
		switch {
		case q.size() != len(model) || q.size() > q.limit:
			t.Fatalf("size %d, want %d", q.size(), len(model))
		case !bytes.HasPrefix(model, q.front()) || len(model) > 0 && len(q.front()) == 0:
			t.Fatal("the front is another's")
		}
		if len(model) > 0 {
			if k := r.IntN(len(model)); *q.at(k) != model[k] {
				t.Fatalf("byte %d is another's", k)
			}
		}
		if held := all - budget.left; held != int64(max(0, len(q.blocks)-1))*blockSize {
			t.Fatalf("%d bytes of the budget for %d blocks", held, len(q.blocks))
		}
	}
	q.clear()
	if budget.left != all {
		t.Errorf("%d bytes are not given back", all-budget.left)
	}
}

// However many take all they can, one that comes later finds as much as each of them.
func TestBudgetIsShared(t *testing.T) {
	for _, greedy := range []int{1, 3, 9, 39} {
		budget := NewBudget(64 << 20)
		queues := make([]queue, greedy)
		for i := range queues {
			queues[i] = queue{budget: budget, owner: fmt.Sprint(i), limit: 1 << 30}
		}
		for more := true; more; {
			more = false
			for i := range queues {
				more = queues[i].push(make([]byte, blockSize)) > 0 || more
			}
		}
		late := queue{budget: budget, owner: "late", limit: 1 << 30}
		for late.push(make([]byte, blockSize)) > 0 {
		}
		if share := 64 << 20 / (greedy + 1); queues[0].size() > share+2*blockSize || late.size() < share/2-2*blockSize {
			t.Errorf("%d queues have %d bytes each, the next one %d; a share is %d", greedy, queues[0].size(), late.size(), share)
		}
	}
}

// When others hold all that may be held, a paste arrives whole all the same, while the program prints what the client
// cannot acknowledge, since its acks are behind its input.
func TestPasteWithoutBudget(t *testing.T) {
	const size = 5 << 20
	budget := NewBudget(0)
	term := newTerm()
	term.echo = true
	taken := sha256.New()
	term.sink = taken
	s := start(t, setup{term: term, noAck: true, opt: Options{Ready: someReady, Budget: budget}})
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
	s := start(t, setup{opt: Options{Ready: someReady, Budget: NewBudget(0)}})
	s.input(t, strings.Repeat("x", MaxInput+1))
	code, reason := s.closed(t)
	if sum := s.wait(t); code != 1009 || reason != "too_large" || !errors.Is(sum.Cause, ErrTooLarge) {
		t.Errorf("closed with %d %q for %v", code, reason, sum.Cause)
	}
	if n := len(s.term.typed()); n > MaxInput {
		t.Errorf("%d bytes reached the terminal", n)
	}
}

// What sessions hold together is within the budget, but for a block each, and is given back with their end, however
// they are cut.
func TestSessionsGiveBack(t *testing.T) {
	const all, sessions = 8 << 20, 12
	budget := NewBudget(all)
	var open []*session
	for i := range sessions {
		term := newTerm()
		term.allowed = 0
		s := start(t, setup{term: term, noAck: true, opt: Options{Ready: someReady, Budget: budget, Owner: fmt.Sprint(i % 4)}})
		open = append(open, s)
		go func() {
			for range 2 * all / MaxInput {
				_ = s.ws.Write(t.Context(), 2, make([]byte, MaxInput)) // until the end
			}
		}()
	}
	choked := func(s *session) (is bool) {
		s.bridge.mu.Lock()
		defer s.bridge.mu.Unlock()
		return s.bridge.choked
	}
	eventually(t, "all are full", func() bool { return !slices.ContainsFunc(open, func(s *session) bool { return !choked(s) }) })
	held := 0
	for _, s := range open {
		s.bridge.mu.Lock()
		held += s.bridge.input.size()
		s.bridge.mu.Unlock()
	}
	if held > all+sessions*blockSize {
		t.Errorf("%d bytes are held", held)
	}
	for i, s := range open {
		if i%2 == 0 {
			s.cancel(errDrained)
		} else {
			s.term.quit(terminal.Exit{})
		}
		s.wait(t)
	}
	if budget.left != all {
		t.Errorf("%d bytes are not given back", all-budget.left)
	}
}

// An interrupt loses nothing when there is no memory to read ahead with.
func TestInterruptWithoutBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := NewBudget(blockSize)
		term := newTerm()
		term.tells = true
		s := startInBubble(t, setup{term: term, noAck: true, opt: Options{Ready: someReady, Budget: budget}})
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
		if budget.left != blockSize {
			t.Errorf("%d bytes of the budget are left", budget.left)
		}
	})
}
