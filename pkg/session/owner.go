package session

import (
	"math"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Client is the owner's side of a session, called by the session: one call at a
// time, but for Notice and Ending, which may come at any time.
type Client interface {
	// Begin is called first, by Run.
	Begin()
	// Output takes the output that begins at offset at, and returns when the client
	// has taken p or is known to take nothing. After an error further output is
	// offered all the same.
	Output(at int64, p []byte) error
	// Notice announces an end. It does not wait.
	Notice(n Notice)
	// Ending says that the session was cut: from now on Output waits for the client
	// briefly, also an Output that waits already. Ending does not wait.
	Ending()
	// Exited follows the last output of a shell that ended by itself.
	Exited(e terminal.Exit)
}

// Attachment is the session's side, called by the owner. Its methods may be called
// before Run, and after Run, when they do nothing.
type Attachment struct {
	session  *Session
	client   Client
	readOnly bool
	answers  answers // with the session's lock

	// With the session's lock:
	acks   bool
	acked  int64 // the offset up to which the client has rendered the output
	allows int64 // the offset up to which the client takes output
}

// Attach gives the session its owner, before Run. The owner takes window bytes
// before its first acknowledgement. An owner with a window of 0 never acknowledges,
// and holds the program back only by the time that Output takes. The input of a
// readOnly owner is dropped.
func (s *Session) Attach(c Client, window int, readOnly bool) *Attachment {
	a := &Attachment{session: s, client: c, readOnly: readOnly, acks: window > 0, allows: int64(window)}
	if !a.acks {
		a.allows = math.MaxInt64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owner = a
	return a
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
	a.acked, a.allows = rendered, rendered+int64(window)
	s.output.Signal()
}

// Detach says that the client is gone, or is to go, and why.
func (a *Attachment) Detach(cause error) { a.session.End(cause) }

// Resize gives the terminal a size, at once or soon (resizeEvery). The size that
// the terminal has costs nothing.
func (a *Attachment) Resize(size terminal.Size) {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sizes.wanted = size
	s.giveSize(false)
}

// Type gives the terminal a whole message of input, and returns how many bytes were
// taken: fewer than all when the program does not read and the input queue is full.
// The rest is for TypePart, after AwaitInput. A message that is an interrupt may
// skip output.
func (a *Attachment) Type(p []byte) int {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(p)
	if !s.ending && !a.readOnly && n > 0 {
		n = s.typeMessage(p)
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
	if !s.ending && !a.readOnly {
		n = s.queueInput(p, last)
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
	for s.full && !s.ending {
		s.choked = true
		s.output.Signal()
		s.queue.Wait()
	}
	s.choked = false
}

// noteInput notes a part of a message of input that was taken. What the terminal
// answers by itself keeps no session from being idle. The lock is held.
func (a *Attachment) noteInput(p []byte, last bool) {
	s := a.session
	if s.ending {
		return
	}
	s.typed = s.typed || len(p) > 0
	if a.answers.typed(p, last) {
		s.life.input(time.Now())
	}
}
