package client

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"sync"
	"time"
)

// maxTyped bounds the input that is kept until the gateway has given it to the
// terminal, in bytes.
const maxTyped = 1 << 20

// ErrNoTicket is for the tickets of Open to return, or to wrap, when there will be no
// ticket however often they are asked: a Session whose connection is lost ends then.
var ErrNoTicket = errors.New("no ticket")

// ErrShellGone is the end of a Session whose shell is gone, with Config.OneShell, or where
// the gateway could not be reached for as long as the shell has waited.
var ErrShellGone = errors.New("the shell is gone")

// Status is what is true of a Session whose connection was lost.
type Status struct {
	// Waiting says that the session has no connection. Its shell waits for Left, at least:
	// the gateway may notice later that the connection is lost. Left is 0 where the shell may
	// be gone. Without Waiting the session goes on.
	Waiting bool
	Left    time.Duration
	// New says that the session goes on with a new shell: the one before is gone. What was
	// typed for it and not taken is dropped.
	New   bool
	Ready Ready // of the connection with which it goes on
	Err   error // why the connection was lost, or the last try failed
}

// Session is a terminal over connections that may be lost, where the gateway and the
// tickets allow it (Ready.Resume). Its methods are those of Conn.
type Session struct {
	config  Config
	tickets func(context.Context) (string, error)
	status  func(Status)
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	over    chan struct{} // closed once live has returned

	mu         sync.Mutex
	changed    *sync.Cond // Read waits here for another connection
	conn       *Conn      // the last; it may be lost
	isLost     bool       // it is, and another one is tried
	typed      []byte     // what may have to be sent again
	from       int64      // the offset of its first byte, in all input
	sent       int64      // the offset up to which input was sent on conn
	sending    *Conn      // on which send runs
	shells     int        // shells before this one
	dials      int        // connections that were tried, at times two side by side
	cols, rows int
	ended      error

	busy time.Duration // how long the next connection may be silent with input on its way

	isAway bool // status was told so; live's own
}

// Open is Dial for a Session. Tickets gives a fresh ticket for each try; two tries may ask
// at the same time. Status is told when the connection is lost and when the session goes on,
// by a goroutine of its own that tries nothing meanwhile. The caller closes the Session. Config's
// Ticket, Resume and Output are not used.
func Open(ctx context.Context, config Config, tickets func(context.Context) (string, error), status func(Status)) (*Session, error) {
	s := &Session{config: config, tickets: tickets, status: status, cols: config.Cols, rows: config.Rows, over: make(chan struct{}), busy: busyLeast}
	s.changed = sync.NewCond(&s.mu)
	s.config.Resume, s.config.name = "", rand.Text()
	conn, err := s.dial(ctx, s.next(), 0, func(bool) {})
	if err != nil {
		return nil, err
	}
	s.mu.Lock() // the connection tells what the terminal was given
	s.conn = conn
	s.mu.Unlock()
	s.ctx, s.stop = context.WithCancel(context.Background())
	go s.live()
	return s, nil
}

// live comes back to the session whenever its connection is lost, also while nobody reads.
func (s *Session) live() {
	defer close(s.over)
	for {
		conn := s.conn // which live alone sets
		<-conn.done
		err := conn.end
		if !s.goesOn(conn, err) {
			s.end(err)
			return
		}
		s.mu.Lock()
		s.isLost = true
		s.mu.Unlock()
		if err := s.comeBack(conn, err); err != nil {
			s.end(err)
			return
		}
	}
}

// next returns the configuration of the next try.
func (s *Session) next() Config {
	config := s.config
	config.given = s.given
	s.mu.Lock()
	defer s.mu.Unlock()
	config.busy = s.busy
	s.dials++
	config.try = s.dials
	return config
}

// dial opens a connection. The limit bounds the wait for a ticket, and that for the answer
// to the handshake; 0: ctx alone does. Progress is called between the two, and after the answer.
func (s *Session) dial(ctx context.Context, config Config, limit time.Duration, progress func(answered bool)) (*Conn, error) {
	config.handshake = limit
	config.answered = func() { progress(true) }
	asking, cancel := ctx, context.CancelFunc(func() {})
	if limit > 0 {
		asking, cancel = context.WithTimeout(ctx, limit)
	}
	var err error
	config.Ticket, err = s.tickets(asking)
	cancel()
	if err != nil {
		return nil, err
	}
	progress(false)
	s.mu.Lock()
	config.Cols, config.Rows = s.cols, s.rows
	s.mu.Unlock()
	return Dial(ctx, config)
}

// Ready returns the gateway's first message on the connection that there is.
func (s *Session) Ready() Ready {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.Ready()
}

// Read is Conn's Read, but for a lost connection: then Read waits for another one, for as
// long as the shell waits.
func (s *Session) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		conn := s.conn
		s.mu.Unlock()
		if n, err := conn.Read(p); err == nil {
			return n, nil
		}
		s.mu.Lock()
		for s.conn == conn && s.ended == nil {
			s.changed.Wait()
		}
		isOther, err := s.conn != conn, s.ended
		s.mu.Unlock()
		if !isOther {
			return 0, err
		}
	}
}

// take goes on with another connection: what was typed and not taken is sent again, to the
// same shell only.
func (s *Session) take(conn *Conn) {
	ready := conn.Ready()
	s.mu.Lock()
	if at := s.conn.freeze(); ready.Resumed && ready.Output == s.config.Output {
		conn.skip(at) // Read has gone on since
	}
	s.conn, s.isLost = conn, false
	s.changed.Broadcast()
	if s.cols > 0 && s.rows > 0 {
		conn.Resize(s.cols, s.rows) // it may be another than that of the try
	}
	if !ready.Resumed {
		s.typed, s.from = nil, 0
		s.shells++
	}
	s.drop(ready.Input)
	s.sent = s.from
	rest := s.typed
	s.mu.Unlock()
	if s.isAway || !ready.Resumed {
		s.tell(Status{New: !ready.Resumed, Ready: ready})
	}
	s.isAway = false
	if len(rest) > 0 {
		go s.send(conn) // Read has to go on meanwhile
	}
}

// send sends what was typed and not sent on a connection yet, unless another does.
func (s *Session) send(conn *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sending == conn {
		return
	}
	s.sending = conn
	defer func() {
		if s.sending == conn {
			s.sending = nil
		}
	}()
	for s.conn == conn && s.sent < s.from+int64(len(s.typed)) {
		piece := s.typed[s.sent-s.from:]
		piece = piece[:min(len(piece), inputMessage)]
		s.sent += int64(len(piece))
		s.mu.Unlock()
		_, err := conn.Write(piece)
		s.mu.Lock()
		if err != nil {
			return // Read comes back
		}
		if s.conn == conn && conn.Ready().Resume == 0 {
			s.drop(s.sent) // nothing is sent again
		}
	}
}

// given drops what the terminal was given, as a connection has told.
func (s *Session) given(conn *Conn, input int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn { // else it may be of another shell
		s.drop(input)
	}
}

// drop drops what the gateway has taken, up to an offset. The lock is held.
func (s *Session) drop(taken int64) {
	n := min(max(taken-s.from, 0), int64(len(s.typed)))
	if n == 0 {
		return
	}
	s.typed, s.from = append([]byte(nil), s.typed[n:]...), s.from+n
	s.sent = max(s.sent, s.from)
	s.busy = busyLeast
}

// ErrNotKept is the error of a Session's Write for what it does not take while the connection is
// lost: a mebibyte is kept already.
var ErrNotKept = errors.New("a mebibyte is kept already")

// Write is Conn's Write, also while the connection is lost: what is typed then is kept,
// and sent to the same shell. The error is ErrNotKept once a mebibyte is kept; while there is a
// connection, Write waits. What is left of p when the shell is gone is dropped: it was typed for
// no other.
func (s *Session) Write(p []byte) (n int, err error) {
	s.mu.Lock()
	shells := s.shells
	s.mu.Unlock()
	for n < len(p) {
		s.mu.Lock()
		conn := s.conn
		switch ready := conn.Ready(); {
		case s.ended != nil:
			defer s.mu.Unlock()
			return n, s.ended
		case ready.ReadOnly():
			s.mu.Unlock()
			return n, ErrReadOnly
		case s.shells != shells:
			s.mu.Unlock()
			return len(p), nil
		case ready.Resume == 0 && len(s.typed) == 0: // nothing is sent again, and nothing has to be sent before
			s.mu.Unlock()
			m, err := conn.Write(p[n:])
			return n + m, err
		case len(s.typed) >= maxTyped && s.isLost:
			s.mu.Unlock()
			return n, ErrNotKept
		case len(s.typed) >= maxTyped:
			s.mu.Unlock()
			s.awaitRoom(conn)
			continue
		}
		piece := p[n:min(len(p), n+maxTyped-len(s.typed))]
		s.typed = append(s.typed, piece...)
		s.mu.Unlock()
		n += len(piece)
		s.send(conn)
	}
	return n, nil
}

// askEvery is the pause between two questions of how much of the input the terminal was given.
const askEvery = 50 * time.Millisecond

// awaitRoom waits for room, or for askEvery.
func (s *Session) awaitRoom(conn *Conn) {
	ctx, cancel := context.WithTimeout(s.ctx, askEvery)
	defer cancel()
	if _, err := conn.Ping(ctx); err != nil {
		<-ctx.Done() // it is lost, or slow
		return
	}
	s.mu.Lock()
	full := len(s.typed) >= maxTyped
	s.mu.Unlock()
	if full {
		<-ctx.Done()
	}
}

// Resize is Conn's Resize, also for the connections to come.
func (s *Session) Resize(cols, rows int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cols, s.rows = cols, rows
	s.conn.Resize(cols, rows)
}

// Exit is Conn's Exit.
func (s *Session) Exit() Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.Exit()
}

// Close ends the session, and its shell; one that waits, because the connection is lost,
// ends when its time is over.
func (s *Session) Close() error {
	s.stop()
	s.end(net.ErrClosed)
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	err := conn.Close()
	<-s.over
	s.mu.Lock()
	last := s.conn // live may have come back meanwhile
	s.mu.Unlock()
	if last != conn {
		err = last.Close()
	}
	return err
}

func (s *Session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.ended = err
	}
	s.changed.Broadcast()
}

func (s *Session) tell(status Status) {
	if s.status != nil {
		s.status(status)
	}
}
