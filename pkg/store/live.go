package store

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"github.com/lib/pq"
)

// DefaultDeadAfter is how long a replica may be silent before its sessions and tunnels stop counting. A heartbeat every
// third of it allows for two that are lost.
const DefaultDeadAfter = 30 * time.Second

// forgotten is when silence is certain to mean death.
const forgotten = 24 * time.Hour

// Abandoned is a session whose gateway is gone without having ended it.
type Abandoned struct {
	SessionID string
	Workspace Workspace
}

// Only what this process knows as its own is noted: a row whose redemption nobody heard the answer of goes silent. A session
// that others took for lost while this replica was paused is live again. The rest of the columns change only then, so
// the update stays off the indexes.
const heartbeatSQL = `WITH s AS (
  UPDATE termgw.sessions SET last_seen_at = now(), ended_at = NULL, end_reason = NULL
  WHERE id = ANY ($2) AND replica = $1 AND (ended_at IS NULL OR end_reason = '` + ReasonLost + `')
)
UPDATE termgw.tunnels SET renewed_at = now() WHERE id = ANY ($3) AND replica = $1`

// A session of another engine's host is listed again and again until it is too old to look for.
const abandonedSQL = `SELECT id, workspace_id FROM termgw.sessions
WHERE ended_at IS NULL AND instance_id = ''
  AND last_seen_at < now() - make_interval(secs => $1) AND last_seen_at > now() - make_interval(secs => $2)
ORDER BY last_seen_at DESC LIMIT 1000`

const lookupSQL = `WITH termgw_ws AS (
%s
), found AS (
  SELECT to_jsonb(termgw_ws.*) AS j FROM termgw_ws LIMIT 1
)
SELECT COALESCE(j->>'name', ''), COALESCE(j->>'instance_id', ''), COALESCE(j->>'container', ''), COALESCE(j->>'region', ''),
  COALESCE(j->>'os_user', ''), COALESCE(j->>'host_key', ''), COALESCE(j->>'remote_target', '')
FROM found`

// steadiness knows since when this process has been in touch with the database without a break.
//
// After an outage every session looks silent until its replica's next heartbeat. So silence counts only if it was
// possible to be heard: a process judges it by what itself went through meanwhile.
type steadiness struct {
	mu          sync.Mutex
	since, last time.Time // zero: not in touch
}

// note takes down a heartbeat; a gap between two is a break, too, for the process may have been stopped.
func (s *steadiness) note(ok bool, now time.Time, gap time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !ok:
		s.since, s.last = time.Time{}, time.Time{}
		return
	case s.last.IsZero() || now.Sub(s.last) > gap:
		s.since = now
	}
	s.last = now
}

// lasts tells whether there was no break for so long, and is none now.
func (s *steadiness) lasts(d time.Duration, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.last.IsZero() && now.Sub(s.last) <= d && now.Sub(s.since) >= d
}

// silence is after how long a session or tunnel that nobody notes as live stops counting, as far as this process can tell.
func (p *Postgres) silence() time.Duration {
	if p.steady.lasts(p.deadAfter, p.now()) {
		return p.deadAfter
	}
	return forgotten
}

// Heartbeat notes that this process's sessions and tunnels are live, those under the given replica's name. Call it every
// third of DeadAfter, from the start on, and at once again after a failure.
func (p *Postgres) Heartbeat(ctx context.Context, replica string) error {
	err := p.one(ctx, heartbeatSQL, []any{text(replica), pq.Array(p.sessions.ids()), pq.Array(p.leases.ids())})
	p.steady.note(err == nil, p.now(), p.deadAfter)
	return unavailable("noting that sessions are live", err)
}

// Abandoned lists local sessions that nobody has noted as live for so long. A workspace whose row is gone comes with its
// id alone. Until this process's own heartbeats have succeeded for DeadAfter without a break it lists nothing: the database
// may have been away for others, too.
func (p *Postgres) Abandoned(ctx context.Context, silence time.Duration) ([]Abandoned, error) {
	const op = "looking for abandoned sessions"
	if !p.steady.lasts(p.deadAfter, p.now()) {
		return nil, nil
	}
	var list []Abandoned
	err := p.each(ctx, abandonedSQL, []any{silence.Seconds(), forgotten.Seconds()}, func(rows *sql.Rows) error {
		var a Abandoned
		err := rows.Scan(&a.SessionID, &a.Workspace.ID)
		list = append(list, a)
		return err
	})
	if err != nil {
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
