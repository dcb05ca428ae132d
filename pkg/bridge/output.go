package bridge

import (
	"context"

	"github.com/coder/websocket"
)

// readTerminal is the pump: terminal to ring. An idle terminal is read into a
// small buffer of its own; only while bytes flow does it read into the ring,
// whose memory is borrowed.
func (b *Bridge) readTerminal() {
	defer b.wg.Done()
	small := make([]byte, smallRead)
	for {
		p := b.readSpace(small)
		n, err := b.term.Read(p)
		if b.readDone(small, n, len(p), err) {
			return
		}
	}
}

// readSpace waits until output is wanted and returns where to read it to.
func (b *Bridge) readSpace(small []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if b.ending {
			b.bulk = false
			return small
		}
		room := min(b.window.room(b.ring.size-b.sending), ringSize-b.ring.size)
		if b.choked {
			// The client's acks are stuck behind input that the program does
			// not read, perhaps because we do not read its output.
			room = ringSize - b.ring.size
		}
		switch {
		case room == 0:
			b.output.Wait()
		case b.bulk:
			return b.ring.space(room)
		default:
			return small[:min(len(small), room)]
		}
	}
}

// readDone takes n bytes in; it tells whether they were the last.
func (b *Bridge) readDone(small []byte, n, asked int, err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ending && !b.bulk: // nobody wants them any more
	case b.bulk:
		b.ring.commit(n)
	default:
		for p := small[:n]; len(p) > 0; {
			m := copy(b.ring.space(len(p)), p)
			b.ring.commit(m)
			p = p[m:]
		}
	}
	b.bulk = err == nil && (n == asked || n >= floodRead)
	if err != nil {
		b.eof = err
	}
	if !b.bulk {
		b.ring.release()
	}
	b.wakeWriter()
	return err != nil
}

// writeClient sends control messages and output until the pump is done and
// everything is sent. A client that is gone takes nothing: the rest is dropped.
func (b *Bridge) writeClient() {
	for {
		b.mu.Lock()
		messages := b.messages
		b.messages = nil
		var data []byte
		if len(messages) == 0 {
			data = b.ring.data(b.sendable())
			b.sending = len(data)
			if len(data) > 0 {
				before := b.window.backlog()
				b.window.send(len(data)) // first: its ack may come before Write returns
				b.observeBacklog(b.window.backlog() - before)
			}
		}
		done := b.eof != nil && b.ring.size == 0
		b.mu.Unlock()

		switch {
		case len(messages) > 0:
			for _, m := range messages {
				b.writeFrame(websocket.MessageText, m)
			}
		case len(data) > 0:
			if b.writeFrame(websocket.MessageBinary, data) {
				b.sent += int64(len(data))
			}
			b.outputSent()
		case done:
			return
		default:
			<-b.wake
		}
	}
}

// sendable tells how many bytes the window lets go.
func (b *Bridge) sendable() int {
	if b.ending || b.choked {
		return ringSize
	}
	return b.window.room(0)
}

func (b *Bridge) outputSent() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ring.consume(b.sending)
	b.sending = 0
	if !b.bulk {
		b.ring.release()
	}
	b.output.Signal()
}

// writeFrame tells whether the client took the frame. It waits for as long as
// the client does not read: who cuts the session frees it.
func (b *Bridge) writeFrame(typ websocket.MessageType, p []byte) bool {
	ctx := context.Background()
	b.mu.Lock()
	if b.ending {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flushTime)
		defer cancel()
	}
	b.writes.Add(1)
	b.mu.Unlock()
	err := b.ws.Write(ctx, typ, p)
	b.writes.Add(1)
	return err == nil
}
