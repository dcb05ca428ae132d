package store

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// connector makes lib/pq's connections keep deadlines.
//
// lib/pq obeys a context by dialling a second time to cancel the statement, and waits for the answer to the first: with
// a peer that is gone without a word (a cut cable, a dropped NAT entry) the call returns minutes later, when TCP gives
// up. Here the context's deadline is put on the socket instead, which also spares a goroutine for every statement.
type connector struct {
	from  source
	ours  map[string]string // what a session is to have set besides what the URL states
	bare  atomic.Bool       // a pooler refuses that
	query string            // the operator's
	// timeout bounds Connect by itself: when database/sql replaces a broken connection that others wait for, it does so in
	// its own goroutine, with a context that has no deadline.
	timeout time.Duration
	// retired counts how often every connection was given up: older ones than the count are not used again.
	retired atomic.Int64
}

func newConnector(from source, ours map[string]string, query string, timeout time.Duration) *connector {
	return &connector{from: from, ours: ours, query: query, timeout: timeout}
}

func (c *connector) Driver() driver.Driver { return &pq.Driver{} }

// Connect makes a connection. PgBouncer refuses what a client sets, unless it is told to ignore it: then nothing is set.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	bare := c.bare.Load()
	conn, err := c.connect(ctx, bare)
	if !bare && isState(err, "08P01") && strings.Contains(err.Error(), "startup parameter") {
		c.bare.Store(true)
		return c.connect(ctx, true)
	}
	return conn, err
}

func (c *connector) connect(ctx context.Context, bare bool) (driver.Conn, error) {
	reading, cancel := context.WithTimeout(ctx, c.timeout)
	_, cfg, err := c.from.read(reading)
	cancel()
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	named := !cfg.BinaryParameters // statements may be kept on the server, by name
	cfg.BinaryParameters = true    // one round trip, and so one server of a pooler's, for a statement without a name
	if !bare {
		runtime := maps.Clone(c.ours)
		maps.Copy(runtime, cfg.Runtime) // what the URL states, wins
		cfg.Runtime = runtime
	}
	connector, err := pq.NewConnectorConfig(cfg)
	if err != nil {
		return nil, err
	}
	d := &dialer{until: time.Now().Add(c.timeout), hosts: 1 + len(cfg.Multi)}
	if t, ok := ctx.Deadline(); ok && t.Before(d.until) {
		d.until = t
	}
	connector.Dialer(d)
	retired := c.retired.Load()
	pc, err := connector.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	conn := &conn{Conn: pc, socket: d.last, of: c, retired: retired}
	if pooled, err := isPooled(ctx, pc); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting: %w", err), conn.Close())
	} else if named && !pooled {
		conn.prepared = map[string]statement{}
	}
	return conn, nil
}

// isPooled reports whether a pooler is in between: the server's process is another than the greeting has told, which lib/pq
// keeps for cancelling. In transaction mode such a pooler gives each statement to any of its connections, on which a name may
// be unknown, or stand for another client's statement. If lib/pq should call the field otherwise, every connection counts as pooled.
func isPooled(ctx context.Context, pc driver.Conn) (bool, error) {
	rows, err := pc.(driver.QueryerContext).QueryContext(context.WithoutCancel(ctx), "SELECT pg_backend_pid()", nil) //nolint:forcetypeassert // lib/pq's connections are
	if err != nil {
		return false, err
	}
	pid := make([]driver.Value, 1)
	if err := errors.Join(rows.Next(pid), rows.Close()); err != nil {
		return false, err
	}
	told := reflect.Indirect(reflect.ValueOf(pc)).FieldByName("pid")
	return !told.CanInt() || pid[0] != told.Int(), nil
}

// dialer remembers the socket that lib/pq came to use. It serves one connection. Each of several hosts has its share of
// the time that is left, so that one that hangs does not use up that of the next.
type dialer struct {
	until time.Time
	hosts int // that are left
	last  *socket
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	now := time.Now()
	until := now.Add(d.until.Sub(now) / time.Duration(d.hosts))
	d.hosts = max(1, d.hosts-1)
	nd := net.Dialer{Deadline: until}
	nc, err := nd.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.last = &socket{Conn: nc}
	return d.last, d.last.expire(until)
}

// Dial and DialTimeout complete pq.Dialer; lib/pq prefers DialContext.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d *dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

type socket struct {
	net.Conn
	until time.Time
}

func (s *socket) expire(t time.Time) error {
	s.until = t
	return s.Conn.SetDeadline(t)
}

// SetDeadline is called by lib/pq for connect_timeout, and with zero once connected: it must not lift the call's own.
func (s *socket) SetDeadline(t time.Time) error {
	if t.IsZero() || !s.until.IsZero() && s.until.Before(t) {
		t = s.until
	}
	return s.Conn.SetDeadline(t)
}

// Read tells a reset like an end: lib/pq turns only the latter into driver.ErrBadConn, upon which database/sql tries
// again with another connection. That is safe because every statement here may be repeated.
func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// conn prepares each statement once and runs it with a single Bind, Execute, Sync from then on, or, behind a pooler, with
// the Parse before them.
type conn struct {
	driver.Conn
	socket   *socket
	of       *connector
	retired  int64                // of the connector's when it was opened
	prepared map[string]statement // nil: a statement has no name
	checked  bool                 // the operator's query, by itself
}

type statement interface {
	driver.Stmt
	driver.StmtQueryContext
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	until, _ := ctx.Deadline()
	if err := c.socket.expire(until); err != nil {
		return nil, driver.ErrBadConn
	}
	ctx = context.WithoutCancel(ctx)
	if !c.checked && strings.Contains(query, c.of.query) {
		if err := c.check(ctx); err != nil {
			return nil, err
		}
		c.checked = true
	}
	rows, err := c.run(ctx, query, args)
	switch st := c.prepared[query]; {
	case st != nil && (isState(err, "0A000") || isState(err, "26000")):
		// Prepared for a table that was altered since, or the server has forgotten it. Nothing has run.
		delete(c.prepared, query)
		_ = st.Close()
		return c.run(ctx, query, args)
	case isState(err, "25006"): // a standby, and so are the others: the next connection finds who took over
		c.of.retired.Add(1)
	}
	return rows, err
}

func (c *conn) run(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.prepared == nil {
		return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args) //nolint:forcetypeassert // lib/pq's connections are
	}
	st := c.prepared[query]
	if st == nil {
		ps, err := c.Prepare(query)
		if err != nil {
			return nil, err
		}
		st = ps.(statement) //nolint:forcetypeassert // lib/pq's statements are
		c.prepared[query] = st
	}
	return st.QueryContext(ctx, args)
}

// check has the server read the operator's query by itself: what is one statement with one parameter there, closed and
// without a second one, is one part of ours too. Nothing is run.
func (c *conn) check(ctx context.Context) error {
	rows, err := c.Conn.(driver.QueryerContext).QueryContext(ctx, "EXPLAIN (ANALYZE false)\n"+c.of.query, []driver.NamedValue{{Ordinal: 1}}) //nolint:forcetypeassert // lib/pq's connections are
	if isState(err, "08P01") || isState(err, "42P18") {                                                                                      // another number of them, or $10 and no $2
		return fmt.Errorf("%w: its one parameter is $1, the workspace's id: %w", ErrQuery, err)
	}
	if err != nil {
		return err
	}
	return rows.Close()
}

func isState(err error, code pqerror.Code) bool {
	pe, ok := errors.AsType[*pq.Error](err)
	return ok && pe.Code == code
}

// deadlineOnly is a context that ends nothing by itself: its deadline is the socket's. For one that can end, database/sql
// starts a goroutine with each answer, whose wake-ups cost a tenth of a redemption's CPU time.
type deadlineOnly struct {
	context.Context
	at time.Time
}

func (d deadlineOnly) Deadline() (time.Time, bool) { return d.at, true }

// ResetSession and IsValid take a connection out of the pool that was given up.
func (c *conn) ResetSession(ctx context.Context) error {
	if !c.IsValid() {
		return driver.ErrBadConn
	}
	return c.Conn.(driver.SessionResetter).ResetSession(ctx) //nolint:forcetypeassert // lib/pq's connections are
}

// IsValid is asked when a statement is over.
func (c *conn) IsValid() bool {
	return c.retired == c.of.retired.Load() && c.Conn.(driver.Validator).IsValid() //nolint:forcetypeassert // lib/pq's connections are
}

// Close says goodbye, so that the server does not log a lost client, but not for long.
func (c *conn) Close() error {
	_ = c.socket.expire(time.Now().Add(time.Second))
	return c.Conn.Close()
}

// parseURL reads a postgres:// URL or a key=value string. The parsers' own errors quote what they could not read, which
// may be the password or a part of it, so hardly any is passed on. It also returns the URL as it was read: without white
// space around it, for a secret that was made from a file ends in a newline, and with several hosts as lib/pq takes them.
func parseURL(given string) (dsn string, cfg pq.Config, err error) {
	if dsn = strings.TrimSpace(given); dsn == "" {
		return "", pq.Config{}, errors.New("database URL: it is empty")
	}
	if dsn, err = spellHosts(dsn); err == nil {
		cfg, err = pq.NewConfig(dsn)
	}
	switch {
	case err != nil && strings.HasPrefix(err.Error(), "pq: wrong value for "):
		return "", pq.Config{}, fmt.Errorf("database URL: %s", strings.TrimPrefix(err.Error(), "pq: "))
	case err != nil, strings.ContainsRune(cfg.Database, '@'):
		return "", pq.Config{}, errors.New("database URL: not of the form postgres://user:password@host:5432/database?sslmode=verify-full " +
			"(several hosts: host1:5432,host2:5432; percent-encode special characters in the password)")
	}
	if cfg.ApplicationName == "" {
		cfg.ApplicationName = "termgw"
	}
	return dsn, cfg, nil
}

// spellHosts writes the hosts of a URL as psql takes it, h1:5432,h2:5433 or a socket's %2Fpath, as the parameters host and
// port, which net/url does not refuse.
func spellHosts(dsn string) (string, error) {
	scheme, rest, ok := strings.Cut(dsn, "://")
	if !ok || scheme != "postgres" && scheme != "postgresql" {
		return dsn, nil
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	at := strings.LastIndexByte(rest[:end], '@') + 1
	if !strings.ContainsAny(rest[at:end], ",%") {
		return dsn, nil
	}
	var hosts, ports []string
	for authority := range strings.SplitSeq(rest[at:end], ",") {
		host, port := authority, "5432"
		if i := strings.LastIndexByte(authority, ':'); i > strings.LastIndexByte(authority, ']') {
			host, port = authority[:i], cmp.Or(authority[i+1:], port)
		}
		host, err := url.PathUnescape(strings.Trim(host, "[]"))
		_, portErr := strconv.ParseUint(port, 10, 16)
		if err := errors.Join(err, portErr); err != nil {
			return "", err
		}
		hosts, ports = append(hosts, host), append(ports, port)
	}
	u, err := url.Parse(scheme + "://" + rest[:at] + rest[end:])
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Set("host", strings.Join(hosts, ","))
	q.Set("port", strings.Join(ports, ","))
	u.RawQuery = q.Encode()
	return u.String(), nil
}
