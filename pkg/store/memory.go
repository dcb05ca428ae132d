package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// MemoryConfig tells an in-process store what it cannot know by itself.
type MemoryConfig struct {
	// Lookup returns the workspace with an id, or ErrNotFound; any other error is told as ErrUnavailable. It is called
	// from many goroutines at once. LookupIn makes one from a list.
	Lookup func(ctx context.Context, id string) (Workspace, error)
	// Since is when the process began. Tickets issued before are refused, for an earlier process may have seen them.
	// Tickets carry whole seconds, so one that is issued within the second of Since is refused too. A process that has
	// just made its own key needs no Since: no older ticket would verify.
	Since time.Time
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// memoryMargin is how long a spent ticket is remembered beyond its end. There is one clock here, so it need only be more
// than the leeway of verification.
const memoryMargin = time.Minute

// Memory is the store of a single process; with the process, all of it is gone. It holds no more than the tickets that
// have not expired and the sessions that are live. It is safe for concurrent use.
//
// ErrRevoked never comes from it: an order to revoke is a row that others write, and nobody else reaches this process.
type Memory struct {
	c MemoryConfig

	mu    sync.Mutex
	spent map[ticketKey]time.Time // until when to remember it
	sweep int                     // size of spent at which to look for what can be forgotten
	live  map[string]struct{}     // by session id
}

type ticketKey struct{ issuer, jti string }

// minSweep keeps a small set from being searched over and over.
const minSweep = 64

// NewMemory returns an empty store.
func NewMemory(c MemoryConfig) *Memory {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Memory{c: c, spent: map[ticketKey]time.Time{}, sweep: minSweep, live: map[string]struct{}{}}
}

// Redeem does what Postgres.Redeem does.
func (m *Memory) Redeem(ctx context.Context, claims ticket.Claims, s Session) (Workspace, error) {
	const op = "redeeming a ticket"
	if err := ctx.Err(); err != nil {
		return Workspace{}, fmt.Errorf("%s: %w: %w", op, ErrUnavailable, err)
	}
	if claims.IssuedAt.Before(m.c.Since) {
		return Workspace{}, fmt.Errorf("%s: %w: it was issued before this gateway started, which cannot know whether it was used since", op, ErrUsed)
	}
	key := ticketKey{claims.Issuer, claims.ID}
	if !m.spend(key, claims.Expires) {
		return Workspace{}, fmt.Errorf("%s: %w", op, ErrUsed)
	}
	w, err := m.c.Lookup(ctx, claims.WorkspaceID)
	switch {
	case errors.Is(err, ErrNotFound):
		return Workspace{}, fmt.Errorf("%s: %w", op, err)
	case err != nil:
		m.unspend(key)
		return Workspace{}, fmt.Errorf("%s: %w: %w", op, ErrUnavailable, err)
	}
	if !m.open(s.ID) {
		return Workspace{}, fmt.Errorf("%s: %w: another session has the same id", op, ErrUnavailable)
	}
	w.ID = claims.WorkspaceID
	return w, nil
}

// Finish forgets a session.
func (m *Memory) Finish(_ context.Context, sessionID string, _ End) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, sessionID)
	return nil
}

// Ping always succeeds.
func (m *Memory) Ping(context.Context) error { return nil }

// Close does nothing: there is nothing to close.
func (m *Memory) Close() error { return nil }

// spend tells whether the ticket was not spent before. Looking for what can be forgotten each time the set has doubled
// costs the same for each ticket, however many there are.
func (m *Memory) spend(key ticketKey, expires time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, used := m.spent[key]; used {
		return false
	}
	m.spent[key] = expires.Add(memoryMargin)
	if len(m.spent) >= m.sweep {
		now := m.c.Now()
		for k, until := range m.spent {
			if until.Before(now) {
				delete(m.spent, k)
			}
		}
		m.sweep = max(minSweep, 2*len(m.spent))
	}
	return true
}

func (m *Memory) unspend(key ticketKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.spent, key)
}

func (m *Memory) open(session string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.live[session]; taken {
		return false
	}
	m.live[session] = struct{}{}
	return true
}
