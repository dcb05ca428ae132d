package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/molecule-ai/termgw/pkg/eice"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/instance"
	"github.com/molecule-ai/termgw/pkg/store"
)

// This file has the places of an endpoint's tunnels, which all replicas share.

const (
	// sparePlaces are the places that stay free of tunnels whose terminal could share another tunnel.
	sparePlaces = eice.MaxTunnels / 4
	// placeTries bounds how often a place is asked for: another replica may take the place that was vacated.
	placeTries = 5
	// noteTime bounds a note in the store for which nobody waits.
	noteTime = 2 * time.Second
)

// place is one of an endpoint's places.
type place struct {
	*tunnels
	endpoint, lease string
}

// acquire takes one of the endpoint's places, an idle tunnel's if no place is free: this replica's own or another's.
func (t *tunnels) acquire(ctx context.Context, endpoint, instanceID string) (*place, error) {
	lease, err := t.shared.AcquireTunnel(ctx, endpoint, instanceID, t.replica, eice.MaxTunnels)
	for range placeTries {
		if !errors.Is(err, store.ErrLimit) || !t.vacate(ctx, endpoint) {
			break
		}
		lease, err = t.shared.AcquireTunnel(ctx, endpoint, instanceID, t.replica, eice.MaxTunnels)
	}
	if errors.Is(err, store.ErrLimit) {
		err = noTunnelLeft(err)
	}
	if err != nil {
		return nil, err
	}
	t.open.WithLabelValues(endpoint).Inc()
	return &place{t, endpoint, lease}, nil
}

// vacate ends an idle tunnel of an endpoint, and reports whether one has ended.
func (t *tunnels) vacate(ctx context.Context, endpoint string) bool {
	vacated, err := t.shared.VacateTunnel(ctx, endpoint, t.replica)
	if err != nil {
		t.log.Warn("no idle tunnel could be asked for its place", "endpoint", endpoint, "err", err)
	}
	return vacated
}

// trail has the names of a tunnel in others' logs.
func (p *place) trail() runner.Trail {
	return runner.Trail{runner.TrailTunnel: p.lease, trailEndpoint: p.endpoint}
}

// room reports whether enough places are free for a tunnel whose terminal could share another tunnel.
func (p *place) room(ctx context.Context) bool {
	free, err := p.shared.FreeTunnels(ctx, p.endpoint, eice.MaxTunnels)
	return err == nil && free > sparePlaces
}

// idle notes that the tunnel is idle, and reports whether its place is wanted.
func (p *place) idle(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, noteTime)
	defer cancel()
	wanted, err := p.shared.IdleTunnel(ctx, p.lease)
	return err == nil && wanted
}

// release gives the place back.
func (p *place) release() {
	p.open.WithLabelValues(p.endpoint).Dec() // the tunnel is closed, also if the store fails
	p.steps.closed(p.lease)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.shared.ReleaseTunnel(ctx, p.lease); err != nil {
		p.log.Warn("a tunnel's place is freed late", "err", err) // when the lease runs out
	}
}

// refusedByAWS reports whether AWS counts as many tunnels as an endpoint carries, others' than gateways' among them.
func refusedByAWS(err error) bool {
	var e *eice.Error
	return errors.As(err, &e) && e.Detail == eice.TunnelQuota
}

// noTunnelLeft returns the failure of an endpoint that carries as many tunnels as AWS allows.
func noTunnelLeft(err error) error {
	return &runner.Failure{
		Step: store.LimitTunnels, Err: fmt.Errorf("%w: %w", instance.ErrQuota, err),
		Sentence: fmt.Sprintf("AWS carries %d tunnels an endpoint, and all are in use. Close a terminal or try again later.", eice.MaxTunnels),
	}
}
