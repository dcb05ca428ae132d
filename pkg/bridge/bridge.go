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
	"fmt"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Causes of a session's end, by its client. After ErrLost and ErrAway a session may go
// on without the client (session.Options.Resume).
var (
	ErrClosed     = errors.New("the client closed the connection")
	ErrAway       = fmt.Errorf("%w: its page went away", ErrClosed)
	ErrEnded      = errors.New("the client ended the session")
	ErrLost       = errors.New("the client's connection is lost")
	ErrTooLarge   = errors.New("a message over the limit")
	ErrBadMessage = errors.New("a message that breaks the protocol")
)

// ErrTakenOver is the cause of a bridge's end when another client has resumed its
// session.
var ErrTakenOver = errors.New("the session was resumed from another connection")

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
	// unheardTime bounds the time that a session waits for its first client when nothing was
	// ever heard of that client (and Options.Speaks is not set): it may not have got the session's
	// id, and then nobody comes back. Such shells must not stand in the limits of a person whose
	// connections fail.
	unheardTime = 30 * time.Second
)

// Options are the settings of one bridge.
type Options struct {
	Ready        Ready         // the first message; its mode is the client's
	PingInterval time.Duration // after two unanswered pings the client is gone; 0: no pings
	// RTT is called with each ping's round trip, Backlog with each change of the
	// bytes sent and not yet acknowledged. Both may be nil.
	RTT     func(time.Duration)
	Backlog func(delta int)
	// Gone is called once, in a goroutine of its own, when the session goes on without
	// this client: the cause is ErrAway, ErrLost or ErrTakenOver. The caller then closes
	// the bridge. To be set where the session may be resumed.
	Gone func(b *Bridge, cause error)
	// Speaks says that the client sends something as soon as it has Ready. One that is lost before
	// does not know of the session, which then waits for nobody.
	Speaks bool
	// ExitClose is the close code that says so when the shell ended by itself. To be set
	// with Gone.
	ExitClose websocket.StatusCode
}

// Bridge is the owner of a session (session.Client). The caller closes the bridge
// once the session has run.
//
// The reader is a goroutine that carries input; output is sent by the goroutine in
// which the session calls Output.
type Bridge struct {
	ws      *Socket
	session *session.Attachment // set by Begin
	opt     Options
	v1      bool
	wg      sync.WaitGroup // every goroutine of the bridge
	gone    chan struct{}  // closed when the WebSocket can no longer be read
	small   [headroom + smallOutput]byte

	left sync.Once // calls Gone

	mu       sync.Mutex
	begun    bool // messages may be sent
	closed   bool // Close was called
	ending   bool // the session was cut, or is over, or goes on without the client: messages of the client are dropped
	window   window
	messages []message // to send, oldest first
	telling  bool      // sendMessages runs
	choked   bool      // the reader waits for room for input, and hears no acks
	pings    pings
}

// New gives a session its owner. The WebSocket speaks termgw.v1 if that
// subprotocol was negotiated, else raw mode.
func New(ws *Socket, s *session.Session, opt Options) *Bridge {
	b := newBridge(ws, opt)
	s.Attach(b, b.window.limit, b.readOnly())
	return b
}

// Resume gives a session another owner, which speaks termgw.v1, has a size, unless that
// is zero, and has the output up to the offset from; a negative one says that it has
// none. The error is that of session.Resume, after which the WebSocket is as it was.
func Resume(ws *Socket, s *session.Session, opt Options, size terminal.Size, from int64) error {
	opt.Ready.resumed = true
	b := newBridge(ws, opt)
	return s.Resume(b, b.window.limit, b.readOnly(), size, from)
}

func newBridge(ws *Socket, opt Options) *Bridge {
	b := &Bridge{ws: ws, opt: opt, v1: ws.V1(), gone: make(chan struct{})}
	if b.v1 {
		b.window.limit = initialWindow
	}
	return b
}

func (b *Bridge) readOnly() bool { return b.opt.Ready.Mode == "ro" }

// Begin sends the first message, and lets the client speak.
func (b *Bridge) Begin(a *session.Attachment, at session.Resumed) {
	b.session, b.ws.pong = a, b.pong
	if b.v1 {
		_ = b.ws.wire.send(opText, framed(encodeReady(b.opt.Ready, at))) // the reader finds a client that is gone
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed { // taken over meanwhile
		return
	}
	b.window.begin(at.Output)
	b.begun = true
	if len(b.messages) > 0 {
		b.startTelling()
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
	b.ending, b.closed = true, true
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

// Drop ends the connection without a word to the client, who is gone.
func (b *Bridge) Drop() { b.ws.CloseNow() }

// Ending gives the client little time for what is still sent.
func (b *Bridge) Ending() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ending = true
	_ = b.ws.wire.SetWriteDeadline(time.Now().Add(flushTime)) // of a write that waits already, too
}

// TakenOver gives the client little time for what is still sent, and ends the bridge.
func (b *Bridge) TakenOver() {
	b.Ending()
	b.leave(ErrTakenOver)
}

// leave has Gone called: the session goes on without this client.
func (b *Bridge) leave(cause error) {
	b.left.Do(func() { go b.opt.Gone(b, cause) }) // the caller of Gone joins the bridge
}

// Exited sends the exit message. Where the client may come back, the close frame follows,
// and its answer tells the session that the client has heard.
func (b *Bridge) Exited(e terminal.Exit) {
	if b.v1 {
		_ = b.ws.wire.send(opText, framed(encodeExit(e)))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ending = true
	if b.opt.Gone == nil {
		return
	}
	b.tell(opClose, closing(b.opt.ExitClose, "exit"))
	b.wg.Go(func() {
		b.awaitAnswer(context.Background())
		b.lost(fmt.Errorf("%w: it did not answer the end", ErrLost)) // unless it did
	})
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
