// Package bridge is one client of a session: the WebSocket, the termgw.v1
// messages, flow control by what the client has rendered, and the sign of life of
// the connection.
//
// It knows a WebSocket and a session. Who the person is, where the shell runs and
// which close code an end deserves are its callers' business.
package bridge

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Why a client's session ends.
var (
	ErrClosed     = errors.New("the client closed the connection")
	ErrLost       = errors.New("the client's connection is lost")
	ErrTooLarge   = errors.New("a message over the limit")
	ErrBadMessage = errors.New("a message that breaks the protocol")
)

const (
	// maxMessages bounds the control messages that wait for a client that does
	// not read. Past it pings go unanswered.
	maxMessages = 64
	// flushTime is how long a client may take for one frame once the session
	// was cut.
	flushTime = 2 * time.Second
	// answerTime is the longest that a client may take for what was sent before
	// the close frame, and for its answer to that.
	answerTime = 5 * time.Minute
)

// Options say what a client is told, and by whom it is measured.
type Options struct {
	Ready        Ready         // sent first; its mode is the client's
	PingInterval time.Duration // two unanswered: the client is gone; 0: no pings
	// RTT is told each ping's round trip, Backlog each change of the bytes
	// sent and not yet acknowledged. Both may be nil.
	RTT     func(time.Duration)
	Backlog func(delta int)
}

// Bridge is the owner of a session. Close it once the session has run.
//
// Its reader is a goroutine that carries input; output is sent by the goroutine in
// which the session calls Output.
type Bridge struct {
	ws      *Socket
	session *session.Attachment
	opt     Options
	v1      bool
	wg      sync.WaitGroup // every goroutine of the bridge
	gone    chan struct{}  // closed when the WebSocket can no longer be read
	small   [headroom + smallOutput]byte

	mu       sync.Mutex
	ending   bool // the session was cut, or is over: what the client says is dropped
	window   window
	messages []message // to send, oldest first
	telling  bool      // sendMessages runs
	choked   bool      // the reader waits for room for input and hears no acks
	pings    pings
}

// New gives a session its owner. The WebSocket speaks termgw.v1 if that was
// negotiated, else raw mode.
func New(ws *Socket, s *session.Session, opt Options) *Bridge {
	b := &Bridge{ws: ws, opt: opt, v1: ws.v1(), gone: make(chan struct{})}
	if b.v1 {
		b.window.limit = initialWindow
	}
	b.session = s.Attach(b, b.window.limit, opt.Ready.Mode == "ro")
	ws.pong = b.pong
	return b
}

// Begin sends the first message, and lets the client speak.
func (b *Bridge) Begin() {
	if b.v1 {
		_ = b.ws.wire.send(opText, framed(encodeReady(b.opt.Ready))) // a client that is gone is the reader's to find
	}
	b.wg.Go(b.readClient)
	b.startPings()
}

// Close tells the client why the session is over, closes the WebSocket with a
// code and joins every goroutine of the bridge. A client that does not answer
// is waited for 8 s. Nil says that the shell ended by itself, and nothing more:
// then the client has the time that it needs for what was sent, until ctx ends.
func (b *Bridge) Close(ctx context.Context, code websocket.StatusCode, e *Error) {
	b.mu.Lock()
	b.ending = true
	b.stopPings()
	b.observeBacklog(-b.window.backlog())
	b.mu.Unlock()
	select {
	case <-b.gone:
	default:
		if e != nil {
			b.ws.farewell(code, *e)
			break
		}
		b.mu.Lock()
		b.tell(opClose, closing(code, "exit"))
		b.mu.Unlock()
		b.awaitAnswer(ctx)
	}
	b.ws.CloseNow()
	b.wg.Wait()
}

// awaitAnswer waits until the client has answered the close frame, and so has
// all that came before it. Whoever closes a TCP connection to which something
// still comes, the ack of a slow client, say, resets it, and that drops what is
// on its way. So a client is waited for that takes or says something within the
// time of two pings, which cannot follow a close frame, but not for ever.
func (b *Bridge) awaitAnswer(ctx context.Context) {
	silence := 2 * b.opt.PingInterval
	if silence == 0 {
		silence = closeTime
	}
	moved := time.Now()
	end := moved.Add(answerTime)
	over := ctx.Done()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var lingered func()
	defer func() {
		if lingered != nil {
			lingered()
		}
	}()
	for left := b.ws.wire.unacknowledged(); ; {
		select {
		case <-b.gone:
			return
		case <-over:
			over, end = nil, time.Now().Add(closeTime)
		case now := <-tick.C:
			if lingered == nil {
				lingered = b.ws.lingers()
			}
			n := b.ws.wire.unacknowledged()
			if b.ws.wire.heard.Swap(false) || n < left {
				moved = now
			}
			left = n
			if now.Sub(moved) >= silence || !now.Before(end) {
				return
			}
		}
	}
}

// Ending gives the client little time for what is still sent.
func (b *Bridge) Ending() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ending = true
	_ = b.ws.wire.SetWriteDeadline(time.Now().Add(flushTime)) // of a write that waits already, too
}

// Exited sends the exit message.
func (b *Bridge) Exited(e terminal.Exit) {
	if b.v1 {
		_ = b.ws.wire.send(opText, framed(encodeExit(e)))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ending = true
}

// Notice sends a notice. A client in raw mode is told nothing.
func (b *Bridge) Notice(n session.Notice) {
	if !b.v1 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tell(opText, encodeNotice(n))
}

func (b *Bridge) observeBacklog(delta int) {
	if b.opt.Backlog != nil && delta != 0 {
		b.opt.Backlog(delta)
	}
}
