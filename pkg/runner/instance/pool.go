package instance

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// This file shares connections among terminals, and counts their sessions.

// connect reserves a session of a connection, which the caller gives back by
// release.
func (k *Kind) connect(ctx context.Context, to destination) (*connection, error) {
	c, err := k.reserve(to)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.ready:
		err = c.err
	case <-ctx.Done():
		err = failed("ssh_timeout", fmt.Errorf("waiting for a connection: %w", context.Cause(ctx)))
	}
	if err != nil {
		k.release(c)
		return nil, err
	}
	return c, nil
}

func (k *Kind) reserve(to destination) (*connection, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, failed("ssh", errClosed)
	}
	for _, c := range k.conns[to] {
		if c.used < c.limit && !c.over && c.lastsFor(usefulLife) {
			c.used++
			if c.idle != nil {
				c.idle.Stop()
			}
			return c, nil
		}
	}
	c := k.newConnection(to)
	c.used++
	k.conns[to] = append(k.conns[to], c)
	k.wg.Go(c.live)
	return c, nil
}

// release gives a session back. A connection without sessions ends after
// Timing.Linger.
func (k *Kind) release(c *connection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.used--
	switch {
	case c.used > 0:
	case c.over:
		c.hangUp()
	default:
		c.idle = time.AfterFunc(k.cfg.Timing.Linger, func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			if c.used == 0 {
				c.over = true
				c.hangUp()
			}
		})
	}
}

// refused gives back a session that sshd did not open: sshd's limit is lower than
// assumed. A connection that is gone, or that has no other session, gets no more.
func (k *Kind) refused(c *connection, gone bool) {
	k.mu.Lock()
	c.limit = min(c.limit, c.used-1)
	c.over = c.over || gone || c.limit == 0
	k.mu.Unlock()
	k.release(c)
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
	if c.idle != nil {
		c.idle.Stop()
	}
	k.conns[c.to] = slices.DeleteFunc(k.conns[c.to], func(other *connection) bool { return other == c })
	if len(k.conns[c.to]) == 0 {
		delete(k.conns, c.to)
	}
}

func (k *Kind) path(name string) string { return filepath.Join(k.sockets.dir, name) }
