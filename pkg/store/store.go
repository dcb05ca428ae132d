// Package store knows where a workspace lives and what has happened to tickets and sessions: it spends tickets, looks a
// workspace up, honours revocations and keeps the audit trail.
//
// There are two stores with the same semantics. Postgres is shared by all replicas: it reads the platform's workspaces
// by a query that the operator chooses and writes only its own schema, termgw. Memory lives and dies with one process.
//
// The package does not verify tickets (pkg/ticket does), does not start shells, and does not decide what a client is
// told: it returns one of four errors, and the router maps them.
package store

import "errors"

// Every error of Redeem is one of these, by errors.Is. When more than one applies, the order is the one below: a used
// ticket learns nothing else, and a revoked one does not learn whether the workspace exists.
var (
	// ErrUsed: the ticket was presented before, here or at another replica.
	ErrUsed = errors.New("ticket already used")
	// ErrRevoked: an order in termgw.revocations covers the ticket, which was issued no later than the order.
	ErrRevoked = errors.New("access revoked")
	// ErrNotFound: there is no such workspace, or the type of the id column refuses the id.
	ErrNotFound = errors.New("workspace not found")
	// ErrUnavailable: the store could not answer. The text that follows it tells an operator why; it never holds the
	// password of the database. Unless that is a workspace query whose rows do not fit, or a session id that is not new,
	// the ticket is not spent as far as the store knows.
	ErrUnavailable = errors.New("store unavailable")
)

// Workspace is where a terminal leads. An empty InstanceID means a local container; the other fields but ID may be
// empty, and then the gateway's own defaults hold.
type Workspace struct {
	ID, Name, InstanceID, Container, Region, OSUser, HostKey, RemoteTarget string
}

// Session is what the gateway knows of a session besides its ticket. ID must be new for every call of Redeem.
type Session struct {
	ID         string
	Replica    string
	ClientAddr string
}

// End is how a session ended: Reason is the `code` of the wire contract, ExitCode is nil when no shell has ended, the
// byte counts are from (in) and to (out) the client.
type End struct {
	Reason            string
	ExitCode          *int
	BytesIn, BytesOut int64
}
