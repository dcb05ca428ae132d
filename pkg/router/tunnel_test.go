package router

import (
	"context"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// tunneled starts terminals whose tunnel is cut after a while.
type tunneled struct {
	runner.Kind
	life   time.Duration
	panics bool
}

type tunneledTerm struct {
	terminal.Terminal
	ends   time.Time
	panics bool
}

func (t tunneledTerm) Expires() time.Time {
	if t.panics {
		panic("boom")
	}
	return t.ends
}

func (s tunneled) Start(ctx context.Context, target runner.Target, size terminal.Size) (terminal.Terminal, error) {
	term, err := s.Kind.Start(ctx, target, size)
	return tunneledTerm{term, time.Now().Add(s.life), s.panics}, err
}

// A terminal that knows when its tunnel is cut is told so before, and closed then. The bridge's own tests have the five
// minutes and the one; a short life is announced at half.
func TestTunnelExpires(t *testing.T) {
	g := open(t, func(c *Config) { c.Places[0].Kind = tunneled{Kind: c.Places[0].Kind, life: 2 * time.Second} })
	p := g.ask(t, requestFor("far", g.ticket("far"), v1))
	ready := p.message("ready")
	id, _ := ready["session"].(string)
	if ready["tunnel"] != 1.0 {
		t.Errorf("ready is %v", ready)
	}
	if m := p.message("notice"); m["code"] != "tunnel_expired" || m["seconds"] != 1.0 {
		t.Errorf("told %v", m)
	}
	if e := p.message("error"); e["code"] != "tunnel_expired" || e["retryable"] != true {
		t.Errorf("told %v", e)
	}
	if f := p.rest(); f.code != 4504 {
		t.Errorf("the end is %+v", f)
	}
	g.over(t)
	if end := g.store.end(id); end.Reason != "tunnel_expired" {
		t.Errorf("recorded %+v", end)
	}
}
