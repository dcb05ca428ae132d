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

	WorkspaceID, Subject, SessionID, InstanceID string

	Reason string // why, for the record
	By     string // who gave it, for the record
}

var errNamesNothing = errors.New("a revocation must name a workspace, subject, session or instance")

func (r Revocation) names(workspace, subject, session, instance string) bool {
	matches := func(order, is string) bool { return order == "" || order == is }
	return matches(r.WorkspaceID, workspace) && matches(r.Subject, subject) &&
		matches(r.SessionID, session) && matches(r.InstanceID, instance)
}

func (r Revocation) check() error {
	if r.WorkspaceID == "" && r.Subject == "" && r.SessionID == "" && r.InstanceID == "" {
		return errNamesNothing
	}
	return nil
}

const revokeSQL = `WITH made AS (
  INSERT INTO termgw.revocations (workspace_id, subject, session_id, instance_id, reason, revoked_by)
  VALUES (NULLIF($1::text, ''), NULLIF($2::text, ''), NULLIF($3::text, ''), NULLIF($4::text, ''), NULLIF($5::text, ''), NULLIF($6::text, ''))
  RETURNING id, created_at
)
SELECT id, created_at, ARRAY(
  SELECT s.id FROM termgw.sessions s
  WHERE s.ended_at IS NULL AND s.last_seen_at > now() - make_interval(secs => $7)
    AND ($1 = '' OR s.workspace_id = $1) AND ($2 = '' OR s.subject = $2)
    AND ($3 = '' OR s.id = $3) AND ($4 = '' OR s.instance_id = $4)
  ORDER BY s.id)
FROM made`

// Revoke writes an order and returns it as written, with the sessions, on all replicas, that were live then and match.
// They are cut by whoever runs Watch there. A call whose answer was lost may have written the order twice, which does no
// harm.
func (p *Postgres) Revoke(ctx context.Context, r Revocation) (Revocation, []string, error) {
	const op = "revoking"
	if err := r.check(); err != nil {
		return Revocation{}, nil, fmt.Errorf("%s: %w", op, err)
	}
	var sessions []string
	err := p.one(ctx, revokeSQL, []any{
		text(r.WorkspaceID), text(r.Subject), text(r.SessionID), text(r.InstanceID), text(r.Reason), text(r.By),
		p.silence(),
	}, &r.ID, &r.CreatedAt, pq.Array(&sessions))
	if err != nil {
		return Revocation{}, nil, unavailable(op, err)
	}
	return r, sessions, nil
}
