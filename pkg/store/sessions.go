package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Record is a session as the audit trail has it.
type Record struct {
	ID, WorkspaceID, Subject string
	Mode                     ticket.Mode
	Kind                     string // of place; empty in rows of gateways that did not note it
	InstanceID               string // empty: on none
	Replica, ClientAddr      string
	Started, LastSeen        time.Time
	Resumes                  int               // how often its person has come back to it
	Waiting                  bool              // it waits for its person, as of the last heartbeat
	Trail                    map[string]string // what others' logs know the session by

	// Zero while it lasts.
	Ended             time.Time
	Reason            string
	ExitCode          *int
	BytesIn, BytesOut int64
}

// SessionFilter tells which sessions to list: those that match every field that is not empty.
type SessionFilter struct {
	// WorkspaceID may be any spelling by which the workspace's row is found.
	WorkspaceID string

	Subject, SessionID, InstanceID, Replica string
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

// Times are read within the years that Go and JSON know: a row from before 0004_bounds.sql must not hide the others.
const sessionColumns = `SELECT id, workspace_id, subject, mode, s.kind, instance_id, replica, client_addr,
  greatest(least(started_at, '9999-12-31Z'), '1970-01-01Z'), greatest(least(CASE WHEN ended_at IS NULL THEN ` + lastSignSQL + ` ELSE last_seen_at END, '9999-12-31Z'), '1970-01-01Z'),
  CASE WHEN ended_at IS NOT NULL THEN greatest(least(ended_at, '9999-12-31Z'), '1970-01-01Z') END,
  COALESCE(end_reason, ''), exit_code, bytes_in, bytes_out, resumes, waiting AND ended_at IS NULL,
  CASE WHEN jsonb_typeof(s.trail) = 'object' AND octet_length(s.trail::text) <= 16384
    THEN (SELECT jsonb_object_agg(key, value) FROM jsonb_each_text(s.trail) WHERE value IS NOT NULL) END
FROM termgw.sessions s `

const sessionsSQL = sessionColumns + `
WHERE ($1 OR ended_at IS NULL AND ` + lastSignSQL + ` > now() - make_interval(secs => $2))
  AND ($3 = '' OR workspace_id IN ($3, $9)) AND ($4 = '' OR subject = $4) AND ($5 = '' OR id = $5)
  AND ($6 = '' OR instance_id = $6) AND ($7 = '' OR replica = $7)
ORDER BY started_at DESC, id LIMIT $8`

const liveSQL = sessionColumns + `WHERE id = ANY ($1) AND ended_at IS NULL ORDER BY id`

// Sessions lists sessions of all replicas, the newest first.
func (p *Postgres) Sessions(ctx context.Context, f SessionFilter) ([]Record, error) {
	const op = "listing sessions"
	rowID := f.WorkspaceID
	if f.WorkspaceID != "" {
		var err error
		if rowID, _, err = p.rowIDOf(ctx, f.WorkspaceID); err != nil {
			return nil, unavailable(op, err)
		}
	}
	list, err := p.listSessions(ctx, sessionsSQL, []any{
		f.All, p.silence(), text(f.WorkspaceID), text(f.Subject), text(f.SessionID), text(f.InstanceID), text(f.Replica),
		int64(f.limit()), text(rowID),
	})
	return list, unavailable(op, err)
}

func (p *Postgres) listSessions(ctx context.Context, query string, args []any) ([]Record, error) {
	var list []Record
	err := p.each(ctx, query, args, func(rows *sql.Rows) error {
		var (
			r     Record
			ended sql.NullTime
			code  sql.NullInt64
			trail sql.NullString
		)
		err := rows.Scan(&r.ID, &r.WorkspaceID, &r.Subject, &r.Mode, &r.Kind, &r.InstanceID, &r.Replica, &r.ClientAddr, &r.Started, &r.LastSeen,
			&ended, &r.Reason, &code, &r.BytesIn, &r.BytesOut, &r.Resumes, &r.Waiting, &trail)
		if err == nil && trail.Valid {
			err = json.Unmarshal([]byte(trail.String), &r.Trail)
		}
		r.Ended = ended.Time
		if code.Valid {
			c := int(code.Int64)
			r.ExitCode = &c
		}
		list = append(list, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}
