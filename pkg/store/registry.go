package store

import (
	"slices"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// registry knows the sessions of this process, so that an order can be matched with them.
//
// An order must not slip between a redemption's look at the orders and the session's start. So a session is entered
// before that look (begin), and orders that arrive until it is opened are kept with it and judged then (open): an order is
// in the statement's snapshot, or it is committed later, is delivered later still, and finds the entry.
type registry struct {
	mu      sync.Mutex
	pending map[*entry]struct{}
	live    map[string]*entry
}

type entry struct {
	Record                 // WorkspaceID is the one presented until place is called
	presented string       // the workspace's id in the ticket
	issued    time.Time    // the ticket
	begun     time.Time    // the redemption, by this process's clock
	orders    []Revocation // that came while it was pending
	cut       bool         // an order covers it, and it was told
	noted     bool         // by a heartbeat
	waits     bool         // as of that
	version   int          // counts what makes that old
}

func newRegistry() *registry {
	return &registry{pending: map[*entry]struct{}{}, live: map[string]*entry{}}
}

// begin enters a session that is about to be redeemed. The caller owes open or drop.
func (r *registry) begin(claims ticket.Claims, s Session, now time.Time) *entry {
	e := &entry{presented: claims.WorkspaceID, issued: claims.IssuedAt, begun: now, Record: Record{
		ID: s.ID, WorkspaceID: claims.WorkspaceID, Subject: text(claims.Subject), Mode: claims.Mode,
		Replica: text(s.Replica), ClientAddr: text(s.ClientAddr),
	}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending[e] = struct{}{}
	return e
}

// drop forgets an entry that came to nothing.
func (r *registry) drop(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pending, e)
}

// place notes what the workspace's row says, before the session is opened.
func (e *entry) place(w Workspace) { e.WorkspaceID, e.InstanceID = w.ID, w.Attributes["instance_id"] }

// open tells whether the session may live: no order that came meanwhile covers it. If so it is live, until close.
func (r *registry) open(e *entry, started time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pending, e)
	e.Started, e.LastSeen = started, started
	r.live[e.ID] = e
	covered := slices.ContainsFunc(e.orders, e.coveredBy)
	e.orders = nil
	return !covered
}

// close forgets a session and tells whether it was of this process.
func (r *registry) close(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.live[id]
	delete(r.live, id)
	return ok
}

// apply returns the sessions that an order cuts, without those that an earlier one cut.
func (r *registry) apply(order Revocation) (sessions []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for e := range r.pending {
		e.orders = append(e.orders, order)
	}
	for id, e := range r.live {
		if !e.cut && e.coveredBy(order) {
			e.cut = true
			sessions = append(sessions, id)
		}
	}
	slices.Sort(sessions)
	return sessions
}

// news is what a heartbeat has to tell of a session.
type news struct {
	id      string
	waits   bool
	version int
}

// news returns all sessions, and of those that are not noted as they are now, the state.
func (r *registry) news(waiting []string) (all []string, changed []news) {
	waits := make(map[string]bool, len(waiting))
	for _, id := range waiting {
		waits[id] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all = make([]string, 0, len(r.live))
	for id, e := range r.live {
		all = append(all, id)
		if !e.noted || e.waits != waits[id] {
			changed = append(changed, news{id, waits[id], e.version})
		}
	}
	return all, changed
}

// note takes down what was written.
func (r *registry) note(written []news) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range written {
		if e := r.live[n.id]; e != nil && e.version == n.version {
			e.noted, e.waits = true, n.waits
		}
	}
}

// forgetNoted has the next heartbeat tell of these sessions, or of all if none is named.
func (r *registry) forgetNoted(ids ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(ids) == 0 {
		for _, e := range r.live {
			e.noted = false
			e.version++
		}
	}
	for _, id := range ids {
		if e := r.live[id]; e != nil {
			e.noted = false
			e.version++
		}
	}
}

// coveredBy tells whether an order cuts the session: it names it, and the session is not newer than the order. Newer is a
// session that was opened after the order, by the store's clock, with a ticket issued after it, by the platform's; so
// an order that is delivered late, or again, spares who was let in since. The session's time may be another server's than the
// order's, though, which has taken over since: who was there before the order by this process's clock is cut, whatever they say.
func (e *entry) coveredBy(o Revocation) bool {
	return o.names(e.Record, e.presented) &&
		(!e.Started.After(o.CreatedAt) || !e.issued.After(o.CreatedAt) || e.begun.Before(o.given))
}
