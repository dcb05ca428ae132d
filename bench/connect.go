package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

// greeter is the child of these parts: its first byte comes as soon as a shell
// can write one.
const greeter = "printf R; exec cat"

// connect measures the dial to the terminal's first byte. A ticket is fetched
// before, by the platform; termgw verifies and redeems it within.
func (b *bench) connect(ctx context.Context) (err error) {
	servers, err := launchAll(ctx, b.dir, b.programs, greeter)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopAll(servers)) }()
	return b.connectRounds(ctx, servers, b.size(5, 2), b.size(40, 20), func(ctx context.Context, s *server) (time.Duration, error) {
		return s.firstByte(ctx)
	})
}

// connectRounds measures the opening of so many sessions a round.
func (b *bench) connectRounds(ctx context.Context, servers []*server, rounds, times int, open func(context.Context, *server) (time.Duration, error)) error {
	for round := range rounds + 1 {
		took := map[string][]float64{}
		for i := range times {
			for _, s := range rotated(servers, i) {
				d, err := open(ctx, s)
				if err != nil {
					return err
				}
				took[s.name] = append(took[s.name], float64(d.Microseconds())/1e3)
			}
		}
		for _, s := range servers {
			if round > 0 { // the first warms up
				b.report.add(s.place+"connect_p50", s.name, percentile(took[s.name], 50))
				b.report.add(s.place+"connect_p95", s.name, percentile(took[s.name], 95))
			}
		}
	}
	return nil
}

func (s *server) firstByte(ctx context.Context) (time.Duration, error) {
	t, err := s.target(ctx, hostWorkspace)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	term, err := t.open(ctx)
	if err != nil {
		return 0, err
	}
	err = await(term, "R")
	took := time.Since(start)
	return took, errors.Join(err, term.Close(), s.settle())
}

// rate measures sessions a second, from the first dial to the last shell's end.
func (b *bench) rate(ctx context.Context) (err error) {
	servers, err := launchAll(ctx, b.dir, b.programs, greeter)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopAll(servers)) }()
	for round := range b.size(5, 2) {
		for _, s := range rotated(servers, round) {
			n := b.size(300, 60)
			took, err := s.openMany(ctx, n)
			if err != nil {
				return err
			}
			b.report.add("rate", s.name, float64(n)/took.Seconds())
		}
	}
	return nil
}

// atOnce is how many sessions are being opened at a time.
const atOnce = 8

func (s *server) openMany(ctx context.Context, n int) (time.Duration, error) {
	queue := make(chan target, n)
	for range n {
		t, err := s.target(ctx, hostWorkspace)
		if err != nil {
			return 0, err
		}
		queue <- t
	}
	close(queue)
	var wg sync.WaitGroup
	fail := make(chan error, atOnce)
	start := time.Now()
	for range atOnce {
		wg.Go(func() {
			for t := range queue {
				term, err := t.open(ctx)
				if err == nil {
					err = errors.Join(await(term, "R"), term.Close())
				}
				if err != nil {
					fail <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(fail)
	err := errors.Join(<-fail, s.settle())
	return time.Since(start), err
}
