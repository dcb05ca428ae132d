package store

import (
	"context"
	"errors"
	"time"
)

// Abandoned is a session whose gateway is gone without having ended it.
type Abandoned struct {
	SessionID string
	Workspace Workspace
}

const heartbeatSQL = `UPDATE termgw.sessions SET last_seen_at = now() WHERE replica = $1 AND ended_at IS NULL`

// A session of another engine's host is listed again and again until it is too old to look for.
const abandonedSQL = `SELECT id, workspace_id FROM termgw.sessions
WHERE ended_at IS NULL AND instance_id = ''
  AND last_seen_at < now() - make_interval(secs => $1) AND last_seen_at > now() - interval '1 day'
ORDER BY last_seen_at DESC LIMIT 1000`

const lookupSQL = `WITH termgw_ws AS (
%s
), found AS (
  SELECT to_jsonb(termgw_ws.*) AS j FROM termgw_ws LIMIT 1
)
SELECT COALESCE(j->>'name', ''), COALESCE(j->>'instance_id', ''), COALESCE(j->>'container', ''), COALESCE(j->>'region', ''),
  COALESCE(j->>'os_user', ''), COALESCE(j->>'host_key', ''), COALESCE(j->>'remote_target', '')
FROM found`

// Heartbeat notes that a replica's sessions are live.
func (p *Postgres) Heartbeat(ctx context.Context, replica string) error {
	return unavailable("noting that sessions are live", p.one(ctx, heartbeatSQL, []any{text(replica)}))
}

// Abandoned lists local sessions that nobody has noted as live for so long. A workspace whose row is gone comes with its
// id alone.
func (p *Postgres) Abandoned(ctx context.Context, silence time.Duration) ([]Abandoned, error) {
	const op = "looking for abandoned sessions"
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	rows, err := p.db.QueryContext(ctx, abandonedSQL, silence.Seconds())
	if err != nil {
		return nil, unavailable(op, err)
	}
	defer func() { _ = rows.Close() }() // what it could tell, rows.Err has told
	var list []Abandoned
	for rows.Next() {
		var a Abandoned
		if err := rows.Scan(&a.SessionID, &a.Workspace.ID); err != nil {
			return nil, unavailable(op, err)
		}
		list = append(list, a)
	}
	if err := rows.Err(); err != nil {
		return nil, unavailable(op, err)
	}
	for i := range list {
		w := &list[i].Workspace
		err := p.one(ctx, p.lookup, []any{w.ID}, &w.Name, &w.InstanceID, &w.Container, &w.Region, &w.OSUser, &w.HostKey, &w.RemoteTarget)
		if err != nil && !errors.Is(err, errNoRow) && !refusesID(err) {
			return nil, unavailable(op, err)
		}
	}
	return list, nil
}

var errNoRow = errors.New("the statement returned no row")
