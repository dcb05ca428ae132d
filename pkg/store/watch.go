package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
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
)

// The snapshot's xmin comes even without a row. See 0002_replicas.sql for why it is the place to go on from.
const ordersSQL = `SELECT x.xmin::text::bigint, r.id, r.created_at, extract(epoch FROM clock_timestamp() - r.created_at)::float8,
  r.workspace_id, r.subject, r.session_id, r.instance_id, r.reason, r.revoked_by
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xmin) x LEFT JOIN LATERAL (
  SELECT * FROM termgw.revocations WHERE xid >= $1::text::xid8 AND id > $2 ORDER BY id LIMIT $3
) r ON true ORDER BY r.id`

var errNotYet = errors.New("not yet")

type watchHealth struct {
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

func (h *watchHealth) hasRead(now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readErr = err
	if err == nil {
		h.read = now
	}
}

// Watching tells how Watch does: nil while orders arrive at once, else an ErrUnavailable that says what is wrong. Orders
// that nobody notified are read within five seconds all the same, as long as the database answers.
func (p *Postgres) Watching() error {
	const op = "watching for revocations"
	h := &p.watch
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.read.IsZero() || p.now().Sub(h.read) > watchStale:
		return fmt.Errorf("%s: %w: the orders cannot be read: %w", op, ErrUnavailable, cmp.Or(h.readErr, errNotYet))
	case !h.connected || !h.listening:
		return fmt.Errorf("%s: %w: no connection that listens: %w", op, ErrUnavailable, cmp.Or(h.listenErr, errNotYet))
	}
	return nil
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

	var from int64
	for {
		err := p.readOrders(ctx, &from, cut)
		p.watch.hasRead(p.now(), err)
		wait := p.poll
		if err != nil {
			wait = watchRetry
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

// readOrders applies the orders that became visible since from, and moves it.
func (p *Postgres) readOrders(ctx context.Context, from *int64, cut func(Revocation, []string)) error {
	var next, last int64
	for page := 0; ; page++ {
		var (
			orders []Revocation
			xmin   int64
		)
		err := p.each(ctx, ordersSQL, []any{fmt.Sprint(*from), last, int64(ordersPage)}, func(rows *sql.Rows) error {
			var (
				id                                                sql.NullInt64
				created                                           sql.NullTime
				age                                               sql.NullFloat64
				workspace, subject, session, instance, reason, by sql.NullString
			)
			err := rows.Scan(&xmin, &id, &created, &age, &workspace, &subject, &session, &instance, &reason, &by)
			if id.Valid {
				orders = append(orders, Revocation{
					ID: id.Int64, CreatedAt: created.Time, Age: time.Duration(age.Float64 * float64(time.Second)),
					WorkspaceID: workspace.String, Subject: subject.String,
					SessionID: session.String, InstanceID: instance.String, Reason: reason.String, By: by.String,
				})
			}
			return err
		})
		if err != nil {
			return unavailable("reading revocations", err)
		}
		if page == 0 {
			if xmin < *from { // another cluster, restored from a dump: its counter is younger
				*from, page = 0, -1
				continue
			}
			next = xmin // the first page's: what became visible since is read again
		}
		for _, order := range orders {
			last = order.ID
			if sessions := p.sessions.apply(order); len(sessions) > 0 {
				cut(order, sessions)
			}
		}
		if len(orders) < ordersPage {
			*from = next
			return nil
		}
	}
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
