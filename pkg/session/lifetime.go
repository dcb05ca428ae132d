package session

import (
	"fmt"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
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

// Seconds is the time left in whole seconds.
func (n Notice) Seconds() int64 { return roundSeconds(n.Left) }

func inSeconds(d time.Duration) string {
	if n := roundSeconds(d); n != 1 {
		return fmt.Sprintf("%d seconds", n)
	}
	return "1 second"
}

func roundSeconds(d time.Duration) int64 { return int64((d + time.Second/2) / time.Second) }

// lifetime is the clock of a session: its limits, on one timer that is armed for
// whatever comes first. Input only moves the idle limit's end; the timer finds that
// out when it fires, so that a keystroke costs none.
type lifetime struct {
	started bool
	timer   *time.Timer // nil: never armed
	armed   bool        // tick is going to run
	idle    *limit      // nil: no idle time
	limits  []*limit
}

// input notes that a person typed.
func (l *lifetime) input(now time.Time) {
	if l.idle != nil {
		l.idle.restart(now)
	}
}

func (s *Session) startLifetime() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l := &s.life
	if d := s.opt.IdleTimeout; d > 0 {
		l.idle = &limit{
			code: "idle_timeout", cause: ErrIdle, warn: noticeLeads, life: d,
			message: "Nothing was typed for a while: this terminal closes in %s. Press a key to keep it.",
		}
		l.limits = append(l.limits, l.idle)
	}
	if d := s.opt.MaxSession; d > 0 {
		l.limits = append(l.limits, &limit{
			code: "session_expired", cause: ErrExpired, warn: noticeLeads, life: d,
			message: "This terminal reaches its longest time and closes in %s. Open a new one to go on.",
		})
	}
	if t, ok := s.term.(terminal.Expiring); ok && !t.Expires().IsZero() {
		l.limits = append(l.limits, &limit{
			code: "tunnel_expired", cause: ErrTunnel, warn: tunnelLeads, life: t.Expires().Sub(now),
			message: "AWS cuts the tunnel to this workspace in %s. Save your work, and open a new terminal to go on.",
		})
	}
	for _, limit := range l.limits {
		if limit.cause != nil {
			limit.restart(now)
		}
	}
	l.started = true
	if len(l.limits) > 0 {
		s.tickIn(0)
	}
}

// Warn announces an end that the caller brings about: at once, but not before Run,
// and again as the end comes near. The message has a %s for the time left. Warn may
// be called at any time.
func (s *Session) Warn(code, message string, left time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	end := &limit{code: code, message: message, warn: noticeLeads, life: left, atOnce: true}
	end.restart(time.Now())
	s.life.limits = append(s.life.limits, end)
	if s.life.started {
		s.tickIn(0)
	}
}

// tickIn arms the timer, sooner than it is. The lock is held.
func (s *Session) tickIn(d time.Duration) {
	l := &s.life
	switch {
	case l.timer == nil:
		s.wg.Add(1)
		l.timer = time.AfterFunc(d, s.tick)
	case !l.armed:
		s.wg.Add(1)
		l.timer.Reset(d)
	case l.timer.Stop(): // else a tick waits for the lock
		l.timer.Reset(d)
	}
	l.armed = true
}

// stopLifetime is called with the lock held, once the session is over; a tick that
// runs already finds that out.
func (s *Session) stopLifetime() {
	if l := &s.life; l.armed && l.timer.Stop() {
		l.armed = false
		s.wg.Done()
	}
}

// tick does what is due and arms the timer for what comes next.
func (s *Session) tick() {
	defer s.wg.Done()
	s.mu.Lock()
	s.life.armed = false
	cause := s.announce(time.Now())
	s.mu.Unlock()
	if cause != nil {
		s.End(cause)
	}
}

// announce gives the owner the notices that are due, and returns the cause of the
// end if that is due. The lock is held.
func (s *Session) announce(now time.Time) (cause error) {
	if s.ending || s.over {
		return nil
	}
	var next time.Time
	for _, limit := range s.life.limits {
		notice, ended, at := limit.due(now)
		switch {
		case ended && limit.cause == nil:
			continue
		case ended:
			return limit.cause
		case notice != nil:
			s.owner.client.Notice(*notice)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if !next.IsZero() {
		s.tickIn(next.Sub(now))
	}
	return nil
}
