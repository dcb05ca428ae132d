package store

import (
	"context"
	"errors"
	"fmt"
)

// A line that the table's constraint refuses may be from before 0004_bounds.sql: it is not read, and does not count as none.
const hostKeySQL = `SELECT CASE WHEN octet_length(line) <= 16384 THEN line ELSE '' END FROM termgw.host_keys WHERE instance_id = $1`

// The update changes nothing: it is what makes the statement wait for, and return, another's row.
const keepHostKeySQL = `INSERT INTO termgw.host_keys AS k (instance_id, line) VALUES ($1, $2)
ON CONFLICT (instance_id) DO UPDATE SET instance_id = k.instance_id RETURNING CASE WHEN octet_length(line) <= 16384 THEN line ELSE '' END`

// HostKey returns the host key that is kept for an instance, or "".
func (p *Postgres) HostKey(ctx context.Context, instanceID string) (line string, err error) {
	err = p.one(ctx, hostKeySQL, []any{text(instanceID)}, &line)
	if errors.Is(err, errNoRow) {
		return "", nil
	}
	return line, checkHostKey("reading a host key", line, err)
}

// KeepHostKey keeps the host key that an instance showed, unless one is kept already, and returns the one that is kept:
// the first, for all replicas and for good.
func (p *Postgres) KeepHostKey(ctx context.Context, instanceID, line string) (kept string, err error) {
	err = p.one(ctx, keepHostKeySQL, []any{text(instanceID), text(line)}, &kept)
	return kept, checkHostKey("keeping a host key", kept, err)
}

func checkHostKey(op, line string, err error) error {
	if err == nil && line == "" {
		return fmt.Errorf("%s: %w: the row in termgw.host_keys is empty or has more than 16384 bytes: delete it", op, ErrUnavailable)
	}
	return unavailable(op, err)
}
