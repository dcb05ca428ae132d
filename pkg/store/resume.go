package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// ErrGone is the error of Resume for a session that does not live, or is another person's.
var ErrGone = errors.New("no such session lives")

// resumeSQL is one statement, as redeemSQL is. The ticket is not spent where there is no such session, and is where an order
// covers it.
const resumeSQL = `WITH live AS MATERIALIZED (
  SELECT s.id, s.workspace_id, s.instance_id FROM termgw.sessions s
  WHERE s.id = $1 AND s.issuer = $2 AND s.subject = $3 AND s.replica = $4 AND (s.ended_at IS NULL OR s.waiting) FOR UPDATE
), spent AS (
  INSERT INTO termgw.spent_tickets AS t (issuer, jti, attempt, expires_at)
  SELECT $2, $5::text, $6::text, $7::timestamptz FROM live
  ON CONFLICT (issuer, jti) DO UPDATE SET attempt = t.attempt WHERE t.attempt = excluded.attempt
  RETURNING true
), verdict AS MATERIALIZED (
  SELECT live.id, EXISTS (SELECT FROM spent) AS first, EXISTS (
      SELECT FROM termgw.revocations r
      WHERE r.created_at >= $8::timestamptz
        AND (r.workspace_id IS NULL OR r.workspace_id IN ($9::text, live.workspace_id) OR r.row_id = live.workspace_id)
        AND (r.subject IS NULL OR r.subject = $3)
        AND (r.session_id IS NULL OR r.session_id = live.id)
        AND (r.instance_id IS NULL OR r.instance_id = live.instance_id)
    ) AS revoked
  FROM live
), resumed AS (
  UPDATE termgw.sessions s SET resumes = s.resumes + 1, waiting = s.ended_at IS NOT NULL, client_addr = $10,
    mode = CASE $11 WHEN '' THEN s.mode ELSE $11 END
  FROM verdict v WHERE s.id = v.id AND v.first AND NOT v.revoked
  RETURNING true
)
SELECT count(*) = 1, COALESCE(bool_and(first), false), COALESCE(bool_or(revoked), false) FROM verdict`

// Resume spends the ticket for a session of this replica that lives and is the ticket's person's, and notes in the session's row
// where the person is now. Whether the session is of the ticket's workspace the caller knows. The error is ErrGone, and the ticket is not
// spent, if there is no such session; else ErrUsed, ErrRevoked or ErrUnavailable, as Redeem's.
func (p *Postgres) Resume(ctx context.Context, claims ticket.Claims, sessionID, replica, clientAddr string) error {
	const op = "resuming a session"
	var live, first, revoked bool
	mode := "" // once a person could type, the row says so
	if claims.Mode == ticket.ReadWrite {
		mode = string(claims.Mode)
	}
	err := p.one(ctx, resumeSQL, []any{
		text(sessionID), text(claims.Issuer), text(claims.Subject), text(replica), text(claims.ID), rand.Text(), claims.Expires,
		claims.IssuedAt, text(claims.WorkspaceID), text(clientAddr), mode,
	}, &live, &first, &revoked)
	switch {
	case err != nil:
		return unavailable(op, err)
	case !live:
		return fmt.Errorf("%s: %w", op, ErrGone)
	case !first:
		return fmt.Errorf("%s: %w", op, ErrUsed)
	case revoked:
		return fmt.Errorf("%s: %w", op, ErrRevoked)
	}
	p.sessions.forgetNoted(sessionID) // that it waits
	return nil
}

// A session that has ended is heard of no more: whether its holder lives, who asks finds out.
const holderSQL = `SELECT holder_url, holder_key, extract(epoch FROM now() - ` + lastSignSQL + `)::float8 FROM termgw.sessions s
WHERE id = $1 AND issuer = $2 AND subject = $3 AND replica <> $4
  AND (ended_at IS NULL AND ` + lastSignSQL + ` > now() - make_interval(secs => $5) OR ended_at IS NOT NULL AND waiting)`

// HolderOf returns the holder of a session that lives on another replica than this, and is the ticket's person's. The error is
// ErrGone if there is none, or nobody passes connections on to it; else an ErrUnavailable.
func (p *Postgres) HolderOf(ctx context.Context, claims ticket.Claims, sessionID, replica string) (Holder, error) {
	const op = "looking for a session's holder"
	var h Holder
	var silent float64
	err := p.one(ctx, holderSQL, []any{
		text(sessionID), text(claims.Issuer), text(claims.Subject), text(replica), p.silence(),
	}, &h.URL, &h.Key, &silent)
	h.Silent = time.Duration(silent * float64(time.Second))
	switch {
	case errors.Is(err, errNoRow), err == nil && (h.URL == "" || h.Key == ""):
		return Holder{}, fmt.Errorf("%s: %w", op, ErrGone)
	case err != nil:
		return Holder{}, unavailable(op, err)
	}
	return h, nil
}

// The session is not ended: what its shell has left may have to be ended yet (Abandoned).
const unreachedSQL = `UPDATE termgw.sessions SET unreached_at = now()
WHERE id = $1 AND issuer = $2 AND subject = $3 AND ($4 = '' OR replica = $4) AND ended_at IS NULL`

// Unreached notes that a session of the ticket's person, of a replica or, if that is empty, of any, could not be gone on with: its
// replica was not reached, or has lost it. The session counts no more until that replica's next heartbeat.
func (p *Postgres) Unreached(ctx context.Context, claims ticket.Claims, sessionID, replica string) error {
	err := p.one(ctx, unreachedSQL, []any{text(sessionID), text(claims.Issuer), text(claims.Subject), text(replica)})
	return unavailable("noting that a session was not reached", err)
}

const settleSQL = `UPDATE termgw.sessions SET waiting = false, holder_url = '', holder_key = '', bytes_out = greatest(bytes_out, $2)
WHERE id = $1 AND ended_at IS NOT NULL`

// Settle notes that the last output of a session that has ended waits for its person no more.
func (p *Postgres) Settle(ctx context.Context, sessionID string, bytesOut int64) error {
	p.outbox.settle(sessionID)
	return unavailable("noting that a session waits no more", p.one(ctx, settleSQL, []any{text(sessionID), bytesOut}))
}

// Unreached does nothing: there is no other replica.
func (m *Memory) Unreached(context.Context, ticket.Claims, string, string) error { return nil }

// Settle forgets a session.
func (m *Memory) Settle(_ context.Context, sessionID string, _ int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waiting, sessionID)
	return nil
}

// HolderOf returns ErrGone: there is no other replica.
func (m *Memory) HolderOf(context.Context, ticket.Claims, string, string) (Holder, error) {
	return Holder{}, ErrGone
}

// Resume does what Postgres.Resume does.
func (m *Memory) Resume(_ context.Context, claims ticket.Claims, sessionID, _, _ string) error {
	const op = "resuming a session"
	m.mu.Lock()
	s, live := m.sessions[sessionID]
	if !live {
		s, live = m.waiting[sessionID]
	}
	m.mu.Unlock()
	switch {
	case !live || s.subject != claims.Subject:
		return fmt.Errorf("%s: %w", op, ErrGone)
	case claims.IssuedAt.Before(m.c.Since), !m.spend(ticketKey{claims.Issuer, claims.ID}, claims.Expires):
		return fmt.Errorf("%s: %w", op, ErrUsed)
	}
	return nil
}
