package store

import (
	"context"
	"strings"
	"time"
)

// Locked rows are skipped: a heartbeat has them just now. A time that is yet to come is no heartbeat's: such a row, from before
// 0004_bounds.sql, would count for ever.
var closeAbandonedSQL = `UPDATE termgw.sessions s SET ended_at = now(), end_reason = $1, waiting = false, last_seen_at = ` + lastSignSQL + `
WHERE id IN (
  SELECT s.id FROM termgw.sessions s
  WHERE $3 = ` + serverSQL + ` AND (` + strings.ReplaceAll(silentSQL, "$SECS", "$2") + `
    OR s.ended_at IS NULL AND s.process IS NULL AND s.last_seen_at > now() + interval '1 day')
  LIMIT 5000 FOR UPDATE SKIP LOCKED)`

// CloseAbandoned ends the rows of sessions that nobody has noted as live for so long. last_seen_at is their last sign of life. With
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
