package session

import (
	"math"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Client is the owner's side of a session: what the session tells it. No call is
// made with another under way, but for Notice and Ending.
type Client interface {
	// Begin is called first, by Run.
	Begin()
	// Output is given what the shell has printed, from the byte at on. It returns
	// when the client has taken p, or never will: after an error the client is
	// still told what follows.
	Output(at int64, p []byte) error
	// Notice announces an end. It does not wait.
	Notice(n Notice)
	// Ending says that the session was cut: what Output still gives is not worth a
	// long wait, that of a call under way neither. It does not wait.
	Ending()
	// Exited follows the last output of a shell that ended by itself.
	Exited(e terminal.Exit)
}

// Attachment is the owner's tie to the session: what the owner tells it. Its
// methods may be called before Run, and after it, when they do nothing.
type Attachment struct {
	session  *Session
	client   Client
	readOnly bool

	// With the session's lock:
	acks   bool
	acked  int64 // output that the client has rendered, in bytes
	allows int64 // output that the client takes before it acknowledges more
}

// Attach gives the session its owner, before Run. The owner takes window bytes
// before its first acknowledgement; with a window of 0 it never acknowledges, and
// holds the program back by the time that Output takes. Input of an owner that is
// readOnly is dropped.
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

// behind is the output that the client was given and has not rendered, as far as
// that is known, in bytes. The lock is held.
func (a *Attachment) behind() int64 {
	if !a.acks {
		return 0
	}
	return a.session.printed - a.acked
}

// Acknowledge says that the client has rendered so many bytes since the start,
// and takes a window more.
func (a *Attachment) Acknowledge(rendered int64, window int) {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	a.acked, a.allows = rendered, rendered+int64(window)
	s.output.Signal()
}

// Detach says that the client is gone, or must go, and why.
func (a *Attachment) Detach(cause error) { a.session.End(cause) }

// Resize gives the terminal the client's size, at once or soon. A size that the
// terminal has costs nothing.
func (a *Attachment) Resize(size terminal.Size) {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sizes.wanted = size
	s.giveSize(false)
}

// Type gives the terminal a whole message of input, which may be an interrupt. It
// returns how many bytes were taken: fewer than all while the program does not
// read, and as much waits already as may. The rest follows by TypePart, after
// AwaitInput.
func (a *Attachment) Type(p []byte) int {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if !a.mayType(p) {
		return len(p)
	}
	s.awaitSize()
	s.interrupt(p)
	n := 0
	if !s.typist {
		var err error
		n, err = s.term.TryWrite(p)
		s.given(n)
		if n == len(p) || err != nil {
			return len(p) // after an error the shell is gone, which carryOutput finds out
		}
	}
	return n + s.queueInput(p[n:], true)
}

// TypePart gives the terminal a part of a message of input, and is like Type
// otherwise. Nothing of a message is typed before its last part has come, unless
// the queue may hold no more of it.
func (a *Attachment) TypePart(p []byte, last bool) int {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if !a.mayType(p) && len(p) > 0 {
		return len(p)
	}
	return s.queueInput(p, last)
}

// AwaitInput waits until there may be room for more input. Its caller hears no
// acknowledgements meanwhile, so output is not held back for them.
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

// mayType notes that somebody has typed, and reports whether that goes to the
// terminal. The lock is held.
func (a *Attachment) mayType(p []byte) bool {
	s := a.session
	if s.ending || len(p) == 0 {
		return false
	}
	s.life.input(time.Now())
	s.typed = true
	return !a.readOnly
}
