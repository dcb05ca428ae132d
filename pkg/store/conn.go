package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"
)

// connector makes lib/pq's connections keep deadlines.
//
// lib/pq obeys a context by dialling a second time to cancel the statement, and waits for the answer to the first: with
// a peer that is gone without a word (a cut cable, a dropped NAT entry) the call returns minutes later, when TCP gives
// up. Here the context's deadline is put on the socket instead, which also spares a goroutine for every statement.
type connector struct {
	cfg pq.Config
	// timeout bounds Connect by itself: when database/sql replaces a broken connection that others wait for, it does so in
	// its own goroutine, with a context that has no deadline.
	timeout time.Duration
}

func (c connector) Driver() driver.Driver { return &pq.Driver{} }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	connector, err := pq.NewConnectorConfig(c.cfg)
	if err != nil {
		return nil, err
	}
	d := &dialer{until: time.Now().Add(c.timeout)}
	if t, ok := ctx.Deadline(); ok && t.Before(d.until) {
		d.until = t
	}
	connector.Dialer(d)
	pc, err := connector.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return &conn{Conn: pc, socket: d.last, prepared: map[string]driver.StmtQueryContext{}}, nil
}

// dialer remembers the socket that lib/pq came to use. It serves one connection.
type dialer struct {
	until time.Time
	last  *socket
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	nd := net.Dialer{Deadline: d.until}
	nc, err := nd.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.last = &socket{Conn: nc}
	return d.last, d.last.expire(d.until)
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

// conn prepares each statement once and runs it with a single Bind, Execute, Sync from then on.
type conn struct {
	driver.Conn
	socket   *socket
	prepared map[string]driver.StmtQueryContext
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	until, _ := ctx.Deadline()
	if err := c.socket.expire(until); err != nil {
		return nil, driver.ErrBadConn
	}
	st := c.prepared[query]
	if st == nil {
		ps, err := c.Prepare(query)
		if err != nil {
			return nil, &prepareError{err}
		}
		st = ps.(driver.StmtQueryContext) //nolint:forcetypeassert // lib/pq's statements are
		c.prepared[query] = st
	}
	return st.QueryContext(context.WithoutCancel(ctx), args)
}

// deadlineOnly is a context that ends nothing by itself: its deadline is the socket's. For one that can end, database/sql
// starts a goroutine with each answer, whose wake-ups cost a tenth of a redemption's CPU time.
type deadlineOnly struct {
	context.Context
	at time.Time
}

func (d deadlineOnly) Deadline() (time.Time, bool) { return d.at, true }

func (c *conn) ResetSession(ctx context.Context) error {
	return c.Conn.(driver.SessionResetter).ResetSession(ctx) //nolint:forcetypeassert // lib/pq's connections are
}

func (c *conn) IsValid() bool {
	return c.Conn.(driver.Validator).IsValid() //nolint:forcetypeassert // lib/pq's connections are
}

// Close says goodbye, so that the server does not log a lost client, but not for long.
func (c *conn) Close() error {
	_ = c.socket.expire(time.Now().Add(time.Second))
	return c.Conn.Close()
}

// prepareError tells a statement that Postgres does not accept from a value that it does not accept: the SQLSTATE may be
// the same.
type prepareError struct{ err error }

func (e *prepareError) Error() string { return e.err.Error() }
func (e *prepareError) Unwrap() error { return e.err }

// parseURL reads a postgres:// URL or a key=value string. The parsers' own errors quote what they could not read, which
// may be the password or a part of it, so hardly any is passed on. It also returns the URL as it was read: without white
// space around it, for a secret that was made from a file ends in a newline.
func parseURL(given string) (url string, cfg pq.Config, err error) {
	if url = strings.TrimSpace(given); url == "" {
		return "", pq.Config{}, errors.New("database URL: it is empty")
	}
	cfg, err = pq.NewConfig(url)
	switch {
	case err != nil && strings.HasPrefix(err.Error(), "pq: wrong value for "):
		return "", pq.Config{}, fmt.Errorf("database URL: %s", strings.TrimPrefix(err.Error(), "pq: "))
	case err != nil, strings.ContainsRune(cfg.Database, '@'):
		return "", pq.Config{}, errors.New("database URL: not of the form postgres://user:password@host:5432/database?sslmode=verify-full " +
			"(percent-encode special characters in the password)")
	}
	if cfg.ApplicationName == "" {
		cfg.ApplicationName = "termgw"
	}
	return url, cfg, nil
}
