package runner

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"
)

// reap reaps as another gateway does, which knows the target alone.
func reap(t *testing.T, cli *client.Client, target Target, cfg DockerConfig) (swept []Swept, err error) {
	t.Helper()
	cfg.Swept = func(s Swept) { swept = append(swept, s) }
	err = testDocker(cli, cfg).Reap(t.Context(), target)
	return swept, err
}

func wantReaped(t *testing.T, cli *client.Client, target Target, cfg DockerConfig, want ...Swept) {
	t.Helper()
	if swept, err := reap(t, cli, target, cfg); err != nil || !slices.Equal(swept, want) {
		t.Errorf("reaped %+v, %v; want %+v", swept, err, want)
	}
}

func TestReap(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	const jobs = 4
	start := func(s *session) {
		s.ready(t, job("bg", "$SIG{HUP}=sub{}")+" &")
		s.ready(t, "env -i PATH=$PATH "+job("bare", "")+" &")
		s.ready(t, "nohup "+job("nohup", "")+" >/dev/null 2>&1 &")
		s.ready(t, "(setsid "+job("setsid", "")+" &)")
	}
	for _, shell := range []string{"/bin/bash", "/bin/sh"} {
		for _, user := range []string{"root", "1000:1000"} {
			t.Run(shell+" as "+user, func(t *testing.T) {
				t.Parallel()
				container := engine.RunContainerWith(t, "", func(o *client.ContainerCreateOptions) { o.Config.User = user })
				p := dockerPlace("", shell, cli, container)
				cfg := DockerConfig{Shells: []string{"/missing", shell}}
				lost, other, all := p.target(t), p.target(t), p.target(t)
				s := open(t, p.runner(t, false), lost)
				t.Cleanup(func() { killLiving(t, s.id) })
				start(s)
				alive := open(t, p.runner(t, false), other)
				alive.ready(t, job("other", "")+" &")

				wantReaped(t, cli, p.target(t), cfg) // a session that never was: nothing is told
				if got := living(t, s.id); len(got) != jobs+1 {
					t.Errorf("alive: %q", got)
				}

				wantReaped(t, cli, lost, cfg, Swept{Killed: 3, Kept: 2})
				wantLiving(t, s.id, "nohup", "setsid")
				wantReaped(t, cli, lost, cfg, Swept{Kept: 2}) // as a second replica does
				wantLiving(t, s.id, "nohup", "setsid")
				alive.send(t, "echo still=$((6*7))\n")
				alive.expect(t, "still=42")

				s = open(t, p.runner(t, false), all)
				start(s)
				cfg.EndDetached = true
				wantReaped(t, cli, all, cfg, Swept{Killed: jobs + 1})
				wantLiving(t, s.id)
				alive.send(t, "echo still=$((6*7))\n")
				alive.expect(t, "still=42")
			})
		}
	}
}

// TestReapOfAShellThatBecameRoot: only root sees its marker then.
func TestReapOfAShellThatBecameRoot(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	container := engine.RunContainerWith(t, "", func(o *client.ContainerCreateOptions) { o.Config.User = "1000:1000" })
	as(t, cli, container, "cp /usr/bin/setpriv /su; chmod 4755 /su")
	p := dockerPlace("", "/bin/bash", cli, container)
	target := p.target(t)
	s := open(t, p.runner(t, false), target)
	s.send(t, "exec /su --reuid=0 --regid=0 --clear-groups bash\n")
	s.send(t, "echo id=$(id -u)\n")
	s.expect(t, "id=0\r\n")
	s.ready(t, job("bg", "")+" &")
	wantReaped(t, cli, target, DockerConfig{Shells: []string{"/bin/bash"}}, Swept{Killed: 2})
	wantLiving(t, s.id)
}

// TestReapOfAnEndedShell: its jobs are not told from what was told to stay.
func TestReapOfAnEndedShell(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	p := dockerPlace("", "/bin/bash", cli, engine.RunContainer(t, ""))
	target := p.target(t)
	s := open(t, p.runner(t, true), target)
	s.ready(t, "setsid "+job("setsid", "")+" &")
	s.send(t, "exit\n")
	s.exit(t)
	wantReaped(t, cli, target, DockerConfig{Shells: []string{"/bin/bash"}}, Swept{Kept: 1})
	wantLiving(t, s.id, "setsid")
}

// TestReapElsewhere: what is not known to be over is not called so.
func TestReapElsewhere(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	p := dockerPlace("", "/bin/bash", cli, container)
	target := p.target(t)
	s := open(t, p.runner(t, false), target)
	cfg := DockerConfig{Shells: []string{"/bin/bash"}}

	away := target
	away.Container = "elsewhere"
	if swept, err := reap(t, cli, away, cfg); !errors.Is(err, ErrNotRunning) || swept != nil {
		t.Errorf("a container that is not here: %+v, %v", swept, err)
	}
	if swept, err := reap(t, cli, target, DockerConfig{Shells: []string{"/missing"}}); err == nil || swept != nil {
		t.Errorf("without a shell to look: %+v, %v", swept, err)
	}
	engine.Pause(t, container)
	if swept, err := reap(t, cli, target, cfg); !errors.Is(err, ErrNotRunning) || swept != nil {
		t.Errorf("a paused container: %+v, %v", swept, err)
	}
	engine.Unpause(t, container)
	wantLiving(t, s.id, "bash")
	wantReaped(t, cli, target, cfg, Swept{Killed: 1})
	wantLiving(t, s.id)
}

// payer is a runner that pays what it owes.
type payer struct {
	*Docker
	stop func() // and wait

	mu    sync.Mutex
	swept []Swept
}

func newPayer(t *testing.T, cli *client.Client) *payer {
	t.Helper()
	p := &payer{}
	p.Docker = testDocker(cli, DockerConfig{Shells: []string{"/bin/bash"}, Swept: func(s Swept) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.swept = append(p.swept, s)
	}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	eventually(t, "it runs", func() bool {
		p.owed.mu.Lock()
		defer p.owed.mu.Unlock()
		return p.owed.running
	})
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *payer) paid() []Swept {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.swept)
}

// owe opens a session with a job and closes it when that cannot be done.
func (p *payer) owe(t *testing.T, container string, before func()) (id string) {
	t.Helper()
	s := open(t, func(func(Swept)) Starter { return p.Docker }, newTarget(t, container))
	s.ready(t, job("bg", "$SIG{HUP}=sub{}")+" &")
	before()
	s.closed = true
	if err := s.Close(); err == nil {
		t.Error("it could be closed")
	}
	<-s.done
	if got := p.paid(); len(got) > 0 {
		t.Errorf("counted %+v, which is owed", got)
	}
	return s.id
}

// Of many ends at once some have to wait; what waits for too long is done later.
func TestEndsTakeTurns(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := newPayer(t, engine.Client(t))
	p.cfg.Timing.End = time.Second
	p.owe(t, engine.RunContainer(t, ""), func() {
		for range endsAtOnce {
			p.turns.permits <- struct{}{}
		}
	})
	for range endsAtOnce {
		<-p.turns.permits
	}
	eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
	if got, want := p.paid(), []Swept{{Killed: 1}}; !slices.Equal(got, want) {
		t.Errorf("swept %+v, want %+v", got, want)
	}
}

func TestOwed(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for _, c := range []struct {
		name  string
		then  func(t *testing.T, p *payer, container string)
		swept Swept
		left  []string
	}{
		{"the container runs on", func(t *testing.T, _ *payer, container string) {
			engine.Unpause(t, container)
		}, Swept{Killed: 1}, nil},
		{"the container is killed", func(t *testing.T, _ *payer, container string) {
			engine.Unpause(t, container)
			if _, err := cli.ContainerKill(t.Context(), container, client.ContainerKillOptions{}); err != nil {
				t.Error(err)
			}
		}, Swept{}, nil},
		{"the container is removed", func(t *testing.T, _ *payer, container string) {
			if _, err := cli.ContainerRemove(t.Context(), container, client.ContainerRemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		}, Swept{}, nil},
		{"the gateway ends", func(t *testing.T, p *payer, container string) {
			engine.Unpause(t, container)
			p.stop()
		}, Swept{Killed: 1}, nil},
		{"the gateway ends before the container runs on", func(_ *testing.T, p *payer, _ string) {
			p.stop()
		}, Swept{Left: 1}, []string{"bash", "bg"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			container := engine.RunContainer(t, "")
			p := newPayer(t, cli)
			id := p.owe(t, container, func() {
				engine.Pause(t, container)
			})
			wantLiving(t, id, "bash", "bg")
			c.then(t, p, container)
			eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
			if got := p.paid(); !slices.Equal(got, []Swept{c.swept}) {
				t.Errorf("swept %+v, want %+v", got, c.swept)
			}
			wantLiving(t, id, c.left...)
			if c.left != nil {
				engine.Unpause(t, container)
			}
		})
	}
}

// TestOwedWhenTheSweepDidNotRun: an engine says the same (126) of a shell that is
// not there and of one that it could not run in a container that just stops.
func TestOwedWhenTheSweepDidNotRun(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		container := engine.RunContainer(t, "")
		p := newPayer(t, cli)
		p.cfg.Shells = []string{falseShell(t, engine, container, "[ -e /swept ] || { >/swept; exit 126; }")}
		id := p.owe(t, container, func() {})
		eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
		if got, want := p.paid(), []Swept{{Killed: 1}}; !slices.Equal(got, want) {
			t.Errorf("swept %+v, want %+v", got, want)
		}
		wantLiving(t, id)
	})
	for range 4 {
		t.Run("the container is killed", func(t *testing.T) {
			t.Parallel()
			container := engine.RunContainer(t, "")
			p := newPayer(t, cli)
			s := open(t, by(p.Docker), newTarget(t, container))
			s.closed = true
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_ = s.Close() // which may be put off
			}()
			if _, err := cli.ContainerKill(t.Context(), container, client.ContainerKillOptions{}); err != nil {
				t.Error(err)
			}
			<-closed
			<-s.done
			eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
			if got := p.paid(); !slices.Equal(got, []Swept{{}}) {
				t.Errorf("swept %+v", got)
			}
		})
	}
}

// TestOwedOfAStartThatHangs: whoever waits for the start does not wait for its
// end, which hangs too.
func TestOwedOfAStartThatHangs(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	engine.Exec(t, container, "sh", "-ec", `printf '#!/bin/sh\nexec sleep 1000\n' >/hangs; chmod 755 /hangs`)
	p := newPayer(t, cli)
	p.cfg.Shells = []string{"/hangs"}
	p.cfg.Timing.Start, p.cfg.Timing.End = 3*time.Second, 2*patience
	target, began := newTarget(t, container), time.Now()
	_, err := p.Start(t.Context(), target, defaultSize)
	wantStep(t, err, "shell")
	if took := time.Since(began); took > patience {
		t.Errorf("it took %s", took)
	}
	wantLiving(t, target.Session, "sleep")
	if _, err := cli.ContainerKill(t.Context(), container, client.ContainerKillOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
	if got := p.paid(); !slices.Equal(got, []Swept{{}}) {
		t.Errorf("swept %+v", got)
	}
}

// TestOwedWhileTheEngineRestarts: an engine that stops ends its containers, but while it is away nobody can tell.
func TestOwedWhileTheEngineRestarts(t *testing.T) {
	t.Parallel()
	engine := testenv.StartDocker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	p := newPayer(t, cli)
	id := p.owe(t, container, func() { engine.Stop(t) })
	engine.Start(t)
	eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
	if got := p.paid(); !slices.Equal(got, []Swept{{}}) {
		t.Errorf("swept %+v", got)
	}
	wantLiving(t, id)
}
