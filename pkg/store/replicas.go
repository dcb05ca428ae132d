package store

import (
	"context"
	"database/sql"
)

// Replica is a replica that has live sessions.
type Replica struct {
	Name string
	// URL is where the others pass connections on to it. Empty: nobody passes connections on to its live sessions.
	URL string
}

// The key that a replica is known by stays in the database.
const replicasSQL = `SELECT replica, max(holder_url) FROM termgw.sessions s
WHERE ended_at IS NULL AND ` + lastSignSQL + ` > now() - make_interval(secs => $1)
GROUP BY replica ORDER BY replica LIMIT 1000`

// Replicas lists the replicas that have sessions, by name. One that was killed is listed for DeadAfter.
func (p *Postgres) Replicas(ctx context.Context) ([]Replica, error) {
	var list []Replica
	err := p.each(ctx, replicasSQL, []any{p.steady.deadAfter.Seconds()}, func(rows *sql.Rows) error {
		var r Replica
		err := rows.Scan(&r.Name, &r.URL)
		list = append(list, r)
		return err
	})
	return list, unavailable("listing replicas", err)
}
