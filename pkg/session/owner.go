package session

import (
	"errors"
	"math"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Client is the owner's side of a session, called by the session: one call at a
// time, but for Notice and Ending, which may come at any time.
type Client interface {
	// Begin is called first, by Run or after Resume, and says where the owner begins.
	Begin(a *Attachment, at Resumed)
	// Output takes the output that begins at offset at, and returns when the client
	// has taken p or is known to take nothing. After an error further output is
	// offered all the same.
	Output(at int64, p []byte) error
	// Notice announces an end. It does not wait.
	Notice(n Notice)
	// Ending says that the session was cut: from now on Output waits for the client
	// briefly, also an Output that waits already. Ending does not wait.
	Ending()
	// Exited follows the last output of a shell that ended by itself. Where an owner may
	// come back, the session waits until this one has heard it (Attachment.Detach), or is
	// lost.
	Exited(e terminal.Exit)
	// TakenOver says that another client is the owner now, and that the session calls
	// this one no more. An Output that waits is of no use. TakenOver does not wait.
	TakenOver()
}

// Errors of Resume.
var (
	ErrOver  = errors.New("the session is over")
	ErrAhead = errors.New("that output was never sent")
)

// Attachment is the session's side, called by the owner. Its methods may be called
// before Run, and after Run or when another owner was attached, when they do nothing.
type Attachment struct {
	session  *Session
	client   Client
	readOnly bool
	answers  answers // with the session's lock

	// With the session's lock:
	acks       bool
	acked      int64 // the offset up to which the client has rendered the output
	allows     int64 // the offset up to which the client takes output
	behindKept bool  // catchUp gives it what is kept, and carryOutput nothing
}

// Attach gives the session its owner, before Run. The owner takes window bytes
// before its first acknowledgement. An owner with a window of 0 never acknowledges,
// and holds the program back only by the time that Output takes. The input of a
// readOnly owner is dropped.
func (s *Session) Attach(c Client, window int, readOnly bool) *Attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attach(c, window, readOnly, 0)
}

// attach makes a client the owner, which gets the output from an offset on. The lock
// is held.
func (s *Session) attach(c Client, window int, readOnly bool, from int64) *Attachment {
	a := &Attachment{session: s, client: c, readOnly: readOnly, acks: window > 0, acked: from, allows: from + int64(window)}
	if !a.acks {
		a.allows = math.MaxInt64
	}
	s.owner = a
	return a
}

// Resumed is where an owner goes on.
type Resumed struct {
	Output int64 // the offset of the next byte that the owner is given
	Input  int64 // bytes of input that were taken from owners before it
}

// Resume gives a session that runs another owner, in place of one that is lost or is
// still there (Client.TakenOver). The owner has the output up to the offset from: it is
// given the rest, and nothing twice. If from is negative, or the output there is not
// kept any more, the owner is given output that makes a new terminal about what another is
// (past), then what is kept, and then the program draws its screen anew. In any case the program gets
// the size, unless that is zero. The owner is called from now on, by Begin first. The error
// is ErrOver or ErrAhead.
func (s *Session) Resume(c Client, window int, readOnly bool, size terminal.Size, from int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.resumable(from); err != nil {
		return err
	}
	if old := s.owner; old != nil {
		s.leave()
		old.client.TakenOver()
	}
	s.waiting.stop()
	at := max(from, s.kept.from)
	before, exact := s.past.since(from, s.kept.from)
	if at != from && !exact {
		before = s.past.screen(size.Rows == 0 || size == s.sizes.wanted)
		s.past.exact = at
	}
	where := Resumed{Output: at - int64(len(before)), Input: s.taken}
	a := s.attach(c, window, readOnly, where.Output)
	a.behindKept = true
	s.held = max(s.held, at)
	s.forget()
	s.wg.Go(func() { s.catchUp(a, where, before) })
	s.tellAgain()
	if size.Rows > 0 {
		s.sizes.wanted = size
	}
	s.sizes.redraw = s.sizes.redraw || where.Output != from
	s.giveSize(s.sizes.redraw)
	return nil
}

// Resumable returns the error that Resume would return now.
func (s *Session) Resumable(from int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumable(from)
}

// resumable is Resumable. The lock is held.
func (s *Session) resumable(from int64) error {
	switch {
	case s.closed || s.ending || s.opt.Resume == 0:
		return ErrOver
	case from > s.offered:
		return ErrAhead
	}
	return nil
}

// Waits reports whether the session has no owner, and waits for one.
func (s *Session) Waits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owner == nil && !s.ending
}

// leave parts the session from its owner. The lock is held.
func (s *Session) leave() {
	s.owner, s.echo, s.choked = nil, nil, false
	s.toType = s.input.size() // also a part of a message, the rest of which comes in another message, if at all
	s.startTyping()
	s.queue.Broadcast()
	s.output.Broadcast()
}

// catchUp gives a new owner the output before what is kept, and that, until there is no
// more, and the owner is given output as it is printed.
func (s *Session) catchUp(a *Attachment, where Resumed, before []byte) {
	a.client.Begin(a, where)
	at := where.Output
	piece := blocks.Get().(*block)
	defer blocks.Put(piece)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.output.Broadcast()
	for s.owner == a {
		room := a.allows - at
		if s.ending {
			room = blockSize
		}
		n := copy(piece[:], before)
		if n == 0 {
			n = copy(piece[:], s.kept.at(at))
		}
		switch {
		case n == 0:
			a.behindKept = false
			return
		case room <= 0:
			s.output.Wait()
			continue
		}
		n = int(min(int64(n), room))
		s.offered = max(s.offered, at+int64(n))
		s.mu.Unlock()
		err := a.client.Output(at, piece[:n])
		s.mu.Lock()
		if err == nil {
			s.took(at, n)
		} else if s.ending {
			a.behindKept = false
			return
		}
		at += int64(n)
		before = before[min(n, len(before)):]
	}
}

// behind returns how many bytes of output the client was given and has not
// acknowledged; 0 for a client that never does. The lock is held.
func (a *Attachment) behind() int64 {
	if !a.acks {
		return 0
	}
	return a.session.printed - a.acked
}

// Acknowledge says that the client has rendered the output up to the offset
// rendered, and takes window bytes more.
func (a *Attachment) Acknowledge(rendered int64, window int) {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != a {
		return
	}
	a.acked, a.allows = rendered, rendered+int64(window)
	if s.mayResume() && rendered > s.held {
		s.held = min(rendered, s.offered)
		s.forget()
	}
	s.output.Broadcast()
}

// Detach says that the client is gone, or is to go, and why: the session ends.
func (a *Attachment) Detach(cause error) {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner == a {
		s.end(cause)
	}
}

// Leave says that the client is lost, and why. The session waits for another for wait, and
// for no longer than Options.Resume, and then ends with that cause. Leave reports whether the
// session goes on without the client; if not it ends now.
func (a *Attachment) Leave(cause error, wait time.Duration) (goesOn bool) {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.owner != a:
		return true
	case !s.mayResume() || s.closed || wait <= 0:
		s.end(cause)
		return false
	}
	s.leave()
	wait = min(wait, s.opt.Resume)
	s.lost, s.until = cause, time.Now().Add(wait)
	s.waiting.ring(wait)
	return true
}

// giveUp ends a session whose owner was lost, and for which no other came in time.
func (s *Session) giveUp() {
	defer s.wg.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting.set = false
	if s.owner != nil || s.over {
		return
	}
	if left := time.Until(s.until); left > 0 { // an owner came and was lost while this waited for the lock
		s.waiting.ring(left)
		return
	}
	s.end(s.lost)
}

// mayResume reports whether an owner that is lost may come back. The lock is held.
func (s *Session) mayResume() bool { return s.opt.Resume > 0 && !s.ending }

// Resize gives the terminal a size, at once or soon (resizeEvery). The size that
// the terminal has costs nothing.
func (a *Attachment) Resize(size terminal.Size) {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != a {
		return
	}
	s.sizes.wanted = size
	s.giveSize(false)
}

// types reports whether the client's input goes to the terminal. The lock is held.
func (a *Attachment) types() bool { return a.session.owner == a && !a.session.ending && !a.readOnly }

// Type gives the terminal a whole message of input, and returns how many bytes were
// taken: fewer than all when the program does not read and the input queue is full.
// The rest is for TypePart, after AwaitInput. A message that is an interrupt may
// skip output.
func (a *Attachment) Type(p []byte) int {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(p)
	if n > 0 && a.types() {
		s.awaitSize()
	}
	if n > 0 && a.types() { // not taken over meanwhile
		n = s.typeMessage(p)
		s.taken += int64(n)
	}
	a.noteInput(p[:n], n == len(p))
	return n
}

// TypePart is Type for a part of a message. No part is typed before the last part
// has come, unless the queue is full.
func (a *Attachment) TypePart(p []byte, last bool) int {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(p)
	if a.types() {
		n = s.queueInput(p, last)
		s.taken += int64(n)
	}
	a.noteInput(p[:n], last && n == len(p))
	return n
}

// AwaitInput waits until there may be room for more input. The caller hears no
// acknowledgement meanwhile, so output is not held back for acknowledgements.
func (a *Attachment) AwaitInput() {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.full && !s.ending && s.owner == a {
		s.choked = true
		s.output.Broadcast()
		s.queue.Wait()
	}
	if s.owner == a {
		s.choked = false
	}
}

// Given returns how many bytes of input the terminal was given, of all owners.
func (a *Attachment) Given() int64 {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytesIn
}

// noteInput notes a part of a message of input that was taken. What the terminal
// answers by itself keeps no session from being idle. The lock is held.
func (a *Attachment) noteInput(p []byte, last bool) {
	s := a.session
	if s.ending || s.owner != a {
		return
	}
	s.typed = s.typed || len(p) > 0
	if a.answers.typed(p, last) {
		s.life.input(time.Now())
	}
}
