package instance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/internal/keeper/wire"
	"github.com/molecule-ai/termgw/internal/pollfd"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// keptStream is a stream that a keeper on the instance holds. It outlives its connection: when that is cut, goes silent or
// comes to the end of its tunnel, the stream goes on over another.
type keptStream struct {
	kind         *Kind
	at           *keeperAt
	to           destination
	name, secret string // of the terminal, for the keeper
	lost         func() // is called when the stream has no connection; may be nil

	reading sync.Mutex // held by reads

	mu       sync.Mutex
	opening  bool          // the handshake's: nothing is made anew
	received int64         // offset of the next byte of output
	link     *link         // nil: another is made
	changed  chan struct{} // closed when link, failed or sudden change
	failed   error
	sudden   bool // reads return at once
	making   bool // a goroutine makes a link
	lostAt   time.Time
	exit     *terminal.Exit
	in       []byte // input from taken on
	taken    int64  // offset up to which the program's terminal has input
	roomier  chan struct{}
	size     terminal.Size
}

// openKept starts a command under a pty of the keeper's.
func (c *connection) openKept(ctx context.Context, size terminal.Size, argv []string) (*keptStream, error) {
	s := &keptStream{
		kind: c.kind, at: c.kind.keeperFor(c.to), to: c.to, name: rand.Text(), secret: rand.Text() + rand.Text(), size: size,
		changed: make(chan struct{}), roomier: make(chan struct{}, 1),
	}
	opening := wire.Opening{
		Session: s.name, Secret: s.secret, Cols: size.Cols, Rows: size.Rows, Lease: c.kind.cfg.Timing.Lease, Window: firstWindow,
		Argv: argv, Env: runner.TerminalEnv,
	}
	l, err := s.at.attach(ctx, c, firstWindow, opening.Append(nil), true)
	if err != nil {
		return nil, err
	}
	if l.expected != 0 || l.accepted != 0 {
		l.close(true)
		return nil, errNonsense
	}
	s.link, s.opening = l, true
	return s, nil
}

// opened has the stream outlive its connection, from the end of the handshake on.
func (s *keptStream) opened() {
	s.mu.Lock()
	s.opening = false
	l := s.link
	s.mu.Unlock()
	switch {
	case !l.conn.keepsStream(s):
		s.lose(l) // it is gone already
	case l.conn.isGivenUp():
		s.cross()
	}
}

// told returns how the shell ended; nil: the keeper has not told.
func (s *keptStream) told() *terminal.Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exit
}

// onLost has a function called when the stream has no connection.
func (s *keptStream) onLost(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = do
}

// stopReading has reads return at once.
func (s *keptStream) stopReading() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sudden = true
	if s.link != nil {
		s.link.stopReading()
	}
	s.change()
}

// hangUp has the keeper hang up, and returns the connection, whose session is still reserved; nil: there is none. A link
// that is being made hangs up, too. Where there is none, the keeper hangs up when the lease is over.
func (s *keptStream) hangUp() *connection {
	s.stopReading()
	s.mu.Lock()
	l := s.link
	s.link = nil
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	l.close(true)
	l.conn.letsStream(s)
	return l.conn
}

// expires returns zero: the stream outlives its tunnel.
func (s *keptStream) expires() time.Time { return time.Time{} }

// silence returns how long nothing has come from the instance.
func (s *keptStream) silence() terminal.Silence {
	s.mu.Lock()
	defer s.mu.Unlock()
	silence := terminal.Silence{Limit: s.kind.cfg.Timing.Lease, Lost: s.link == nil && s.goesOn()}
	switch {
	case silence.Lost:
		silence.Lasts = time.Since(s.lostAt)
	case s.link != nil:
		silence.Lasts = s.link.conn.pump.silence()
	}
	return silence
}

// Read waits for output.
func (s *keptStream) Read(p []byte) (int, error) {
	for {
		s.reading.Lock()
		l, changed, err := s.current()
		if err != nil {
			s.reading.Unlock()
			return 0, err
		}
		n := 0
		if l != nil {
			n, err = l.read(p, true)
			s.read(l, n)
		}
		s.reading.Unlock()
		switch {
		case n > 0:
			return n, nil
		case l == nil:
			<-changed
		case err == nil:
		case isCut(err):
			if errors.Is(err, errGone) {
				s.kind.retire(l.conn) // its ssh may not have ended yet
			}
			if !s.lose(l) {
				return 0, errGone
			}
		case errors.Is(err, errNonsense):
			return 0, failed("ssh_closed", err)
		default:
			return 0, err
		}
	}
}

// read notes n bytes of output and what else a link has told. The lock reading is held.
func (s *keptStream) read(l *link, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received += int64(n)
	if l.exit != nil {
		s.exit = l.exit
	}
	if l != s.link {
		return
	}
	if done := l.taken - s.taken; done > int64(len(s.in)) {
		l.bad = errNonsense
	} else if done > 0 {
		s.taken = l.taken
		if s.in = s.in[done:]; len(s.in) == 0 {
			s.in = nil
		}
		select {
		case s.roomier <- struct{}{}:
		default:
		}
	}
}

// current returns the link, or what is closed when there is another, or the error of a read.
func (s *keptStream) current() (*link, chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.sudden, s.link == nil && s.exit != nil:
		return nil, nil, io.EOF
	case s.link == nil && s.failed != nil:
		return nil, nil, s.failed
	}
	return s.link, s.changed, nil
}

// TryRead returns the output that is there now.
func (s *keptStream) TryRead(p []byte, gather bool) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	l, _, err := s.current()
	if l == nil || err != nil {
		return 0, nil //nolint:nilerr // for Read to find
	}
	readOn := func(p []byte) (int, error) {
		n, _ := l.read(p, false) // an error is for Read to find
		return n, nil
	}
	var n int
	if gather {
		n, _ = pollfd.Gather(p, readOn)
	} else {
		n, _ = readOn(p)
	}
	s.read(l, n)
	return n, nil
}

// TryWrite takes as much of the input as there is room for.
func (s *keptStream) TryWrite(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil || s.sudden {
		return 0, io.ErrClosedPipe
	}
	p = p[:min(len(p), wire.InputWindow-len(s.in))]
	s.in = append(s.in, p...)
	if s.link != nil {
		s.link.input(p)
	}
	return len(p), nil
}

// Write waits while there is no room.
func (s *keptStream) Write(p []byte) (int, error) {
	for done := 0; ; {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		n, err := s.TryWrite(p[done:])
		if done += n; err != nil || done == len(p) {
			return done, err
		}
		select {
		case <-s.roomier:
		case <-changed:
		}
	}
}

// mostInput bounds the input in one frame, in bytes.
const mostInput = 4 << 10

// input sends input.
func (l *link) input(p []byte) {
	for len(p) > 0 {
		n := min(len(p), mostInput)
		l.send(wire.Append(nil, wire.Input, p[:n]))
		p = p[n:]
	}
}

// Resize tells the keeper the terminal's size.
func (s *keptStream) Resize(size terminal.Size) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = size
	if s.link != nil {
		s.link.resize(size)
	}
	return nil
}

func (l *link) resize(size terminal.Size) {
	l.send(wire.AppendOffsets(nil, wire.Resize, int64(size.Cols), int64(size.Rows)))
}

// change tells those that wait. The lock is held.
func (s *keptStream) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// beat shows the keeper that the gateway lives.
func (s *keptStream) beat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != nil {
		s.link.send(wire.Append(nil, wire.Beat, nil))
	}
}

// lose is called when a link is cut: another one is made. It reports whether the stream goes on.
func (s *keptStream) lose(l *link) bool {
	s.mu.Lock()
	if s.link != l || s.opening {
		defer s.mu.Unlock()
		return !s.opening
	}
	// The keeper has heard nothing either since the connection went silent.
	s.link, s.lostAt = nil, time.Now().Add(-l.conn.pump.silence())
	s.change()
	start := s.starts()
	lost := s.lost
	s.mu.Unlock()
	s.let(l)
	if start {
		s.kind.background(s.makeAnew)
	}
	if lost != nil {
		lost()
	}
	return true
}

// loseConnection is lose for the link of a connection.
func (s *keptStream) loseConnection(c *connection) {
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if l != nil && l.conn == c {
		s.lose(l)
	}
}

// starts reports whether a goroutine has to be started that makes another link, and notes that it is. The lock is held.
func (s *keptStream) starts() bool {
	start := !s.making && s.goesOn()
	s.making = s.making || start
	return start
}

// goesOn reports whether there is anything to make another link for. The lock is held.
func (s *keptStream) goesOn() bool { return s.failed == nil && !s.sudden && s.exit == nil }

// let lets go of a link that is no longer the stream's.
func (s *keptStream) let(l *link) {
	l.close(false)
	l.conn.letsStream(s)
	s.kind.release(l.conn)
}

// cross is called when the connection goes silent or comes to the end of its tunnel: another one is made, and the link goes
// on meanwhile.
func (s *keptStream) cross() {
	s.mu.Lock()
	start := !s.opening && s.starts()
	s.mu.Unlock()
	if start {
		s.kind.background(s.makeAnew)
	}
}

const (
	// remakeTime bounds the first try to make a connection anew, which may hang on a way that is cut. The bound doubles, up to
	// that of any login.
	remakeTime = 5 * time.Second
	// remakePause is the time between the first two tries. It doubles, up to remakeLongest.
	remakePause, remakeLongest = 50 * time.Millisecond, time.Second
)

// makeAnew makes another link.
func (s *keptStream) makeAnew() {
	whole := loginTime(s.kind.cfg.Timing)
	limit := min(remakeTime, whole)
	for pause := remakePause; ; pause, limit = min(2*pause, remakeLongest), min(2*limit, whole) {
		s.mu.Lock()
		if s.link != nil {
			limit = whole
		}
		s.mu.Unlock()
		err := s.tryAnew(limit)
		s.mu.Lock()
		if err != nil && s.isHopeless(err) {
			s.fail(err)
		}
		if (err == nil && s.link != nil && !s.link.conn.isGivenUp()) || !s.goesOn() {
			s.making = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-s.kind.ctx.Done():
		}
	}
}

// isHopeless reports whether no further try is of use. The lock is held.
func (s *keptStream) isHopeless(err error) bool {
	var f *runner.Failure
	switch {
	case s.kind.ctx.Err() != nil:
		return true
	case s.link != nil:
		return false
	case errors.Is(err, errUnknown), errors.Is(err, errNonsense):
		return true
	}
	return time.Since(s.lostAt) >= s.kind.cfg.Timing.Lease || errors.As(err, &f) && f.Final
}

// fail ends the stream. The lock is held.
func (s *keptStream) fail(err error) {
	if s.failed == nil {
		s.failed = err
	}
	if l := s.link; l != nil {
		s.link = nil
		go s.let(l)
	}
	s.change()
}

// tryAnew makes another link, and goes over to it.
func (s *keptStream) tryAnew(limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(s.kind.ctx, limit, errSlow)
	defer cancel()
	c, err := s.kind.connectAnew(ctx, s.to)
	if err != nil {
		return err
	}
	// What comes meanwhile by the last link comes again by this one, and is skipped.
	s.mu.Lock()
	last, received := s.link, s.received
	s.mu.Unlock()
	if last != nil {
		received = last.holdAcks(received)
		defer last.releaseAcks()
	}
	attachment := wire.Attachment{Session: s.name, Secret: s.secret, Received: received, Window: firstWindow}
	l, err := s.at.attach(ctx, c, firstWindow, attachment.Append(nil), false)
	switch {
	case err == nil:
		return s.goOver(l, received)
	case ctx.Err() != nil:
		s.kind.retire(c)
	}
	s.kind.release(c)
	if errors.Is(err, errUnknown) || errors.Is(err, errNonsense) {
		return failed("ssh_closed", fmt.Errorf("the connection to the instance was made anew: %w", err))
	}
	return err
}

// goOver goes on over another link, whose output begins at an offset.
func (s *keptStream) goOver(l *link, from int64) error {
	s.mu.Lock()
	last := s.link
	s.mu.Unlock()
	if last != nil {
		last.stopReading() // a read that waits holds the lock
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if last != nil && last != s.link {
		last = nil // it was let go
	}
	resend := l.accepted - s.taken
	if l.expected != from || resend < 0 || resend > int64(len(s.in)) {
		go func() { l.close(false); s.kind.release(l.conn) }()
		return errNonsense
	}
	if s.sudden || !l.conn.keepsStream(s) {
		go func() { l.close(s.sudden); s.kind.release(l.conn) }()
		return errGone
	}
	l.skip = s.received - from
	s.link = l
	l.taken = s.taken
	l.input(s.in[resend:])
	l.resize(s.size)
	s.change()
	if last != nil {
		go s.let(last)
	}
	return nil
}
