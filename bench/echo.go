package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"time"
)

const (
	keyInterval = 5 * time.Millisecond // mean
	floods      = 4
)

// echo measures keystroke to echoed byte, alone or beside floods of the same
// gateway.
func (b *bench) echo(ctx context.Context, servers []*server, flooded bool) error {
	key := "echo_idle"
	if flooded {
		key = "echo_flood"
	}
	rounds, keys := b.size(6, 2), b.size(600, 100)
	all := map[string][]float64{}
	for round := range rounds {
		for _, s := range rotated(servers, round) {
			took, err := s.echoRound(ctx, keys, flooded)
			if err != nil {
				return err
			}
			b.report.add(s.place+key+"_p50", s.name, percentile(took, 50))
			b.report.add(s.place+key+"_p99", s.name, percentile(took, 99))
			all[s.name] = append(all[s.name], took...)
		}
	}
	for _, s := range servers {
		b.report.add(s.place+key+"_p999", s.name, percentile(all[s.name], 99.9)) // of all rounds: one has too few
	}
	return nil
}

// echoRound returns microseconds.
func (s *server) echoRound(ctx context.Context, keys int, flooded bool) (took []float64, err error) {
	defer func() { err = errors.Join(err, s.settle()) }()
	if flooded {
		stop, err := s.flood(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	const warmUp = 20
	// It ends by itself after one key more: nothing else ends it in a container when
	// its client is docker.
	term, err := s.open(ctx, fmt.Sprintf("printf E; exec dd bs=1 count=%d status=none", warmUp+keys+1))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			err = finish(term, ".")
		}
		_ = term.Close() // ended by itself, or failed
	}()
	if err := await(term, "E"); err != nil {
		return nil, err
	}
	if _, err := keystrokes(ctx, term, warmUp); err != nil {
		return nil, err
	}
	return keystrokes(ctx, term, keys)
}

func keystrokes(ctx context.Context, term session, n int) ([]float64, error) {
	var took []float64
	var p [16]byte
	for i := range n {
		pause := time.Duration(rand.ExpFloat64() * float64(keyInterval)) //nolint:gosec // no secret
		time.Sleep(min(pause, 10*keyInterval))
		if err := errors.Join(ctx.Err(), term.SetReadDeadline(time.Now().Add(patience))); err != nil {
			return nil, err
		}
		key := byte('a' + i%26)
		start := time.Now()
		if _, err := term.Write([]byte{key}); err != nil {
			return nil, err
		}
		n, err := term.Read(p[:])
		took = append(took, float64(time.Since(start).Nanoseconds())/1e3)
		if err == nil && (n != 1 || p[0] != key) {
			err = fmt.Errorf("%q came", p[:n])
		}
		if err != nil {
			return nil, fmt.Errorf("typed %q: %w", key, err)
		}
		if err := term.rendered(1, true); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// flood starts a process that opens flooding sessions and reads them as fast as
// it can: its own, so that what is measured is the gateway's fairness and not
// that of the benchmark's scheduler.
func (s *server) flood(ctx context.Context) (stop func() error, err error) {
	var targets []target
	for range floods {
		t, err := s.target(ctx, hostWorkspace)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "flood")
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return nil, err
	}
	stop = sync.OnceValue(func() error { return errors.Join(in.Close(), cmd.Wait()) })
	err = json.NewEncoder(in).Encode(targets) // not in argv: there are tickets in it
	if err == nil {
		_, err = io.ReadFull(out, make([]byte, 1)) // all flow
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("flooding %s: %w", s.name, err), stop())
	}
	return stop, nil
}

// floodMain is the process that flood starts. It ends when its input does.
func floodMain(ctx context.Context) error {
	in := json.NewDecoder(os.Stdin)
	var targets []target
	if err := in.Decode(&targets); err != nil {
		return err
	}
	var flowing, done sync.WaitGroup
	var terms []session
	fail := make(chan error, len(targets))
	for _, t := range targets {
		term, err := openTo(ctx, t, "exec yes")
		if err != nil {
			return err
		}
		terms = append(terms, term)
		flowing.Add(1)
		done.Go(func() { fail <- drain(term, sync.OnceFunc(flowing.Done)) })
	}
	flowing.Wait()
	if _, err := os.Stdout.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	for range terms {
		select {
		case early := <-fail:
			err = errors.Join(err, fmt.Errorf("a flood ended: %w", early))
		default:
		}
	}
	for _, term := range terms {
		err = errors.Join(err, term.SetReadDeadline(time.Now()))
	}
	done.Wait()
	for _, term := range terms {
		_ = term.Close() // in mid-flood
	}
	return err
}

// drain reads and acknowledges all output at once, until the read deadline or
// the session's end; it tells when the first megabyte has come.
func drain(term session, flows func()) error {
	defer flows()
	p := make([]byte, ackEvery)
	for total := 0; ; {
		n, err := term.Read(p)
		if err == nil {
			err = term.rendered(n, !term.pending())
		}
		if err != nil {
			return err
		}
		if total += n; total > 1<<20 {
			flows()
		}
	}
}
