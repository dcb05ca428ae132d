package instance

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// This file shares connections among terminals, and counts their sessions.

// connect reserves a session of a connection, which the caller gives back by
// release. Where the quota lets no tunnel open, it shares one that is about to end. trail
// gets the trail of the connection, also of one whose opening failed.
func (k *Kind) connect(ctx context.Context, to destination, trail runner.Trail) (*connection, error) {
	c, err := k.reserve(ctx, to)
	if err != nil {
		return nil, err
	}
	err = c.opened(ctx)
	select {
	case <-c.ready:
		trail.Add(c.trail)
	default:
	}
	if err == nil {
		return c, nil
	}
	k.release(c)
	if errors.Is(err, ErrQuota) {
		if c := k.any(ctx, to); c != nil {
			trail.Add(c.trail)
			return c, nil
		}
	}
	return nil, err
}

// connectAnew is connect for a terminal whose connection is lost or comes to its end. A connection that does not open in
// time is left to itself: the way may be free again, and not for it.
func (k *Kind) connectAnew(ctx context.Context, to destination) (*connection, error) {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil, failed("ssh", errClosed)
	}
	c := k.longest(to, 2*k.cfg.Timing.Cross)
	if c == nil {
		c = k.newConnection(to)
		k.conns[to] = append(k.conns[to], c)
		k.wg.Go(c.live)
	}
	k.take(c)
	k.mu.Unlock()
	if err := c.opened(ctx); err != nil {
		if ctx.Err() != nil {
			k.retire(c)
		}
		k.release(c)
		return nil, err
	}
	return c, nil
}

// any reserves a session of an open connection; nil: there is none.
func (k *Kind) any(ctx context.Context, to destination) *connection {
	c, _ := k.share(to, leastLife)
	if c != nil && c.opened(ctx) != nil {
		k.release(c)
		return nil
	}
	return c
}

// opened waits until a connection is open, or its opening has failed.
func (c *connection) opened(ctx context.Context) error {
	select {
	case <-c.ready:
		return c.err
	case <-ctx.Done():
		return failed("ssh_timeout", fmt.Errorf("waiting for a connection: %w", context.Cause(ctx)))
	}
}

// reserve reserves a session of the connection that suits a new terminal. If none
// does, the terminal gets a connection of its own while there is room for its tunnel,
// and else shares the one whose tunnel lives longest.
func (k *Kind) reserve(ctx context.Context, to destination) (*connection, error) {
	c, err := k.share(to, usefulLife)
	if err != nil {
		return nil, err
	}
	if c != nil {
		if c.suits() || !c.room(ctx) {
			return c, nil
		}
		k.replace(c)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.longest(to, usefulLife); c != nil && c.suits() {
		return k.take(c), nil // another terminal's, which opened meanwhile
	}
	c = k.newConnection(to)
	k.conns[to] = append(k.conns[to], c)
	k.wg.Go(c.live)
	return k.take(c), nil
}

// suits reports whether a new terminal shares the connection although there is room
// for another tunnel. A connection that is still opening suits.
func (c *connection) suits() bool { return c.lifeLeft() >= freshLife }

// room reports whether there is room for another tunnel beside this one.
func (c *connection) room(ctx context.Context) bool {
	return c.opened(ctx) == nil && c.tunnel.Room != nil && c.tunnel.Room(ctx)
}

// share reserves a session of the connection that lives longest, and for at least d;
// nil: there is none.
func (k *Kind) share(to destination, d time.Duration) (*connection, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, failed("ssh", errClosed)
	}
	c := k.longest(to, d)
	if c == nil {
		return nil, nil
	}
	return k.take(c), nil
}

// longest returns the connection with a free session that lives longest, and for at
// least d; nil: there is none. The caller holds the mutex.
func (k *Kind) longest(to destination, d time.Duration) (best *connection) {
	for _, c := range k.conns[to] {
		if left := c.lifeLeft(); c.used < c.bound.at(k.cfg.Now()) && !c.over && left >= d && (best == nil || left > best.lifeLeft()) {
			best = c
		}
	}
	return best
}

// take reserves a session. The caller holds the mutex.
func (k *Kind) take(c *connection) *connection {
	c.used++
	if c.needed != nil {
		c.needed()
	}
	return c
}

// replace gives a session back because its terminal gets another connection. A
// connection that has no other session ends at once: its place is another's.
func (k *Kind) replace(c *connection) {
	k.mu.Lock()
	c.over = c.over || c.used == 1
	k.mu.Unlock()
	k.release(c)
}

// release gives a session back. A connection without sessions lingers.
func (k *Kind) release(c *connection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.used--
	switch {
	case c.used > 0:
	case c.over:
		c.hangUp()
	default:
		var ctx context.Context
		ctx, c.needed = context.WithCancel(c.ctx)
		k.wg.Go(func() { c.linger(ctx) })
	}
}

// linger ends a connection without sessions after Timing.Linger, or sooner if the place of
// its tunnel is wanted. The context ends with the next session, or with the connection.
func (c *connection) linger(ctx context.Context) {
	over := time.NewTimer(c.kind.cfg.Timing.Linger)
	defer over.Stop()
	poll := time.NewTicker(idlePoll)
	defer poll.Stop()
	for lingers := true; lingers && !c.wanted(ctx); {
		select {
		case <-poll.C:
		case <-over.C:
			lingers = false
		case <-ctx.Done():
			return
		}
	}
	c.kind.mu.Lock()
	defer c.kind.mu.Unlock()
	if ctx.Err() == nil {
		c.over = true
		c.hangUp()
	}
}

// wanted reports whether another tunnel needs the place of an idle one.
func (c *connection) wanted(ctx context.Context) bool {
	select {
	case <-c.ready:
		return c.err == nil && c.tunnel.Idle != nil && c.tunnel.Idle(ctx)
	default: // whoever waited for it did so no longer
		return false
	}
}

// asks notes that sshd is asked for a terminal. The caller calls answered.
func (k *Kind) asks(c *connection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.asking++
}

// answered notes sshd's answer. Once sshd has refused a terminal, the connection gets no more.
func (k *Kind) answered(c *connection, opened, refused bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.asking--
	switch {
	case opened:
		c.has++
	case refused:
		c.turned++
		c.bound = c.bound.lower(c.used-1, k.cfg.Now())
	}
	if c.asking == 0 && c.settled != nil {
		close(c.settled)
		c.settled = nil
	}
}

// hasClosed notes that a terminal that was opened is closed.
func (k *Kind) hasClosed(c *connection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.has--
}

// settle waits until sshd has answered for all terminals that were asked for: then it is known how many sshd opens.
func (k *Kind) settle(ctx context.Context, c *connection) {
	k.mu.Lock()
	if c.asking == 0 {
		k.mu.Unlock()
		return
	}
	if c.settled == nil {
		c.settled = make(chan struct{})
	}
	settled := c.settled
	k.mu.Unlock()
	select {
	case <-settled:
	case <-ctx.Done():
	}
}

// refused gives back a session that sshd did not open: sshd's limit is lower than
// assumed. A connection that is gone, or that has no session, gets no more. Where all that
// are reserved are terminals, the limit is known, and the destination's next connections have it too.
func (k *Kind) refused(c *connection, gone bool) {
	k.mu.Lock()
	now := k.cfg.Now()
	c.bound = c.bound.lower(c.used-1, now)
	if !gone && c.has > 0 && c.used == c.has+c.turned {
		c.bound = bound{}.lower(c.has, now)
		k.bounds[c.to] = c.bound
	}
	if c.turned > 0 {
		c.turned--
	}
	c.over = c.over || gone || c.bound.at(now) == 0
	k.mu.Unlock()
	k.release(c)
}

// bound is how many sessions an sshd opens on a connection, as it has shown by a refusal. Zero is sessionLimit.
type bound struct {
	limit int
	until time.Time
}

// boundFor is how long a bound counts: sshd may have been busy with sessions that were ending.
const boundFor = 30 * time.Second

func (b bound) at(now time.Time) int {
	if now.Before(b.until) {
		return b.limit
	}
	return sessionLimit
}

func (b bound) lower(limit int, now time.Time) bound {
	return bound{min(b.at(now), limit), now.Add(boundFor)}
}

// retire keeps new sessions off a connection.
func (k *Kind) retire(c *connection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.over = true
}

// forget removes a connection that is gone from the pool.
func (k *Kind) forget(c *connection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.over = true
	if c.needed != nil {
		c.needed()
	}
	k.conns[c.to] = slices.DeleteFunc(k.conns[c.to], func(other *connection) bool { return other == c })
	if len(k.conns[c.to]) == 0 {
		delete(k.conns, c.to)
		delete(k.bounds, c.to)
		delete(k.keepers, c.to.keeper())
	}
}

func (k *Kind) path(name string) string { return filepath.Join(k.sockets.dir, name) }
