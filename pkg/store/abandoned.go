package store

import (
	"context"
	"time"
)

// Locked rows are skipped: a heartbeat has them just now. A time that is yet to come is no heartbeat's: such a row, from before
// 0004_bounds.sql, would count for ever.
const closeAbandonedSQL = `UPDATE termgw.sessions SET ended_at = now(), end_reason = $1, waiting = false
WHERE id IN (
  SELECT id FROM termgw.sessions
  WHERE $3 = ` + serverSQL + ` AND ended_at IS NULL
    AND (last_seen_at < now() - make_interval(secs => $2)
      OR last_seen_at > now() + interval '1 day')
  LIMIT 5000 FOR UPDATE SKIP LOCKED)`

// CloseAbandoned ends the rows of sessions that nobody has noted as live for so long. last_seen_at stays what it was. With
// ReasonLost a row is live again if its replica was only paused, and so keeps its holder. Like Abandoned it does nothing
// until this process's own heartbeats are steady.
func (p *Postgres) CloseAbandoned(ctx context.Context, reason string, silence time.Duration) error {
	server, ok := p.steady.lasts(p.now())
	if !ok {
		return nil
	}
	return unavailable("closing abandoned sessions",
		p.one(ctx, closeAbandonedSQL, []any{text(reason), silence.Seconds(), server}))
}
