package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
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
// have not expired, the sessions that are live, the orders that were given and the host keys that were seen. It is safe
// for concurrent use.
type Memory struct {
	c MemoryConfig

	mu       sync.Mutex
	spent    map[ticketKey]time.Time // until when to remember it
	sweep    int                     // size of spent at which to look for what can be forgotten
	orders   []Revocation
	ordered  chan struct{}     // closed at the next order
	tunnels  map[string]string // lease to endpoint
	hostKeys map[string]string

	// sessions has a lock of its own, taken within mu or alone.
	sessions *registry
}

type ticketKey struct{ issuer, jti string }

// minSweep keeps a small set from being searched over and over.
const minSweep = 64

// NewMemory returns an empty store.
func NewMemory(c MemoryConfig) *Memory {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Memory{
		c: c, spent: map[ticketKey]time.Time{}, sweep: minSweep, ordered: make(chan struct{}),
		tunnels: map[string]string{}, hostKeys: map[string]string{}, sessions: newRegistry(),
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
	if err := m.open(claims, s, w, err); err != nil {
		return Workspace{}, fmt.Errorf("%s: %w", op, err)
	}
	return w, nil
}

// Finish forgets a session.
func (m *Memory) Finish(_ context.Context, sessionID string, _ End) error {
	m.sessions.close(sessionID)
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

// open enters a session as live unless an order, what the lookup found or a limit forbids it.
func (m *Memory) open(claims ticket.Claims, s Session, w Workspace, found error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.sessions.begin(claims, s)
	defer m.sessions.drop(e)
	e.place(w)
	for _, o := range m.orders {
		if o.names(e.Record, e.presented) && !e.issued.After(o.CreatedAt) {
			return ErrRevoked
		}
	}
	if found != nil {
		return found
	}
	if m.sessions.has(s.ID) {
		return fmt.Errorf("%w: another session has the same id", ErrUnavailable)
	}
	switch l := m.c.Limits; {
	case l.PerWorkspace > 0 && m.sessions.count(func(r *Record) bool { return r.WorkspaceID == e.WorkspaceID }) >= l.PerWorkspace:
		return l.reached(LimitWorkspace)
	case l.PerSubject > 0 && m.sessions.count(func(r *Record) bool { return r.Subject == e.Subject }) >= l.PerSubject:
		return l.reached(LimitSubject)
	}
	m.sessions.open(e, m.c.Now())
	return nil
}

// Revoke does what Postgres.Revoke does.
func (m *Memory) Revoke(ctx context.Context, r Revocation) (Revocation, []string, error) {
	if err := r.check(); err != nil {
		return Revocation{}, nil, fmt.Errorf("revoking: %w", err)
	}
	if r.WorkspaceID != "" {
		w, _ := m.c.Lookup(ctx, r.WorkspaceID) // that there is none is no fault: the order holds as it is
		r.RowID = w.ID
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r.ID, r.CreatedAt = int64(len(m.orders))+1, m.c.Now()
	m.orders = append(m.orders, r)
	close(m.ordered)
	m.ordered = make(chan struct{})
	var sessions []string
	for _, s := range m.sessions.list() {
		if r.names(s, "") {
			sessions = append(sessions, s.ID)
		}
	}
	slices.Sort(sessions)
	return r, sessions, nil
}

// Watch does what Postgres.Watch does.
func (m *Memory) Watch(ctx context.Context, cut func(order Revocation, sessions []string)) error {
	for done := 0; ; {
		m.mu.Lock()
		orders, next := m.orders[done:], m.ordered
		m.mu.Unlock()
		for _, order := range orders {
			order.Age = m.c.Now().Sub(order.CreatedAt)
			if sessions := m.sessions.apply(order); len(sessions) > 0 {
				cut(order, sessions)
			}
		}
		done += len(orders)
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
	}
}

// Sessions lists the live sessions, the newest first; an end is not remembered.
func (m *Memory) Sessions(_ context.Context, f SessionFilter) ([]Record, error) {
	list := slices.DeleteFunc(m.sessions.list(), func(r Record) bool {
		match := Revocation{WorkspaceID: f.WorkspaceID, Subject: f.Subject, SessionID: f.SessionID, InstanceID: f.InstanceID}
		return !match.names(r, "") || f.Replica != "" && f.Replica != r.Replica
	})
	slices.SortFunc(list, func(a, b Record) int { return cmp.Or(b.Started.Compare(a.Started), cmp.Compare(a.ID, b.ID)) })
	return list[:min(len(list), f.limit())], nil
}

// AcquireTunnel does what Postgres.AcquireTunnel does; a lease lasts as long as the process.
func (m *Memory) AcquireTunnel(_ context.Context, endpoint, _, _ string, limit int) (lease string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := 0
	for _, e := range m.tunnels {
		if e == endpoint {
			used++
		}
	}
	if used >= limit {
		return "", fmt.Errorf("acquiring a tunnel: %w", &LimitError{Of: LimitTunnels, Max: limit})
	}
	lease = rand.Text()
	m.tunnels[lease] = endpoint
	return lease, nil
}

// ReleaseTunnel gives a place back.
func (m *Memory) ReleaseTunnel(_ context.Context, lease string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tunnels, lease)
	return nil
}

// Tunnels counts the tunnels in use by endpoint.
func (m *Memory) Tunnels(context.Context) (map[string]int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	counts := map[string]int{}
	for _, endpoint := range m.tunnels {
		counts[endpoint]++
	}
	return counts, nil
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
