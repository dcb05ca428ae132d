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

// readClient is the reader: WebSocket to session. It reads until the client is gone
// or the WebSocket is closed. After the session's end it goes on, since the library
// answers close frames while reading, and messages are dropped.
func (b *Bridge) readClient() {
	defer close(b.gone)
	var small [256]byte // larger than a keystroke or a common control message
	for {
		// The end of a context would end the connection before the close frame,
		// which tells the client why.
		typ, r, err := b.ws.ws.Reader(context.Background())
		if err == nil {
			err = b.receive(typ, r, small[:0])
		}
		switch {
		case err == nil:
		case errors.Is(err, ErrTooLarge), errors.Is(err, ErrBadMessage):
			b.session.Detach(err) // what follows does not reach the shell
			if _, err := io.Copy(io.Discard, r); err != nil {
				return
			}
		case websocket.CloseStatus(err) == websocket.StatusGoingAway:
			b.lost(ErrAway)
			return
		case websocket.CloseStatus(err) != -1:
			b.session.Detach(ErrClosed)
			return
		case !b.ws.wire.cut.Load(): // a frame that breaks RFC 6455: the library has closed by 1002
			b.session.Detach(fmt.Errorf("%w: %w", ErrBadMessage, err))
			return
		default:
			b.lost(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
	}
}

// lost says that the client is lost, who may come back.
func (b *Bridge) lost(cause error) {
	wait := b.opt.Ready.Resume
	if !b.ws.wire.spoke.Load() && !b.opt.Ready.resumed {
		wait = min(wait, unheardTime)
		if b.opt.Speaks {
			wait = 0
		}
	}
	if b.session.Leave(cause, wait) {
		b.leave(cause)
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

// readFull reads until p is full or the message is over; the error is io.EOF then,
// unlike that of io.ReadFull.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// tooLarge returns the error of a message over its limit.
func tooLarge(limit int) error { return fmt.Errorf("%w of %d bytes", ErrTooLarge, limit) }

func (b *Bridge) receiveControl(p []byte) error {
	m, err := parseControl(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadMessage, err)
	}
	switch m.Type {
	case "resize":
		b.session.Resize(m.Size)
	case "ping":
		given := b.session.Given()
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.messages) < maxMessages && !b.ending {
			b.tell(opText, encodePong(m.ID, given))
		}
	case "ack":
		return b.acknowledge(m.Bytes)
	case "hidden":
		b.hide(m.Hidden)
	case "end":
		b.session.Detach(ErrEnded)
	}
	return nil
}

func (b *Bridge) acknowledge(rendered int64) error {
	b.mu.Lock()
	if b.ending { // the backlog is settled already
		b.mu.Unlock()
		return nil
	}
	before := b.window.backlog()
	err := b.window.ack(time.Now(), rendered)
	if err == nil {
		b.observeBacklog(b.window.backlog() - before)
	}
	window := b.window.limit
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadMessage, err)
	}
	b.session.Acknowledge(rendered, window)
	return nil
}

// hide gives the client the window of a page that is hidden, or shown again.
func (b *Bridge) hide(hidden bool) {
	b.mu.Lock()
	b.window.hide(hidden)
	acked, window := b.window.acked, b.window.limit
	b.mu.Unlock()
	b.session.Acknowledge(acked, window)
}

// receiveInput takes a message of input, in the pieces in which it comes.
func (b *Bridge) receiveInput(r io.Reader, small []byte) error {
	n, err := readFull(r, small[:cap(small)])
	if errors.Is(err, io.EOF) {
		p := small[:n]
		if taken := b.session.Type(p); taken < n {
			b.await(p[taken:], true)
		}
		return nil
	}
	if err != nil {
		return err
	}
	b.await(small[:n], false)
	large := largeBuffers.Get().(*largeBuffer)
	defer largeBuffers.Put(large)
	for total := n; ; {
		n, err := r.Read(large[:])
		last := errors.Is(err, io.EOF)
		if total += n; total > MaxInput {
			return tooLarge(MaxInput)
		}
		if err != nil && !last {
			return err
		}
		b.await(large[:n], last)
		if last {
			return nil
		}
	}
}

// await types a part of a message of input, and waits while the session may hold no
// more. The window does not hold output back meanwhile, since no ack is heard.
func (b *Bridge) await(p []byte, last bool) {
	for {
		p = p[b.session.TypePart(p, last):]
		if len(p) == 0 {
			break
		}
		b.choke(true)
		b.session.AwaitInput()
	}
	b.choke(false)
}

func (b *Bridge) choke(choked bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if choked && !b.choked {
		b.ws.wire.limitUnsent() // nothing else bounds output now
	}
	b.choked = choked
}
