package session

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
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
			queues[i] = queue{budget: budget, holder: fmt.Sprint(i), limit: 1 << 30}
		}
		for more := true; more; {
			more = false
			for i := range queues {
				more = queues[i].push(make([]byte, blockSize)) > 0 || more
			}
		}
		late := queue{budget: budget, holder: "late", limit: 1 << 30}
		for late.push(make([]byte, blockSize)) > 0 {
		}
		if share := 64 << 20 / (greedy + 1); queues[0].size() > share+2*blockSize || late.size() < share/2-2*blockSize {
			t.Errorf("%d queues have %d bytes each, the next one %d; a share is %d", greedy, queues[0].size(), late.size(), share)
		}
	}
}

// pattern is output of lines whose every byte tells where it belongs.
func pattern(off int64, p []byte) {
	for i := range p {
		n := off + int64(i)
		p[i] = byte(n ^ n>>8 ^ n>>16)
		if p[i] != '\n' && (p[i] < ' ' || p[i] > '~') {
			p[i] = '@' | p[i]&0x3f
		}
	}
}
