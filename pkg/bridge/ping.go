package bridge

import (
	"encoding/binary"
	"fmt"
	"time"
)

// pings are the signs of life that a client is asked for, by WebSocket pings.
type pings struct {
	timer      *time.Timer // nil: not started, or stopped
	armed      bool        // ping is going to run
	number     uint32      // sent so far; the last one's payload
	sent       time.Time   // the last one; zero: it is answered
	unanswered int         // since the client was last heard
}

// startPings sends the first ping at once: its round trip, taken before anything
// floods the connection, tells the window how far the client is.
func (b *Bridge) startPings() {
	if b.opt.PingInterval == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wg.Add(1)
	b.pings.armed = true
	b.pings.timer = time.AfterFunc(0, b.ping)
}

// stopPings is called with the lock held; a ping that is under way finds that it
// is late.
func (b *Bridge) stopPings() {
	if p := &b.pings; p.armed && p.timer.Stop() {
		p.armed = false
		b.wg.Done()
	}
}

// ping sends the next ping, or gives up a client that was not heard since the one
// before the last.
func (b *Bridge) ping() {
	defer b.wg.Done()
	if lost := b.nextPing(); lost != nil {
		b.session.Detach(lost)
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
		// Its pongs are stuck behind its input, but not its going. What does not
		// show is left to the idle time: that of a client which goes when it has
		// sent more than the kernels hold, unless it answers a ping with a reset,
		// or of one whose machine is away.
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

// pong takes a pong frame. One that answers the last ping measures a round trip.
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
