package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"github.com/lib/pq"
)

const (
	revocationChannel = "termgw_revocations" // 0002_replicas.sql
	// watchPoll is how often the orders are read although nobody notified, and the listening connection is asked for a sign
	// of life: it bounds what a proxy that swallows notifications can do.
	watchPoll = 5 * time.Second
	// watchRetry is how soon orders that could not be read are asked for again.
	watchRetry = 500 * time.Millisecond
	// watchStale is when a connection that says nothing is given up, and orders that were not read are worth a warning.
	watchStale      = 3 * watchPoll
	reconnectAfter  = 100 * time.Millisecond
	reconnectAtMost = 2 * time.Second
	ordersPage      = 1000
	// spelledFor is how old an order may be for the id of its workspace's row to be looked up: no ticket from before it is
	// valid any more, and sessions from before it were compared with it long ago.
	spelledFor = 25 * time.Hour
	// lookups is how often that is tried while the database does not answer it.
	lookups = 20
)

// See 0002_replicas.sql for why xmin is the place to go on from.
const xminSQL = `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint`

// Whatever is in a row, this reads it: a time beyond the years that Go knows is the nearest that it knows, an age is at most
// thirty years, a note that is too long is left out, and with a name that is too long the order matches nobody (fits). Rows
// that the table's constraints refuse may be from before 0004_bounds.sql.
const ordersSQL = `SELECT id, created, greatest(-1e9, least(1e9, extract(epoch FROM clock_timestamp() - created)))::float8, fits,
  CASE WHEN fits THEN workspace_id END, CASE WHEN fits THEN subject END, CASE WHEN fits THEN session_id END,
  CASE WHEN fits THEN instance_id END, CASE WHEN fits THEN row_id END,
  CASE WHEN octet_length(reason) <= 4096 THEN reason END, CASE WHEN octet_length(revoked_by) <= 4096 THEN revoked_by END
FROM (
  SELECT *, greatest(least(created_at, '9999-12-31Z'), '1970-01-01Z') AS created,
    COALESCE(greatest(octet_length(workspace_id), octet_length(subject), octet_length(session_id), octet_length(instance_id),
      octet_length(row_id)) <= 256, true) AS fits
  FROM termgw.revocations WHERE xid >= $1::text::xid8 AND id > $2 ORDER BY id LIMIT $3
) r ORDER BY id`

const nextOrderSQL = `SELECT COALESCE(min(id), $2) FROM termgw.revocations WHERE xid >= $1::text::xid8 AND id > $2`

var errNotYet = errors.New("not yet")

type watchHealth struct {
	since time.Time // the store's beginning

	mu        sync.Mutex
	connected bool
	listening bool // the server took LISTEN once; the listener repeats it when it reconnects
	listenErr error
	read      time.Time // when the orders were last read
	readErr   error
}

func (h *watchHealth) event(e pq.ListenerEventType, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.connected = e == pq.ListenerEventConnected || e == pq.ListenerEventReconnected
	h.listenErr = err
}

func (h *watchHealth) hasListened(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listening = err == nil
	h.listenErr = err
}

// hasRead reports whether the outcome is another than the last one's.
func (h *watchHealth) hasRead(now time.Time, err error) (turned bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	turned = (err == nil) != (h.readErr == nil)
	h.readErr = err
	if err == nil {
		h.read = now
	}
	return turned
}

// Watching tells whether a connection listens: nil while orders arrive at once, else an ErrUnavailable that says what is
// wrong. Orders that nobody notified of are read within five seconds all the same, as Reading tells.
func (p *Postgres) Watching() error {
	h := &p.watch
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.connected || !h.listening {
		return fmt.Errorf("listening for revocations: %w: %w", ErrUnavailable, cmp.Or(h.listenErr, errNotYet))
	}
	return nil
}

// Reading tells whether Watch reads the orders: nil while it does, else an ErrUnavailable that says why it has not read
// them yet, or for fifteen seconds.
func (p *Postgres) Reading() error {
	h := &p.watch
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.read.IsZero() && p.now().Sub(h.read) <= watchStale {
		return nil
	}
	return cmp.Or(h.readErr, fmt.Errorf("reading revocations: %w: %w", ErrUnavailable, errNotYet))
}

// OrdersAge is how long ago Watch last read the orders, or the store was opened if Watch has not read them yet.
func (p *Postgres) OrdersAge() time.Duration {
	h := &p.watch
	h.mu.Lock()
	defer h.mu.Unlock()
	last := h.read
	if last.IsZero() {
		last = h.since
	}
	return max(0, p.now().Sub(last))
}

// Watch tells which sessions of this process an order cuts, each session once, until the context is done; it returns nil
// then. No order is lost: what was written while the connection was away is read when it is back. Orders from before Watch
// began count too. cut is called from one goroutine and must not block.
//
// It runs once per store, on a connection of its own, which a pooler in transaction mode would take away: then orders
// arrive by polling, within five seconds.
func (p *Postgres) Watch(ctx context.Context, cut func(order Revocation, sessions []string)) error {
	ctx, cancel := context.WithCancel(ctx)
	listener := pq.NewDialListener(listenDialer{ctx, p.timeout}, p.url, reconnectAfter, reconnectAtMost, p.watch.event)
	var (
		keeper   sync.WaitGroup
		listened = make(chan struct{}, 1)
	)
	keeper.Go(func() { keepListening(ctx, listener, &p.watch, listened) })
	defer func() {
		cancel() // ends the connection, so that nothing below waits for it
		_ = listener.Close()
		for range listener.Notify { // closed when lib/pq's goroutine has ended
		}
		keeper.Wait()
	}()

	r := orderReader{Postgres: p, cut: cut}
	for {
		err := r.read(ctx)
		if p.watch.hasRead(p.now(), err) && ctx.Err() == nil {
			if err != nil {
				p.log.Warn("revocations are not read", "err", err)
			} else {
				p.log.Info("revocations are read again")
			}
		}
		wait := p.poll
		switch {
		case err != nil || !r.findRowIDs(ctx):
			wait = watchRetry
		case len(r.spelled) > 0:
			wait = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-listener.Notify:
			drain(listener.Notify) // one read answers them all
		case <-listened:
		case <-time.After(wait):
		}
	}
}

func drain(notifications <-chan *pq.Notification) {
	for {
		select {
		case <-notifications:
		default:
			return
		}
	}
}

// keepListening has the connection listen, and asks it for a sign of life from then on. Both may wait for an answer, while
// Watch has to go on reading notifications. That the connection broke is the listener's to find.
func keepListening(ctx context.Context, l *pq.Listener, h *watchHealth, listened chan<- struct{}) {
	listening := false
	for {
		if listening {
			_ = l.Ping()
		} else if err := l.Listen(revocationChannel); err == nil || errors.Is(err, pq.ErrChannelAlreadyOpen) {
			listening = true
			h.hasListened(nil)
			listened <- struct{}{}
		} else if ctx.Err() == nil { // the server refuses, for now: a standby, say
			h.hasListened(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPoll):
		}
	}
}

// orderReader reads the orders for one Watch.
type orderReader struct {
	*Postgres
	cut  func(order Revocation, sessions []string)
	from int64 // orders with a lower xid were read
	// seen has the orders from there on of which nothing is left to do or to tell but to apply them.
	seen    map[int64]struct{}
	spelled []order // their workspace is to be looked up
}

// read applies the orders that became visible since the last time. An order that cannot be read does not stop the others.
func (r *orderReader) read(ctx context.Context) error {
	const op = "reading revocations"
	var next int64
	if err := r.one(ctx, xminSQL, nil, &next); err != nil {
		return unavailable(op, err)
	}
	if next < r.from { // another cluster, restored from a dump: its counter is younger
		r.from = 0
	}
	seen := map[int64]struct{}{}
	last, size := int64(math.MinInt64), ordersPage
	for {
		orders, err := r.page(ctx, last, size)
		switch {
		case err != nil && size > 1 && ofRow(err):
			size /= 2 // one of them: the others come first
			continue
		case err != nil && ofRow(err):
			id := last
			if err := r.one(ctx, nextOrderSQL, []any{fmt.Sprint(r.from), last}, &id); err != nil {
				return unavailable(op, err)
			}
			if id == last { // it is gone, or the fault is not an order's
				return unavailable(op, err)
			}
			r.tellUnreadable(id, err, seen)
			last, size = id, ordersPage
			continue
		case err != nil:
			return unavailable(op, err)
		}
		for _, o := range orders {
			last = o.ID
			r.take(o, seen)
		}
		if len(orders) < size {
			r.from, r.seen = next, seen
			return nil
		}
		size = ordersPage
	}
}

// ofRow reports whether an error is about what is in a row, as far as the database says.
func ofRow(err error) bool {
	pe, _ := errors.AsType[*pq.Error](err)
	return refusal(err) && pe.Code.Class() != "42" // syntax error or access rule violation
}

// order is a row of termgw.revocations. Its names are there if it fits.
type order struct {
	Revocation
	fits    bool
	lookups int // of its workspace, that were begun
}

// page reads so many orders at most, the next ones after an id.
func (r *orderReader) page(ctx context.Context, after int64, size int) (orders []order, err error) {
	err = r.each(ctx, ordersSQL, []any{fmt.Sprint(r.from), after, int64(size)}, func(rows *sql.Rows) error {
		var (
			o                                                        order
			age                                                      float64
			workspace, subject, session, instance, rowID, reason, by sql.NullString
		)
		err := rows.Scan(&o.ID, &o.CreatedAt, &age, &o.fits, &workspace, &subject, &session, &instance, &rowID, &reason, &by)
		o.Age = time.Duration(age * float64(time.Second))
		o.WorkspaceID, o.Subject, o.SessionID, o.InstanceID = workspace.String, subject.String, session.String, instance.String
		o.RowID, o.Reason, o.By = rowID.String, reason.String, by.String
		orders = append(orders, o)
		return err
	})
	return orders, err
}

// take applies an order.
func (r *orderReader) take(o order, seen map[int64]struct{}) {
	if !o.fits {
		r.tellUnreadable(o.ID, fmt.Errorf("a name has more than %d bytes", maxName), seen)
		return
	}
	if sessions := r.sessions.apply(o.Revocation); len(sessions) > 0 {
		r.cut(o.Revocation, sessions)
	}
	if o.WorkspaceID == "" || o.RowID != "" || o.Age > spelledFor {
		return
	}
	if _, again := r.seen[o.ID]; !again {
		r.spelled = append(r.spelled, o)
	}
	seen[o.ID] = struct{}{}
}

func (r *orderReader) tellUnreadable(id int64, err error, seen map[int64]struct{}) {
	if _, told := r.seen[id]; !told {
		r.log.Error("a revocation cannot be read", "order", id, "err", err)
	}
	seen[id] = struct{}{}
}

// findRowIDs looks up the workspaces of a page of orders. An order in which another spelling was found is read again, by
// all replicas. It reports whether all lookups were answered; one that was not, because the workspaces are locked, say, or
// the query is slow for this one, is repeated after the others, lookups times at most.
func (r *orderReader) findRowIDs(ctx context.Context) bool {
	for range min(len(r.spelled), ordersPage) {
		o := r.spelled[0]
		r.spelled = r.spelled[1:]
		_, err := r.findRowID(ctx, o.ID, o.WorkspaceID)
		if o.lookups++; err != nil && !refusal(err) && o.lookups < lookups {
			r.spelled = append(r.spelled, o)
			return false
		}
		if err != nil {
			r.log.Error("a revocation holds for one spelling of its workspace alone", "order", o.ID, "workspace", o.WorkspaceID, "err", err)
		}
	}
	return true
}

// listenDialer makes lib/pq's listener keep deadlines and end with the context: by itself it would wait for a silent peer
// as long as TCP does, and Close would wait for it.
type listenDialer struct {
	ctx     context.Context
	timeout time.Duration
}

func (d listenDialer) DialContext(_ context.Context, network, address string) (net.Conn, error) {
	nd := net.Dialer{Timeout: d.timeout}
	nc, err := nd.DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &listenSocket{Conn: nc, forget: context.AfterFunc(d.ctx, func() { _ = nc.Close() })}, nil
}

// Dial and DialTimeout complete pq.Dialer; lib/pq prefers DialContext.
func (d listenDialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(d.ctx, network, address)
}

func (d listenDialer) DialTimeout(network, address string, _ time.Duration) (net.Conn, error) {
	return d.DialContext(d.ctx, network, address)
}

type listenSocket struct {
	net.Conn
	forget func() bool
}

// Read gives up when the answers to several pings are missing.
func (s *listenSocket) Read(p []byte) (int, error) {
	if err := s.SetReadDeadline(time.Now().Add(watchStale)); err != nil {
		return 0, err
	}
	return s.Conn.Read(p)
}

func (s *listenSocket) Write(p []byte) (int, error) {
	if err := s.SetWriteDeadline(time.Now().Add(watchStale)); err != nil {
		return 0, err
	}
	return s.Conn.Write(p)
}

func (s *listenSocket) Close() error {
	s.forget()
	return s.Conn.Close()
}
