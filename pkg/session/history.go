package session

// maxKept bounds the output that is kept, in bytes: the largest window of a client.
const maxKept = 1 << 20

// Sizes of a history's chunks, in bytes. Each is chunkGrowth times the one before:
// most sessions keep a prompt, and a flood keeps whole blocks.
const (
	firstChunk  = 128
	chunkGrowth = 4
)

// history is output that somebody may still ask for, by offset. Whole blocks are
// taken from the budget; what is smaller is the session's own.
type history struct {
	budget *Budget
	holder string // of the share of the budget
	chunks []chunk
	from   int64 // the offset of the first byte
	to     int64 // the offset after the last
}

// chunk is a piece of a history. Its length is that of its bytes, its capacity is
// fixed.
type chunk struct {
	from  int64
	bytes []byte
	block *block // of which bytes are a part; nil: none
}

// size returns how many bytes are kept.
func (h *history) size() int { return int(h.to - h.from) }

// room returns how many bytes can be added now, without more from the budget than
// there is.
func (h *history) room() int {
	room := min(maxKept-h.size(), blockSize)
	if h.next() == blockSize && !h.budget.has(h.holder) {
		return min(room, h.free())
	}
	return room
}

// free returns how many bytes the last chunk has left.
func (h *history) free() int {
	if len(h.chunks) == 0 {
		return 0
	}
	c := h.chunks[len(h.chunks)-1]
	return cap(c.bytes) - len(c.bytes)
}

// next is the size of the next chunk.
func (h *history) next() int {
	if len(h.chunks) == 0 {
		return firstChunk
	}
	return min(chunkGrowth*cap(h.chunks[len(h.chunks)-1].bytes), blockSize)
}

// add keeps bytes, and returns how many: fewer than all when there are maxKept, or
// the budget has nothing left.
func (h *history) add(p []byte) (n int) {
	for n < len(p) && h.size() < maxKept {
		if h.free() == 0 && h.next() == blockSize && !h.budget.take(h.holder) {
			break
		}
		m := min(len(p)-n, maxKept-h.size())
		n += h.append(p[n : n+m])
	}
	return n
}

// mustAdd keeps bytes for which there was room, whatever became of the budget.
func (h *history) mustAdd(p []byte) {
	for len(p) > 0 {
		if h.free() == 0 && h.next() == blockSize {
			h.budget.overdraw(h.holder)
		}
		p = p[h.append(p):]
	}
}

// append adds the bytes for which the last chunk has room, or a next one that is
// paid for.
func (h *history) append(p []byte) (n int) {
	if h.free() == 0 {
		c := chunk{from: h.to}
		if size := h.next(); size < blockSize {
			c.bytes = make([]byte, 0, size)
		} else {
			c.block = blocks.Get().(*block)
			c.bytes = c.block[:0]
		}
		h.chunks = append(h.chunks, c)
	}
	c := &h.chunks[len(h.chunks)-1]
	n = min(len(p), h.free())
	c.bytes = append(c.bytes, p[:n]...)
	h.to += int64(n)
	return n
}

// at returns the bytes from an offset on, as many as are in one chunk.
func (h *history) at(offset int64) []byte {
	for _, c := range h.chunks {
		if i := offset - c.from; i < int64(len(c.bytes)) {
			return c.bytes[i:]
		}
	}
	return nil
}

// forget drops the bytes before an offset. An empty history of one small chunk keeps
// that for the next bytes.
func (h *history) forget(offset int64) {
	h.from = max(h.from, min(offset, h.to))
	for len(h.chunks) > 0 {
		c := &h.chunks[0]
		if c.from+int64(len(c.bytes)) > h.from {
			return
		}
		if c.block == nil && len(h.chunks) == 1 && cap(c.bytes) == firstChunk {
			c.from, c.bytes = h.to, c.bytes[:0]
			return
		}
		if c.block != nil {
			blocks.Put(c.block)
			h.budget.giveBack(h.holder)
		}
		h.chunks[0] = chunk{}
		h.chunks = h.chunks[1:]
	}
	h.chunks = nil
}

// begin drops what is kept, and begins at an offset.
func (h *history) begin(offset int64) {
	h.forget(h.to)
	h.from, h.to = offset, offset
	if len(h.chunks) > 0 {
		h.chunks[0].from = offset
	}
}
