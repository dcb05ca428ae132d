package bridge

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Notice warns of an end that is coming.
type Notice struct {
	Code    string // the code of the end: "idle_timeout", "session_expired", …
	Left    time.Duration
	Message string
}

// noticeLeads are the times before an end at which it is announced, and
// tunnelLeads those of an end that no one can put off. A limit shorter than all
// of them is announced at half its time.
var (
	noticeLeads = []time.Duration{60 * time.Second, 10 * time.Second}
	tunnelLeads = []time.Duration{5 * time.Minute, time.Minute}
)

// limit is one thing that ends a session at a known time.
type limit struct {
	code    string
	cause   error           // nil: it is announced, and somebody else sees to it
	atOnce  bool            // announce it when it is known, too
	message string          // the notice's, with %s for the time left
	warn    []time.Duration // before the end
	life    time.Duration
	end     time.Time
	told    time.Duration // the shortest lead already announced; 0: none
}

// restart counts the limit's whole life from now.
func (l *limit) restart(now time.Time) {
	l.end, l.told = now.Add(l.life), 0
}

func (l *limit) leads() []time.Duration {
	for i, lead := range l.warn {
		if lead < l.life {
			return l.warn[i:]
		}
	}
	if l.atOnce {
		return nil
	}
	return []time.Duration{l.life / 2}
}

// due tells what the time has come for, a notice or the end, or neither; and
// when to ask again.
func (l *limit) due(now time.Time) (notice *Notice, ended bool, next time.Time) {
	left := l.end.Sub(now)
	if left <= 0 {
		return nil, true, time.Time{}
	}
	if l.atOnce && l.told == 0 {
		l.told = left
		notice = l.notice(left)
	}
	for _, lead := range l.leads() {
		if left > lead {
			return notice, false, l.end.Add(-lead)
		}
		if l.told == 0 || lead < l.told {
			l.told = lead
			notice = l.notice(left)
		}
	}
	return notice, false, l.end
}

func (l *limit) notice(left time.Duration) *Notice {
	return &Notice{l.code, left, fmt.Sprintf(l.message, inSeconds(left))}
}

func inSeconds(d time.Duration) string {
	if n := roundSeconds(d); n != 1 {
		return fmt.Sprintf("%d seconds", n)
	}
	return "1 second"
}

func roundSeconds(d time.Duration) int64 { return int64((d + time.Second/2) / time.Second) }

// lifetime is the clock of a session: its limits and its pings, on one timer
// that is armed for whatever comes first. Input only moves the idle limit's
// end; the timer finds that out when it fires, so that a keystroke costs none.
type lifetime struct {
	timer      *time.Timer // nil: not started, or stopped
	armed      bool        // tick is going to run
	idle       *limit      // nil: no idle time
	limits     []*limit
	pingEvery  time.Duration // 0: no pings
	pingAt     time.Time     // when the next is due
	pings      uint32        // sent so far; the last one's payload
	pingSent   time.Time
	unanswered int // pings since the client was last heard
}

// input notes that a person typed.
func (l *lifetime) input(now time.Time) {
	if l.idle != nil {
		l.idle.restart(now)
	}
}

func (b *Bridge) startLifetime() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	l := &b.life
	if d := b.opt.Ready.IdleTimeout; d > 0 {
		l.idle = &limit{
			code: "idle_timeout", cause: ErrIdle, warn: noticeLeads, life: d,
			message: "Nothing was typed for a while: this terminal closes in %s. Press a key to keep it.",
		}
		l.limits = append(l.limits, l.idle)
	}
	if d := b.opt.Ready.MaxSession; d > 0 {
		l.limits = append(l.limits, &limit{
			code: "session_expired", cause: ErrExpired, warn: noticeLeads, life: d,
			message: "This terminal reaches its longest time and closes in %s. Open a new one to go on.",
		})
	}
	if end := b.opt.TunnelEnds; !end.IsZero() {
		l.limits = append(l.limits, &limit{
			code: "tunnel_expired", cause: ErrTunnel, warn: tunnelLeads, life: end.Sub(now),
			message: "AWS cuts the tunnel to this workspace in %s. Save your work, and open a new terminal to go on.",
		})
	}
	for _, limit := range l.limits {
		if limit.cause != nil {
			limit.restart(now)
		}
	}
	// The first ping leaves at once: its round trip, taken before anything
	// floods the connection, tells the window how far the client is.
	l.pingEvery, l.pingAt = b.opt.PingInterval, now
	b.wg.Add(1)
	l.armed = true
	l.timer = time.AfterFunc(0, b.tick)
}

// Warn announces an end that the caller brings about: at once, but after the
// first message, and again as the end comes near. The message has a %s for the
// time left. It may be called at any time once there is a Bridge; a client in
// raw mode is told nothing.
func (b *Bridge) Warn(code, message string, left time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &b.life
	end := &limit{code: code, message: message, warn: noticeLeads, life: left, atOnce: true}
	end.restart(time.Now())
	l.limits = append(l.limits, end)
	switch {
	case l.timer == nil: // the first tick tells, if there will be one
	case !l.armed:
		b.wg.Add(1)
		l.armed = true
		l.timer.Reset(0)
	case l.timer.Stop(): // else a tick waits for the lock
		l.timer.Reset(0)
	}
}

// stopLifetime is called with the lock held; a tick that runs already finds
// that it is late.
func (b *Bridge) stopLifetime() {
	if b.life.timer != nil && b.life.timer.Stop() {
		b.wg.Done()
	}
	b.life.timer = nil
}

// tick does what is due and arms the timer for what comes next.
func (b *Bridge) tick() {
	defer b.wg.Done()
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &b.life
	l.armed = false
	if l.timer == nil || b.ending {
		return
	}
	now := time.Now()
	var next time.Time
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, limit := range l.limits {
		notice, ended, at := limit.due(now)
		switch {
		case ended && limit.cause == nil:
			continue
		case ended:
			b.cancel(limit.cause)
			return
		}
		if notice != nil && b.v1 {
			b.tell(opText, encodeNotice(*notice))
		}
		sooner(at)
	}
	if l.pingEvery > 0 {
		if !now.Before(l.pingAt) {
			if b.choked {
				// Its pongs are stuck behind its input, but not its going. What
				// does not show is left to the idle time: that of a client which
				// goes when it has sent more than the kernels hold, unless it
				// answers a ping with a reset, or of one whose machine is away.
				if b.ws.wire.hungUp() {
					b.cancel(fmt.Errorf("%w: it went while its input waited", ErrLost))
					return
				}
				l.unanswered = 0
			}
			if b.ws.wire.heard.Swap(false) {
				l.unanswered = 0
			}
			if l.unanswered == 2 {
				b.cancel(fmt.Errorf("%w: two pings of %s went unanswered", ErrLost, l.pingEvery))
				return
			}
			l.unanswered++
			l.pingAt = now.Add(l.pingEvery)
			l.pings++
			l.pingSent = now
			b.tell(opPing, binary.BigEndian.AppendUint32(nil, l.pings))
		}
		sooner(l.pingAt)
	}
	if !next.IsZero() {
		b.wg.Add(1)
		l.armed = true
		l.timer.Reset(next.Sub(now))
	}
}

// pong takes a pong frame. One that answers the last ping measures a round trip.
func (b *Bridge) pong(payload []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(payload) != 4 || binary.BigEndian.Uint32(payload) != b.life.pings || b.life.pingSent.IsZero() {
		return
	}
	rtt := time.Since(b.life.pingSent)
	b.life.pingSent = time.Time{}
	b.window.pong(rtt)
	if b.opt.RTT != nil {
		b.opt.RTT(rtt)
	}
}
