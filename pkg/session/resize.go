package session

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// A new size is a call to the engine, of some 4 ms, and makes a full-screen program
// draw its screen anew; a client may send hundreds a second. So the terminal is given
// the first size at once, and only the last of those that follow, resizeEvery later.
// Input after a new size must see that size, so a size that input waits for comes
// early, resizesAtOnce times in a row: more than a person drags a window and types.
const (
	resizeEvery   = 300 * time.Millisecond
	resizesAtOnce = 3
	// resizeWait bounds the time that input waits for an engine that hangs over a
	// size.
	resizeWait = 250 * time.Millisecond
)

// resizing gives sizes to the terminal, one at a time.
type resizing struct {
	wanted, given terminal.Size
	redraw        bool // the program is to draw its screen anew: it gets another size first
	pace          *rate.Limiter
	last          time.Time     // when the latest size was given
	running       chan struct{} // closed when the terminal has taken a size; nil: none is on the way
	alarm         alarm         // calls giveLater
}

func newResizing(first terminal.Size) resizing {
	return resizing{wanted: first, given: first, pace: rate.NewLimiter(rate.Every(resizeEvery), resizesAtOnce)}
}

// giveSize gives the terminal the wanted size, now or by the alarm. Early is for a
// size that input waits for. The lock is held.
func (s *Session) giveSize(early bool) {
	z := &s.sizes
	size := z.next()
	if s.ending || size == z.given || z.running != nil {
		return // the goroutine that gives a size looks for a newer one
	}
	now := time.Now()
	left := resizeEvery - now.Sub(z.last)
	due := left <= 0
	if due || early {
		due = z.pace.AllowN(now, 1) || due // the pace counts every size
	}
	if !due {
		if !z.alarm.set {
			z.alarm.ring(left)
		}
		return
	}
	running := make(chan struct{})
	z.given, z.last, z.running, z.redraw = size, now, running, false
	s.wg.Go(func() {
		err := s.term.Resize(size)
		s.mu.Lock()
		defer s.mu.Unlock()
		z.running = nil
		close(running)
		if err != nil && z.wanted == size {
			// The shell has just ended, which shows elsewhere; or the engine
			// failed, and the client may send the same size again.
			z.wanted, z.given = terminal.Size{}, terminal.Size{}
		}
		s.giveSize(false)
	})
}

// next returns the size that the terminal gets next.
func (z *resizing) next() terminal.Size {
	if !z.redraw || z.wanted.Rows == 0 {
		return z.wanted
	}
	other := z.wanted
	if other.Rows > 1 {
		other.Rows--
	} else {
		other.Rows++
	}
	if z.redraw = other != z.given; !z.redraw { // the wanted size is another already
		return z.wanted
	}
	return other
}

func (s *Session) giveLater() {
	defer s.wg.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sizes.alarm.set = false
	s.giveSize(false)
}

// awaitSize is called before input is taken, and gives the terminal the size that
// came before, if the pace allows. The lock is held, but not during a wait.
func (s *Session) awaitSize() {
	z := &s.sizes
	if z.wanted == z.given && z.running == nil {
		return
	}
	wait := time.NewTimer(resizeWait)
	defer wait.Stop()
	for range 2 { // the size that is on the way, and the last
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
