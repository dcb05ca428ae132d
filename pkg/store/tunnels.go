package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
)

const releaseSQL = `DELETE FROM termgw.tunnels WHERE id = $1`

var acquireSQL = `SELECT termgw.acquire_tunnel($1, $2, $3, $4, $5, $6::double precision + ` + strings.Replace(strangeSQL, "$16", "$7", 1) + `)`

var freeSQL = `SELECT $2::bigint - count(*) FROM termgw.tunnels
WHERE endpoint = $1 AND renewed_at > now() - make_interval(secs => $3::double precision + ` + strings.Replace(strangeSQL, "$16", "$4", 1) + `)`

// leases are the tunnels of this process.
type leases struct {
	mu   sync.Mutex
	held map[string]struct{}
}

func (l *leases) add(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[id] = struct{}{}
}

func (l *leases) remove(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, id)
}

func (l *leases) ids() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make([]string, 0, len(l.held))
	for id := range l.held {
		ids = append(ids, id)
	}
	return ids
}

// AcquireTunnel takes one of an endpoint's places for a tunnel to an instance, or fails with a *LimitError of LimitTunnels
// if all replicas together use as many as limit. The place is the caller's until it gives the lease to ReleaseTunnel;
// Heartbeat renews it, so the places of a replica that is gone free themselves.
func (p *Postgres) AcquireTunnel(ctx context.Context, endpoint, instanceID, replica string, limit int) (lease string, err error) {
	const op = "acquiring a tunnel"
	lease = rand.Text()
	var ok bool
	silence, server := p.steady.silence(p.now())
	err = p.one(ctx, acquireSQL, []any{
		lease, text(endpoint), text(instanceID), text(replica), int64(limit), silence, server,
	}, &ok)
	switch {
	case err != nil: // if the place was taken all the same, nobody renews it
		return "", unavailable(op, err)
	case !ok:
		return "", fmt.Errorf("%s: %w", op, &LimitError{Of: LimitTunnels, Max: limit})
	}
	p.leases.add(lease)
	return lease, nil
}

// FreeTunnels returns how many of an endpoint's places are free, of as many as limit. Another replica may take them at once.
func (p *Postgres) FreeTunnels(ctx context.Context, endpoint string, limit int) (n int, err error) {
	silence, server := p.steady.silence(p.now())
	err = p.one(ctx, freeSQL, []any{text(endpoint), int64(limit), silence, server}, &n)
	return max(0, n), unavailable("counting tunnels", err)
}

// ReleaseTunnel gives a place back. If it fails, the place is free when the lease runs out: there is no need to repeat it.
func (p *Postgres) ReleaseTunnel(ctx context.Context, lease string) error {
	p.leases.remove(lease)
	return unavailable("releasing a tunnel", p.one(ctx, releaseSQL, []any{lease}))
}
