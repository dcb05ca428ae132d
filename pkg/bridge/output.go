package bridge

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// smallRead is the buffer of an idle terminal, in bytes: enough for a
	// keystroke's echo.
	smallRead = 256
	// largeRead is the buffer of a terminal that prints much, and so the
	// largest frame. It is borrowed while bytes flow.
	largeRead = 64 << 10
	// flood is a read that is followed by a large one, and a write that takes
	// turns. A pty gives 4,095 bytes at once at most.
	flood = 2 << 10
)

type largeBuffer [headroom + largeRead]byte

var largeBuffers = sync.Pool{New: func() any { return new(largeBuffer) }}

// gatherSize is a frame that a flood leaves in, in bytes: a browser takes 50 MB
// in frames of 4 KiB in twice the time of such frames (measured). It is looked
// for gatherTries times, and the program gets the processor before each.
const (
	gatherSize  = 32 << 10
	gatherTries = 16
)

// carryOutput reads the terminal and sends what it printed, until there is no
// more; it returns the error of the last read. It sends at once, except in a
// flood: while the client has yet to render what was sent, more is gathered,
// unless somebody has typed. A client that is gone takes nothing: the rest is
// dropped.
func (b *Bridge) carryOutput() error {
	small := make([]byte, headroom+smallRead)
	for {
		buf := small
		if b.large != nil {
			buf = b.large[:]
		}
		p := buf[headroom:]
		p = p[:min(len(p), b.awaitRoom())]
		n, err := b.read(p)
		if n > 0 {
			b.sendOutput(buf[:headroom+n])
		}
		more := err == nil && (n >= flood || n == len(p))
		switch {
		case more && b.large == nil:
			b.large = largeBuffers.Get().(*largeBuffer)
		case !more && b.large != nil:
			largeBuffers.Put(b.large)
			b.large = nil
		}
		if err != nil {
			return err
		}
	}
}

// read reads what follows a large read in a turn, if it is there already.
func (b *Bridge) read(p []byte) (int, error) {
	if turns := b.ws.wire.turns; b.large != nil && b.now != nil && turns != nil {
		turns.take()
		n, err := b.gather(p)
		turns.pass()
		if n > 0 || err != nil {
			return n, err
		}
	}
	return b.term.Read(p)
}

// gather reads what is there, and more of it while the client is busy and nobody
// waits for an answer. A pty hands out what was printed 4 KiB at a time as soon
// as it is there; who reads at once switches to and fro with the program for
// each of them, on one processor while the other is idle.
func (b *Bridge) gather(p []byte) (n int, err error) {
	tries := 0
	if b.mayGather() {
		tries = gatherTries
	}
	p = p[:min(len(p), gatherSize)]
	for {
		m, err := b.now.TryRead(p[n:])
		n += m
		if err != nil || n == len(p) || tries == 0 {
			return n, err
		}
		tries--
		_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

// mayGather tells whether the client has yet to render what was sent, and nobody
// has typed since.
func (b *Bridge) mayGather() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.ending && !b.typed && (b.window.limit == 0 || b.window.backlog() > 0)
}

// awaitRoom waits until output is wanted and tells how many bytes of it.
func (b *Bridge) awaitRoom() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		// choked: the client's acks are stuck behind input that the program
		// does not read, perhaps because we do not read its output.
		if b.ending || b.choked {
			return largeRead
		}
		if room := b.window.room(); room > 0 {
			return room
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
