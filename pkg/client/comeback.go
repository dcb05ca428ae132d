package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// companyAfter, and as many of the last connection's round trips as companyTrips, is how long
	// a try to come back goes without progress before another one is made beside it: a network
	// that is back answers only what is asked now.
	companyAfter = 500 * time.Millisecond
	companyTrips = 5
	// tryLimit bounds a try's wait for a ticket, and again that for the answer to its
	// handshake: on a line that goes silent neither would come to an end.
	tryLimit = 16 * time.Second
	// answeredLimit is how long a try whose handshake was answered goes without company: a
	// new shell may be starting, and another try would start one more.
	answeredLimit = 30 * time.Second

	// The pauses between two tries that have failed: the first one, which doubles, and the
	// longest one while the network is away, which may be back at any time. A gateway lets an
	// address try 50 times a second.
	againAfter = 100 * time.Millisecond
	againMost  = time.Second
	// The same for a network that has been away for longAfter, and for a gateway that
	// refuses.
	longAfter   = 5 * time.Minute
	longMost    = 15 * time.Second
	longCompany = 5 * time.Second

	// grace is how long tries go on after the shell has waited: a gateway may notice later that
	// the connection is lost, by two of its pings.
	grace = time.Minute
)

// goesOn reports whether the session goes on after the end of a connection: with its shell,
// or with another one where the gateway restarts.
func (s *Session) goesOn(conn *Conn, err error) bool {
	if conn.Ready().Resume == 0 || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return false
	}
	var refused *Error
	switch {
	case !errors.As(err, &refused):
		return true
	case isRestart(err):
		return !s.config.OneShell
	default:
		return s.byOwnTry(conn.try, err)
	}
}

// isRestart reports whether a connection was ended by a gateway that is stopped for another
// one in its place: 1012, "service restart" in the WebSocket registry of IANA.
func isRestart(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.CloseCode == 1012
}

// byOwnTry reports whether a connection was refused because a later one of this Session has
// the shell: one that was given up, and that the gateway heard of all the same.
func (s *Session) byOwnTry(try int, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var refused *Error
	return errors.As(err, &refused) && refused.Code == "taken_over" && try < s.dials
}

// try is one of the tries to come back to a session.
type try struct {
	number   int
	cancel   context.CancelCauseFunc
	answered atomic.Bool   // its handshake was
	isDone   chan struct{} // closed when conn or err is set
	conn     *Conn
	err      error
}

// begin begins a try. News of it are its progress and its end.
func (s *Session) begin(news chan<- *try) *try {
	ctx, cancel := context.WithCancelCause(s.ctx)
	config := s.next()
	t := &try{number: config.try, cancel: cancel, isDone: make(chan struct{})}
	tell := func() {
		select {
		case news <- t:
		case <-ctx.Done():
		}
	}
	go func() {
		t.conn, t.err = s.dial(ctx, config, tryLimit, func(answered bool) {
			t.answered.Store(answered)
			tell()
		})
		close(t.isDone)
		tell()
	}()
	return t
}

// done reports whether the try has come to its end.
func (t *try) done() bool {
	select {
	case <-t.isDone:
		return true
	default:
		return false
	}
}

// errNotNeeded is why a try is given up that can only lead to another new shell.
var errNotNeeded = errors.New("there is a new shell already")

// abandon gives a try up. The shell stays, unless it is a new one, which nobody has heard of.
func (t *try) abandon(cause error) {
	t.cancel(cause)
	go func() {
		<-t.isDone
		switch {
		case t.conn == nil:
		case t.conn.Ready().Resumed:
			t.conn.drop()
		default:
			_ = t.conn.Close()
		}
	}()
}

// comeBack replaces a connection that was lost.
func (s *Session) comeBack(lostConn *Conn, cause error) error {
	ready := lostConn.Ready()
	s.config.Resume, s.config.Output = ready.Session, lostConn.Output()
	lostConn.drop()
	waits := ready.Resume
	if isRestart(cause) {
		waits = 0 // the gateway has ended the shell
	}
	began, until := time.Now(), lostConn.lastHeard().Add(waits)
	over := time.NewTimer(waits + grace)
	defer over.Stop()

	news := make(chan *try)
	var tries []*try // the first and the latest of those that have not ended
	var notNeeded error
	defer func() {
		for _, t := range tries {
			t.abandon(notNeeded)
		}
	}()
	company := max(companyAfter, companyTrips*lostConn.roundTrip())
	pause := againAfter
	next := time.NewTimer(0)
	defer next.Stop()
	var silent silentError
	isBusy := errors.As(cause, &silent) && silent.busy
	if isBusy {
		s.mu.Lock()
		s.busy = min(2*s.busy, busyLimit)
		s.mu.Unlock()
	}
	if !isBusy && !s.byOwnTry(lostConn.try, cause) { // else it is as if nothing were, unless the first try fails
		s.tellAway(until, cause)
	}
	for {
		select {
		case <-s.ctx.Done():
			return net.ErrClosed
		case <-over.C:
			if waits == 0 {
				return cause
			}
			return fmt.Errorf("%w: it waited for %s (%w)", ErrShellGone, waits, cause)
		case <-next.C:
			if len(tries) == 2 {
				tries[1].abandon(nil)
				tries = tries[:1]
			}
			if len(tries) > 0 && !s.isAway {
				s.tellAway(until, cause)
			}
			tries = append(tries, s.begin(news))
			if time.Since(began) > longAfter {
				company = max(company, longCompany)
			}
			next.Reset(patience(tries, company))
		case t := <-news:
			at := slices.Index(tries, t)
			if at < 0 {
				continue // given up
			}
			if !t.done() {
				next.Reset(patience(tries, company))
				continue
			}
			tries = slices.Delete(tries, at, at+1)
			if t.err == nil {
				if !t.conn.Ready().Resumed {
					notNeeded = errNotNeeded
				}
				return s.goOn(t.conn)
			}
			if s.isFinal(t) {
				return fmt.Errorf("%w (%w)", t.err, cause)
			}
			cause = t.err
			s.tellAway(until, cause)
			if len(tries) > 0 {
				next.Reset(patience(tries, company))
				continue
			}
			next.Reset(pause)
			pause = min(2*pause, longestPause(began, cause))
		}
	}
}

// patience returns how long tries go without another one.
func patience(tries []*try, company time.Duration) time.Duration {
	if slices.ContainsFunc(tries, func(t *try) bool { return t.answered.Load() }) {
		return answeredLimit
	}
	return company
}

// isFinal reports whether no other try will do better than one that has failed.
func (s *Session) isFinal(t *try) bool {
	var refused *Error
	if errors.As(t.err, &refused) {
		return !refused.Retryable && !s.byOwnTry(t.number, t.err)
	}
	return errors.Is(t.err, ErrNoTicket)
}

func longestPause(began time.Time, cause error) time.Duration {
	var refused *Error
	if errors.As(cause, &refused) || time.Since(began) > longAfter {
		return longMost
	}
	return againMost
}

// tellAway tells that the shell waits until a time, of the wall clock: a computer that
// sleeps stops the other one.
func (s *Session) tellAway(until time.Time, cause error) {
	s.isAway = true
	s.tell(Status{Waiting: true, Left: max(0, time.Until(until.Round(0))), Err: cause})
}

// goOn goes on with another connection.
func (s *Session) goOn(conn *Conn) error {
	if s.config.OneShell && !conn.Ready().Resumed {
		_ = conn.Close()
		return ErrShellGone
	}
	s.take(conn)
	return nil
}
