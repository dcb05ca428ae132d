package runner

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// This file shares connections among terminals, and counts their sessions.

// connect returns a connection that has a session to spare, and reserves it. The
// caller releases it.
func (r *Remote) connect(ctx context.Context, to destination) (*connection, error) {
	c, err := r.reserve(to)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.ready:
		err = c.err
	case <-ctx.Done():
		err = &Error{"ssh_timeout", fmt.Errorf("waiting for a connection: %w", context.Cause(ctx))}
	}
	if err != nil {
		r.release(c)
		return nil, err
	}
	return c, nil
}

func (r *Remote) reserve(to destination) (*connection, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, &Error{"ssh", errClosed}
	}
	for _, c := range r.conns[to] {
		if c.used < c.limit && !c.over && c.lastsFor(usefulLife) {
			c.used++
			if c.idle != nil {
				c.idle.Stop()
			}
			return c, nil
		}
	}
	c := r.newConnection(to)
	c.used++
	r.conns[to] = append(r.conns[to], c)
	r.wg.Go(c.live)
	return c, nil
}

// release gives a session back. A connection without any ends after a while.
func (r *Remote) release(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.used--
	switch {
	case c.used > 0:
	case c.over:
		c.hangUp()
	default:
		c.idle = time.AfterFunc(r.cfg.Timing.Linger, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if c.used == 0 {
				c.over = true
				c.hangUp()
			}
		})
	}
}

// refused gives back a session that there was not. An sshd with a lower limit
// has told it so; a connection that is gone, or on which nothing else is open,
// gets no more.
func (r *Remote) refused(c *connection, gone bool) {
	r.mu.Lock()
	c.limit = min(c.limit, c.used-1)
	c.over = c.over || gone || c.limit == 0
	r.mu.Unlock()
	r.release(c)
}

// retire lets no new sessions onto a connection.
func (r *Remote) retire(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.over = true
}

// forget lets nobody find a connection that is gone.
func (r *Remote) forget(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.over = true
	if c.idle != nil {
		c.idle.Stop()
	}
	r.conns[c.to] = slices.DeleteFunc(r.conns[c.to], func(other *connection) bool { return other == c })
	if len(r.conns[c.to]) == 0 {
		delete(r.conns, c.to)
	}
}

func (r *Remote) path(name string) string { return filepath.Join(r.sockets.dir, name) }
