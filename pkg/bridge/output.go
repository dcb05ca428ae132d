package bridge

import (
	"sync"
	"time"

	"github.com/molecule-ai/termgw/internal/pollfd"
)

const (
	// smallRead is the buffer of a terminal that is waited for, in bytes: enough
	// for a keystroke's echo.
	smallRead = 256
	// largeRead is the buffer of what is there at once, and so the largest frame.
	// It is borrowed for one frame. A browser takes 50 MB in frames of 4 KiB in
	// twice the time of such frames (measured).
	largeRead = 32 << 10
)

type largeBuffer [headroom + largeRead]byte

var largeBuffers = sync.Pool{New: func() any { return new(largeBuffer) }}

// carryOutput reads the terminal and sends what it printed, until there is no
// more; it returns the error of the last read. It sends at once, except in a
// flood: while the client has yet to render what was sent, more is gathered,
// unless somebody has typed. A client that is gone takes nothing: the rest is
// dropped.
func (b *Bridge) carryOutput() error {
	small := make([]byte, headroom+smallRead)
	flows := false // more may be there already
	for {
		room, echo := b.awaitRoom()
		if echo != nil {
			if err := b.skip(echo); err != nil {
				return err
			}
			continue
		}
		n, err := 0, error(nil)
		if flows {
			n, err = b.carryLarge(nil, room)
		}
		if n == 0 && err == nil {
			n, err = b.term.Read(small[headroom:][:min(smallRead, room)])
			switch {
			case n == smallRead && err == nil:
				n, err = b.carryLarge(small[headroom:], room)
			case n > 0:
				b.sendOutput(small[:headroom+n])
			}
		}
		if err != nil {
			return err
		}
		flows = n >= pollfd.Large || n == smallRead
	}
}

// carryLarge sends what was waited for, if anything, with what is there behind
// it. More is gathered of a flood.
func (b *Bridge) carryLarge(waitedFor []byte, room int) (n int, err error) {
	large := largeBuffers.Get().(*largeBuffer)
	defer largeBuffers.Put(large)
	p := large[headroom:][:min(largeRead, room)]
	n = copy(p, waitedFor)
	m, err := b.term.TryRead(p[n:], waitedFor == nil && b.mayGather())
	if n += m; n > 0 {
		b.sendOutput(large[:headroom+n])
	}
	return n, err
}

// mayGather tells whether the client has yet to render what was sent, and nobody
// has typed since.
func (b *Bridge) mayGather() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.ending && !b.typed && (b.window.limit == 0 || b.window.backlog() > 0)
}

// awaitRoom waits until output is wanted and tells how many bytes of it, or the
// echo of an interrupt that was typed meanwhile.
func (b *Bridge) awaitRoom() (room int, echo []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if echo, b.echo = b.echo, nil; echo != nil {
			return 0, echo
		}
		// choked: the client's acks are stuck behind input that the program
		// does not read, perhaps because we do not read its output.
		if b.ending || b.choked {
			return largeRead, nil
		}
		if room := b.window.room(); room > 0 {
			return room, nil
		}
		b.output.Wait()
	}
}

func (b *Bridge) sendOutput(buf []byte) {
	size := len(buf) - headroom
	b.mu.Lock()
	before := b.window.backlog()
	b.window.send(size) // first: its ack may come before the write returns
	b.typed = false
	b.observeBacklog(b.window.backlog() - before)
	b.mu.Unlock()
	if b.send(opBinary, buf) {
		b.sent += int64(size)
	}
}

// send sends a frame from the caller's goroutine and tells whether the client
// took it. It waits for as long as the client does not read, unless the session
// is cut.
func (b *Bridge) send(op byte, buf []byte) bool {
	b.mu.Lock()
	if b.ending { // else cut sets it, later
		_ = b.ws.wire.SetWriteDeadline(time.Now().Add(flushTime))
	}
	b.mu.Unlock()
	return b.ws.wire.send(op, buf) == nil
}

// message is a frame that others than the caller's goroutine send.
type message struct {
	op      byte
	payload []byte
}

// tell queues a message. Who calls it need not wait for a client that does not
// read. The lock is held.
func (b *Bridge) tell(op byte, payload []byte) {
	b.messages = append(b.messages, message{op, payload})
	if !b.telling {
		b.telling = true
		b.wg.Add(1)
		go b.sendMessages()
	}
}

// sendMessages sends messages until there are none.
func (b *Bridge) sendMessages() {
	defer b.wg.Done()
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.messages) > 0 {
		m := b.messages[0]
		b.messages = b.messages[1:]
		b.mu.Unlock()
		_ = b.ws.wire.send(m.op, framed(m.payload)) // a client that is gone is the reader's to find
		b.mu.Lock()
	}
	b.messages, b.telling = nil, false
}
