package bridge

import (
	"sync"
	"time"
)

// smallOutput is the largest piece of output for which a bridge has a buffer of its
// own, in bytes: enough for a keystroke's echo.
const smallOutput = 256

// largeBuffer has room for the largest piece of a session's output.
type largeBuffer [headroom + 32<<10]byte

var largeBuffers = sync.Pool{New: func() any { return new(largeBuffer) }}

// Output sends a piece of output, and returns when the kernel has taken the frame.
// Only the session's end bounds that time.
func (b *Bridge) Output(_ int64, p []byte) error {
	b.mu.Lock()
	before := b.window.backlog()
	b.window.send(len(p)) // first: its ack may come before the write returns
	b.observeBacklog(b.window.backlog() - before)
	if b.ending { // else Ending sets it, later
		_ = b.ws.wire.SetWriteDeadline(time.Now().Add(flushTime))
	}
	b.mu.Unlock()
	buf := b.small[:]
	if len(p) > smallOutput {
		large := largeBuffers.Get().(*largeBuffer)
		defer largeBuffers.Put(large)
		buf = large[:]
	}
	n := copy(buf[headroom:], p)
	return b.ws.wire.send(opBinary, buf[:headroom+n])
}

// message is a frame that sendMessages sends.
type message struct {
	op      byte
	payload []byte
}

// tell queues a message, and does not wait for a client that does not read, nor for
// Begin. The lock is held.
func (b *Bridge) tell(op byte, payload []byte) {
	b.messages = append(b.messages, message{op, payload})
	if b.begun && !b.telling {
		b.startTelling()
	}
}

func (b *Bridge) startTelling() {
	b.telling = true
	b.wg.Go(b.sendMessages)
}

// sendMessages sends messages until there are none.
func (b *Bridge) sendMessages() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.messages) > 0 {
		m := b.messages[0]
		b.messages = b.messages[1:]
		b.mu.Unlock()
		_ = b.ws.wire.send(m.op, framed(m.payload)) // the reader finds a client that is gone
		b.mu.Lock()
	}
	b.messages, b.telling = nil, false
}
