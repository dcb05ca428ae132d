package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"
)

// Revocation is an order to cut every session that matches all of its fields that are not empty, and to refuse tickets
// for such sessions that were issued no later than CreatedAt: by whole seconds of the platform's clock, without leeway.
type Revocation struct {
	ID        int64     // given by the store
	CreatedAt time.Time // likewise
	// Age is how old the order was when Watch read it, by the clock of CreatedAt, which need not be this machine's.
	Age time.Duration
	// given is when the order was given by this process's clock, or a little earlier.
	given time.Time

	// WorkspaceID is a workspace's id as its row has it, or in another spelling by which the row is found.
	WorkspaceID, Subject, SessionID, InstanceID string
	// RowID is the id of the workspace's row where WorkspaceID is another spelling of it. The store finds it.
	RowID string

	Reason string // why, for the record
	By     string // who gave it, for the record
}

// The greatest lengths in an order, in bytes, as in 0004_bounds.sql. A longer name matches nobody.
const (
	maxName = 256
	maxNote = 4096
)

var errNamesNothing = errors.New("a revocation must name a workspace, subject, session or instance")

// names reports whether the order names a session: by its workspace's own id, or by the spelling that the ticket had.
func (r Revocation) names(s Record, presented string) bool {
	matches := func(order, is string) bool { return order == "" || order == is }
	return (matches(r.WorkspaceID, s.WorkspaceID) || r.WorkspaceID == presented || r.RowID != "" && r.RowID == s.WorkspaceID) &&
		matches(r.Subject, s.Subject) && matches(r.SessionID, s.ID) && matches(r.InstanceID, s.InstanceID)
}

func (r Revocation) check() error {
	if r.WorkspaceID == "" && r.Subject == "" && r.SessionID == "" && r.InstanceID == "" {
		return errNamesNothing
	}
	for _, name := range []string{r.WorkspaceID, r.Subject, r.SessionID, r.InstanceID} {
		if len(text(name)) > maxName {
			return fmt.Errorf("a name in a revocation has %d bytes, and %d at most: %.40q…", len(text(name)), maxName, name)
		}
	}
	for _, note := range []string{r.Reason, r.By} {
		if len(text(note)) > maxNote {
			return fmt.Errorf("the reason for a revocation, or who gave it, has %d bytes, and %d at most: %.40q…", len(text(note)), maxNote, note)
		}
	}
	return nil
}

const revokeSQL = `INSERT INTO termgw.revocations (workspace_id, subject, session_id, instance_id, reason, revoked_by)
VALUES (NULLIF($1::text, ''), NULLIF($2::text, ''), NULLIF($3::text, ''), NULLIF($4::text, ''), NULLIF($5::text, ''), NULLIF($6::text, ''))
RETURNING id, created_at`

// A server that has taken over may give an id a second time.
const setRowIDSQL = `UPDATE termgw.revocations SET row_id = $2 WHERE id = $1 AND workspace_id = $3 AND row_id IS DISTINCT FROM $2`

const coveredSQL = `SELECT ARRAY(
  SELECT s.id FROM termgw.sessions s
  WHERE s.ended_at IS NULL AND ` + lastSignSQL + ` > now() - make_interval(secs => $1)
    AND ($2 = '' OR s.workspace_id IN ($2, $3)) AND ($4 = '' OR s.subject = $4)
    AND ($5 = '' OR s.id = $5) AND ($6 = '' OR s.instance_id = $6)
  ORDER BY s.id)`

// Revoke writes an order and returns it as written, with the sessions, on all replicas, that are live and match. They are
// cut by whoever runs Watch there; Live says which of them are not cut yet. With an order that is written (its ID is not 0)
// an error says that the sessions could not be listed. A call whose answer was lost may have written the order twice, which
// does no harm.
func (p *Postgres) Revoke(ctx context.Context, r Revocation) (Revocation, []string, error) {
	const op = "revoking"
	if err := r.check(); err != nil {
		return Revocation{}, nil, fmt.Errorf("%s: %w", op, err)
	}
	err := p.one(ctx, revokeSQL, []any{
		text(r.WorkspaceID), text(r.Subject), text(r.SessionID), text(r.InstanceID), text(r.Reason), text(r.By),
	}, &r.ID, &r.CreatedAt)
	if err != nil {
		return Revocation{}, nil, unavailable(op, err)
	}
	if r.WorkspaceID != "" {
		if r.RowID, _, err = p.findRowID(ctx, r.ID, r.WorkspaceID); err != nil {
			return r, nil, unavailable(op, err)
		}
	}
	var sessions []string
	err = p.one(ctx, coveredSQL, []any{
		p.silence(), text(r.WorkspaceID), text(r.RowID), text(r.Subject), text(r.SessionID), text(r.InstanceID),
	}, pq.Array(&sessions))
	return r, sessions, unavailable("listing the revoked sessions", err)
}

// findRowID looks up how the workspace's row spells its id, and notes that in the order where the order spells it in
// another way; then all replicas read the order again. The answer is empty where there is no other spelling. So it is where
// the database refuses the id or the query: the order still holds for the spelling that it has. It also tells whether there
// is a row.
func (p *Postgres) findRowID(ctx context.Context, order int64, workspace string) (id string, found bool, err error) {
	id, found, err = p.rowIDOf(ctx, workspace)
	if err != nil || id == workspace {
		return "", found, err
	}
	if err := p.one(ctx, setRowIDSQL, []any{order, id, text(workspace)}); err != nil {
		return "", found, err
	}
	return id, found, nil
}

// rowIDOf returns the id that a workspace has in its row, and whether there is one. Where there is none it is the id of a live session, or
// as the type of the id's column writes it, and where the database refuses the id or the query, it is the id as given.
func (p *Postgres) rowIDOf(ctx context.Context, workspace string) (id string, found bool, err error) {
	err = p.one(ctx, p.rowID, []any{text(workspace)}, &id, &found)
	if _, refused := errors.AsType[*pq.Error](err); refused || err == nil && len(id) > maxName {
		return workspace, found, nil
	}
	return id, found, err
}

// Live returns those of the sessions that have not ended, of all replicas, with when they were last noted as live.
func (p *Postgres) Live(ctx context.Context, sessions []string) ([]Record, error) {
	list, err := p.listSessions(ctx, liveSQL, []any{pq.Array(sessions)})
	return list, unavailable("asking which sessions are live", err)
}
