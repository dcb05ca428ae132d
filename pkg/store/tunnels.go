package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

const releaseSQL = `DELETE FROM termgw.tunnels WHERE id = $1`

var acquireSQL = `SELECT termgw.acquire_tunnel($1, $2, $3, $4, $5, $6::double precision + ` + strings.Replace(strangeSQL, "$16", "$7", 1) + `)`

var freeSQL = `SELECT $2::bigint - count(*) FROM termgw.tunnels
WHERE endpoint = $1 AND renewed_at > now() - make_interval(secs => $3::double precision + ` + strings.Replace(strangeSQL, "$16", "$4", 1) + `)`

// A tunnel that was wanted some seconds ago has got a terminal since: it is idle anew.
const idleSQL = `UPDATE termgw.tunnels SET idle_at = now() WHERE id = $1
RETURNING COALESCE(wanted_at > now() - make_interval(secs => $2), false)`

// Of the idle tunnels that nobody else has asked for, the replica's own come first, and of those the oldest: it has the
// least left of its hour.
const wantSQL = `UPDATE termgw.tunnels SET wanted_at = now() WHERE id = (
  SELECT id FROM termgw.tunnels
  WHERE endpoint = $1 AND idle_at > now() - make_interval(secs => $3)
    AND (wanted_at IS NULL OR wanted_at < now() - make_interval(secs => $4))
  ORDER BY replica = $2 DESC, acquired_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING id`

const stateSQL = `SELECT COALESCE((SELECT CASE WHEN idle_at > now() - make_interval(secs => $2) THEN 'idle' ELSE 'used' END
FROM termgw.tunnels WHERE id = $1), 'gone')`

// What has become of an idle tunnel that was asked for its place.
const (
	tunnelGone = "gone"
	tunnelIdle = "idle"
	tunnelUsed = "used" // it has a terminal again, or takes its time to end
)

const (
	// idleFor is how long a note of IdleTunnel counts, which is repeated twice a second.
	idleFor = 2 * time.Second
	// notedFor is how long after a note a tunnel that was asked for its place counts as idle.
	notedFor = 1200 * time.Millisecond
	// wantedFor is how long a wanted tunnel has to end. vacatePoll is the interval between looks whether it has.
	wantedFor  = 3 * time.Second
	vacatePoll = 50 * time.Millisecond
)

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

// IdleTunnel notes that a tunnel has no terminal, and reports whether its place is wanted: then it is to be closed, and the
// lease released. Called at once and twice a second while that is so; another is asked for its place only then.
func (p *Postgres) IdleTunnel(ctx context.Context, lease string) (wanted bool, err error) {
	err = p.one(ctx, idleSQL, []any{lease, wantedFor.Seconds()}, &wanted)
	return wanted, unavailable("noting an idle tunnel", err)
}

// VacateTunnel asks an idle tunnel of an endpoint for its place, the replica's own before others', and waits until the place
// is free; one that has got a terminal meanwhile is left, and another one asked. It reports false if there is none to ask, at
// once, or if no place is free within three seconds.
func (p *Postgres) VacateTunnel(ctx context.Context, endpoint, replica string) (vacated bool, err error) {
	vacated, err = vacate(ctx, func() (lease string, err error) {
		err = p.one(ctx, wantSQL, []any{text(endpoint), text(replica), idleFor.Seconds(), wantedFor.Seconds()}, &lease)
		if errors.Is(err, errNoRow) {
			return "", nil
		}
		return lease, err
	}, func(lease string) (state string, err error) {
		err = p.one(ctx, stateSQL, []any{lease, notedFor.Seconds()}, &state)
		return state, err
	})
	return vacated, unavailable("asking for a tunnel's place", err)
}

// vacate asks idle tunnels, one after the other, until one has given its place, for wantedFor at most. want asks one, and
// returns "" if there is none.
func vacate(ctx context.Context, want func() (lease string, err error), stateOf func(lease string) (string, error)) (bool, error) {
	late := time.NewTimer(wantedFor)
	defer late.Stop()
	tick := time.NewTicker(vacatePoll)
	defer tick.Stop()
	for {
		lease, err := want()
		if lease == "" || err != nil {
			return false, err
		}
		for state := tunnelIdle; state == tunnelIdle; {
			if state, err = stateOf(lease); state == tunnelGone || err != nil {
				return err == nil, err
			}
			select {
			case <-tick.C:
			case <-late.C:
				return false, nil
			case <-ctx.Done():
				return false, context.Cause(ctx)
			}
		}
	}
}

// ReleaseTunnel gives a place back. If it fails, the place is free when the lease runs out: there is no need to repeat it.
func (p *Postgres) ReleaseTunnel(ctx context.Context, lease string) error {
	p.leases.remove(lease)
	return unavailable("releasing a tunnel", p.one(ctx, releaseSQL, []any{lease}))
}
