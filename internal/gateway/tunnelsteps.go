package gateway

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/instance"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// tunnelSteps remembers when the steps of each open tunnel were, for the trace of the terminal that the
// tunnel was opened for. A tunnel belongs to a connection that terminals share, so no terminal's context leads to
// it: a terminal's trail has the tunnel's id. All methods may be called on nil, and do nothing then.
type tunnelSteps struct {
	located sync.Map // tunnelStep, by the instance.TunnelRequest without a key: AWS was asked, and no tunnel is open yet
	tunnels sync.Map // []tunnelStep, by the tunnel's id
}

type tunnelStep struct {
	name         string
	began, ended time.Time
}

// found notes that AWS was asked for the way to an instance. The first question is the one that takes time.
func (s *tunnelSteps) found(r instance.TunnelRequest, began, ended time.Time) {
	if s == nil {
		return
	}
	withKey := r.PublicKey != ""
	r.PublicKey = ""
	if !withKey { // Find: a new connection begins
		s.located.Store(r, tunnelStep{"aws", began, ended})
		return
	}
	if first, ok := s.located.LoadOrStore(r, tunnelStep{"aws", began, ended}); ok {
		s.located.Store(r, tunnelStep{"aws", first.(tunnelStep).began, ended})
	}
}

// opened notes that a tunnel is open: its place was taken, and the key pushed.
func (s *tunnelSteps) opened(r instance.TunnelRequest, lease string, began, ended time.Time) {
	if s == nil {
		return
	}
	r.PublicKey = ""
	steps := []tunnelStep{{"tunnel", began, ended}}
	if aws, ok := s.located.LoadAndDelete(r); ok {
		steps = append(steps, aws.(tunnelStep))
	}
	s.tunnels.Store(lease, steps)
}

func (s *tunnelSteps) closed(lease string) {
	if s != nil {
		s.tunnels.Delete(lease)
	}
}

// observedInstances are instances whose starts tell their observer of the steps of a tunnel that was opened meanwhile.
type observedInstances struct {
	*instance.Kind
	steps *tunnelSteps
}

// Start is the instance's Start.
func (o *observedInstances) Start(ctx context.Context, t runner.Target, size terminal.Size) (terminal.Terminal, error) {
	began := time.Now()
	term, err := o.Kind.Start(ctx, t, size)
	last := began
	for name, lease := range t.Trail {
		if name != runner.TrailTunnel && !strings.HasPrefix(name, runner.TrailTunnel+"_") {
			continue
		}
		found, _ := o.steps.tunnels.Load(lease)
		steps, _ := found.([]tunnelStep) // none of a tunnel that has closed
		for _, s := range steps {
			if s.ended.Before(began) { // another terminal's: this one shares it
				continue
			}
			runner.StepOver(ctx, s.name, s.began, s.ended, nil)
			if s.ended.After(last) {
				last = s.ended
			}
		}
	}
	runner.StepOver(ctx, "shell", last, time.Now(), err) // the login, and the container's shell
	return term, err
}
