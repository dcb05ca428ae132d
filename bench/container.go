package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// inContainer returns servers whose sessions are shells in a container: termgw's own
// terminals; `docker exec -it` under a bare pty; peers that run `docker exec -it`.
// Without an engine there are no servers.
func (b *bench) inContainer(ctx context.Context) ([]*server, error) {
	d, err := b.docker(ctx)
	if d == nil || b.contained != nil {
		return b.contained, err
	}
	// A bare pty's child has an environment of its own.
	command := fmt.Sprintf("DOCKER_HOST='unix://%s' exec docker exec -it %s /bin/bash", d.socket, d.container)
	servers, err := launchAll(ctx, b.dir, b.programs, command)
	if err != nil {
		return nil, err
	}
	for _, s := range servers {
		s.place, s.streamer = "container_", streamer
		open := s.target
		s.target = func(ctx context.Context, _ string) (target, error) {
			t, err := open(ctx, d.container)
			t.Typed = child
			return t, err
		}
	}
	b.report.note("in a container, the %s and the peers run docker exec -it", bare)
	b.contained = servers
	return servers, nil
}

// container measures echo, bulk and connect for shells in a container.
func (b *bench) container(ctx context.Context) error {
	servers, err := b.inContainer(ctx)
	if servers == nil {
		return err
	}
	for _, measure := range []func(context.Context, []*server) error{b.containerEcho, b.containerBulk, b.containerConnect} {
		if err := errors.Join(measure(ctx, servers), b.engine.settle(ctx)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) containerEcho(ctx context.Context, servers []*server) error {
	return b.echo(ctx, servers, false)
}

func (b *bench) containerBulk(ctx context.Context, servers []*server) error {
	for round := range b.size(5, 2) {
		for _, s := range rotated(servers, round) {
			if err := b.bulkRound(ctx, s, int64(b.size(60, 30))*1e6, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) containerConnect(ctx context.Context, servers []*server) error {
	return b.connectRounds(ctx, servers, b.size(4, 2), b.size(10, 5), func(ctx context.Context, s *server) (time.Duration, error) {
		took, err := s.firstPrompt(ctx)
		return took, errors.Join(err, b.engine.settle(ctx))
	})
}

// firstPrompt measures the dial to the first byte of the shell's prompt. The shell
// has exited when it returns.
func (s *server) firstPrompt(ctx context.Context) (took time.Duration, err error) {
	t, err := s.target(ctx, hostWorkspace)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	term, err := t.open(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = term.Close() }() // ended by itself, or failed
	if err := term.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	var p [1]byte
	if _, err := io.ReadFull(term, p[:]); err != nil {
		return 0, err
	}
	took = time.Since(start)
	return took, finish(term, "exit\n")
}
