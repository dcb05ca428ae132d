package keeper

import (
	"crypto/subtle"
	"log/slog"
	"net"
	"os/exec"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/internal/keeper/wire"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// mostKept bounds the output of a terminal that no gateway has acknowledged, in bytes. The program blocks then, as on any
// slow terminal. mostAhead bounds what a gateway that is there has no room for yet: nobody sees a ^C before it.
const (
	mostKept  = 256 << 10
	mostAhead = 8 << 10
)

// held is a terminal that the keeper holds, until a gateway hangs up or the lease is over.
type held struct {
	secret string
	lease  time.Duration
	pty    *runner.Pty
	forget func()      // called once, with the hang-up
	silent *time.Timer // hangs up when the lease is over

	mu      sync.Mutex
	changed *sync.Cond // with each change of what follows
	owner   *attachment
	hungUp  bool
	out     []byte // output from acked on
	acked   int64  // the offset up to which a gateway has output
	exit    *terminal.Exit
	in      []byte // input that the terminal has had no room for yet
	taken   int64  // the offset up to which the terminal has input
	feeding bool   // feed runs
}

// hold starts a program under a pty.
func hold(o *wire.Opening, forget func()) (*held, error) {
	cmd := exec.Command(o.Argv[0], o.Argv[1:]...) // whoever reaches the socket may run anything
	cmd.Env = append(cmd.Environ(), o.Env...)
	pty, err := runner.StartPty(cmd, terminal.Size{Cols: o.Cols, Rows: o.Rows}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	h := &held{secret: o.Secret, lease: o.Lease, pty: pty, forget: forget}
	h.changed = sync.NewCond(&h.mu)
	h.mu.Lock()
	h.silent = time.AfterFunc(h.lease, h.hangUp) // takes the lock first
	h.mu.Unlock()
	go h.read() // ends with the pty
	return h, nil
}

func (h *held) knows(secret string) bool {
	return subtle.ConstantTimeCompare([]byte(h.secret), []byte(secret)) == 1
}

// read keeps what the program prints, and its exit.
func (h *held) read() {
	buf := make([]byte, 4<<10)
	for {
		n, err := h.pty.Read(buf)
		h.mu.Lock()
		for n > 0 && h.isFull(n) && !h.hungUp {
			h.changed.Wait()
		}
		if h.hungUp {
			h.mu.Unlock()
			break
		}
		h.out = append(h.out, buf[:n]...)
		h.changed.Broadcast()
		h.mu.Unlock()
		if err != nil {
			break
		}
	}
	exit, err := h.pty.Wait()
	if err != nil {
		exit = terminal.Exit{Code: 255}
	}
	h.pty.HangUp() // what else holds the terminal learns of the end
	h.mu.Lock()
	defer h.mu.Unlock()
	h.exit = &exit
	h.changed.Broadcast()
}

// isFull reports whether n more bytes of output have to wait. The lock is held.
func (h *held) isFull(n int) bool {
	printed := h.acked + int64(len(h.out))
	return len(h.out)+n > mostKept || h.owner != nil && printed-h.owner.sent > mostAhead
}

// hangUp closes the pty, so that the kernel hangs up, and forgets the terminal.
func (h *held) hangUp() {
	h.mu.Lock()
	again := h.hungUp
	h.hungUp = true
	if h.owner != nil {
		h.owner.leave()
	}
	h.changed.Broadcast()
	h.mu.Unlock()
	if !again {
		h.silent.Stop()
		h.pty.HangUp()
		h.forget()
	}
}

// input gives the program input, at once as far as the terminal has room. The lock is held.
func (h *held) input(p []byte) error {
	if len(h.in)+len(p) > wire.InputWindow {
		return wire.ErrMalformed
	}
	if !h.feeding {
		n, err := h.pty.TryWrite(p)
		if err != nil {
			n = len(p) // nobody reads it any more
		}
		h.taken += int64(n)
		p = p[n:]
	}
	if h.in = append(h.in, p...); len(h.in) > 0 && !h.feeding {
		h.feeding = true
		go h.feed() // ends with the pty
	}
	h.changed.Broadcast()
	return nil
}

// feed gives the program the input that the terminal had no room for.
func (h *held) feed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.in) > 0 && !h.hungUp {
		p := append([]byte(nil), h.in[:min(len(h.in), 4<<10)]...)
		h.mu.Unlock()
		_, err := h.pty.Write(p)
		h.mu.Lock()
		h.in = h.in[len(p):]
		h.taken += int64(len(p))
		h.changed.Broadcast()
		if err != nil {
			break
		}
	}
	h.in, h.feeding = nil, false
}

// acknowledge drops output that a gateway has. The lock is held.
func (h *held) acknowledge(offset int64) error {
	if offset > h.acked+int64(len(h.out)) {
		return wire.ErrMalformed
	}
	if offset > h.acked {
		h.out = h.out[offset-h.acked:]
		h.acked = offset
		if len(h.out) == 0 {
			h.out = nil
		}
		h.changed.Broadcast()
	}
	return nil
}

// attach makes a connection the owner of the terminal; the last owner's connection is closed. received is the offset up
// to which the gateway has output, window what it may be sent.
func (h *held) attach(conn *net.UnixConn, received, window int64) (*attachment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hungUp || received < h.acked {
		return nil, errUnknown
	}
	if err := h.acknowledge(received); err != nil {
		return nil, err
	}
	if h.owner != nil {
		h.owner.leave()
	}
	h.owner = &attachment{
		held: h, conn: conn, sent: received, room: window, told: h.taken,
		say: wire.AppendOffsets(wire.AppendOffsets(nil, wire.Attached, received, h.taken+int64(len(h.in))), wire.Taken, h.taken),
	}
	h.silent.Reset(h.lease)
	h.changed.Broadcast()
	return h.owner, nil
}
