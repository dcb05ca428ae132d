package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// MemoryConfig tells an in-process store what it cannot know by itself.
type MemoryConfig struct {
	// Lookup returns the workspace with an id, or ErrNotFound; any other error is told as ErrUnavailable. Where an id has
	// several spellings, the workspace's ID is the one by which it is counted; an empty one means the id as given. Lookup is
	// called from many goroutines at once. LookupIn makes one from a list.
	Lookup func(ctx context.Context, id string) (Workspace, error)
	// Since is when the process began. Tickets issued before are refused, for an earlier process may have seen them.
	// Tickets carry whole seconds, so one that is issued within the second of Since is refused too. A process that has
	// just made its own key needs no Since: no older ticket would verify.
	Since time.Time
	// Limits bounds the live sessions.
	Limits Limits
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// memoryMargin is how long a spent ticket is remembered beyond its end. There is one clock here, so it need only be more
// than the leeway of verification.
const memoryMargin = time.Minute

// Memory is the store of a single process; with the process, all of it is gone. It holds no more than the tickets that
// have not expired, the sessions that are live and the host keys that were seen. Nobody can order it to cut a session: orders
// are rows of a database. It is safe for concurrent use.
type Memory struct {
	c MemoryConfig

	mu       sync.Mutex
	spent    map[ticketKey]time.Time // until when to remember it
	sweep    int                     // size of spent at which to look for what can be forgotten
	sessions map[string]seat
	waiting  map[string]seat   // that have ended, and whose last output waits
	tunnels  map[string]*place // by lease
	hostKeys map[string]string
}

type (
	ticketKey struct{ issuer, jti string }
	// seat is what a live session takes of the limits.
	seat struct{ workspace, subject string }
	// place is a tunnel's.
	place struct {
		endpoint              string
		taken, idleAt, wanted time.Time
	}
)

// minSweep keeps a small set from being searched over and over.
const minSweep = 64

// NewMemory returns an empty store.
func NewMemory(c MemoryConfig) *Memory {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Memory{
		c: c, spent: map[ticketKey]time.Time{}, sweep: minSweep,
		sessions: map[string]seat{}, waiting: map[string]seat{}, tunnels: map[string]*place{}, hostKeys: map[string]string{},
	}
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
	if err != nil && !errors.Is(err, ErrNotFound) {
		m.unspend(key)
		return Workspace{}, fmt.Errorf("%s: %w: %w", op, ErrUnavailable, err)
	}
	w.ID = cmp.Or(w.ID, claims.WorkspaceID)
	if err == nil {
		err = m.open(s.ID, seat{w.ID, claims.Subject})
	}
	if err != nil {
		return Workspace{}, fmt.Errorf("%s: %w", op, err)
	}
	return w, nil
}

// Trace does nothing: there is no audit trail.
func (m *Memory) Trace(context.Context, string, map[string]string) error { return nil }

// Finish forgets a session, or keeps it for Resume, until Settle.
func (m *Memory) Finish(_ context.Context, sessionID string, end End) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.sessions[sessionID]; ok && end.Waits {
		m.waiting[sessionID] = s
	}
	delete(m.sessions, sessionID)
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

// open enters a session as live unless a limit forbids it.
func (m *Memory) open(id string, to seat) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.sessions[id]; ok {
		return fmt.Errorf("%w: another session has the same id", ErrUnavailable)
	}
	var ofWorkspace, ofSubject int
	for _, s := range m.sessions {
		if s.workspace == to.workspace {
			ofWorkspace++
		}
		if s.subject == to.subject {
			ofSubject++
		}
	}
	switch l := m.c.Limits; {
	case l.PerWorkspace > 0 && ofWorkspace >= l.PerWorkspace:
		return l.reached(LimitWorkspace)
	case l.PerSubject > 0 && ofSubject >= l.PerSubject:
		return l.reached(LimitSubject)
	}
	m.sessions[id] = to
	return nil
}

// AcquireTunnel does what Postgres.AcquireTunnel does; a lease lasts as long as the process.
func (m *Memory) AcquireTunnel(_ context.Context, endpoint, _, _ string, limit int) (lease string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.usedTunnels(endpoint) >= limit {
		return "", fmt.Errorf("acquiring a tunnel: %w", &LimitError{Of: LimitTunnels, Max: limit})
	}
	lease = rand.Text()
	m.tunnels[lease] = &place{endpoint: endpoint, taken: m.c.Now()}
	return lease, nil
}

// FreeTunnels returns how many of an endpoint's places are free, of as many as limit.
func (m *Memory) FreeTunnels(_ context.Context, endpoint string, limit int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, limit-m.usedTunnels(endpoint)), nil
}

func (m *Memory) usedTunnels(endpoint string) (n int) {
	for _, p := range m.tunnels {
		if p.endpoint == endpoint {
			n++
		}
	}
	return n
}

// IdleTunnel does what Postgres.IdleTunnel does.
func (m *Memory) IdleTunnel(_ context.Context, lease string) (wanted bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.tunnels[lease]
	if p == nil {
		return false, nil
	}
	p.idleAt = m.c.Now()
	return p.idleAt.Sub(p.wanted) < wantedFor, nil
}

// VacateTunnel does what Postgres.VacateTunnel does.
func (m *Memory) VacateTunnel(ctx context.Context, endpoint, _ string) (vacated bool, err error) {
	return vacate(ctx, func() (string, error) { return m.wantTunnel(endpoint), nil }, func(lease string) (string, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		switch p := m.tunnels[lease]; {
		case p == nil:
			return tunnelGone, nil
		case m.c.Now().Sub(p.idleAt) < notedFor:
			return tunnelIdle, nil
		}
		return tunnelUsed, nil
	})
}

// wantTunnel marks the oldest idle tunnel as wanted, and returns its lease; empty: there is none.
func (m *Memory) wantTunnel(endpoint string) (lease string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.c.Now()
	for id, p := range m.tunnels {
		idle := p.endpoint == endpoint && now.Sub(p.idleAt) < idleFor && now.Sub(p.wanted) >= wantedFor
		if idle && (lease == "" || p.taken.Before(m.tunnels[lease].taken)) {
			lease = id
		}
	}
	if lease != "" {
		m.tunnels[lease].wanted = now
	}
	return lease
}

// ReleaseTunnel gives a place back.
func (m *Memory) ReleaseTunnel(_ context.Context, lease string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tunnels, lease)
	return nil
}

// HostKey returns the host key that is kept for an instance, or "".
func (m *Memory) HostKey(_ context.Context, instanceID string) (line string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hostKeys[instanceID], nil
}

// KeepHostKey does what Postgres.KeepHostKey does, for as long as the process lives.
func (m *Memory) KeepHostKey(_ context.Context, instanceID, line string) (kept string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.hostKeys[instanceID]; !ok {
		m.hostKeys[instanceID] = line
	}
	return m.hostKeys[instanceID], nil
}
