package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/coder/websocket"
)

// readClient is the reader: WebSocket to terminal. It reads until the client
// is gone or the WebSocket is closed; after the session's end it goes on, since
// the library answers and hears close frames in it, but drops what it reads.
func (b *Bridge) readClient() {
	defer b.wg.Done()
	defer close(b.gone)
	var scratch [256]byte // larger than a keystroke or a common control message
	for {
		// Never with a context that ends: that would end the connection, and
		// with it the close frame that tells the client why.
		typ, r, err := b.ws.ws.Reader(context.Background())
		if err == nil {
			err = b.receive(typ, r, scratch[:0])
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
func (b *Bridge) receive(typ websocket.MessageType, r io.Reader, buf []byte) error {
	isControl := b.v1 && typ == websocket.MessageText
	limit := MaxInput
	if isControl {
		limit = MaxControl
	}
	p, err := readMessage(r, buf, limit)
	if err != nil {
		return err
	}
	b.mu.Lock()
	ending := b.ending
	b.mu.Unlock()
	switch {
	case ending:
		return nil
	case isControl:
		return b.receiveControl(p)
	default:
		b.receiveInput(p)
		return nil
	}
}

// readMessage reads a whole message, into buf if it fits. A message over the
// limit, in however many fragments, is ErrTooLarge.
func readMessage(r io.Reader, buf []byte, limit int) ([]byte, error) {
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if len(buf) > limit {
			return nil, fmt.Errorf("%w of %d bytes", ErrTooLarge, limit)
		}
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

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

// receiveInput queues input for the terminal. It waits only when the program
// has left maxQueued bytes unread; then acks cannot be heard either, and the
// window is lifted until it goes on.
func (b *Bridge) receiveInput(p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(p) == 0 {
		return // nothing was typed
	}
	b.life.input(time.Now())
	b.typed = true
	if b.opt.Ready.Mode == "ro" {
		return
	}
	b.awaitSize()
	b.interrupt(p)
	for !b.ending && b.typing+len(b.input)+len(p) > maxQueued {
		b.choked = true
		b.output.Signal()
		b.queue.Wait()
	}
	b.choked = false
	if b.ending {
		return
	}
	if b.now != nil && !b.typist {
		n, err := b.now.TryWrite(p)
		b.bytesIn += int64(n)
		if p = p[n:]; len(p) == 0 || err != nil {
			return // after an error the shell is gone, which carryOutput finds out
		}
	}
	b.input = append(b.input, p...)
	if !b.typist {
		b.typist = true
		b.wg.Add(1)
		go b.typeInput()
	}
}

// typeInput writes queued input to the terminal until there is none. Writing
// blocks for as long as the program does not read; the reader must not.
func (b *Bridge) typeInput() {
	defer b.wg.Done()
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.input) > 0 {
		p := b.input
		b.input = nil
		for len(p) > 0 && !b.ending {
			piece := p[:min(len(p), 32<<10)]
			b.typing = len(p)
			b.mu.Unlock()
			n, err := b.term.Write(piece)
			b.mu.Lock()
			b.bytesIn += int64(n)
			p = p[n:]
			if err != nil {
				p = nil // the shell is gone, which the pump finds out
			}
			b.queue.Signal()
		}
		b.typing = 0
	}
	b.typist = false
}
