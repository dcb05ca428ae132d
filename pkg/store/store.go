// Package store knows where a workspace lives and what has happened to tickets and sessions: it spends tickets, looks a
// workspace up, counts sessions and tunnels against their limits, says which sessions an order cuts, and keeps the audit
// trail and the instances' host keys.
//
// There are two stores with the same semantics. Postgres is shared by all replicas: it reads the platform's workspaces
// by a query that the operator chooses and writes only its own schema, termgw. Memory lives and dies with one process.
//
// The package does not verify tickets (pkg/ticket does), does not start shells, and does not decide what a client is
// told: it returns one of five errors, and the router maps them. It starts no goroutine that outlives a call: what has to
// go on (Watch, Run, heartbeats, purges) is for the caller to start and join.
package store

import (
	"errors"
	"fmt"
	"time"
)

// Every error of Redeem is one of these, by errors.Is. When more than one applies, the order is the one below: a used
// ticket learns nothing else, and a revoked one does not learn whether the workspace exists.
var (
	// ErrUsed: the ticket was presented before, here or at another replica.
	ErrUsed = errors.New("ticket already used")
	// ErrRevoked: an order in termgw.revocations covers the ticket, which was issued no later than the order, or came while
	// the ticket was redeemed.
	ErrRevoked = errors.New("access revoked")
	// ErrNotFound: there is no such workspace, or the type of the id column refuses the id.
	ErrNotFound = errors.New("workspace not found")
	// ErrLimit: as many as are allowed are in use. It is always a *LimitError, which says of what.
	ErrLimit = errors.New("limit reached")
	// ErrUnavailable: the store could not answer. The text that follows it tells an operator why; it never holds the
	// password of the database. Unless that is a workspace query whose rows do not fit, or a session id that is not new,
	// the ticket is not spent as far as the store knows.
	ErrUnavailable = errors.New("store unavailable")
	// ErrSchema: an ErrUnavailable by a schema that lacks a migration of this program's.
	ErrSchema = errors.New("the schema is not up to date, run `termgw migrate`")
	// ErrQuery: an ErrUnavailable by the operator's own query, whatever the database holds.
	ErrQuery = errors.New("the workspace query is wrong")
)

// What a limit is on. The last is also the contract's `detail`.
const (
	LimitWorkspace = "workspace"
	LimitSubject   = "subject"
	LimitTunnels   = "eice_tunnels"
)

// LimitError is the ErrLimit that says which limit.
type LimitError struct {
	Of  string // LimitWorkspace, LimitSubject or LimitTunnels
	Max int
}

func (e *LimitError) Error() string { return fmt.Sprintf("%v: %s, %d in use", ErrLimit, e.Of, e.Max) }

// Is makes every LimitError an ErrLimit.
func (e *LimitError) Is(target error) bool { return target == ErrLimit }

// Limits bounds the live sessions, over all replicas; 0 is no limit. All replicas must be given the same.
type Limits struct {
	PerWorkspace, PerSubject int
}

func (l Limits) reached(of string) error {
	e := &LimitError{Of: of, Max: l.PerWorkspace}
	if of == LimitSubject {
		e.Max = l.PerSubject
	}
	return e
}

// Workspace is where a terminal leads: the columns of its row, by name. A column that is missing, null or empty is not in
// Attributes. Kinds of place give the columns their meaning; the store knows instance_id, by which orders name a workspace.
type Workspace struct {
	ID         string
	Attributes map[string]string
}

// Kind is a kind of place by its rows: those that have something in the column, or all if it is empty. The first that takes a row
// has it; the audit trail notes its name.
type Kind struct{ Name, Column string }

// Session is what the gateway knows of a session besides its ticket. ID must be new for every call of Redeem.
type Session struct {
	ID         string
	Replica    string
	ClientAddr string
	Holder     Holder
}

// Holder is how other replicas pass a connection on to the one that holds a session. The zero value: they do not.
type Holder struct {
	URL string // http(s)://host:port
	Key string // by which a replica proves to the holder that it is one

	Silent time.Duration // since the holder's last heartbeat; only HolderOf's
}

// ReasonLost is the End.Reason of a session whose gateway is gone: nobody knows how it ended. It is not a code of the wire
// contract, and gives way to the true end if that comes after all.
const ReasonLost = "replica_lost"

// End is how a session ended: Reason is the `code` of the wire contract or ReasonLost, ExitCode is nil when no shell has ended, the
// byte counts are from (in) and to (out) the client.
type End struct {
	Reason            string
	ExitCode          *int
	BytesIn, BytesOut int64
	// Trail is recorded unless it is empty, as Trace does.
	Trail map[string]string
	// Waits: the session's last output waits for its person, until Settle. It can be resumed, and is no live session.
	Waits bool
}
