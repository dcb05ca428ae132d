package session

import (
	"fmt"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Notice warns of an end that is coming, or is "reconnecting" or "reconnected".
type Notice struct {
	Code    string        // the code of the end: "idle_timeout", "session_expired", …
	Left    time.Duration // until the end
	Message string
}

// noticeLeads are the times before an end at which the end is announced, and
// tunnelLeads those of an end that nobody can put off. A limit shorter than all
// leads is announced at half its time.
var (
	noticeLeads = []time.Duration{60 * time.Second, 10 * time.Second}
	tunnelLeads = []time.Duration{5 * time.Minute, time.Minute}
)

// limit ends a session at a known time.
type limit struct {
	code    string
	cause   error           // nil: the end is announced only, the caller brings it about
	atOnce  bool            // the end is announced when the limit is known, too
	message string          // of the notice, with %s for the time left
	warn    []time.Duration // the leads, longest first
	life    time.Duration
	end     time.Time
	told    time.Duration // the shortest lead that was announced; 0: none
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

// due returns the notice that is due, if any, whether the end is, and when to ask
// again.
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

// silenceLead is how long a terminal is silent when the owner is told, and lostLead how long its connection is lost; half of
// the limit where that is shorter.
const (
	silenceLead = 15 * time.Second
	lostLead    = time.Second
)

// silence announces that the terminal's connection is silent, and that the connection is back.
type silence struct {
	term terminal.Silent // nil: the terminal's connection is never silent
	told bool
}

// due returns the notice that is due, if any, and when to ask again.
func (q *silence) due(now time.Time) (notice *Notice, next time.Time) {
	silence := q.term.Silence()
	lasts, limit, lead := silence.Lasts, silence.Limit, silenceLead
	if silence.Lost {
		lead = lostLead
	}
	lead = min(lead, limit/2)
	switch {
	case lasts >= lead && !q.told:
		notice = &Notice{"reconnecting", limit - lasts, fmt.Sprintf("Nothing comes from this workspace: this terminal waits for it for up to %s. What you type is kept.", inSeconds(limit-lasts))}
	case lasts < lead && q.told:
		notice = &Notice{"reconnected", 0, "This workspace answers again."}
	}
	if q.told = lasts >= lead; q.told {
		return notice, now.Add(min(time.Second, lead))
	}
	return notice, now.Add(lead - lasts)
}

// lifetime is the clock of a session: one alarm for all limits, set for the first.
// Input only moves the end of the idle limit, and tick finds that out, so that a
// keystroke sets no timer.
type lifetime struct {
	started bool
	alarm   alarm  // calls tick
	idle    *limit // nil: no idle time
	limits  []*limit
	silence silence
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
	if l.silence.term, _ = s.term.(terminal.Silent); l.silence.term != nil {
		l.silence.term.OnLost(s.hurry)
	}
	l.started = true
	if len(l.limits) > 0 || l.silence.term != nil {
		l.alarm.ring(0)
	}
}

// Warn announces an end that the caller brings about: at once, but not before Run,
// and again as the end comes near. The message has a %s for the time left.
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
		s.life.alarm.ring(0)
	}
}

// hurry looks again at what is to be announced.
func (s *Session) hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.life.alarm.ring(0)
	}
}

// tellAgain has a new owner told what the last may not have heard. The lock is held.
func (s *Session) tellAgain() {
	for _, limit := range s.life.limits {
		limit.told = 0
	}
	s.life.silence.told = false
	if s.life.started && (len(s.life.limits) > 0 || s.life.silence.term != nil) {
		s.life.alarm.ring(0)
	}
}

// tick announces and ends.
func (s *Session) tick() {
	defer s.wg.Done()
	s.mu.Lock()
	s.life.alarm.set = false
	cause := s.announce(time.Now())
	s.mu.Unlock()
	if cause != nil {
		s.End(cause)
	}
}

// announce gives the owner the notices that are due, and sets the alarm for the next,
// or returns the cause of an end that is due. The lock is held.
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
		case notice != nil && s.owner != nil:
			s.owner.client.Notice(*notice)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if s.life.silence.term != nil {
		notice, at := s.life.silence.due(now)
		if notice != nil && s.owner != nil {
			s.owner.client.Notice(*notice)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if !next.IsZero() {
		s.life.alarm.ring(next.Sub(now))
	}
	return nil
}
