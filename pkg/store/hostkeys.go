package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"
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

// KeptHostKey is the host key that is kept for an instance.
type KeptHostKey struct {
	InstanceID string
	Line       string // as in authorized_keys; empty: the row's is too long, and used by no gateway
	Since      time.Time
}

// Of a row from before 0004_bounds.sql, the instance and the time are read within bounds too.
const keptColumns = `left(instance_id, 256), CASE WHEN octet_length(line) <= 16384 THEN line ELSE '' END,
  greatest(least(created_at, '9999-12-31Z'), '1970-01-01Z')`

const (
	hostKeysSQL       = `SELECT ` + keptColumns + ` FROM termgw.host_keys ORDER BY created_at DESC, instance_id LIMIT $1`
	forgetHostKeysSQL = `DELETE FROM termgw.host_keys WHERE instance_id = ANY ($1) RETURNING ` + keptColumns
)

// HostKeys lists the kept host keys, the newest first, limit at most.
func (p *Postgres) HostKeys(ctx context.Context, limit int) ([]KeptHostKey, error) {
	list, err := p.keptHostKeys(ctx, hostKeysSQL, int64(limit))
	return list, unavailable("listing host keys", err)
}

// ForgetHostKeys forgets the host keys of instances, and returns what it forgot. Connections that are open do not ask for
// the key again; the next one keeps the key that it sees.
func (p *Postgres) ForgetHostKeys(ctx context.Context, instanceIDs []string) ([]KeptHostKey, error) {
	ids := make([]string, len(instanceIDs))
	for i, id := range instanceIDs {
		ids[i] = text(id)
	}
	list, err := p.keptHostKeys(ctx, forgetHostKeysSQL, pq.Array(ids))
	return list, unavailable("forgetting host keys", err)
}

func (p *Postgres) keptHostKeys(ctx context.Context, query string, arg any) (list []KeptHostKey, err error) {
	err = p.each(ctx, query, []any{arg}, func(rows *sql.Rows) error {
		var k KeptHostKey
		err := rows.Scan(&k.InstanceID, &k.Line, &k.Since)
		list = append(list, k)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

func checkHostKey(op, line string, err error) error {
	if err == nil && line == "" {
		return fmt.Errorf("%s: %w: the row in termgw.host_keys is empty or has more than 16384 bytes: delete it by `termgw hostkeys forget`", op, ErrUnavailable)
	}
	return unavailable(op, err)
}
