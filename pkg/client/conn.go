package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	// maxOutput bounds the output that is held for Read, in bytes. A gateway keeps
	// at most 1 MiB sent and not acknowledged.
	maxOutput = 1 << 20
	// ackEvery is the output that is rendered between two acks, in bytes, while more
	// output waits; termgw.v1 requires an ack at least every 8 KiB.
	ackEvery = 4 << 10
	// inputMessage is the longest message of input, in bytes.
	inputMessage = 16 << 10
	// unheardLimit bounds the bytes that were sent and that the gateway may not have
	// read yet: a gateway reads nothing while its program takes no input. So many bytes
	// fit into the kernels' buffers on the way. A write that blocked would delay the
	// answers to the gateway's pings, and after 5 s the library drops an answer.
	unheardLimit = 64 << 10

	// lookEvery is the pause between two looks at whether the gateway is still there, and
	// pingEvery the longest one between two pings.
	lookEvery = 500 * time.Millisecond
	pingEvery = 5 * time.Second
	// A gateway that has sent nothing for so long since it was asked counts as gone. It
	// reads no ping behind input that its program does not take, and then is heard by its own
	// pings only: busyLimit is for that. Where the shell waits, nothing is lost by a
	// connection that was only slow: answerLimit, and answerTrips at least, unless more input
	// than answerInput, in bytes, is on its way.
	silenceLimit = 30 * time.Second
	busyLimit    = 2 * time.Minute
	// busyLeast is busyLimit where the shell waits, for a first time: a Session doubles it as long
	// as no input is taken.
	busyLeast   = 10 * time.Second
	answerLimit = 3 * time.Second
	answerTrips = 4
	answerInput = 4 << 10
	// Input asks for an answer where nothing was heard for so long.
	staleAfter = time.Second
	// By so much more than the other clock the wall clock moves on while a computer sleeps;
	// by less, it is set.
	sleepLeast = 2 * time.Second
)

// Conn is an open terminal. Read is for one goroutine; the other methods may be called
// from several at the same time. The caller of Dial closes the Conn, also after its end.
type Conn struct {
	ws     *websocket.Conn
	notice func(Notice)
	given  func(*Conn, int64) // Config's; may be nil
	try    int                // Config's
	busy   time.Duration      // Config's
	loops  sync.WaitGroup
	opened chan struct{} // closed when ready is set
	done   chan struct{} // closed when end is set
	due    chan struct{} // wakes tell

	mu      sync.Mutex
	changed *sync.Cond // Read waits here for output, keep for room, acquire for the right to send; all for the end
	ready   Ready      // not changed once opened is closed
	refused *refusal
	exit    *Exit
	end     error
	closing bool // by Close
	output  bytes.Buffer

	rendered, acked int64 // offsets in the session's output
	skipped         int64 // the offset before which output is left out
	returned        int64 // bytes of output, by the last Read
	resized         bool  // cols and rows are not sent yet
	cols, rows      int
	asked           []chan<- time.Duration // calls of Ping whose ping is not sent yet

	sending  bool          // a message is being sent
	sent     int64         // bytes; guarded by sending
	pingedAt int64         // sent at the last ping; guarded by sending
	heardAt  int64         // the part of sent that the gateway has read
	pings    int64         // the id of the last ping
	awaited  []ping        // sent and not answered, oldest first
	trip     time.Duration // the last round trip; at first half the handshake, which takes two at least
	heard    time.Time     // when anything was received
	pinged   time.Time     // when a ping was due last
	pingDue  bool
	typed    bool // input was sent since the last look
}

// ping is a ping that was sent.
type ping struct {
	id, at int64 // at: Conn.sent when the ping was sent
	left   time.Time
	asked  []chan<- time.Duration // calls of Ping that wait for the answer
}

func newConn(notice func(Notice)) *Conn {
	c := &Conn{busy: busyLimit, notice: notice, opened: make(chan struct{}), done: make(chan struct{}), due: make(chan struct{}, 1)}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// Ready returns the gateway's first message of the session.
func (c *Conn) Ready() Ready { return c.ready }

// Read reads output of the terminal. Output that one Read has returned counts as
// rendered when the next Read is called. The gateway sends no faster than output is
// rendered, so that an interrupt is answered at once.
//
// Once all output is read, the error is io.EOF if the shell ended, then see Exit; an
// *Error if the gateway ended the session; net.ErrClosed after Close; else an error
// that says how the connection was lost.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rendered += c.returned
	c.returned = 0
	if unacked := c.rendered - c.acked; unacked >= ackEvery || unacked > 0 && c.output.Len() == 0 {
		c.wakeTell()
	}
	for c.output.Len() == 0 && c.end == nil && !c.closing {
		c.changed.Wait()
	}
	switch {
	case c.output.Len() > 0:
	case c.end != nil:
		return 0, c.end
	default:
		return 0, net.ErrClosed
	}
	n, _ := c.output.Read(p)
	c.returned = int64(n)
	c.changed.Broadcast()
	return n, nil
}

// Output is the offset after the last byte that Read has returned, in the session's output.
// With Config.Output it is where another connection goes on.
func (c *Conn) Output() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.rendered+c.returned, c.skipped)
}

// Write sends input to the terminal. Write waits while the gateway takes no input,
// because the program in the terminal reads none. In a read-only session Write sends
// nothing and returns ErrReadOnly.
func (c *Conn) Write(p []byte) (n int, err error) {
	if c.ready.ReadOnly() {
		return 0, ErrReadOnly
	}
	for n < len(p) && err == nil {
		piece := p[n:min(n+inputMessage, len(p))]
		if err = c.send(websocket.MessageBinary, piece); err == nil {
			n += len(piece)
		}
	}
	return n, err
}

// Resize sends the terminal's size, each side 1 to 1000; a value outside becomes the
// nearest inside. Resize does not wait: of several sizes that could not be sent yet only
// the last is sent.
func (c *Conn) Resize(cols, rows int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resized, c.cols, c.rows = true, dimension(cols), dimension(rows)
	c.wakeTell()
}

// Ping measures the round trip to the gateway, with the input that was written before.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) {
	answer := make(chan time.Duration, 1)
	c.mu.Lock()
	c.asked = append(c.asked, answer)
	c.wakeTell()
	c.mu.Unlock()
	select {
	case roundTrip := <-answer:
		return roundTrip, nil
	case <-c.done:
		return 0, c.end
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// Exit returns how the shell ended, once Read has returned io.EOF. Before, Code is -1.
func (c *Conn) Exit() Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit == nil {
		return Exit{Code: -1}
	}
	return *c.exit
}

// Close ends the session and the shell, unless they have ended. Output that was not
// read is dropped. Close waits at most 5 s for the gateway's answer.
func (c *Conn) Close() error {
	c.mu.Lock()
	ended := c.end != nil
	c.closing = true
	c.output.Reset()
	c.changed.Broadcast()
	c.mu.Unlock()
	err := c.ws.Close(websocket.StatusNormalClosure, "")
	c.loops.Wait()
	if ended || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// finish ends the connection. The first error given counts.
func (c *Conn) finish(end error) {
	c.mu.Lock()
	if c.end == nil {
		c.end = end
		close(c.done)
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	_ = c.ws.CloseNow()
}

// wakeTell makes tell send the messages that are due.
func (c *Conn) wakeTell() {
	select {
	case c.due <- struct{}{}:
	default: // tell is already woken
	}
}

// freeze ends Read of a connection that is lost: what it has not returned comes again, over
// another one. freeze returns the offset of that.
func (c *Conn) freeze() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.output.Reset()
	return max(c.rendered+c.returned, c.skipped)
}

// skip leaves out the output before an offset: Read of another connection has returned it.
func (c *Conn) skip(to int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skipped = to
	c.leaveOut(len(c.output.Next(int(min(max(to-c.rendered, 0), int64(c.output.Len()))))))
}

// leaveOut counts output as rendered that Read does not return. The lock is held.
func (c *Conn) leaveOut(n int) {
	if n > 0 {
		c.rendered += int64(n)
		c.wakeTell()
	}
}

// drop ends the connection without a word, so that the shell goes on where it waits.
func (c *Conn) drop() {
	c.finish(net.ErrClosed)
	c.loops.Wait()
}

// lastHeard returns when the gateway was heard last.
func (c *Conn) lastHeard() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard
}

// roundTrip returns the last round trip that was measured; 0: none was.
func (c *Conn) roundTrip() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trip
}

// tell sends acks, sizes and pings, in a goroutine of its own: Read and Resize must not
// wait while the gateway takes no messages. Afterwards only the newest ack and size are sent.
func (c *Conn) tell() {
	for {
		select {
		case <-c.done:
			return
		case <-c.due:
		}
		if c.tellDue() != nil {
			return // receive finds the cause
		}
	}
}

// watch asks the gateway for an answer now and then, and ends the connection of one that
// gives none.
func (c *Conn) watch() {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for last := time.Now(); ; {
		select {
		case <-c.done:
			return
		case <-look.C:
		}
		now := time.Now()
		slept := now.Round(0).Sub(last.Round(0))-now.Sub(last) >= sleepLeast
		last = now
		if err := c.silent(now); err != nil {
			c.finish(err)
			return
		}
		c.ask(now, slept)
	}
}

// silentError is the loss of a connection over which nothing came for too long.
type silentError struct {
	limit time.Duration
	busy  bool // the program may be to blame, which takes no input
}

func (e silentError) Error() string {
	return fmt.Sprintf("the gateway has not answered for %s", e.limit.Round(time.Second))
}

// silent returns nil, or a silentError. While output has no room nothing can be received.
func (c *Conn) silent(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.output.Len() >= maxOutput {
		c.heard = now
	}
	if len(c.awaited) == 0 {
		return nil
	}
	limit := silenceLimit
	unheard := c.awaited[len(c.awaited)-1].at - c.heardAt
	switch waits := c.ready.Resume > 0; {
	case waits && unheard > answerInput:
		limit = max(c.busy, answerTrips*c.trip)
	case waits:
		limit = min(max(answerLimit, answerTrips*c.trip), silenceLimit)
	case unheard >= unheardLimit/2:
		limit = busyLimit
	}
	since := c.awaited[0].left
	if c.heard.After(since) {
		since = c.heard
	}
	if now.Sub(since) < limit {
		return nil
	}
	return silentError{limit, unheard > answerInput}
}

// ask has a ping sent if one is due.
func (c *Conn) ask(now time.Time, slept bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	typed := c.typed
	c.typed = false
	if !slept && now.Sub(c.pinged) < pingEvery && (len(c.awaited) > 0 || !typed || now.Sub(c.heard) < staleAfter) {
		return
	}
	c.pinged = now
	c.pingDue = true
	c.wakeTell()
}

func (c *Conn) tellDue() error {
	c.mu.Lock()
	var messages []string
	if c.resized {
		c.resized = false
		messages = append(messages, fmt.Sprintf(`{"type":"resize","cols":%d,"rows":%d}`, c.cols, c.rows))
	}
	if c.rendered > c.acked {
		c.acked = c.rendered
		messages = append(messages, fmt.Sprintf(`{"type":"ack","bytes":%d}`, c.acked))
	}
	pingDue := c.pingDue || len(c.asked) > 0
	c.pingDue = false
	c.mu.Unlock()
	for _, m := range messages {
		if err := c.send(websocket.MessageText, []byte(m)); err != nil {
			return err
		}
	}
	if !pingDue {
		return nil
	}
	if err := c.acquire(); err != nil {
		return err
	}
	defer c.release()
	return c.sendPing()
}

// send sends one message, and a ping when one is due. After an error the connection is over.
func (c *Conn) send(typ websocket.MessageType, p []byte) error {
	if err := c.acquire(); err != nil {
		return err
	}
	defer c.release()
	if err := c.write(typ, p); err != nil {
		return err
	}
	if typ == websocket.MessageBinary {
		c.mu.Lock()
		c.typed = true
		c.mu.Unlock()
	}
	if c.sent-c.pingedAt < unheardLimit/4 {
		return nil
	}
	return c.sendPing()
}

// acquire waits for the right to send: no other message is being sent, and the gateway
// has read enough of the earlier messages. The caller calls release, unless there is an error.
func (c *Conn) acquire() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for (c.sending || c.sent-c.heardAt >= unheardLimit) && c.end == nil && !c.closing {
		c.changed.Wait()
	}
	if c.closing && c.end == nil {
		return net.ErrClosed
	}
	c.sending = c.end == nil
	return c.end
}

func (c *Conn) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sending = false
	c.changed.Broadcast()
}

func (c *Conn) sendPing() error {
	c.mu.Lock()
	c.pings++
	p := ping{id: c.pings, at: c.sent, left: time.Now(), asked: c.asked}
	c.asked = nil
	c.awaited = append(c.awaited, p)
	c.mu.Unlock()
	c.pingedAt = c.sent
	return c.write(websocket.MessageText, fmt.Appendf(nil, `{"type":"ping","id":%d}`, p.id))
}

// write writes a message. The caller has acquired the right to send.
func (c *Conn) write(typ websocket.MessageType, p []byte) error {
	c.sent += int64(len(p))
	// When the context of a write ends, the library closes the connection.
	if err := c.ws.Write(context.Background(), typ, p); err != nil {
		return lost(err)
	}
	return nil
}
