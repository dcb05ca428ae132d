package session

import (
	"slices"
	"sync"
)

// blockSize is the unit of memory for bytes that a session holds, in bytes.
const blockSize = 32 << 10

type block [blockSize]byte

var blocks = sync.Pool{New: func() any { return new(block) }}

// Budget bounds the memory in which all sessions of a process hold bytes: input
// that programs have not read, output that was read ahead of an interrupt, and
// output that a client may still ask for.
//
// A holder, a person say, may take more for as long as the budget has more left than
// the holder has (dynamic thresholds: Choudhury and Hahne, 1998). So n holders that take
// all they can have 1/(n+1) of the budget each, and as much is left for the next one.
type Budget struct {
	mu   sync.Mutex
	left int64            // bytes
	held map[string]int64 // bytes, by holder
}

// NewBudget returns a budget. A nil Budget has no bound.
func NewBudget(bytes int64) *Budget { return &Budget{left: bytes, held: map[string]int64{}} }

// take takes a block, and reports whether the holder may have one.
func (b *Budget) take(holder string) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.held[holder] + blockSize
	if held > b.left {
		return false
	}
	b.held[holder] = held
	b.left -= blockSize
	return true
}

// has reports whether the holder may have a block.
func (b *Budget) has(holder string) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[holder]+blockSize <= b.left
}

// overdraw takes a block that others have taken meanwhile.
func (b *Budget) overdraw(holder string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[holder] += blockSize
	b.left -= blockSize
}

func (b *Budget) giveBack(holder string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += blockSize
	if b.held[holder] -= blockSize; b.held[holder] == 0 {
		delete(b.held, holder)
	}
}

// queue holds bytes in order. The first block is the queue's own, so that no session
// stands still for the bytes of another; each further block is taken from the budget.
//
// The bytes that front has returned may be read while bytes are added.
type queue struct {
	budget *Budget
	holder string   // of the share of the budget
	limit  int      // the largest size, in bytes
	blocks []*block // oldest first
	head   int      // where the bytes begin in the first block
	tail   int      // where the bytes end in the last block
}

// size returns how many bytes the queue holds.
func (q *queue) size() int {
	if len(q.blocks) == 0 {
		return 0
	}
	return (len(q.blocks)-1)*blockSize + q.tail - q.head
}

// space returns memory for further bytes, which wrote then adds; nil when the limit
// is reached or the budget has nothing left.
func (q *queue) space() []byte {
	last := len(q.blocks) - 1
	if last < 0 || q.tail == blockSize {
		if last >= 0 && ((last+1)*blockSize >= q.limit || !q.budget.take(q.holder)) {
			return nil
		}
		q.blocks = append(q.blocks, blocks.Get().(*block))
		q.tail = 0
		last++
	}
	return q.blocks[last][q.tail:]
}

// wrote adds the first n bytes of space.
func (q *queue) wrote(n int) { q.tail += n }

// push adds the bytes that have space, and returns how many.
func (q *queue) push(p []byte) (n int) {
	for n < len(p) {
		space := q.space()
		if len(space) == 0 {
			break
		}
		m := copy(space, p[n:])
		q.wrote(m)
		n += m
	}
	return n
}

// front returns the oldest bytes, as many as are in one block; nil if there are none.
func (q *queue) front() []byte {
	if len(q.blocks) == 0 {
		return nil
	}
	return q.blocks[0][q.head:q.end(0)]
}

// end returns where the bytes end in block i.
func (q *queue) end(i int) int {
	if i == len(q.blocks)-1 {
		return q.tail
	}
	return blockSize
}

// at returns byte i.
func (q *queue) at(i int) *byte {
	i += q.head
	return &q.blocks[i/blockSize][i%blockSize]
}

// drop removes the n oldest bytes, and gives back the blocks without a byte left.
func (q *queue) drop(n int) {
	for q.head += n; len(q.blocks) > 0 && q.head >= q.end(0); {
		q.head -= q.end(0)
		blocks.Put(q.blocks[0])
		if len(q.blocks) == 1 {
			q.blocks, q.head, q.tail = nil, 0, 0
			return
		}
		q.budget.giveBack(q.holder)
		q.blocks = slices.Delete(q.blocks, 0, 1)
	}
}

func (q *queue) clear() { q.drop(q.size()) }
