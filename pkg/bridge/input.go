package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/coder/websocket"
)

// readClient is the reader: WebSocket to terminal. It reads until the client
// is gone or the WebSocket is closed; after the session's end it goes on, since
// the library answers and hears close frames in it, but drops what it reads.
func (b *Bridge) readClient() {
	defer b.wg.Done()
	defer close(b.gone)
	var small [256]byte // larger than a keystroke or a common control message
	for {
		// Never with a context that ends: that would end the connection, and
		// with it the close frame that tells the client why.
		typ, r, err := b.ws.ws.Reader(context.Background())
		if err == nil {
			err = b.receive(typ, r, small[:0])
		}
		switch {
		case err == nil:
		case errors.Is(err, ErrTooLarge), errors.Is(err, ErrBadMessage):
			b.cancel(err)
			b.stopInput() // at once: what follows must not reach the shell
			if _, err := io.Copy(io.Discard, r); err != nil {
				return
			}
		case websocket.CloseStatus(err) != -1:
			b.cancel(ErrClosed)
			return
		default:
			b.cancel(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
	}
}

// receive takes one message.
func (b *Bridge) receive(typ websocket.MessageType, r io.Reader, small []byte) error {
	if !b.v1 || typ != websocket.MessageText {
		return b.receiveInput(r, small)
	}
	p, err := readControl(r, small)
	if err != nil {
		return err
	}
	b.mu.Lock()
	ending := b.ending
	b.mu.Unlock()
	if ending {
		return nil
	}
	return b.receiveControl(p)
}

// readControl reads a whole control message, into buf if it fits.
func readControl(r io.Reader, buf []byte) ([]byte, error) {
	for {
		n, err := readFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if len(buf) > MaxControl {
			return nil, tooLarge(MaxControl)
		}
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return nil, err
		}
		buf = slices.Grow(buf, 1)
	}
}

// readFull reads until p is full or the message over; then its error is io.EOF,
// which io.ReadFull's is not.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// tooLarge is the error of a message over its limit, in however many fragments.
func tooLarge(limit int) error { return fmt.Errorf("%w of %d bytes", ErrTooLarge, limit) }

func (b *Bridge) receiveControl(p []byte) error {
	m, err := parseControl(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadMessage, err)
	}
	switch m.Type {
	case "resize":
		b.mu.Lock()
		defer b.mu.Unlock()
		b.resize(m.Size)
	case "ping":
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.messages) < maxMessages && !b.ending {
			b.tell(opText, encodePong(m.ID))
		}
	case "ack":
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.ending {
			return nil // the backlog is settled already
		}
		before := b.window.backlog()
		if err := b.window.ack(time.Now(), m.Bytes); err != nil {
			return fmt.Errorf("%w: %w", ErrBadMessage, err)
		}
		b.observeBacklog(b.window.backlog() - before)
		b.output.Signal()
	}
	return nil
}

// receiveInput takes a message of input, in pieces as they come.
func (b *Bridge) receiveInput(r io.Reader, small []byte) error {
	n, err := readFull(r, small[:cap(small)])
	if errors.Is(err, io.EOF) {
		b.takeMessage(small[:n])
		return nil
	}
	if err != nil {
		return err
	}
	b.takePiece(small[:n], false)
	large := blocks.Get().(*block)
	defer blocks.Put(large)
	for total := n; ; {
		n, err := r.Read(large[:])
		last := errors.Is(err, io.EOF)
		if total += n; total > MaxInput {
			return tooLarge(MaxInput)
		}
		if err != nil && !last {
			return err
		}
		b.takePiece(large[:n], last)
		if last {
			return nil
		}
	}
}

// takeMessage takes a whole message of input, which may be an interrupt.
func (b *Bridge) takeMessage(p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.mayType(p) {
		return
	}
	b.awaitSize()
	b.interrupt(p)
	if !b.typist {
		n, err := b.term.TryWrite(p)
		b.bytesIn += int64(n)
		if p = p[n:]; len(p) == 0 || err != nil {
			return // after an error the shell is gone, which carryOutput finds out
		}
	}
	b.queueInput(p, true)
}

// takePiece takes a piece of a message of input.
func (b *Bridge) takePiece(p []byte, last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mayType(p) || len(p) == 0 { // nothing of a reader's is queued
		b.queueInput(p, last)
	}
}

// mayType notes that somebody has typed, and reports whether that goes to the
// terminal. The lock is held.
func (b *Bridge) mayType(p []byte) bool {
	if b.ending || len(p) == 0 {
		return false
	}
	b.life.input(time.Now())
	b.typed = true
	return b.opt.Ready.Mode != "ro"
}

// queueInput queues input. Nothing of a message is typed before the last of it has
// come, so that nothing of one over the limit is, unless the queue may hold no more
// of it. Then queueInput waits; acks cannot be heard meanwhile either, and the
// window is lifted. The lock is held.
func (b *Bridge) queueInput(p []byte, last bool) {
	for !b.ending {
		p = p[b.input.push(p):]
		if last || len(p) > 0 {
			b.toType = b.input.size()
			b.startTyping()
		}
		if len(p) == 0 {
			break
		}
		if !b.choked {
			b.choked = true
			b.ws.wire.limitUnsent() // what is sent has no other bound now
			b.output.Signal()
		}
		b.queue.Wait()
	}
	b.choked = false
}

func (b *Bridge) startTyping() {
	if b.toType > 0 && !b.typist {
		b.typist = true
		b.wg.Add(1)
		go b.typeInput()
	}
}

// typeInput writes queued input to the terminal until there is none to type.
// Writing blocks for as long as the program does not read; the reader must not.
func (b *Bridge) typeInput() {
	defer b.wg.Done()
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.toType > 0 && !b.ending {
		p := b.input.front()
		p = p[:min(len(p), b.toType)]
		b.mu.Unlock()
		n, err := b.term.Write(p)
		b.mu.Lock()
		b.bytesIn += int64(n)
		if err != nil {
			n = b.toType // the shell is gone, which carryOutput finds out
		}
		b.input.drop(n)
		b.toType -= n
		b.queue.Signal()
	}
	b.typist = false
	if b.ending {
		b.input.clear()
	}
}
