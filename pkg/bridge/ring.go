package bridge

import "sync"

// ringSize bounds the output held between the terminal and the WebSocket, and
// so the size of one frame.
const ringSize = 64 << 10

// ring is a byte queue for one producer (the pump) and one consumer (the
// writer): the pump reads from the terminal straight into free space, the
// writer sends filled space, and both may do so at once since the two never
// overlap. Its memory is borrowed while it holds bytes.
//
// Locking is the owner's; space and data stay valid without the lock until
// the matching commit or consume.
type ring struct {
	buf         *[ringSize]byte // nil when empty
	start, size int
}

var rings = sync.Pool{New: func() any { return new([ringSize]byte) }}

// space returns contiguous free space of at most max bytes.
func (r *ring) space(limit int) []byte {
	if r.buf == nil {
		r.buf = rings.Get().(*[ringSize]byte)
	}
	if r.size == 0 {
		r.start = 0
	}
	end := r.start + r.size
	if end >= ringSize {
		end -= ringSize
		return r.buf[end:min(r.start, end+limit)]
	}
	return r.buf[end:min(ringSize, end+limit)]
}

// commit appends the first n bytes of the last space.
func (r *ring) commit(n int) { r.size += n }

// data returns at most limit contiguous bytes, oldest first.
func (r *ring) data(limit int) []byte {
	if r.size == 0 {
		return nil
	}
	return r.buf[r.start:min(r.start+min(r.size, limit), ringSize)]
}

// consume drops the n oldest bytes.
func (r *ring) consume(n int) {
	r.start = (r.start + n) % ringSize
	r.size -= n
}

// release gives the memory back if no byte is held. The pump calls it, since
// only the pump knows that no read is going into the free space.
func (r *ring) release() {
	if r.size == 0 && r.buf != nil {
		rings.Put(r.buf)
		r.buf = nil
	}
}
