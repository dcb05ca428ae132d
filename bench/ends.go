package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	hostEnds      = 200
	containerEnds = 100
)

// ends measures how long sessions take to end whose clients are all cut off at
// once, until the last shell is gone: of this machine, and of a container, beside
// the time that the engine needs for as many execs.
func (b *bench) ends(ctx context.Context) (err error) {
	servers, err := launchAll(ctx, b.dir, b.programs, greeter)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopAll(servers)) }()
	contained, err := b.inContainer(ctx)
	if err != nil {
		return err
	}
	for round := range b.size(3, 1) {
		for _, s := range rotated(servers, round) {
			if s.cmd == nil {
				continue // its client is its only process
			}
			if err := b.endAll(ctx, s, hostEnds, s.settle); err != nil {
				return err
			}
		}
		for _, s := range contained {
			switch s.name {
			case gateway:
				err = b.endAll(ctx, s, containerEnds, func() error { return b.engine.settle(ctx) })
			case bare:
				err = b.execAll(ctx, s, containerEnds)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// endAll opens n sessions, cuts their connections, and measures the time until gone
// returns.
func (b *bench) endAll(ctx context.Context, s *server, n int, gone func() error) error {
	open, err := s.openIdle(ctx, nil, n)
	start := time.Now()
	for _, i := range open {
		err = errors.Join(err, i.term.(interface{ cut() error }).cut())
	}
	err = errors.Join(err, gone())
	took := time.Since(start)
	for _, i := range open {
		<-i.done
	}
	if errors.Is(err, errRunOn) { // the figure is then the least that it can be
		left, failed := b.engine.execs(ctx)
		b.report.note("%s: of %d shells in a container whose clients are cut off at once, %d run on after %.0f s", s.name, n, left, took.Seconds())
		err = errors.Join(failed, b.engine.restart(ctx))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	b.report.add(s.place+"ends", s.name, took.Seconds())
	return nil
}

// execAll measures n execs of a program that ends at once.
func (b *bench) execAll(ctx context.Context, s *server, n int) error {
	start := time.Now()
	err := inParallel(n, func(int) error { return b.engine.exec(ctx, "true") })
	if err = errors.Join(err, b.engine.settle(ctx)); err != nil {
		return err
	}
	b.report.add(s.place+"execs", s.name, time.Since(start).Seconds())
	return nil
}
