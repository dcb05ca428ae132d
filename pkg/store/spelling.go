package store

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"sync"
	"time"
)

const (
	// spelledFor is how old an order may be for the id of its workspace's row to be looked up: no ticket from before it is
	// valid any more, and sessions from before it were compared with it long ago.
	spelledFor = 25 * time.Hour
	// lookupTries is how often that is tried while the database does not answer it.
	lookupTries = 20
	// lookupsKept bounds the orders that wait for it in memory, of some 300 bytes each. More wait in the table.
	lookupsKept = 2 * ordersPage
	// goneEvery is how often orders whose workspace has no row are told of at most.
	goneEvery = time.Minute
)

// waitingSQL reads orders with ids between two whose workspace was not looked up, the newest first.
const waitingSQL = `SELECT id, workspace_id FROM termgw.revocations
WHERE id BETWEEN $1 AND $2 AND octet_length(workspace_id) <= 256 AND row_id IS NULL
  AND created_at >= clock_timestamp() - make_interval(secs => $3)
ORDER BY id DESC LIMIT $4`

// lookups finds how the rows of the orders' workspaces spell their ids. It is apart from the reading of orders, which a slow
// workspace query must not delay, and looks one up at a time, so that it uses one of the pool's connections at most. The
// newest order comes first.
type lookups struct {
	*Postgres
	wake chan struct{} // of capacity 1

	mu    sync.Mutex
	next  []lookup // sorted by order
	again []lookup // were not answered: they come after the others
	// What there was no room for: orders with ids between these two, which are read from the table. Both are 0 if there is none.
	low, high int64
	spilled   int // how many these were so far

	// Of run alone: orders whose workspace has no row, since when that was last told.
	gone     int
	goneTold time.Time
}

type lookup struct {
	order     int64
	workspace string
	tries     int
}

func newLookups(p *Postgres) *lookups { return &lookups{Postgres: p, wake: make(chan struct{}, 1)} }

// add has an order's workspace looked up. It does not wait.
func (s *lookups) add(l lookup) {
	s.mu.Lock()
	s.put(l)
	s.mu.Unlock()
	wake(s.wake)
}

func (s *lookups) put(l lookup) {
	at, there := slices.BinarySearchFunc(s.next, l.order, func(l lookup, order int64) int { return cmp.Compare(l.order, order) })
	if there {
		s.next[at] = l // the same, or another by a server that has taken over
		return
	}
	s.next = slices.Insert(s.next, at, l)
	if len(s.next) <= lookupsKept {
		return
	}
	s.spill(s.next[0].order)
	s.next = slices.Delete(s.next, 0, 1)
}

// spill leaves an order to be read from the table.
func (s *lookups) spill(order int64) {
	if s.high == 0 {
		s.low, s.high = order, order
	}
	s.low, s.high = min(s.low, order), max(s.high, order)
	s.spilled++
}

// take returns the order that is to be looked up next, if there is one.
func (s *lookups) take(ctx context.Context) (l lookup, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.next) == 0 && s.high != 0 {
		if err := s.refill(ctx); err != nil {
			return lookup{}, false, err
		}
	}
	for _, from := range []*[]lookup{&s.next, &s.again} {
		if n := len(*from); n > 0 {
			l, *from = (*from)[n-1], (*from)[:n-1]
			return l, true, nil
		}
	}
	return lookup{}, false, nil
}

// refill reads a page of the orders that wait in the table. Others may be added meanwhile.
func (s *lookups) refill(ctx context.Context) error {
	low, high, spilled := s.low, s.high, s.spilled
	var page []lookup
	s.mu.Unlock()
	err := s.each(ctx, waitingSQL, []any{low, high, spelledFor.Seconds(), int64(ordersPage)}, func(rows *sql.Rows) error {
		var l lookup
		err := rows.Scan(&l.order, &l.workspace)
		page = append(page, l)
		return err
	})
	s.mu.Lock()
	if err != nil {
		return err
	}
	switch {
	case s.spilled != spilled: // more had no room meanwhile, which this page may be without
		return nil
	case len(page) < ordersPage:
		s.low, s.high = 0, 0
	default:
		s.high = page[len(page)-1].order - 1
	}
	for _, l := range page {
		s.put(l)
	}
	return nil
}

// run looks up until the context is done.
func (s *lookups) run(ctx context.Context) {
	for ctx.Err() == nil {
		l, ok, err := s.take(ctx)
		switch {
		case err == nil && !ok:
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
			continue
		case err == nil:
			err = s.find(ctx, l)
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(watchRetry):
			}
		}
	}
}

// tellGone tells of an order whose workspace has no row, and of others since, once a minute.
func (s *lookups) tellGone(l lookup) {
	s.gone++
	if now := time.Now(); now.Sub(s.goneTold) >= goneEvery {
		s.log.Info("a revocation's workspace has no row",
			"order", l.order, "workspace", l.workspace, "orders", s.gone)
		s.gone, s.goneTold = 0, now
	}
}

// find looks up an order's workspace. An order in which another spelling was found is read again, by all replicas. A lookup that
// is not answered, because the workspace is locked, say, or the query is slow for this one, is repeated after the others;
// while the database answers nothing, that does not count as a try.
func (s *lookups) find(ctx context.Context, l lookup) error {
	_, found, err := s.findRowID(ctx, l.order, l.workspace)
	if err == nil && !found {
		s.tellGone(l)
	}
	if err == nil {
		return nil
	}
	s.mu.Lock()
	repeat := true
	switch l.tries++; {
	case !s.watch.reads():
		l.tries--
		s.put(l)
	case refusal(err) || l.tries >= lookupTries:
		repeat = false
	case len(s.again) < lookupsKept:
		s.again = slices.Insert(s.again, 0, l)
	default:
		s.spill(l.order)
	}
	s.mu.Unlock()
	if repeat {
		return err
	}
	s.log.Error("a revocation holds for one spelling of its workspace alone", "order", l.order, "workspace", l.workspace, "err", err)
	return nil
}
