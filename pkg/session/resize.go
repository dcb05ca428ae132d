package session

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// A new size is a call to the engine, of some 4 ms, and makes a full-screen program
// draw all anew; a client may tell hundreds a second. So the first is given to the
// terminal at once, and of those that follow only the last, resizeEvery after it.
// What is typed after a new size must see it, so for input the size does not wait,
// resizesAtOnce times in a row: more than a person drags a window and types.
const (
	resizeEvery   = 300 * time.Millisecond
	resizesAtOnce = 3
	// resizeWait is how long input waits for the terminal to take a size, where
	// that hangs.
	resizeWait = 250 * time.Millisecond
)

// resizing gives sizes to the terminal, one at a time.
type resizing struct {
	wanted, given terminal.Size
	turns         *rate.Limiter
	last          time.Time     // when the latest size was given
	running       chan struct{} // closed when the terminal has taken it; nil: it has
	timer         *time.Timer   // nil: never armed
	armed         bool          // giveLater is going to run
}

func newResizing(first terminal.Size) resizing {
	return resizing{wanted: first, given: first, turns: rate.NewLimiter(rate.Every(resizeEvery), resizesAtOnce)}
}

// giveSize gives the terminal the size that is wanted, at once or in its time; for
// what is typed it may be early. The lock is held.
func (s *Session) giveSize(early bool) {
	z := &s.sizes
	if s.ending || z.wanted == z.given || z.running != nil {
		return // of a size that was told meanwhile, whoever gives one sees to it
	}
	now := time.Now()
	left := resizeEvery - now.Sub(z.last)
	due := left <= 0
	if due || early {
		due = z.turns.AllowN(now, 1) || due // a turn is used up either way
	}
	if !due {
		s.giveSizeIn(left)
		return
	}
	size, running := z.wanted, make(chan struct{})
	z.given, z.last, z.running = size, now, running
	s.wg.Go(func() {
		err := s.term.Resize(size)
		s.mu.Lock()
		defer s.mu.Unlock()
		z.running = nil
		close(running)
		if err != nil && z.wanted == size {
			// The shell has just ended, which shows elsewhere; or the engine
			// failed, and the same size may be told again.
			z.wanted, z.given = terminal.Size{}, terminal.Size{}
		}
		s.giveSize(false)
	})
}

func (s *Session) giveSizeIn(left time.Duration) {
	z := &s.sizes
	if z.armed {
		return
	}
	s.wg.Add(1)
	z.armed = true
	if z.timer == nil {
		z.timer = time.AfterFunc(left, s.giveLater)
	} else {
		z.timer.Reset(left)
	}
}

func (s *Session) giveLater() {
	defer s.wg.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sizes.armed = false
	s.giveSize(false)
}

// stopResizing is called with the lock held, once the session is ending.
func (s *Session) stopResizing() {
	if z := &s.sizes; z.armed && z.timer.Stop() {
		z.armed = false
		s.wg.Done()
	}
}

// awaitSize is called before input is taken: the size that the client told before
// is given, if it may be now. The lock is held, but not while it waits.
func (s *Session) awaitSize() {
	z := &s.sizes
	if z.wanted == z.given && z.running == nil {
		return
	}
	wait := time.NewTimer(resizeWait)
	defer wait.Stop()
	for range 2 { // the size that the terminal takes now, and the last
		s.giveSize(true)
		running := z.running
		if running == nil {
			return
		}
		s.mu.Unlock()
		select {
		case <-running:
			s.mu.Lock()
		case <-wait.C:
			s.mu.Lock()
			return
		}
	}
}
