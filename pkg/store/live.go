package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

// DefaultDeadAfter is how long a replica may be silent before its sessions and tunnels stop counting. A heartbeat every
// third of it allows for two that are lost.
const DefaultDeadAfter = 30 * time.Second

const (
	// outageAtStart is how long an outage may have been that a process does not know of, because it has only just started.
	outageAtStart = 5 * time.Minute
	// forgotten is when what is silent is not looked for any more.
	forgotten = 24 * time.Hour
)

// Abandoned is a session whose gateway is gone without having ended it.
type Abandoned struct {
	SessionID string
	// Workspace is of its row as it is now, but for the instance_id, which is the session's own. Of one whose row is gone it
	// has that and the ID.
	Workspace Workspace
	// Silent is how long nobody has noted it as live.
	Silent time.Duration
	// Err says that the database answers the workspace query with a failure for this workspace, of which only the ID is set.
	Err error
}

// heartbeatSQL writes one row, however many sessions the process has. It writes a session's row when the session is new, when it begins or
// ends to wait ($6), and when others took it for lost while this replica was paused: then it is live again. A row whose redemption
// nobody heard the answer of is none of this process's sessions, and goes silent. While gateways run that do not know of
// termgw.heartbeats (0012_heartbeats.sql), all rows are written.
const heartbeatSQL = `WITH h AS (
  INSERT INTO termgw.heartbeats (process, replica) VALUES ($5, $1) ON CONFLICT (process) DO UPDATE SET seen_at = now()
), s AS (
  UPDATE termgw.sessions SET process = $5, last_seen_at = now(), waiting = id = ANY ($4)
  WHERE replica = $1 AND ended_at IS NULL AND id = ANY (CASE WHEN EXISTS (
    SELECT FROM termgw.heartbeats WHERE process = '' AND seen_at > now() - interval '5 minutes') THEN $2::text[] ELSE $6::text[] END)
), l AS (
  UPDATE termgw.sessions SET process = $5, last_seen_at = now(), waiting = id = ANY ($4), ended_at = NULL, end_reason = NULL
  WHERE replica = $1 AND end_reason = '` + ReasonLost + `' AND id = ANY ($2)
), t AS (
  UPDATE termgw.tunnels SET renewed_at = now() WHERE id = ANY ($3) AND replica = $1
)
SELECT ` + serverSQL

// lastSignSQL is when the session s gave its last sign of life.
const lastSignSQL = `greatest(s.last_seen_at, (SELECT h.seen_at FROM termgw.heartbeats h WHERE h.process = s.process))`

// silentSQL finds the live sessions s that are silent for $SECS seconds, by the index sessions_live_process: those of silent processes, and
// those that no heartbeat has noted.
const silentSQL = `s.ended_at IS NULL AND (s.process IS NULL OR s.process = ANY (ARRAY(
    SELECT process FROM termgw.heartbeats WHERE seen_at < now() - make_interval(secs => $SECS))))
  AND s.last_seen_at < now() - make_interval(secs => $SECS)`

// A session of another engine's host would be listed again and again, until it is too old to look for.
var abandonedSQL = `SELECT id, workspace_id, instance_id, extract(epoch FROM now() - sign)::float8 FROM (
  SELECT s.id, s.workspace_id, s.instance_id, ` + lastSignSQL + ` AS sign FROM termgw.sessions s
  WHERE ` + strings.ReplaceAll(silentSQL, "$SECS", "$1") + `
) s
WHERE $4 = ` + serverSQL + ` AND workspace_id <> ALL (COALESCE($3::text[], '{}'))
  AND sign > now() - make_interval(secs => $2)
ORDER BY sign DESC LIMIT 1000`

const lookupSQL = `found AS (
  SELECT to_jsonb(termgw_ws.*) AS j FROM termgw_ws LIMIT 1
)
SELECT COALESCE(NULLIF(rtrim(j->>'id', ' '), ''), $1::text), ` + attributesSQL + `
FROM found
WHERE COALESCE(greatest(octet_length(j->>'name'), octet_length(j->>'instance_id'), octet_length(j->>'container')) <= 16384, true)`

// steadiness knows since when this process has been in touch with the database, with one run of one server (serverSQL), without
// a break.
//
// After an outage every session looks silent until its replica's next heartbeat. So silence counts only if it was
// possible to be heard: a process judges it by what itself went through meanwhile.
//
// While it is in touch, who was not heard for deadAfter is dead. From a break on it goes by what it knew before: whoever
// counted at the last heartbeat that it could judge by (sure) counts until it can judge again, however long the outage was,
// and who was dead then stays dead. A process that has just started knows nothing of before: it allows for an outage of
// some minutes that has only just ended. After a longer one it may count too few, until the others' next heartbeats. So it
// does at a server that it has not met: a standby that was promoted may be minutes behind, and have another clock.
type steadiness struct {
	deadAfter time.Duration

	mu          sync.Mutex
	since, last time.Time // zero: not in touch
	sure        time.Time
	server      string // of the last heartbeat; empty: none was heard
}

// note takes down a heartbeat; a long time between two is a break, too, for the process may have been stopped.
func (s *steadiness) note(server string, ok bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok && server != s.server {
		if s.server != "" && s.sure.After(now.Add(-outageAtStart)) {
			s.sure = now.Add(-outageAtStart)
		}
		s.server, s.last = server, time.Time{}
	}
	switch {
	case !ok:
		s.since, s.last = time.Time{}, time.Time{}
		return
	case s.last.IsZero() || now.Sub(s.last) > s.deadAfter:
		s.since = now
	}
	s.last = now
	if now.Sub(s.since) >= s.deadAfter {
		s.sure = now
	}
}

// lasts tells whether there was no break for deadAfter, and is none now, and of which server that holds.
func (s *steadiness) lasts(now time.Time) (server string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server, s.steadyAt(now)
}

func (s *steadiness) steadyAt(now time.Time) bool {
	return !s.last.IsZero() && now.Sub(s.last) <= s.deadAfter && now.Sub(s.since) >= s.deadAfter
}

// silence is after how long a session or tunnel that nobody notes as live stops counting, as far as this process can tell, in
// seconds, and by which server.
func (s *steadiness) silence(now time.Time) (seconds float64, server string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.steadyAt(now) {
		return s.deadAfter.Seconds(), s.server
	}
	return (now.Sub(s.sure) + s.deadAfter).Seconds(), s.server
}

// silence is the same at this moment, whatever the server.
func (p *Postgres) silence() float64 {
	seconds, _ := p.steady.silence(p.now())
	return seconds
}

// Heartbeat notes that this process's sessions and tunnels are live, those under the given replica's name, and which of the
// sessions wait for their persons. Call it every third of DeadAfter, from the start on, and soon again after a failure.
func (p *Postgres) Heartbeat(ctx context.Context, replica string, waiting []string) error {
	p.beating.Lock()
	defer p.beating.Unlock()
	server, complete, err := p.beat(ctx, replica, waiting)
	if err == nil && server != p.beaten && !complete { // this server need not have what another was told
		p.sessions.forgetNoted()
		server, _, err = p.beat(ctx, replica, waiting)
	}
	if err == nil {
		p.beaten = server
	}
	p.steady.note(server, err == nil, p.now())
	return unavailable("noting that sessions are live", err)
}

// beat sends a heartbeat, and reports whether it told of all sessions.
func (p *Postgres) beat(ctx context.Context, replica string, waiting []string) (server string, complete bool, err error) {
	all, news := p.sessions.news(waiting)
	ids := make([]string, 0, len(news))
	for _, n := range news {
		ids = append(ids, n.id)
	}
	err = p.one(ctx, heartbeatSQL, []any{
		text(replica), pq.Array(all), pq.Array(p.leases.ids()), pq.Array(append([]string{}, waiting...)), p.process, pq.Array(ids),
	}, &server)
	if err == nil {
		p.sessions.note(news)
	}
	return server, len(ids) == len(all), err
}

// Abandoned lists sessions that nobody has noted as live for so long, but not those of the workspaces to leave out. A
// workspace whose row is gone comes with its id alone. Until this process's own heartbeats have succeeded for DeadAfter
// without a break it lists nothing: the database may have been away for others, too.
func (p *Postgres) Abandoned(ctx context.Context, silence time.Duration, leaveOut []string) ([]Abandoned, error) {
	const op = "looking for abandoned sessions"
	server, ok := p.steady.lasts(p.now())
	if !ok {
		return nil, nil
	}
	var list []Abandoned
	var instance string
	var instances []string // of the list
	err := p.each(ctx, abandonedSQL, []any{silence.Seconds(), forgotten.Seconds(), pq.Array(leaveOut), server}, func(rows *sql.Rows) error {
		var a Abandoned
		var silent float64
		err := rows.Scan(&a.SessionID, &a.Workspace.ID, &instance, &silent)
		a.Silent = time.Duration(silent * float64(time.Second))
		list, instances = append(list, a), append(instances, instance)
		return err
	})
	if err != nil {
		return nil, unavailable(op, err)
	}
	type lookup struct {
		w   Workspace
		err error
	}
	found := map[string]lookup{}
	for i := range list {
		id := list[i].Workspace.ID
		l, ok := found[id]
		if !ok {
			l.w.ID = id
			l.err = p.one(ctx, p.lookup, []any{id}, &l.w.ID, attributes{&l.w})
			switch {
			case errors.Is(l.err, errNoRow), refusesID(l.err):
				l.err = nil
			case l.err != nil && !refusal(l.err):
				return nil, unavailable(op, l.err)
			case l.err != nil:
				l.err = unavailable("looking up the workspace", l.err)
			}
			found[id] = l
		}
		list[i].Workspace, list[i].Err = l.w.on(instances[i]), l.err
	}
	return list, nil
}

var errNoRow = errors.New("the statement returned no row")
