package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	prompt    = "@@ "
	shell     = "stty sane; exec env PS1='" + prompt + "' ENV= sh -i"
	floodTime = 3 * time.Second
	// maxWait is how long a prompt is waited for in real time. After it, the
	// output in its way is counted, and the time to render it computed.
	maxWait = 2 * time.Second
)

// speeds at which clients render, MB/s.
var speeds = []float64{0.25, 1, 5, 30}

func interruptKey(eager bool, speed float64) string {
	model := "slow"
	if eager {
		model = "eager"
	}
	return fmt.Sprintf("ctrl_c_%s_%g", model, speed)
}

// containerKey is interruptKey of a shell in a container of the local engine.
func containerKey(eager bool, speed float64) string {
	return "container_" + interruptKey(eager, speed)
}

// interrupt measures Ctrl-C to the prompt on the screen after a flood, for
// clients that render at a given speed and read as fast only, or read eagerly
// and queue as a browser does.
func (b *bench) interrupt(ctx context.Context) error {
	contained, err := b.inContainer(ctx)
	if err != nil {
		return err
	}
	for round := range b.size(3, 1) {
		for _, speed := range speeds {
			if b.short && speed != 1 {
				continue
			}
			for _, eager := range []bool{false, true} {
				for _, s := range rotated(b.servers, round) {
					if s.cmd == nil && eager {
						continue // a queue without a gateway measures the queue alone
					}
					if err := b.interruptRound(ctx, s, speed, eager); err != nil {
						return err
					}
				}
				for _, s := range contained {
					if s.name != gateway {
						continue // it takes minutes
					}
					if err := b.interruptRound(ctx, s, speed, eager); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// interruptRound measures one Ctrl-C.
func (b *bench) interruptRound(ctx context.Context, s *server, speed float64, eager bool) error {
	took, err := s.interrupted(ctx, speed, eager)
	if err != nil {
		return fmt.Errorf("%s, %g MB/s: %w", s.name, speed, err)
	}
	b.report.add(s.place+interruptKey(eager, speed), s.name, float64(took.Microseconds())/1e3)
	return nil
}

func (s *server) interrupted(ctx context.Context, speed float64, eager bool) (took time.Duration, err error) {
	term, err := s.open(ctx, shell)
	if err != nil {
		return 0, err
	}
	defer func() {
		_ = term.Close() // perhaps in mid-flood
		err = errors.Join(err, s.settle())
	}()
	if err := await(term, prompt); err != nil {
		return 0, err
	}
	if err := term.SetReadDeadline(time.Now().Add(floodTime + 2*patience)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(term, "yes\n"); err != nil {
		return 0, err
	}
	screen := screen{term: term, pace: pace{rate: speed * 1e6}}
	typed := time.AfterFunc(floodTime, func() {
		screen.mu.Lock()
		defer screen.mu.Unlock()
		screen.typed = time.Now()
		_, screen.typing = term.Write([]byte{3})
	})
	defer typed.Stop()
	if eager {
		took, err = screen.eager()
	} else {
		took, err = screen.slow()
	}
	return took, errors.Join(err, screen.typing)
}

// pace is a renderer's clock.
type pace struct {
	rate float64 // bytes a second
	due  time.Time
}

// slack is how far the clock may fall behind: a late wake-up is made up for, an
// idle time is not.
const slack = 5 * time.Millisecond

// render takes the time that n bytes take.
func (p *pace) render(n int) {
	if floor := time.Now().Add(-slack); p.due.Before(floor) {
		p.due = floor
	}
	p.due = p.due.Add(p.time(n))
	time.Sleep(time.Until(p.due))
}

func (p *pace) time(n int) time.Duration {
	return time.Duration(float64(n) / p.rate * float64(time.Second))
}

// finder looks for the prompt in a stream that comes in pieces.
type finder struct{ buf []byte } // the end of what came before

// find returns how many bytes of p belong to what ends with the prompt, or -1.
func (f *finder) find(p []byte) int {
	kept := len(f.buf)
	f.buf = append(f.buf, p...)
	if i := bytes.Index(f.buf, []byte(prompt)); i >= 0 {
		return i + len(prompt) - kept
	}
	f.buf = append(f.buf[:0], f.buf[max(0, len(f.buf)-len(prompt)+1):]...)
	return -1
}

// screen is a client that renders a session at a pace.
type screen struct {
	term session
	pace pace
	find finder

	mu     sync.Mutex
	typed  time.Time // when Ctrl-C was; zero: not yet
	typing error
}

func (s *screen) typedAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.typed
}

// slow reads no faster than it renders.
func (s *screen) slow() (time.Duration, error) {
	p := make([]byte, ackEvery/2)
	behind := 0 // bytes read past maxWait, and not rendered
	for {
		n, err := s.term.Read(p)
		if err != nil {
			return 0, err
		}
		found := s.find.find(p[:n])
		if found >= 0 {
			n = found
		}
		typed := s.typedAt()
		if late := !typed.IsZero() && time.Since(typed) > maxWait; late || behind > 0 {
			behind += n
		} else {
			s.pace.render(n)
		}
		if found >= 0 {
			if behind > 0 {
				return maxWait + s.pace.time(behind), nil
			}
			return time.Since(s.typedAt()), nil
		}
		if err := s.term.rendered(n, !s.term.pending()); err != nil {
			return 0, err
		}
	}
}

// eager reads as fast as it can into a queue without bound, of which only the
// length is kept.
func (s *screen) eager() (took time.Duration, err error) {
	var (
		mu     sync.Mutex
		more   = sync.NewCond(&mu)
		queued int
		ended  bool // nothing more comes: the prompt did, or the session is over
		reason error
		wg     sync.WaitGroup
	)
	wg.Go(func() {
		p := make([]byte, 32<<10)
		for {
			n, err := s.term.Read(p)
			found := s.find.find(p[:n])
			if found >= 0 {
				n = found
			}
			mu.Lock()
			queued += n
			ended, reason = found >= 0 || err != nil, err
			more.Signal()
			stop := ended
			mu.Unlock()
			if stop {
				return
			}
		}
	})
	defer func() {
		err = errors.Join(err, s.term.SetReadDeadline(time.Now()))
		wg.Wait()
	}()
	for {
		mu.Lock()
		for queued == 0 && !ended {
			more.Wait()
		}
		n := min(queued, ackEvery/2)
		rest, last, why := queued-n, ended, reason
		mu.Unlock()
		if why != nil {
			return 0, why
		}
		s.pace.render(n)
		if typed := s.typedAt(); last && (rest == 0 || s.pace.time(rest) > maxWait) {
			return time.Since(typed) + s.pace.time(rest), nil
		}
		mu.Lock()
		queued -= n
		idle := queued == 0
		mu.Unlock()
		if err := s.term.rendered(n, idle); err != nil {
			return 0, err
		}
	}
}
