package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Record is a session as the audit trail has it.
type Record struct {
	ID, WorkspaceID, Subject string
	Mode                     ticket.Mode
	InstanceID               string // empty: local
	Replica, ClientAddr      string
	Started, LastSeen        time.Time

	// Zero while it lasts.
	Ended             time.Time
	Reason            string
	ExitCode          *int
	BytesIn, BytesOut int64
}

// SessionFilter tells which sessions to list: those that match every field that is not empty.
type SessionFilter struct {
	WorkspaceID, Subject, SessionID, InstanceID, Replica string
	// All lists also what has ended, as long as the audit trail is kept, and what nobody has noted as live for so long that
	// it does not count any more.
	All bool
	// Limit is how many to list, the newest. Default: 1000.
	Limit int
}

func (f SessionFilter) limit() int {
	if f.Limit <= 0 {
		return 1000
	}
	return f.Limit
}

const sessionsSQL = `SELECT id, workspace_id, subject, mode, instance_id, replica, client_addr, started_at, last_seen_at,
  ended_at, COALESCE(end_reason, ''), exit_code, bytes_in, bytes_out
FROM termgw.sessions
WHERE ($1 OR ended_at IS NULL AND last_seen_at > now() - make_interval(secs => $2))
  AND ($3 = '' OR workspace_id = $3) AND ($4 = '' OR subject = $4) AND ($5 = '' OR id = $5)
  AND ($6 = '' OR instance_id = $6) AND ($7 = '' OR replica = $7)
ORDER BY started_at DESC, id LIMIT $8`

// Sessions lists sessions of all replicas, the newest first.
func (p *Postgres) Sessions(ctx context.Context, f SessionFilter) ([]Record, error) {
	var list []Record
	err := p.each(ctx, sessionsSQL, []any{
		f.All, p.silence(), text(f.WorkspaceID), text(f.Subject), text(f.SessionID), text(f.InstanceID), text(f.Replica),
		int64(f.limit()),
	}, func(rows *sql.Rows) error {
		var (
			r     Record
			ended sql.NullTime
			code  sql.NullInt64
		)
		err := rows.Scan(&r.ID, &r.WorkspaceID, &r.Subject, &r.Mode, &r.InstanceID, &r.Replica, &r.ClientAddr, &r.Started, &r.LastSeen,
			&ended, &r.Reason, &code, &r.BytesIn, &r.BytesOut)
		r.Ended = ended.Time
		if code.Valid {
			c := int(code.Int64)
			r.ExitCode = &c
		}
		list = append(list, r)
		return err
	})
	if err != nil {
		return nil, unavailable("listing sessions", err)
	}
	return list, nil
}
