// Package bridge carries one terminal over one WebSocket: the termgw.v1
// messages, flow control by what the client has rendered, and the lifetimes of
// the two sides, each of which ends the other.
//
// It knows a WebSocket and a Terminal. Who the person is, where the shell runs
// and which close code an end deserves are its callers' business.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Why a session ended, besides the shell's own end. Callers add causes of
// their own by cancelling the context given to Run.
var (
	ErrClosed     = errors.New("the client closed the connection")
	ErrLost       = errors.New("the client's connection is lost")
	ErrIdle       = errors.New("no input for the idle time")
	ErrExpired    = errors.New("the session's longest life is over")
	ErrTunnel     = errors.New("the tunnel's longest life is over")
	ErrTooLarge   = errors.New("a message over the limit")
	ErrBadMessage = errors.New("a message that breaks the protocol")
	ErrTerminal   = errors.New("the terminal failed")
)

const (
	// maxQueued bounds the input that waits for a program that does not read,
	// in bytes; the budget may bound it sooner. Past it the WebSocket is no longer
	// read.
	maxQueued = 16 << 20
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

// Options are the limits of one session.
type Options struct {
	Ready        Ready         // sent first; its mode and times are the session's
	Size         terminal.Size // that the terminal has; zero: not known
	PingInterval time.Duration // two unanswered: the client is gone; 0: no pings
	TunnelEnds   time.Time     // when the way to the terminal is cut; zero: never
	// Budget bounds what the sessions of the process hold together, and Owner is
	// whose share of it the session uses. May be nil.
	Budget *Budget
	Owner  string
	// RTT is told each ping's round trip, Backlog each change of the bytes
	// sent and not yet acknowledged. Both may be nil.
	RTT     func(time.Duration)
	Backlog func(delta int)
}

// Summary is what a session came to.
type Summary struct {
	Cause    error          // nil: the shell ended by itself
	Exit     *terminal.Exit // nil: not known
	BytesIn  int64          // given to the terminal
	BytesOut int64          // given to the client
}

// Bridge is one session. Run, then Close.
//
// Two goroutines work in it: the caller's carries output, terminal to
// WebSocket; the reader carries input the other way. A byte changes hands
// nowhere: each hand-over between goroutines costs a keystroke some 30 µs.
// Others live for as long as input waits for the terminal, a control message
// for the client, or the terminal takes a new size.
type Bridge struct {
	ws     *Socket
	term   terminal.Terminal
	opt    Options
	v1     bool
	cancel context.CancelCauseFunc
	over   <-chan struct{} // closed when the caller waits for nobody any more
	hangUp func()          // ends the shell, once; returns when it is gone
	wg     sync.WaitGroup  // every goroutine but the caller's
	gone   chan struct{}   // closed when the WebSocket can no longer be read

	// The caller's own:
	ready []byte // the first message, encoded
	sent  int64  // terminal bytes written

	mu       sync.Mutex
	ending   bool      // cut, or over: input is dropped, output is not awaited
	output   sync.Cond // carryOutput waits here for room
	window   window
	messages []message // to send, oldest first
	telling  bool      // sendMessages runs
	queue    sync.Cond // the reader waits here for the input queue
	input    queue     // for the terminal
	toType   int       // of input, in bytes; the rest is of a message whose end has not come
	typist   bool      // typeInput runs
	choked   bool      // the reader waits for the input queue and hears no acks
	typed    bool      // input has come since the last output
	echo     []byte    // of an interrupt that was typed; carryOutput takes it
	bytesIn  int64
	life     lifetime
	sizes    resizing
}

// New joins an accepted WebSocket and a started terminal. The WebSocket speaks
// termgw.v1 if that was negotiated, else raw mode.
func New(ws *Socket, term terminal.Terminal, opt Options) *Bridge {
	b := &Bridge{
		ws: ws, term: term, opt: opt,
		v1:     ws.v1(),
		hangUp: sync.OnceFunc(func() { _ = term.Close() }), // its owner reports what failed
		gone:   make(chan struct{}),
		sizes:  newResizing(opt.Size),
		input:  queue{budget: opt.Budget, owner: opt.Owner, limit: maxQueued},
	}
	b.output.L, b.queue.L = &b.mu, &b.mu
	if b.v1 {
		b.window.limit = initialWindow
		b.ready = framed(encodeReady(opt.Ready))
	}
	ws.pong = b.pong
	return b
}

// Run carries bytes until the shell ends, the client goes, a limit is reached
// or ctx is cancelled, whose cause is then the session's. When it returns the
// shell is gone; if it ended by itself, all of its output was sent and then the
// exit message. The WebSocket is still open, unless the client is gone: Close
// must be called.
func (b *Bridge) Run(ctx context.Context) Summary {
	b.over = ctx.Done()
	ctx, b.cancel = context.WithCancelCause(ctx)
	defer b.cancel(nil)
	b.wg.Add(2)
	stop := context.AfterFunc(ctx, b.cut)
	if b.v1 {
		b.send(opText, b.ready)
		b.ready = nil
	}
	go b.readClient()
	b.startLifetime()

	eof := b.carryOutput()

	sum := Summary{Cause: context.Cause(ctx)}
	if sum.Cause == nil && !errors.Is(eof, io.EOF) {
		sum.Cause = fmt.Errorf("%w: %w", ErrTerminal, eof)
	}
	exit, err := b.term.Wait()
	switch {
	case err == nil:
		sum.Exit = &exit
		if sum.Cause == nil && b.v1 {
			b.send(opText, framed(encodeExit(exit)))
		}
	case sum.Cause == nil:
		sum.Cause = fmt.Errorf("%w: %w", ErrTerminal, err)
	}
	if stop() {
		b.wg.Done() // cut will not run
	}
	b.stopInput()
	b.hangUp()

	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopLifetime()
	b.stopResizing()
	b.observeBacklog(-b.window.backlog())
	sum.BytesIn, sum.BytesOut = b.bytesIn, b.sent
	return sum
}

// Close tells the client why the session is over, closes the WebSocket with a
// code and joins every goroutine of the session. A client that does not answer
// is waited for 8 s. Nil says that the shell ended by itself, and nothing more:
// then the client has the time that it needs for what was sent.
func (b *Bridge) Close(code websocket.StatusCode, e *Error) {
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
		b.awaitAnswer()
	}
	b.ws.CloseNow()
	b.wg.Wait()
}

// awaitAnswer waits until the client has answered the close frame, and so has
// all that came before it. Whoever closes a TCP connection to which something
// still comes, the ack of a slow client, say, resets it, and that drops what is
// on its way. So a client is waited for that takes or says something within the
// time of two pings, which cannot follow a close frame, but not for ever.
func (b *Bridge) awaitAnswer() {
	silence := 2 * b.opt.PingInterval
	if silence == 0 {
		silence = closeTime
	}
	moved := time.Now()
	end := moved.Add(answerTime)
	over := b.over
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

// cut runs when the session gets a cause other than the shell's own end.
func (b *Bridge) cut() {
	defer b.wg.Done()
	b.stopInput()
	_ = b.ws.wire.SetWriteDeadline(time.Now().Add(flushTime)) // of a write that waits already
	b.hangUp()
}

// stopInput drops what the client sends from now on and what of it still
// waits, and lets output go that waited for the window.
func (b *Bridge) stopInput() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ending = true
	if !b.typist { // else it does
		b.input.clear()
	}
	b.output.Broadcast()
	b.queue.Broadcast()
}

func (b *Bridge) observeBacklog(delta int) {
	if b.opt.Backlog != nil && delta != 0 {
		b.opt.Backlog(delta)
	}
}
