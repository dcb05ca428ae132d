package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// bulk measures how fast a long output arrives, at what cost, and whether all
// of it does.
func (b *bench) bulk(ctx context.Context) error {
	for round := range b.size(5, 2) {
		for _, s := range rotated(b.servers, round) {
			if err := b.bulkRound(ctx, s, int64(b.size(200, 30))*1e6, true); err != nil {
				return err
			}
		}
	}
	for round := range b.size(20, 3) {
		for _, s := range rotated(b.servers[1:], round) { // a bare pty has nothing to lose bytes in
			if err := b.bulkRound(ctx, s, int64(b.size(20, 5))*1e6, false); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) bulkRound(ctx context.Context, s *server, size int64, timed bool) (err error) {
	term, err := s.open(ctx, fmt.Sprintf("read -r go; exec '%s' stream %d", s.streamer, size))
	if err != nil {
		return err
	}
	defer func() { _ = term.Close() }() // ended by itself, or failed
	if err := term.SetReadDeadline(time.Now().Add(2 * patience)); err != nil {
		return err
	}
	var before, after time.Duration
	if s.cmd != nil {
		if before, err = cpuTime(s.pid()); err != nil {
			return err
		}
	}
	check := checker{pattern: b.pattern}
	p := make([]byte, ackEvery)
	start := time.Now()
	if _, err := io.WriteString(term, "\n"); err != nil {
		return err
	}
	var last time.Time
	for err == nil {
		var n int
		if n, err = term.Read(p); n > 0 {
			check.take(p[:n])
			last = time.Now()
			// The session may be over for the gateway already.
			_ = term.rendered(n, !term.pending())
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
		return fmt.Errorf("%s: after %d of %d bytes: %w", s.name, check.got, size, err)
	}
	if s.cmd != nil {
		if after, err = cpuTime(s.pid()); err != nil {
			return err
		}
	}
	verdict := check.verdict(size)
	if s.cmd != nil {
		b.report.add(s.place+"checksum", s.name, map[bool]float64{true: 1}[verdict == nil])
	}
	if verdict != nil {
		b.report.note("%s: %v of %d", s.name, verdict, size)
	}
	if timed {
		b.report.add(s.place+"bulk_mb_s", s.name, float64(check.got)/1e6/last.Sub(start).Seconds())
		if s.cmd != nil {
			b.report.add(s.place+"cpu_s_gb", s.name, (after-before).Seconds()/(float64(check.got)/1e9))
		}
	}
	return s.settle()
}
