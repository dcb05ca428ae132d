package bridge

import (
	"encoding/binary"
	"fmt"
	"time"
)

// pings tell whether the client is there, and how far (RFC 6455, 5.5.2).
type pings struct {
	timer      *time.Timer // nil: not started, or stopped
	armed      bool        // ping is going to run
	number     uint32      // of the last ping; its payload
	sent       time.Time   // when the last ping was sent; zero: it is answered
	unanswered int         // pings since the client was last heard
}

// startPings sends the first ping at once: its round trip, measured before output
// floods the connection, tells the window how far the client is. The lock is held.
func (b *Bridge) startPings() {
	if b.opt.PingInterval == 0 {
		return
	}
	b.wg.Add(1)
	b.pings.armed = true
	b.pings.timer = time.AfterFunc(0, b.ping)
}

// stopPings is called with the lock held. A call of ping that waits for the lock does
// nothing.
func (b *Bridge) stopPings() {
	if p := &b.pings; p.armed && p.timer.Stop() {
		p.armed = false
		b.wg.Done()
	}
}

// ping sends the next ping, or gives up a client of which nothing was heard since
// the last ping but one.
func (b *Bridge) ping() {
	defer b.wg.Done()
	if lost := b.nextPing(); lost != nil {
		b.lost(lost)
	}
}

func (b *Bridge) nextPing() (lost error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.pings
	p.armed = false
	if b.ending {
		return nil
	}
	if b.choked {
		// Pongs are stuck behind input, but the end of the connection shows. The
		// idle time is left for a client whose going does not show: it had sent
		// more than the kernels hold and answers no ping with a reset, or its
		// machine is away.
		if b.ws.wire.hungUp() {
			return fmt.Errorf("%w: it went while its input waited", ErrLost)
		}
		p.unanswered = 0
	}
	if b.ws.wire.heard.Swap(false) {
		p.unanswered = 0
	}
	if p.unanswered == 2 {
		return fmt.Errorf("%w: two pings of %s went unanswered", ErrLost, b.opt.PingInterval)
	}
	p.unanswered++
	p.number++
	p.sent = time.Now()
	b.tell(opPing, binary.BigEndian.AppendUint32(nil, p.number))
	b.wg.Add(1)
	p.armed = true
	p.timer.Reset(b.opt.PingInterval)
	return nil
}

// pong takes a pong frame. The answer to the last ping measures a round trip.
func (b *Bridge) pong(payload []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.pings
	if len(payload) != 4 || binary.BigEndian.Uint32(payload) != p.number || p.sent.IsZero() {
		return
	}
	rtt := time.Since(p.sent)
	p.sent = time.Time{}
	b.window.pong(rtt)
	if b.opt.RTT != nil {
		b.opt.RTT(rtt)
	}
}
