// Package bridge is one client of a session: the WebSocket, the termgw.v1
// messages, flow control by the output that the client has rendered, and the pings
// that tell whether the client is there.
//
// A bridge knows a WebSocket and a session. The person, the place where the shell
// runs and the close code of an end are the callers' business.
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

// Causes of a session's end, by its client.
var (
	ErrClosed     = errors.New("the client closed the connection")
	ErrLost       = errors.New("the client's connection is lost")
	ErrTooLarge   = errors.New("a message over the limit")
	ErrBadMessage = errors.New("a message that breaks the protocol")
)

const (
	// maxMessages bounds the control messages that wait for a client that does
	// not read. With so many waiting, a ping is not answered.
	maxMessages = 64
	// flushTime bounds the time that a client takes for one frame once the session
	// was cut.
	flushTime = 2 * time.Second
	// answerTime bounds the time that a client takes for all that was sent, and for
	// the answer to the close frame.
	answerTime = 5 * time.Minute
)

// Options are the settings of one bridge.
type Options struct {
	Ready        Ready         // the first message; its mode is the client's
	PingInterval time.Duration // after two unanswered pings the client is gone; 0: no pings
	// RTT is called with each ping's round trip, Backlog with each change of the
	// bytes sent and not yet acknowledged. Both may be nil.
	RTT     func(time.Duration)
	Backlog func(delta int)
}

// Bridge is the owner of a session (session.Client). The caller closes the bridge
// once the session has run.
//
// The reader is a goroutine that carries input; output is sent by the goroutine in
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
	ending   bool // the session was cut, or is over: messages of the client are dropped
	window   window
	messages []message // to send, oldest first
	telling  bool      // sendMessages runs
	choked   bool      // the reader waits for room for input, and hears no acks
	pings    pings
}

// New gives a session its owner. The WebSocket speaks termgw.v1 if that
// subprotocol was negotiated, else raw mode.
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
		_ = b.ws.wire.send(opText, framed(encodeReady(b.opt.Ready))) // the reader finds a client that is gone
	}
	b.wg.Go(b.readClient)
	b.startPings()
}

// Close tells the client why the session is over, closes the WebSocket with a
// code and joins every goroutine of the bridge. A client that does not answer has
// 8 s. A nil error says that the shell ended by itself: then the client has the time
// that it needs for all that was sent (awaitAnswer), until ctx ends.
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

// awaitAnswer waits until the client has answered the close frame, and so has all
// that was sent before. A TCP connection that is closed while bytes arrive, the ack
// of a slow client for example, is reset, and a reset drops the bytes on their way to
// the client. So the client is waited for while it takes or sends bytes, with breaks
// of two ping intervals at most, and answerTime in all.
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

// Notice sends a notice; in raw mode, nothing.
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
