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
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

const (
	revocationChannel = "termgw_revocations" // 0002_replicas.sql
	// noticeChannel is for notices that gateways send to see whether any arrive. One of them is enough for all: each wakes the server's
	// process of every gateway, so the notices of each to itself would cost the server as much as the square of their number.
	noticeChannel = "termgw_notices"
	// watchPoll is how often the orders are read although nobody notified, and the listening connection is asked for a sign
	// of life: it bounds what a proxy that swallows notifications can do.
	watchPoll = 5 * time.Second
	// watchRetry is how soon orders that could not be read are asked for again.
	watchRetry = 500 * time.Millisecond
	// watchDeaf is how long a notice may take, a little less than three of them.
	watchDeaf = 2*watchPoll + watchPoll/2
	// watchStale is when a connection that says nothing is given up, and orders that were not read are worth a warning.
	watchStale      = 3 * watchPoll
	reconnectAfter  = 100 * time.Millisecond
	reconnectAtMost = 2 * time.Second
	ordersPage      = 1000
)

// serverSQL is one run of one server, from its start or its recovery from a crash on: nothing that it has said of its
// transactions holds for another. A crash keeps the start, but not the statistics; who resets those by hand has the orders read
// once more.
const serverSQL = `(SELECT concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()), extract(epoch FROM stats_reset)) FROM pg_stat_bgwriter)`

// snapshotSQL returns what is visible now, and what of that will always count as read: a standby does not know which of the
// transactions since the oldest that runs run too. Then the server, and whether it has given out fewer transaction ids than
// it had at an earlier snapshot, $1: then it is another cluster, restored from a dump or an older backup.
const snapshotSQL = `SELECT now::text, CASE WHEN pg_is_in_recovery() THEN format('%s:%1$s:', pg_snapshot_xmin(now)) ELSE now::text END,
  ` + serverSQL + `, pg_snapshot_xmax(now) < pg_snapshot_xmax($1::text::pg_snapshot)
FROM pg_current_snapshot() AS now`

// ordersSQL reads the orders that became visible between two snapshots, the newest first, in pages. Whatever is in a row,
// this reads it: a time beyond the years that Go knows is the nearest that it knows, an age is at most thirty years, a note
// is its beginning, and with a name that is too long the order matches nobody (fits). Rows that the table's constraints
// refuse may be from before 0004_bounds.sql.
const ordersSQL = `SELECT xid::text, id, created, greatest(-1e9, least(1e9, extract(epoch FROM clock_timestamp() - created)))::float8, fits,
  CASE WHEN fits THEN workspace_id END, CASE WHEN fits THEN subject END, CASE WHEN fits THEN session_id END,
  CASE WHEN fits THEN instance_id END, CASE WHEN fits THEN row_id END,
  CASE WHEN octet_length(reason) <= 4096 THEN left(reason, 200) END, CASE WHEN octet_length(revoked_by) <= 4096 THEN left(revoked_by, 200) END
FROM (
  SELECT *, greatest(least(created_at, '9999-12-31Z'), '1970-01-01Z') AS created,
    COALESCE(greatest(octet_length(workspace_id), octet_length(subject), octet_length(session_id), octet_length(instance_id),
      octet_length(row_id)) <= 256, true) AS fits
  FROM termgw.revocations
  WHERE ` + betweenSnapshots + `
  ORDER BY xid DESC, id DESC LIMIT $5
) r ORDER BY r.xid DESC, r.id DESC`

// A row has the id of the transaction that wrote it: visible to whoever sees that. In the order of the index revocations_xid.
const betweenSnapshots = `xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND (xid, id) < ($3::text::xid8, $4::bigint)
    AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot) AND pg_visible_in_snapshot(xid, $2::text::pg_snapshot)`

const nextOrderSQL = `SELECT xid::text, id FROM termgw.revocations WHERE ` + betweenSnapshots + `
ORDER BY xid DESC, id DESC LIMIT 1`

const (
	nothing    = "1:1:"                                     // a snapshot in which no transaction is visible
	everything = "9223372036854775807:9223372036854775807:" // and one in which all are
	// maxSpans bounds what is read in parts.
	maxSpans = 16
)

var (
	errNotYet = errors.New("not yet")
	errDeaf   = errors.New("the database takes LISTEN, but what is listened for does not arrive: is a pooler in transaction mode before it?")
)

// watchHealth is what is known of the connection that listens, and of reading. That a notification arrives is known from
// notices of gateways: a pooler, or a server that is no longer the one that is written to, takes a LISTEN too.
type watchHealth struct {
	since time.Time // the store's beginning

	mu        sync.Mutex
	connected bool
	listenErr error
	asked     time.Time // when the first notice was sent that was not heard; zero: none
	heard     bool      // one, since the connection was made
	heardAt   time.Time // the last of those
	deaf      bool      // the last connection was, and no other has heard since
	read      time.Time // when the orders were last read
	readErr   error
}

func (h *watchHealth) event(e pq.ListenerEventType, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.connected = e == pq.ListenerEventConnected || e == pq.ListenerEventReconnected
	h.listenErr, h.asked, h.heard, h.heardAt = err, time.Time{}, false, time.Time{}
}

func (h *watchHealth) refused(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listenErr = err
}

// sent notes that a notice is on its way.
func (h *watchHealth) sent(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked.IsZero() {
		h.asked = now
	}
}

// hears reports whether there is a connection, and none that notices are missing from for so long that nothing can arrive.
func (h *watchHealth) hears(now time.Time) (connected, deaf bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.connected && !h.asked.IsZero() && now.Sub(h.asked) >= watchDeaf {
		h.heard, h.deaf = false, true
		return true, true
	}
	return h.connected, false
}

// quiet reports whether no notice was heard for so long that one is to be sent.
func (h *watchHealth) quiet(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now.Sub(h.heardAt) >= watchPoll/2
}

func (h *watchHealth) hear(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listenErr, h.asked, h.heard, h.heardAt, h.deaf = nil, time.Time{}, true, now, false
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

// reads reports whether the orders could be read the last time.
func (h *watchHealth) reads() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.readErr == nil
}

// Watching tells whether a connection listens and hears: nil while orders arrive at once, else an ErrUnavailable that says
// what is wrong. Orders that nobody notified of are read within five seconds all the same, as Reading tells.
func (p *Postgres) Watching() error {
	h := &p.watch
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.deaf {
		return fmt.Errorf("listening for revocations: %w: %w", ErrUnavailable, errDeaf)
	}
	if !h.connected || !h.heard {
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
// arrive by polling, within five seconds, and Watching says so.
func (p *Postgres) Watch(ctx context.Context, cut func(order Revocation, sessions []string)) error {
	ctx, cancel := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	e := ear{Postgres: p, wake: make(chan struct{}, 1), again: make(chan struct{}, 1)}
	keeper.Go(func() { e.listen(ctx) })
	defer func() {
		cancel()
		keeper.Wait()
	}()

	spellings := newLookups(p)
	keeper.Go(func() { spellings.run(ctx) })
	r := orderReader{Postgres: p, cut: cut, spellings: spellings, last: nothing}
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
		if err != nil {
			wait = watchRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-time.After(wait):
		}
	}
}

// ear has a connection listen, and knows whether it hears.
type ear struct {
	*Postgres
	dialer *listenDialer
	wake   chan struct{} // of capacity 1: there may be revocations to read
	again  chan struct{} // of capacity 1: the connection is another
	told   bool          // that nothing arrives
}

// listen has a connection listen until ctx ends. lib/pq's listener connects again by the URL that it was given: when it cannot, and
// the URL is another by now, another listener takes its place.
func (e *ear) listen(ctx context.Context) {
	for ctx.Err() == nil {
		dsn, _, err := e.from.read(ctx)
		if err != nil {
			e.watch.refused(unavailable("listening for revocations", err))
			select {
			case <-ctx.Done():
			case <-time.After(watchPoll):
			}
			continue
		}
		connecting, cancel := context.WithCancel(ctx)
		e.dialer = &listenDialer{ctx: connecting, timeout: e.timeout}
		var parts sync.WaitGroup
		listener := pq.NewDialListener(e.dialer, dsn, reconnectAfter, reconnectAtMost, e.event)
		parts.Go(func() { e.hear(listener.Notify) })
		parts.Go(func() { e.keep(connecting, listener) })
		e.awaitOther(ctx, dsn)
		cancel() // ends the connection, so that nothing below waits for it
		_ = listener.Close()
		parts.Wait()
	}
}

// awaitOther returns when ctx ends, or when there is no connection and the URL is another than dsn.
func (e *ear) awaitOther(ctx context.Context, dsn string) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPoll):
		}
		if connected, _ := e.watch.hears(e.now()); connected {
			continue
		}
		if now, _, err := e.from.read(ctx); err == nil && now != dsn {
			return
		}
	}
}

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // what is there answers both
	}
}

func (e *ear) event(event pq.ListenerEventType, err error) {
	e.watch.event(event, err)
	if event == pq.ListenerEventConnected || event == pq.ListenerEventReconnected {
		e.dialer.connected()
	}
	wake(e.again)
}

// hear takes notifications until lib/pq's goroutine has ended, which closes them. After a new connection one is nil.
func (e *ear) hear(notifications <-chan *pq.Notification) {
	for n := range notifications {
		if n != nil && n.Channel == noticeChannel {
			e.watch.hear(e.now())
		} else {
			wake(e.wake)
		}
	}
}

// keep has the connection listen, and from then on sends notices where none come and asks for a sign of life. All of that may
// wait for an answer. That the connection broke is the listener's to find; one on which nothing can arrive is given up for another.
func (e *ear) keep(ctx context.Context, l *pq.Listener) {
	channels := []string{revocationChannel, noticeChannel}
	for {
		for len(channels) > 0 {
			if err := l.Listen(channels[0]); err != nil && !errors.Is(err, pq.ErrChannelAlreadyOpen) {
				if ctx.Err() == nil { // the server refuses, for now: a standby, say
					e.watch.refused(err)
					e.dialer.hangUp()
				}
				break
			}
			channels = channels[1:]
			wake(e.wake)
		}
		var again <-chan struct{}
		if len(channels) == 0 {
			again = e.again
			switch connected, deaf := e.watch.hears(e.now()); {
			case deaf:
				if !e.told {
					e.log.Warn("revocations do not arrive at once", "err", errDeaf)
				}
				e.told = true
				e.dialer.hangUp()
			case connected && e.watch.quiet(e.now()) && e.one(ctx, `SELECT pg_notify($1, '')`, []any{noticeChannel}) == nil:
				e.watch.sent(e.now())
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-time.After(watchPoll):
			if again != nil {
				_ = l.Ping()
			}
		}
	}
}

// orderReader reads the orders for one Watch: exactly those that became visible since it last looked, however long other
// transactions are open. Each statement stands for itself, so a pooler may give each to another connection.
type orderReader struct {
	*Postgres
	cut       func(order Revocation, sessions []string)
	spellings *lookups
	server    string // serverSQL
	last      string // a snapshot: what is visible in it was read, or is in spans
	spans     []span // the newest last
}

// span is the orders that became visible between two snapshots. They are read from the newest on, so that a new order waits
// for a page of those before it and not for all.
type span struct {
	since, until string
	// Those that are left come before this one.
	xid string
	id  int64
	// begun is whether a page was read.
	begun bool
}

func newSpan(since, until string) span {
	return span{since: since, until: until, xid: "18446744073709551615", id: math.MaxInt64}
}

// read applies the orders that became visible since the last time. It looks anew after each page that is not a span's last, so
// that what came meanwhile is next; what it has read stays read if it fails. An order that cannot be read does not stop the others.
func (r *orderReader) read(ctx context.Context) error {
	const op = "reading revocations"
	for {
		if err := r.look(ctx); err != nil {
			return unavailable(op, err)
		}
		for done := true; done; {
			n := len(r.spans)
			if n == 0 {
				return nil
			}
			var err error
			if done, err = r.readPage(ctx, &r.spans[n-1]); err != nil {
				return unavailable(op, err)
			}
			if done {
				r.spans = r.spans[:n-1]
			}
		}
		if err := context.Cause(ctx); err != nil {
			return unavailable(op, err)
		}
	}
}

// look notes what is visible by now as the next to read.
func (r *orderReader) look(ctx context.Context) error {
	var (
		now, last, server string
		fewer             bool
	)
	if err := r.one(ctx, snapshotSQL, []any{r.last}, &now, &last, &server, &fewer); err != nil {
		return err
	}
	switch n := len(r.spans); {
	case fewer || server != r.server: // another server may know other transactions by the same ids
		r.spans = []span{newSpan(nothing, everything)}
	case n > 0 && !r.spans[n-1].begun:
		if r.spans[n-1].until != everything {
			r.spans[n-1].until = now
		}
	case n == maxSpans:
		return nil // first what is there
	default:
		r.spans = append(r.spans, newSpan(r.last, now))
	}
	r.server, r.last = server, last
	return nil
}

// readPage applies the next page of a span, and reports whether it was the last.
func (r *orderReader) readPage(ctx context.Context, s *span) (done bool, err error) {
	size := ordersPage
	for {
		n, err := r.page(ctx, s, size)
		switch {
		case err != nil && !ofRow(err):
			return false, err
		case err != nil && size > 1:
			size /= 2 // one of them: the others come first
			continue
		case err != nil:
			next := *s
			nextErr := r.one(ctx, nextOrderSQL, []any{s.since, s.until, s.xid, s.id}, &next.xid, &next.id)
			if errors.Is(nextErr, errNoRow) { // it is gone, or the fault is not an order's
				return false, err
			}
			if nextErr != nil {
				return false, nextErr
			}
			r.tellUnreadable(next.id, err)
			next.begun = true
			*s = next
			return false, nil
		}
		return n < size, nil
	}
}

// ofRow reports whether an error is about what is in a row, as far as the database says.
func ofRow(err error) bool {
	pe, _ := errors.AsType[*pq.Error](err)
	return refusal(err) && pe.Code.Class() != "42" // syntax error or access rule violation
}

// page applies so many orders of a span at most, and returns how many there were.
func (r *orderReader) page(ctx context.Context, s *span, size int) (int, error) {
	type row struct {
		Revocation
		xid  string
		fits bool // its names are there
	}
	var page []row
	asked := r.now()
	err := r.each(ctx, ordersSQL, []any{s.since, s.until, s.xid, s.id, int64(size)}, func(rows *sql.Rows) error {
		var (
			o                                                        row
			age                                                      float64
			workspace, subject, session, instance, rowID, reason, by sql.NullString
		)
		err := rows.Scan(&o.xid, &o.ID, &o.CreatedAt, &age, &o.fits, &workspace, &subject, &session, &instance, &rowID, &reason, &by)
		o.Age = time.Duration(age * float64(time.Second))
		o.given = asked.Add(-o.Age)
		o.WorkspaceID, o.Subject, o.SessionID, o.InstanceID = workspace.String, subject.String, session.String, instance.String
		o.RowID, o.Reason, o.By = rowID.String, reason.String, by.String
		page = append(page, o)
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, o := range page {
		if o.fits {
			r.take(o.Revocation)
		} else {
			r.tellUnreadable(o.ID, fmt.Errorf("a name has more than %d bytes", maxName))
		}
		s.xid, s.id, s.begun = o.xid, o.ID, true
	}
	return len(page), nil
}

// take applies an order.
func (r *orderReader) take(o Revocation) {
	if sessions := r.sessions.apply(o); len(sessions) > 0 {
		r.cut(o, sessions)
	}
	if o.WorkspaceID != "" && o.RowID == "" && o.Age <= spelledFor {
		r.spellings.add(lookup{order: o.ID, workspace: o.WorkspaceID})
	}
}

func (r *orderReader) tellUnreadable(id int64, err error) {
	r.log.Error("a revocation cannot be read", "order", id, "err", err)
}

// listenDialer makes lib/pq's listener keep deadlines and end with the context: by itself it would wait for a silent peer
// as long as TCP does, and Close would wait for it.
type listenDialer struct {
	ctx     context.Context
	timeout time.Duration // of each host, until it has taken the connection

	mu   sync.Mutex
	last *listenSocket
}

func (d *listenDialer) DialContext(_ context.Context, network, address string) (net.Conn, error) {
	nd := net.Dialer{Timeout: d.timeout}
	nc, err := nd.DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = &listenSocket{Conn: nc, forget: context.AfterFunc(d.ctx, func() { _ = nc.Close() })}
	d.last.patience.Store(int64(d.timeout))
	return d.last, nil
}

// connected has the last socket wait as long as the listener's signs of life are apart.
func (d *listenDialer) connected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last.patience.Store(int64(watchStale))
	_ = d.last.SetReadDeadline(time.Now().Add(watchStale)) // of the read that waits; if it fails, that read fails too
}

// hangUp ends the connection, so that the listener makes another.
func (d *listenDialer) hangUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last != nil {
		_ = d.last.Conn.Close()
	}
}

// Dial and DialTimeout complete pq.Dialer; lib/pq prefers DialContext.
func (d *listenDialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(d.ctx, network, address)
}

func (d *listenDialer) DialTimeout(network, address string, _ time.Duration) (net.Conn, error) {
	return d.DialContext(d.ctx, network, address)
}

type listenSocket struct {
	net.Conn
	forget   func() bool
	patience atomic.Int64 // a time.Duration
}

// Read gives up when the host does not answer, later when the answers to several pings are missing.
func (s *listenSocket) Read(p []byte) (int, error) {
	if err := s.SetReadDeadline(time.Now().Add(time.Duration(s.patience.Load()))); err != nil {
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
