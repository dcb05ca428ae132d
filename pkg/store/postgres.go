package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/lib/pq"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// PostgresConfig tells where the database is and what to ask it.
type PostgresConfig struct {
	// URL is a postgres:// URL or a key=value string; state sslmode in it (lib/pq's own default is require, which
	// encrypts but checks no certificate).
	// An option aws_iam=true of a postgres:// URL has Token give the password, for the region aws_region.
	URL string
	// URLFile is a file with the URL, instead of URL. It is read anew for each connection.
	URLFile string
	// Token gives passwords for aws_iam. Nil: such a URL is refused.
	Token Token
	// WorkspaceQuery reads the row of the workspace whose id is $1: the columns instance_id and name, and optionally id,
	// container, region, os_user, host_key, remote_target, role_arn, endpoint_id and source_identity. NULL is read as empty. The id is the row's own, whatever
	// spelling of it $1 is, and the query must find the row by it. Default: DefaultWorkspaceQuery.
	WorkspaceQuery string
	// Kinds are the kinds of place, for the audit trail. Their order counts.
	Kinds []Kind
	// Timeout bounds every call, from the wait for a connection to the answer. Default: 5 s.
	Timeout time.Duration
	// MaxConns bounds the pool; Watch has one connection more. Default: 10.
	MaxConns int
	// Retention is how long sessions, from their start on, and revocations are kept. 0: for ever.
	Retention time.Duration
	// Limits bounds the live sessions over all replicas.
	Limits Limits
	// DeadAfter is how long a replica may be silent before its sessions and tunnels stop counting. Default:
	// DefaultDeadAfter.
	DeadAfter time.Duration
	// Now is the clock, used for durations, and to delete nothing of what it says is not old yet. Default: time.Now.
	Now func() time.Time
	// Logger is told of orders that Watch cannot read or compare, and of a workspace query without an id. Default: none is told.
	Logger *slog.Logger
}

const (
	// connLifetime replaces connections now and then: after a fail-over or a changed workspaces table, one that still
	// answers may answer from the past.
	connLifetime = 10 * time.Minute
	// connIdle gives connections back that only a burst has needed: a heartbeat keeps one.
	connIdle = 30 * time.Second
	// spentMargin is kept beyond a ticket's end: the leeway of verification, and clocks that differ.
	spentMargin = 10 * time.Minute
	purgeBatch  = 5000
)

// Postgres is the store that replicas share. It is safe for concurrent use.
//
// A call's deadline is PostgresConfig.Timeout, or the context's if that is sooner. That a context is cancelled does not
// cut short a call that was begun: a redemption whose outcome nobody hears would leave a session that never ends in the
// audit trail.
type Postgres struct {
	db           *sql.DB
	conns        chan struct{} // one for each of the pool's that is in use
	waits        waits         // for one of them
	from         source
	timeout      time.Duration
	limits       Limits
	retention    time.Duration
	kinds        string // in JSON, for kindSQL
	now          func() time.Time
	redeem, ping string
	lookup       string
	rowID        string
	log          *slog.Logger
	noID         sync.Once // the warning
	migrated     atomic.Bool

	sessions *registry
	outbox   *outbox
	leases   leases
	process  string     // this one, in termgw.heartbeats
	beating  sync.Mutex // one heartbeat at a time
	beaten   string     // serverSQL of the last heartbeat
	steady   steadiness
	watch    watchHealth
	poll     time.Duration // watchPoll; tests that want to be notified wait longer
}

// OpenPostgres checks the configuration and returns a store. It does not connect: the database may come up later, and
// may go and come back at any time.
func OpenPostgres(c PostgresConfig) (*Postgres, error) {
	if c.WorkspaceQuery == "" {
		c.WorkspaceQuery = DefaultWorkspaceQuery
	}
	if c.Timeout <= 0 {
		c.Timeout = 5 * time.Second
	}
	if c.MaxConns <= 0 {
		c.MaxConns = 10
	}
	if c.DeadAfter <= 0 {
		c.DeadAfter = DefaultDeadAfter
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	_, _, urlErr := c.source().parse()
	query, queryErr := workspaceQuery(c.WorkspaceQuery)
	if queryErr != nil {
		queryErr = fmt.Errorf("workspace query: %w", queryErr)
	}
	if err := errors.Join(urlErr, queryErr); err != nil {
		return nil, err
	}
	ours := map[string]string{
		// A little sooner than the socket's deadline: the server's refusal is certain, a silent socket is not.
		"statement_timeout":             strconv.FormatInt(max(1, (c.Timeout*9/10).Milliseconds()), 10),
		"default_transaction_isolation": "read committed",
	}
	operators := fmt.Sprintf(operatorsSQL, query)

	db := sql.OpenDB(newConnector(c.source(), ours, query, c.Timeout))
	db.SetMaxOpenConns(c.MaxConns)
	db.SetMaxIdleConns(c.MaxConns)
	db.SetConnMaxIdleTime(connIdle)
	db.SetConnMaxLifetime(connLifetime)
	kinds, err := json.Marshal(append([]Kind{}, c.Kinds...))
	if err != nil {
		return nil, err
	}
	return &Postgres{
		db:        db,
		conns:     make(chan struct{}, c.MaxConns),
		from:      c.source(),
		timeout:   c.Timeout,
		limits:    c.Limits,
		retention: c.Retention,
		kinds:     string(kinds),
		now:       c.Now,
		redeem:    operators + fmt.Sprintf(redeemSQL, foundSQL, true),
		ping:      operators + fmt.Sprintf(redeemSQL, probeSQL, false),
		lookup:    operators + lookupSQL,
		rowID:     operators + rowIDSQL,
		log:       c.Logger,
		sessions:  newRegistry(),
		outbox:    newOutbox(),
		process:   rand.Text(),
		leases:    leases{held: map[string]struct{}{}},
		steady:    steadiness{deadAfter: c.DeadAfter, sure: c.Now().Add(-outageAtStart)},
		watch:     watchHealth{since: c.Now()},
		poll:      watchPoll,
	}, nil
}

// Redeem spends the ticket, looks its workspace up, honours revocations and limits and writes the session's row, all in one
// statement. From then on Watch may tell to cut the session: the caller must be ready for that before it calls, and owes a
// Finish if and only if there is no error. It fails closed: without an error, and only then, the ticket was good for this one call and the row is there.
// The ticket is spent also when the answer is ErrRevoked, ErrNotFound or ErrLimit; an id that the column's type refuses fails the
// whole statement, so a ticket for it is not spent, and opens nothing the next time either.
func (p *Postgres) Redeem(ctx context.Context, claims ticket.Claims, s Session) (Workspace, error) {
	const op = "redeeming a ticket"
	if err := ctx.Err(); err != nil {
		return Workspace{}, fmt.Errorf("%s: %w: %w", op, ErrUnavailable, err)
	}
	if n := p.outbox.size(); n >= maxUnwritten {
		return Workspace{}, fmt.Errorf("%s: %w: the ends of %d sessions could not be recorded", op, ErrUnavailable, n)
	}
	if strings.ContainsRune(claims.WorkspaceID, 0) || !utf8.ValidString(claims.WorkspaceID) {
		return Workspace{}, fmt.Errorf("%s: %w: the id is not text", op, ErrNotFound)
	}
	var (
		w                                           Workspace
		rows                                        int64
		spent, complete, fits, revoked, opened      bool
		over                                        string
		started                                     time.Time
		id, attempt                                 = claims.WorkspaceID, rand.Text()
		silence, server                             = p.steady.silence(p.now())
		issuer, jti, subject, session, replica, src = text(claims.Issuer), text(claims.ID), text(claims.Subject),
			text(s.ID), text(s.Replica), text(s.ClientAddr)
	)
	e := p.sessions.begin(claims, s, p.now())
	defer p.sessions.drop(e)
	err := p.one(ctx, p.redeem, []any{
		id, issuer, jti, attempt, claims.Expires, id, claims.IssuedAt, subject, session, string(claims.Mode), replica, src,
		int64(p.limits.PerWorkspace), int64(p.limits.PerSubject), silence, server, p.kinds, text(s.Holder.URL), text(s.Holder.Key),
	}, &complete, new(any), &spent, &rows, &fits, &revoked, &over, &opened, &started,
		&w.ID, attributes{&w})
	switch {
	case err != nil && refusesID(err):
		return Workspace{}, fmt.Errorf("%s: %w: %w", op, ErrNotFound, err)
	case err != nil:
		return Workspace{}, unavailable(op, err)
	case !spent:
		return Workspace{}, fmt.Errorf("%s: %w", op, ErrUsed)
	case revoked:
		return Workspace{}, fmt.Errorf("%s: %w", op, ErrRevoked)
	case rows == 0:
		return Workspace{}, fmt.Errorf("%s: %w", op, ErrNotFound)
	case rows > 1:
		return Workspace{}, fmt.Errorf("%s: %w: the workspace query returned more than one row for one id", op, ErrUnavailable)
	case !complete:
		return Workspace{}, fmt.Errorf("%s: %w: %w: %s", op, ErrUnavailable, ErrQuery, lacksColumns)
	case !fits:
		return Workspace{}, fmt.Errorf("%s: %w: a value in the workspace's row is too long: the id has 256 bytes at most, any other 16384", op, ErrUnavailable)
	case over != "":
		return Workspace{}, fmt.Errorf("%s: %w", op, p.limits.reached(over))
	case !opened:
		return Workspace{}, fmt.Errorf("%s: %w: another session has the same id", op, ErrUnavailable)
	}
	e.place(w)
	if !p.sessions.open(e, started) {
		_ = p.Finish(ctx, s.ID, End{Reason: "revoked"}) // written, or kept: the session is of this process
		return Workspace{}, fmt.Errorf("%s: %w: while the ticket was redeemed", op, ErrRevoked)
	}
	return w, nil
}

const (
	takesNoWrites = "the database takes no writes: it is a standby, or set to be read-only"
	lacksColumns  = "it must return columns named instance_id and name"
)

// Ping tells whether a ticket could be redeemed now, by the statement that redeems: the database answers and takes writes,
// the schema is there, the gateway's role has the rights, and the workspace query is one that Postgres accepts and has the
// columns that it must have. It spends nothing and runs nothing of the operator's. An ErrQuery is for good.
func (p *Postgres) Ping(ctx context.Context) error {
	const op = "asking the database"
	var complete, identified bool
	err := p.query(ctx, p.ping, []any{
		nil, "", "", "",
		time.Time{},
		"",
		time.Time{},
		"", "", "", "", "",
		int64(p.limits.PerWorkspace), int64(p.limits.PerSubject), 0.0, "", "[]", "", "",
	}, func(rows *sql.Rows) error {
		columns, err := rows.Columns()
		if err != nil {
			return err
		}
		into := make([]any, len(columns))
		for i := range into {
			into[i] = new(any)
		}
		into[0], into[1] = &complete, &identified
		return scanOne(rows, into)
	})
	switch {
	case err != nil:
		p.migrated.Store(false) // another database may be there
		return unavailable(op, err)
	case !complete:
		return fmt.Errorf("%s: %w: %w: %s", op, ErrUnavailable, ErrQuery, lacksColumns)
	case !identified:
		p.noID.Do(func() {
			p.log.Warn("the workspace query returns no id",
				"effect", "several spellings of an id may count as several workspaces", "fix", "add `id::text AS id` to its columns")
		})
	}
	return p.checkSchema(ctx, op)
}

// Purge deletes what nobody needs any more: spent tickets some minutes after their end, sessions and revocations after
// Retention, the tunnels and heartbeats of replicas that are gone after a day. Any replica may call it at any time; it does nothing while another is at it.
func (p *Postgres) Purge(ctx context.Context) error {
	for {
		var most int64
		err := p.one(ctx, purgeSQL, []any{
			spentMargin.Seconds(), p.retention.Seconds(), int64(purgeBatch), forgotten.Seconds(), p.now(),
		}, &most)
		if err != nil {
			return unavailable("purging old rows", err)
		}
		if most < purgeBatch {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("purging old rows: %w", err)
		}
	}
}

// Close ends all connections once what runs on them is done.
func (p *Postgres) Close() error {
	return p.db.Close()
}

// one runs a statement and, if there is anything to scan into, reads its only row.
func (p *Postgres) one(ctx context.Context, query string, args []any, into ...any) error {
	return p.query(ctx, query, args, func(rows *sql.Rows) error { return scanOne(rows, into) })
}

func scanOne(rows *sql.Rows, into []any) error {
	if len(into) == 0 {
		return nil
	}
	if rows.Next() {
		return rows.Scan(into...)
	}
	if rows.Err() == nil {
		return errNoRow
	}
	return nil // what it is, query tells
}

// query runs a statement, and has what it needs of its rows read.
func (p *Postgres) query(ctx context.Context, query string, args []any, read func(*sql.Rows) error) error {
	deadline := time.Now().Add(p.timeout)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	ctx = context.WithoutCancel(ctx)
	if err := p.acquire(ctx, deadline); err != nil {
		return err
	}
	defer p.release()
	rows, err := p.db.QueryContext(deadlineOnly{ctx, deadline}, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // what it could tell, rows.Err has told
	if err := read(rows); err != nil {
		return err
	}
	// To the end: only then is it certain that the statement has been committed.
	for rows.Next() {
	}
	return rows.Err()
}

// acquire waits for one of the pool's connections, for which database/sql itself would wait without an end here.
func (p *Postgres) acquire(ctx context.Context, until time.Time) error {
	select {
	case p.conns <- struct{}{}:
		return nil
	default:
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	defer p.waits.began()()
	select {
	case p.conns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("all %d connections are in use: %w", cap(p.conns), context.Cause(ctx))
	}
}

func (p *Postgres) release() { <-p.conns }

// each runs a statement and has every row scanned.
func (p *Postgres) each(ctx context.Context, query string, args []any, scan func(*sql.Rows) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if err := p.acquire(ctx, time.Now().Add(p.timeout)); err != nil {
		return err
	}
	defer p.release()
	rows, err := p.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // what it could tell, rows.Err has told
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// text makes a string that Postgres takes as text: no zero byte, valid UTF-8. Two tickets whose ids differ only in what is
// replaced count as one, and the second is refused.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// refusesID tells whether err says that a parameter's value does not fit its type: of all parameters, only the workspace's
// id has a type that is not ours to choose.
func refusesID(err error) bool {
	pe, ok := errors.AsType[*pq.Error](err)
	if !ok || ofText(pe) {
		return false
	}
	switch pe.Code {
	case "22P02", // invalid text representation: uuid, integer, enum
		"22003", // numeric value out of range
		"22007", // invalid datetime format
		"22008", // datetime field overflow
		"22021": // character not in the database's encoding
		return true
	}
	return false
}

// ofText tells a statement that Postgres does not accept from a value that it does not accept: the SQLSTATE may be the same,
// but only what is in the text has a place there.
func ofText(pe *pq.Error) bool { return pe.Position != "" || pe.Code.Class() == "42" }

// refusal reports whether err is the database's answer to a statement, and would be its answer the next time too: the
// statement or the data are to blame, and not the connection, the server's state or the time.
func refusal(err error) bool {
	pe, ok := errors.AsType[*pq.Error](err)
	if !ok {
		return false
	}
	switch pe.Code.Class() { // PostgreSQL manual, appendix A
	case "08", "25", "40", "53", "55", "57", "58":
		return false
	}
	return true
}

// unavailable wraps a cause so that an operator knows what to do; nil stays nil.
func unavailable(op string, err error) error {
	if err == nil {
		return nil
	}
	pe, _ := errors.AsType[*pq.Error](err)
	switch {
	case pe != nil && pe.Code == "42P01" && strings.Contains(pe.Message, `"termgw.`):
		return fmt.Errorf("%s: %w: the schema is missing or old, run `termgw migrate`: %w", op, ErrUnavailable, err)
	case pe != nil && pe.Code == "42703" && (strings.Contains(pe.Message, `of relation "`) || strings.Contains(pe.Message, "row_id") || strings.Contains(pe.Message, "sessions.kind") || strings.Contains(pe.Message, "sessions.trail") || strings.Contains(pe.Message, "sessions.waiting") || strings.Contains(pe.Message, "sessions.holder_url") || strings.Contains(pe.Message, "sessions.unreached_at") || strings.Contains(pe.Message, "tunnels.wanted_at")),
		pe != nil && pe.Code == "42883" && strings.Contains(pe.Message, "function termgw."):
		return fmt.Errorf("%s: %w: the schema is old, run `termgw migrate`: %w", op, ErrUnavailable, err)
	case pe != nil && pe.Code == "25006":
		return fmt.Errorf("%s: %w: %s: %w", op, ErrUnavailable, takesNoWrites, err)
	case pe != nil && pe.Code == "42501":
		return fmt.Errorf("%s: %w: the database role lacks a right: %w", op, ErrUnavailable, err)
	case pe != nil && (pe.Code == "42601" || pe.Code == "0A000"):
		return fmt.Errorf("%s: %w: %w: Postgres does not accept the workspace query: %w", op, ErrUnavailable, ErrQuery, err)
	case pe != nil && ofText(pe):
		return fmt.Errorf("%s: %w: Postgres does not accept the workspace query: %w", op, ErrUnavailable, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w: no answer in time: %w", op, ErrUnavailable, err)
	case errors.Is(err, driver.ErrBadConn):
		return fmt.Errorf("%s: %w: the database closed the connection: %w", op, ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w: %w", op, ErrUnavailable, err)
}
