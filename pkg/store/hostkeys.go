package store

import (
	"context"
	"errors"
)

const hostKeySQL = `SELECT line FROM termgw.host_keys WHERE instance_id = $1`

// The update changes nothing: it is what makes the statement wait for, and return, another's row.
const keepHostKeySQL = `INSERT INTO termgw.host_keys AS k (instance_id, line) VALUES ($1, $2)
ON CONFLICT (instance_id) DO UPDATE SET line = k.line RETURNING line`

// HostKey returns the host key that is kept for an instance, or "".
func (p *Postgres) HostKey(ctx context.Context, instanceID string) (line string, err error) {
	err = p.one(ctx, hostKeySQL, []any{text(instanceID)}, &line)
	if errors.Is(err, errNoRow) {
		return "", nil
	}
	return line, unavailable("reading a host key", err)
}

// KeepHostKey keeps the host key that an instance showed, unless one is kept already, and returns the one that is kept:
// the first, for all replicas and for good.
func (p *Postgres) KeepHostKey(ctx context.Context, instanceID, line string) (kept string, err error) {
	err = p.one(ctx, keepHostKeySQL, []any{text(instanceID), text(line)}, &kept)
	return kept, unavailable("keeping a host key", err)
}
