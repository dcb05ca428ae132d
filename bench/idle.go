package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// idle measures what a session costs a gateway while nothing happens, and that
// each answers all the same.
func (b *bench) idle(ctx context.Context) (err error) {
	most := b.sessions[len(b.sessions)-1]
	room, restore, err := raisePtys(most)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	if room < most {
		b.report.note("kernel.pty.max leaves room for %d terminals: raise it, or run as root", room)
	}
	for _, p := range b.programs {
		if p.name == bare {
			continue
		}
		if err := b.idleProgram(ctx, p, room); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) idleProgram(ctx context.Context, p *program, room int) (err error) {
	servers, err := launchAll(ctx, b.dir, []*program{p}, greeter)
	if err != nil {
		return err
	}
	s := servers[0]
	var open []*idler
	defer func() {
		err = errors.Join(err, s.stop()) // first: it frees them all
		for _, i := range open {
			i.close()
		}
	}()
	// What the first sessions load is no session's.
	if _, err := s.openMany(ctx, 20); err != nil {
		return err
	}
	before, err := b.rest(ctx, s)
	if err != nil {
		return err
	}
	for _, n := range b.sessions {
		if n > room {
			continue
		}
		start, had := time.Now(), len(open)
		soon, cancel := context.WithTimeout(ctx, openTime)
		open, err = s.openIdle(soon, open, n)
		cancel()
		b.report.add(fmt.Sprintf("idle_opened_s_%d", n), p.name, float64(len(open)-had)/time.Since(start).Seconds())
		if err != nil && ctx.Err() == nil {
			b.report.note("%s opens %d sessions of %d: %v", p.name, len(open), n, err)
			b.report.add(fmt.Sprintf("idle_echo_%d", n), p.name, 0)
			return nil
		}
		if err != nil {
			return err
		}
		now, err := b.rest(ctx, s)
		if err != nil {
			return err
		}
		each := func(what string, value int64) {
			b.report.add(fmt.Sprintf("idle_%s_%d", what, n), p.name, float64(value)/float64(n))
		}
		each("rss_kib", (now.RSS-before.RSS)>>10)
		each("pss_kib", (now.PSS-before.PSS)>>10)
		each("fds", now.Descriptors-before.Descriptors)
		b.report.add(fmt.Sprintf("idle_threads_%d", n), p.name, float64(now.Threads))
		echoed, err := echoAll(ctx, open)
		if err != nil {
			b.report.note("%s, %d sessions: %v", p.name, n, err)
		}
		b.report.add(fmt.Sprintf("idle_echo_%d", n), p.name, float64(echoed))
	}
	return nil
}

// openTime bounds the opening of one number of sessions: a gateway that cannot
// hold them gets slower and slower.
const openTime = 60 * time.Second

// rest waits until the process is quiet and returns what it holds.
func (b *bench) rest(ctx context.Context, s *server) (footprint, error) {
	select {
	case <-ctx.Done():
		return footprint{}, ctx.Err()
	case <-time.After(time.Duration(b.size(5, 2)) * time.Second):
		return footprintOf(s.pid())
	}
}

// idler is an open session that is read all the time, so that pings are
// answered.
type idler struct {
	term session
	done chan struct{}
	got  chan byte
}

// openIdle opens sessions until there are n.
func (s *server) openIdle(ctx context.Context, open []*idler, n int) ([]*idler, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	for range atOnce {
		wg.Go(func() {
			for {
				mu.Lock()
				if failed == nil {
					failed = ctx.Err()
				}
				done := len(open) >= n || failed != nil
				if !done {
					open = append(open, nil)
				}
				at := len(open) - 1
				mu.Unlock()
				if done {
					return
				}
				i, err := s.newIdler(ctx)
				mu.Lock()
				open[at] = i
				if err != nil && failed == nil {
					failed = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		kept := open[:0]
		for _, i := range open {
			if i != nil {
				kept = append(kept, i)
			}
		}
		open = kept
	}
	return open, failed
}

func (s *server) newIdler(ctx context.Context) (*idler, error) {
	t, err := s.target(ctx, hostWorkspace)
	if err != nil {
		return nil, err
	}
	term, err := openGreeted(ctx, t)
	if err != nil {
		return nil, err
	}
	i := &idler{term: term, done: make(chan struct{}), got: make(chan byte, 16)}
	go i.read()
	return i, nil
}

func (i *idler) read() {
	defer close(i.done)
	p := make([]byte, 64)
	for {
		n, err := i.term.Read(p)
		for _, c := range p[:n] {
			i.got <- c
		}
		if err == nil {
			err = i.term.rendered(n, true)
		}
		if err != nil {
			return
		}
	}
}

// close is called when the gateway is gone.
func (i *idler) close() {
	_ = i.term.SetReadDeadline(time.Now()) // its Read may have failed already
	<-i.done
	_ = i.term.Close() // the peer is gone
}

// echoAll types a line into every session, and counts those that the terminal
// and then cat gave it back to.
func echoAll(ctx context.Context, open []*idler) (int64, error) {
	var echoed atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	queue := make(chan *idler)
	for range 4 * atOnce {
		wg.Go(func() {
			for i := range queue {
				if err := i.echo(); err != nil {
					once.Do(func() { first = err })
					continue
				}
				echoed.Add(1)
			}
		})
	}
	for _, i := range open {
		if ctx.Err() != nil {
			break
		}
		queue <- i
	}
	close(queue)
	wg.Wait()
	return echoed.Load(), errors.Join(first, ctx.Err())
}

func (i *idler) echo() error {
	if _, err := i.term.Write([]byte("x\n")); err != nil {
		return err
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for _, want := range []byte("x\r\nx\r\n") {
		select {
		case c := <-i.got:
			if c != want {
				return fmt.Errorf("%q came instead of %q", c, want)
			}
		case <-i.done:
			return errors.New("the session is over")
		case <-late.C:
			return errors.New("no echo")
		}
	}
	return nil
}
