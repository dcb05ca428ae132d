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
	// waits; termgw.v1 asks for one every 8 KiB at least.
	ackEvery = 4 << 10
	// inputMessage is the longest message of input, in bytes.
	inputMessage = 16 << 10
	// unheardLimit bounds what is sent and perhaps not read by the gateway yet, in
	// bytes: a gateway reads nothing while its program takes no input. So much fits
	// into the kernels' buffers on the way. A write that blocked there would hold up
	// the answers to the gateway's pings, which the library gives up after 5 s.
	unheardLimit = 64 << 10

	pingEvery = 15 * time.Second
	// pingsLost is how many pings in a row go unanswered, with nothing else received,
	// before the gateway counts as gone.
	pingsLost = 2
)

// Conn is an open terminal. Its methods may be called at once, but for Read,
// which is for one goroutine. Whoever got it closes it, also after its end.
type Conn struct {
	ws     *websocket.Conn
	notice func(Notice)
	loops  sync.WaitGroup
	opened chan struct{} // closed when ready is there
	done   chan struct{} // closed when end is there
	due    chan struct{} // the loop tell has something to send

	mu      sync.Mutex
	changed *sync.Cond // what is waited for: output, room for it, the right to send, the end
	ready   Ready      // not changed once opened is closed
	refused *refusal
	exit    *Exit
	end     error
	closing bool // by Close
	output  bytes.Buffer

	returned, rendered, acked int64 // bytes of output; returned: by the last Read
	resized                   bool
	cols, rows                int
	asked                     []chan<- time.Duration // who waits for a round trip that has not begun

	sending  bool   // a message is being sent
	sent     int64  // bytes; guarded by sending
	pingedAt int64  // of sent, at the last ping; guarded by sending
	heardAt  int64  // of sent: so much the gateway has read
	pings    int64  // ids given
	awaited  []ping // sent and not answered, oldest first
	quiet    int    // regular pings since anything was received
}

// ping is a ping on its way.
type ping struct {
	id, at int64 // at: of sent
	left   time.Time
	asked  []chan<- time.Duration
}

func newConn(notice func(Notice)) *Conn {
	c := &Conn{notice: notice, opened: make(chan struct{}), done: make(chan struct{}), due: make(chan struct{}, 1)}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// Ready returns what the gateway said of the session.
func (c *Conn) Ready() Ready { return c.ready }

// Read reads output of the terminal. What one Read returned counts as rendered
// when the next Read is called, and the gateway sends no faster than output is
// rendered, so that an interrupt is answered at once.
//
// Once all output is read, the error is io.EOF if the shell ended, which Exit
// describes; an *Error if the gateway ended the session; net.ErrClosed after
// Close; and otherwise says how the connection was lost.
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

// Write sends input to the terminal. It waits while the gateway takes none,
// because the program in the terminal reads none. In a read-only session it sends
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

// Resize tells the terminal's size, each side 1 to 1000; a value outside is moved
// to the nearest inside. It does not wait: of several sizes that could not be sent
// yet the last counts.
func (c *Conn) Resize(cols, rows int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resized, c.cols, c.rows = true, dimension(cols), dimension(rows)
	c.wakeTell()
}

// Ping measures the round trip to the gateway, behind the input on its way.
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

// Exit returns how the shell ended, once Read has returned io.EOF.
func (c *Conn) Exit() Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit == nil {
		return Exit{Code: -1}
	}
	return *c.exit
}

// Close ends the session and with it the shell, unless they have ended. Output
// that was not read is dropped. Close waits at most 5 s for the gateway's answer.
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

// finish ends the connection; the first reason counts.
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

// wakeTell makes tell look for what is to be sent.
func (c *Conn) wakeTell() {
	select {
	case c.due <- struct{}{}:
	default: // it will look anyway
	}
}

// tell sends all messages but input: apart from Read and Resize, since the gateway
// may take none for a while, and of what waited then only the newest is worth sending.
func (c *Conn) tell() {
	regular := time.NewTicker(pingEvery)
	defer regular.Stop()
	for {
		isRegular := false
		select {
		case <-c.done:
			return
		case <-c.due:
		case <-regular.C:
			if c.isLost() {
				c.finish(fmt.Errorf("the gateway has not answered for %s", pingsLost*pingEvery))
				return
			}
			isRegular = true
		}
		if c.tellDue(isRegular) != nil {
			return // receive finds out why
		}
	}
}

// isLost reports whether the gateway has left too many regular pings unanswered.
// While there is no room for output, nothing can be received.
func (c *Conn) isLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.output.Len() >= maxOutput {
		c.quiet = 0
	}
	c.quiet++
	return c.quiet > pingsLost
}

func (c *Conn) tellDue(pingDue bool) error {
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
	pingDue = pingDue || len(c.asked) > 0
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

// send sends one message. An error means that the connection is over.
func (c *Conn) send(typ websocket.MessageType, p []byte) error {
	if err := c.acquire(); err != nil {
		return err
	}
	defer c.release()
	if err := c.write(typ, p); err != nil {
		return err
	}
	if c.sent-c.pingedAt < unheardLimit/4 {
		return nil
	}
	return c.sendPing()
}

// acquire waits until a message may be sent: none is being sent, and the gateway
// has read enough of those before. Whoever acquired it releases it.
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

// write is for whoever has acquired the right to send.
func (c *Conn) write(typ websocket.MessageType, p []byte) error {
	c.sent += int64(len(p))
	// A context that can end would end the connection with it.
	if err := c.ws.Write(context.Background(), typ, p); err != nil {
		return lost(err)
	}
	return nil
}
