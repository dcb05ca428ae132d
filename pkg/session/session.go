// Package session is one shell and what is known of it: what it has printed, by
// absolute offset, the input that waits for it, its limits of time, and its
// clients: one owner, whose window holds the program back, and any number of
// observers, who hold nobody back.
//
// A session knows a Terminal and its clients. Connections, tickets, stores and
// where the shell runs are its callers' business.
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

// Why a session ended, besides the shell's own end. Callers have causes of their
// own, by End or the context given to Run.
var (
	ErrIdle     = errors.New("no input for the idle time")
	ErrExpired  = errors.New("the session's longest life is over")
	ErrTunnel   = errors.New("the tunnel's longest life is over")
	ErrTerminal = errors.New("the terminal failed")
)

// Options are the limits of one session. Where one is zero there is none.
type Options struct {
	Size        terminal.Size // that the terminal has; zero: not known
	IdleTimeout time.Duration // without input, from Run on
	MaxSession  time.Duration // from Run on
	// Budget bounds the bytes that the sessions of the process hold together, and
	// Holder is whose share of it the session uses.
	Budget *Budget
	Holder string
	// Count is told the bytes that were given to the terminal, and those that it
	// has printed, as they pass. May be nil.
	Count func(in, out int)
}

// Summary is what a session came to.
type Summary struct {
	Cause    error          // nil: the shell ended by itself
	Exit     *terminal.Exit // nil: not known
	BytesIn  int64          // given to the terminal
	BytesOut int64          // given to the owner
}

// Session is one shell. Attach an owner, Run, then Join.
//
// The caller of Run carries output, terminal to owner; whoever calls the owner's
// Attachment carries input the other way. A byte changes hands nowhere: each
// hand-over between goroutines costs a keystroke some 30 µs. Others live for as
// long as input waits for the terminal, or the terminal takes a new size.
type Session struct {
	term   terminal.Terminal
	opt    Options
	hangUp func()         // ends the shell, once; returns when the shell is gone
	wg     sync.WaitGroup // every goroutine that the session has started

	// The goroutine's of Run:
	sent  int64 // bytes that the owner took
	ahead queue // of output: read, and not printed yet

	mu        sync.Mutex
	owner     *Attachment // nil: not attached yet
	cause     error       // of the end; nil: none, or the shell's own
	settled   bool        // output is over, and cause stays as it is
	cut       bool        // the shell is being ended
	ending    bool        // input is dropped, output is not held back
	over      bool        // nothing is started any more
	printed   int64       // bytes of output, all in all
	output    sync.Cond   // carryOutput waits here for room
	queue     sync.Cond   // AwaitInput waits here for the input queue
	input     queue       // for the terminal
	toType    int         // of input, in bytes; the rest is of a message whose end has not come
	typist    bool        // typeInput runs
	full      bool        // nothing was typed since the queue had no room
	choked    bool        // AwaitInput waits: the owner is not heard
	typed     bool        // input has come since the last output
	echo      []byte      // of an interrupt that was typed; carryOutput takes it
	bytesIn   int64
	life      lifetime
	sizes     resizing
	kept      queue // of output, for the observers
	keptFrom  int64 // the offset of the first byte in it
	observers []*observer
	observing sync.Cond // observers wait here for output
}

// maxInput bounds the input that waits for a program that does not read, in
// bytes; the budget may bound it sooner.
const maxInput = 16 << 20

// New returns the session of a started terminal, which is the session's from now
// on.
func New(term terminal.Terminal, opt Options) *Session {
	s := &Session{
		term: term, opt: opt,
		hangUp: sync.OnceFunc(func() { _ = term.Close() }), // its kind reports what failed
		sizes:  newResizing(opt.Size),
		input:  queue{budget: opt.Budget, holder: opt.Holder, limit: maxInput},
		ahead:  queue{budget: opt.Budget, holder: opt.Holder, limit: maxAhead},
		kept:   queue{budget: opt.Budget, holder: opt.Holder, limit: maxKept},
	}
	s.output.L, s.queue.L, s.observing.L = &s.mu, &s.mu, &s.mu
	return s
}

// Run carries output until the shell ends, a limit is reached, End is called or
// ctx is cancelled, whose cause is then the session's. When it returns the shell
// is gone; if it ended by itself, the owner was given all of its output and then
// its exit.
func (s *Session) Run(ctx context.Context) Summary {
	stop := context.AfterFunc(ctx, func() { s.End(context.Cause(ctx)) })
	defer stop()
	s.owner.client.Begin()
	s.startLifetime()

	eof := s.carryOutput()

	s.mu.Lock()
	s.settled = true
	sum := Summary{Cause: s.cause}
	s.mu.Unlock()
	if sum.Cause == nil && !errors.Is(eof, io.EOF) {
		sum.Cause = fmt.Errorf("%w: %w", ErrTerminal, eof)
	}
	exit, err := s.term.Wait()
	switch {
	case err == nil:
		sum.Exit = &exit
		if sum.Cause == nil {
			s.owner.client.Exited(exit)
		}
	case sum.Cause == nil:
		sum.Cause = fmt.Errorf("%w: %w", ErrTerminal, err)
	}
	s.mu.Lock()
	s.stopInput()
	s.mu.Unlock()
	s.hangUp()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.stopLifetime()
	s.stopResizing()
	s.observing.Broadcast()
	sum.BytesIn, sum.BytesOut = s.bytesIn, s.sent
	return sum
}

// End ends the shell, and gives the session its cause unless it has one. It does
// not wait.
func (s *Session) End(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
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

// Close ends the shell of a session that does not run, or whose Run has failed.
func (s *Session) Close() { s.hangUp() }

// Join waits for what the session has started. Run has returned.
func (s *Session) Join() { s.wg.Wait() }

// stopInput drops what the owner types from now on and what of it still waits,
// and lets output go that waited for the window. The lock is held.
func (s *Session) stopInput() {
	s.ending = true
	if !s.typist { // else it does
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
