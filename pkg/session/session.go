// Package session is one shell: its output by absolute offset, the input that waits
// for the shell, the limits of time, and the clients: one owner, whose window holds
// the program back, and any number of observers, who hold nobody back.
//
// A session knows a Terminal and clients. Connections, tickets, stores and the
// place where the shell runs are its callers' business.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Causes of a session's end, besides the shell's own end. Callers add causes by End
// or by the context given to Run.
var (
	ErrIdle     = errors.New("no input for the idle time")
	ErrExpired  = errors.New("the session's longest life is over")
	ErrTunnel   = errors.New("the tunnel's longest life is over")
	ErrTerminal = errors.New("the terminal failed")
)

// Options are the limits of one session. Zero means no limit.
type Options struct {
	Size        terminal.Size // the terminal's size at the start; zero: not known
	IdleTimeout time.Duration // the longest time without input, counted from Run
	MaxSession  time.Duration // the longest life, counted from Run
	// Resume is how long the shell waits for its person when the owner is lost. 0: it
	// does not wait, and no output is kept for an owner that comes back.
	Resume time.Duration
	// Budget bounds the bytes that all sessions of the process hold together. Holder
	// names the share of the budget that this session uses.
	Budget *Budget
	Holder string
	// Over is called once, where an owner may be lost and the shell has ended while none was
	// there: its last output waits for an owner to come back, and Run with it. May be nil.
	Over func(Summary)
	// Count is called with the bytes given to the terminal, and the bytes that the
	// terminal has printed, as they pass. May be nil.
	Count func(in, out int)
}

// Summary is the result of a session.
type Summary struct {
	Cause    error          // nil: the shell ended by itself
	Exit     *terminal.Exit // nil: not known
	BytesIn  int64          // given to the terminal
	BytesOut int64          // given to owners, each byte counted once
	Owner    Client         // the last, which has all of the output; nil: it is lost
}

// Session is one shell. Attach an owner, Run, then Join. Where Options.Resume allows
// it, an owner may be lost meanwhile (Attachment.Leave), and another take its place
// (Session.Resume).
//
// The caller of Run carries output, terminal to owner; the caller of the owner's
// Attachment carries input the other way. No byte changes hands between goroutines:
// each hand-over costs a keystroke some 30 µs. Further goroutines live only while
// input waits for the terminal, the terminal takes a new size, or a new owner is given
// what was printed without it.
type Session struct {
	term   terminal.Terminal
	opt    Options
	hangUp func()         // ends the shell, once; returns when the shell is gone
	wg     sync.WaitGroup // every goroutine that the session has started

	ahead queue // output that was read and is not printed yet; of the goroutine that calls Run

	mu        sync.Mutex
	owner     *Attachment // nil: not attached yet, or lost
	lost      error       // why the last owner is lost, while the session waits for another
	until     time.Time   // the end of that wait
	waiting   alarm       // calls giveUp
	closed    bool        // no owner can be attached any more
	cause     error       // of the end; nil: none yet, or the shell ended by itself
	settled   bool        // the output is over: cause no longer changes
	cut       bool        // the shell is being ended
	ending    bool        // input is dropped, output is not held back
	over      bool        // the session starts no goroutine any more
	printed   int64       // the offset of the next byte of output
	output    sync.Cond   // carryOutput and catchUp wait here for room, Run for the owner
	queue     sync.Cond   // AwaitInput waits here for room in input
	input     queue       // waits for the program to read
	toType    int         // bytes of input that are whole messages
	typist    bool        // typeInput runs
	full      bool        // input had no room, and nothing was typed since
	choked    bool        // AwaitInput waits: no acknowledgement is heard
	typed     bool        // input came after the last output
	echo      []byte      // of an interrupt that was typed; carryOutput takes it
	taken     int64       // bytes of input that were taken from owners
	bytesIn   int64       // bytes that the terminal took
	sent      int64       // bytes that owners took
	sentTo    int64       // the offset after the last of them
	life      lifetime
	sizes     resizing
	kept      history // output that owners and observers may ask for
	past      past    // output before that, where an owner may come back
	held      int64   // the offset up to which owners need no output any more
	offered   int64   // the offset up to which owners were given output
	observers []*observer
	observing sync.Cond // observers wait here for output
}

// maxInput bounds the input that waits for a program that does not read, in
// bytes. The budget may bound the input sooner.
const maxInput = 16 << 20

// New returns the session of a started terminal. The session ends the terminal.
func New(term terminal.Terminal, opt Options) *Session {
	s := &Session{
		term: term, opt: opt,
		hangUp: sync.OnceFunc(func() { _ = term.Close() }), // its kind reports what failed
		sizes:  newResizing(opt.Size),
		input:  queue{budget: opt.Budget, holder: opt.Holder, limit: maxInput},
		ahead:  queue{budget: opt.Budget, holder: opt.Holder, limit: maxAhead},
		kept:   history{budget: opt.Budget, holder: opt.Holder},
	}
	s.life.alarm = alarm{wg: &s.wg, call: s.tick}
	s.sizes.alarm = alarm{wg: &s.wg, call: s.giveLater}
	s.waiting = alarm{wg: &s.wg, call: s.giveUp}
	s.output.L, s.queue.L, s.observing.L = &s.mu, &s.mu, &s.mu
	return s
}

// Run carries output until the shell ends, a limit is reached, End is called or
// ctx is cancelled; the cause of ctx is then the session's. When Run returns the
// shell is gone. The owner of a shell that ended by itself was given all of the
// output and then the exit, and has said so where it may be lost (Attachment.Detach).
func (s *Session) Run(ctx context.Context) Summary {
	stop := context.AfterFunc(ctx, func() { s.End(context.Cause(ctx)) })
	defer stop()
	s.owner.client.Begin(s.owner, Resumed{})
	s.startLifetime()

	eof := s.carryOutput()

	s.mu.Lock()
	s.settled = true
	sum := Summary{Cause: s.cause}
	hasAll := s.owner != nil && !s.owner.behindKept
	s.mu.Unlock()
	if sum.Cause == nil && !errors.Is(eof, io.EOF) {
		sum.Cause = fmt.Errorf("%w: %w", ErrTerminal, eof)
	}
	exit, err := s.term.Wait()
	switch {
	case err == nil:
		sum.Exit = &exit
	case sum.Cause == nil:
		sum.Cause = fmt.Errorf("%w: %w", ErrTerminal, err)
	}
	if !hasAll {
		s.hangUp() // what the shell has left does not wait for its person
	}
	sum.Owner = s.lastOwner(sum)
	s.mu.Lock()
	s.stopInput()
	s.mu.Unlock()
	s.hangUp()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.life.alarm.stop()
	s.sizes.alarm.stop()
	s.waiting.stop()
	s.forget()
	s.observing.Broadcast()
	sum.BytesIn, sum.BytesOut = s.bytesIn, s.sent
	return sum
}

// lastOwner waits until the owner has all of the output, tells it the exit, unless there
// was a cause, and lets nobody attach any more. Where an owner may come back, it has to say that
// it has heard the exit (Detach). lastOwner returns nil if the owner is lost and the wait
// for another is over.
func (s *Session) lastOwner(sum Summary) Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	var told *Attachment
	over := s.opt.Over
	for {
		a := s.owner
		switch {
		case a == nil && s.ending:
			s.closed = true
			return nil
		case a == nil && over != nil:
			sum.BytesIn, sum.BytesOut = s.bytesIn, s.sent
			s.mu.Unlock()
			s.hangUp() // what the shell has left does not wait for its person
			over(sum)
			s.mu.Lock()
			over = nil
			continue
		case a == nil || a.behindKept:
		case sum.Cause == nil && told != a:
			told = a
			s.mu.Unlock()
			a.client.Exited(*sum.Exit)
			s.mu.Lock()
			continue
		case sum.Cause != nil || !s.mayResume():
			s.closed = true
			return a.client
		}
		s.output.Wait()
	}
}

// End ends the shell without waiting for that. Cause is the session's, unless it
// has one.
func (s *Session) End(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(cause)
}

// end is End. The lock is held.
func (s *Session) end(cause error) {
	if s.over || s.cut {
		return
	}
	s.cut = true
	if !s.settled {
		s.cause = cause
	}
	s.stopInput()
	if s.owner != nil {
		s.owner.client.Ending()
	}
	s.wg.Go(s.hangUp)
}

// Close ends the shell of a session that does not run, or whose Run has panicked.
func (s *Session) Close() { s.hangUp() }

// Join waits for the session's goroutines, after Run.
func (s *Session) Join() { s.wg.Wait() }

// stopInput drops the input that waits and all that follows, and releases output
// that waits for the window. The lock is held.
func (s *Session) stopInput() {
	s.ending = true
	if !s.typist { // else typeInput clears it
		s.input.clear()
	}
	s.output.Broadcast()
	s.queue.Broadcast()
}

func (s *Session) count(in, out int) {
	if s.opt.Count != nil {
		s.opt.Count(in, out)
	}
}
