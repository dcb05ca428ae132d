package keeper

import (
	"bufio"
	"io"
	"net"
	"sync"

	"github.com/molecule-ai/termgw/internal/keeper/wire"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

const (
	// mostWritten bounds one write to a connection, in bytes.
	mostWritten = 64 << 10
	// mostSaid bounds the answers that a gateway does not read, in bytes.
	mostSaid = 64 << 10
)

// attachment is a gateway's connection to a terminal. Its fields are guarded by the terminal's lock.
type attachment struct {
	held *held
	conn *net.UnixConn
	left bool
	sent int64  // the offset up to which output was sent
	room int64  // bytes of output that may be sent
	told int64  // the last offset of input that was told
	say  []byte // frames to send before more output
	last bool   // the exit was sent
}

// serve serves the connection until it ends or another takes the terminal over.
func (a *attachment) serve() {
	var writer sync.WaitGroup
	writer.Go(a.write)
	hangUp := a.read()
	a.held.mu.Lock()
	hangUp = hangUp && a.held.owner == a
	a.leave()
	a.held.mu.Unlock()
	writer.Wait()
	if hangUp {
		a.held.hangUp()
	}
}

// leave ends the attachment. The lock is held.
func (a *attachment) leave() {
	a.left = true
	_ = a.conn.Close()
	if a.held.owner == a {
		a.held.owner = nil
	}
	a.held.changed.Broadcast()
}

// read does what the gateway's frames ask for, and reports whether the last one was to hang up.
func (a *attachment) read() (hangUp bool) {
	h := a.held
	r := bufio.NewReaderSize(a.conn, 1<<10)
	buf := make([]byte, 4<<10)
	var head [wire.Head]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return false
		}
		kind, n := wire.ParseHead(head[:])
		if n > len(buf) {
			return false
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return false
		}
		if kind == wire.Close {
			return true
		}
		h.mu.Lock()
		err := net.ErrClosed
		if h.owner == a {
			h.silent.Reset(h.lease)
			err = a.handle(kind, buf[:n])
		}
		h.mu.Unlock()
		if err != nil {
			return false
		}
	}
}

// handle does what a frame asks for. The lock is held.
func (a *attachment) handle(kind wire.Type, body []byte) error {
	switch kind {
	case wire.Input:
		return a.held.input(body)
	case wire.Grant:
		n, err := wire.Offsets(body, 2)
		if err != nil || n[1] > a.sent {
			return wire.ErrMalformed
		}
		a.room += n[0]
		a.held.changed.Broadcast()
		return a.held.acknowledge(n[1])
	case wire.Resize:
		n, err := wire.Offsets(body, 2)
		if err != nil || n[0] > terminal.MaxDimension || n[1] > terminal.MaxDimension {
			return wire.ErrMalformed
		}
		_ = a.held.pty.Resize(terminal.Size{Cols: uint16(n[0]), Rows: uint16(n[1])}) //nolint:gosec // bounded
	case wire.Probe:
		if len(a.say) > mostSaid {
			return wire.ErrMalformed
		}
		a.say = wire.Append(a.say, wire.Echo, nil)
		a.held.changed.Broadcast()
	case wire.Beat:
	default:
		return wire.ErrMalformed
	}
	return nil
}

// write sends what there is to send, until the attachment ends.
func (a *attachment) write() {
	h := a.held
	h.mu.Lock()
	defer h.mu.Unlock()
	var buf []byte
	for {
		for buf = a.frames(buf[:0]); len(buf) == 0 && !a.left; buf = a.frames(buf[:0]) {
			h.changed.Wait()
		}
		if a.left {
			return
		}
		h.mu.Unlock()
		_, err := a.conn.Write(buf)
		if cap(buf) > 8<<10 {
			buf = nil // of a flood
		}
		h.mu.Lock()
		if err != nil {
			a.leave()
			return
		}
	}
}

// frames appends the frames that can be sent now. The lock is held.
func (a *attachment) frames(b []byte) []byte {
	h := a.held
	b = append(b, a.say...)
	a.say = a.say[:0]
	for len(b) < mostWritten {
		rest := h.out[a.sent-h.acked:]
		n := min(int64(len(rest)), a.room, wire.MaxOutput)
		if n <= 0 {
			break
		}
		b = wire.Append(b, wire.Output, rest[:n])
		a.sent += n
		a.room -= n
		h.changed.Broadcast() // there may be room to read on
	}
	// What the program has read is told with something else, or when it is much.
	if h.taken > a.told && (len(b) > 0 || h.taken-a.told >= wire.InputWindow/4) {
		b = wire.AppendOffsets(b, wire.Taken, h.taken)
		a.told = h.taken
	}
	if h.exit != nil && !a.last && a.sent == h.acked+int64(len(h.out)) {
		a.last = true
		b = wire.Append(b, wire.Exit, append([]byte{byte(min(max(h.exit.Code, 0), 255))}, h.exit.Signal...))
	}
	return b
}
