package docker

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// reap reaps as another gateway does, which knows the target alone.
func reap(t *testing.T, cli *client.Client, target runner.Target, cfg Config) (swept []runner.Swept, err error) {
	t.Helper()
	cfg.Swept = func(s runner.Swept) { swept = append(swept, s) }
	k := testKind(cli, cfg)
	err = k.Reap(t.Context(), target)
	k.ends.Close() // which gives up what has failed
	return swept, err
}

func wantReaped(t *testing.T, cli *client.Client, target runner.Target, cfg Config, want ...runner.Swept) {
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
	start := func(s *shelltest.Session) {
		s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
		s.Ready(t, "env -i PATH=$PATH "+shelltest.Job("bare", "")+" &")
		s.Ready(t, "nohup "+shelltest.Job("nohup", "")+" >/dev/null 2>&1 &")
		s.Ready(t, "(setsid "+shelltest.Job("setsid", "")+" &)")
	}
	for _, shell := range []string{"/bin/bash", "/bin/sh"} {
		for _, user := range []string{"root", "1000:1000"} {
			t.Run(shell+" as "+user, func(t *testing.T) {
				t.Parallel()
				container := engine.RunContainerWith(t, "", func(o *client.ContainerCreateOptions) { o.Config.User = user })
				p := dockerPlace("", shell, cli, container)
				cfg := Config{KeepDetached: true, Shells: []string{"/missing", shell}}
				lost, other, all := p.target(t), p.target(t), p.target(t)
				s := shelltest.Open(t, p.kind(t, true), lost)
				t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
				start(s)
				alive := shelltest.Open(t, p.kind(t, true), other)
				alive.Ready(t, shelltest.Job("other", "")+" &")

				wantReaped(t, cli, p.target(t), cfg) // a session that never was: nothing is told
				if got := shelltest.Living(t, s.ID); len(got) != jobs+1 {
					t.Errorf("alive: %q", got)
				}

				wantReaped(t, cli, lost, cfg, runner.Swept{Killed: 3, Kept: 2})
				shelltest.WantLiving(t, s.ID, "nohup", "setsid")
				wantReaped(t, cli, lost, cfg, runner.Swept{Kept: 2}) // as a second replica does
				shelltest.WantLiving(t, s.ID, "nohup", "setsid")
				alive.Send(t, "echo still=$((6*7))\n")
				alive.Expect(t, "still=42")

				s = shelltest.Open(t, p.kind(t, true), all)
				start(s)
				cfg.KeepDetached = false
				wantReaped(t, cli, all, cfg, runner.Swept{Killed: jobs + 1})
				shelltest.WantLiving(t, s.ID)
				alive.Send(t, "echo still=$((6*7))\n")
				alive.Expect(t, "still=42")
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
	s := shelltest.Open(t, p.kind(t, true), target)
	s.Send(t, "exec /su --reuid=0 --regid=0 --clear-groups bash\n")
	s.Send(t, "echo id=$(id -u)\n")
	s.Expect(t, "id=0\r\n")
	s.Ready(t, shelltest.Job("bg", "")+" &")
	wantReaped(t, cli, target, Config{KeepDetached: true, Shells: []string{"/bin/bash"}}, runner.Swept{Killed: 2})
	shelltest.WantLiving(t, s.ID)
}

// TestReapOfAnEndedShell: its jobs are not told from what was told to stay.
func TestReapOfAnEndedShell(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	p := dockerPlace("", "/bin/bash", cli, engine.RunContainer(t, ""))
	target := p.target(t)
	s := shelltest.Open(t, p.kind(t, false), target)
	s.Ready(t, "setsid "+shelltest.Job("setsid", "")+" &")
	s.Send(t, "exit\n")
	s.Exit(t)
	wantReaped(t, cli, target, Config{KeepDetached: true, Shells: []string{"/bin/bash"}}, runner.Swept{Kept: 1})
	shelltest.WantLiving(t, s.ID, "setsid")
}

// TestReapElsewhere: what is not known to be over is not called so.
func TestReapElsewhere(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	p := dockerPlace("", "/bin/bash", cli, container)
	target := p.target(t)
	s := shelltest.Open(t, p.kind(t, true), target)
	cfg := Config{KeepDetached: true, Shells: []string{"/bin/bash"}}

	away := shelltest.NewTarget(t, "elsewhere")
	away.Session = target.Session
	if swept, err := reap(t, cli, away, cfg); !errors.Is(err, runner.ErrNotRunning) || swept != nil {
		t.Errorf("a container that is not here: %+v, %v", swept, err)
	}
	engine.Exec(t, container, "/bin/bash", "-c", "mv /bin/sh /bin/moved")
	if swept, err := reap(t, cli, target, Config{KeepDetached: true, Shells: []string{"/missing"}}); err != nil || !slices.Equal(swept, []runner.Swept{{Left: 1}}) {
		t.Errorf("without a shell to look: %+v, %v", swept, err)
	}
	engine.Pause(t, container)
	if swept, err := reap(t, cli, target, cfg); !errors.Is(err, runner.ErrNotRunning) || swept != nil {
		t.Errorf("a paused container: %+v, %v", swept, err)
	}
	engine.Unpause(t, container)
	shelltest.WantLiving(t, s.ID, "bash")
	var swept []runner.Swept
	var err error
	shelltest.Eventually(t, "it is reaped", func() bool { // the engine may hear late that the container was paused, and says so once more
		swept, err = reap(t, cli, target, cfg)
		return !errors.Is(err, runner.ErrNotRunning)
	})
	if err != nil || !slices.Equal(swept, []runner.Swept{{Killed: 1}}) {
		t.Errorf("reaped %+v, %v", swept, err)
	}
	shelltest.WantLiving(t, s.ID)
}

// payer is a kind that ends later what could not be ended.
type payer struct {
	*Kind
	stop func() // tries once more

	mu    sync.Mutex
	swept []runner.Swept
}

func newPayer(t *testing.T, cli *client.Client) *payer {
	t.Helper()
	p := &payer{}
	p.Kind = testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/bash"}, Swept: func(s runner.Swept) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.swept = append(p.swept, s)
	}})
	p.stop = sync.OnceFunc(p.ends.Close)
	t.Cleanup(p.stop)
	return p
}

func (p *payer) paid() []runner.Swept {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.swept)
}

// owe opens a session with a job and closes it when that cannot be done.
func (p *payer) owe(t *testing.T, container string, before func()) (id string) {
	t.Helper()
	s := shelltest.Open(t, func(func(runner.Swept)) shelltest.Starter { return p.Kind }, shelltest.NewTarget(t, container))
	s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
	before()
	s.Closed = true
	if err := s.Close(); err == nil {
		t.Error("it could be closed")
	}
	<-s.Done
	if got := p.paid(); len(got) > 0 {
		t.Errorf("counted %+v, which is owed", got)
	}
	return s.ID
}

// Of many ends at once some have to wait; what waits for too long is done later.
func TestEndsTakeTurns(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := newPayer(t, engine.Client(t))
	p.cfg.Timing.End = 5 * time.Second
	p.cfg.Timing.Turn = time.Hour
	var turns []func()
	id := p.owe(t, engine.RunContainer(t, ""), func() {
		for n := range runner.EndsAtOnce {
			done, err := p.ends.Turn(t.Context(), fmt.Sprint("another ", n))
			if err != nil {
				t.Fatal(err)
			}
			turns = append(turns, done)
		}
	})
	for _, done := range turns {
		done()
	}
	shelltest.Eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
	if got := p.paid(); len(got) != 1 || got[0].Left > 0 { // a try that a busy machine cuts off has killed the job
		t.Errorf("swept %+v", got)
	}
	shelltest.WantLiving(t, id)
}

func TestOwed(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for _, c := range []struct {
		name  string
		then  func(t *testing.T, p *payer, container string)
		swept runner.Swept
		left  []string
	}{
		{"the container runs on", func(t *testing.T, _ *payer, container string) {
			engine.Unpause(t, container)
		}, runner.Swept{Killed: 1}, nil},
		{"the container is killed", func(t *testing.T, _ *payer, container string) {
			engine.Unpause(t, container)
			if _, err := cli.ContainerKill(t.Context(), container, client.ContainerKillOptions{}); err != nil {
				t.Error(err)
			}
		}, runner.Swept{}, nil},
		{"the container is removed", func(t *testing.T, _ *payer, container string) {
			if _, err := cli.ContainerRemove(t.Context(), container, client.ContainerRemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		}, runner.Swept{}, nil},
		{"the gateway ends", func(t *testing.T, p *payer, container string) {
			engine.Unpause(t, container)
			p.stop()
		}, runner.Swept{Killed: 1}, nil},
		{"the gateway ends before the container runs on", func(_ *testing.T, p *payer, _ string) {
			p.stop()
		}, runner.Swept{Left: 1}, []string{"bash", "bg"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			container := engine.RunContainer(t, "")
			p := newPayer(t, cli)
			id := p.owe(t, container, func() {
				engine.Pause(t, container)
			})
			shelltest.WantLiving(t, id, "bash", "bg")
			c.then(t, p, container)
			shelltest.Eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
			if got := p.paid(); !slices.Equal(got, []runner.Swept{c.swept}) {
				t.Errorf("swept %+v, want %+v", got, c.swept)
			}
			shelltest.WantLiving(t, id, c.left...)
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
		p.cfg.Shells = []string{"/bin/sh"} // and there is no other that a sweep would try
		id := p.owe(t, container, func() { engine.Exec(t, container, "/bin/dash", "-c", "mv /bin/sh /bin/away") })
		engine.Exec(t, container, "/bin/dash", "-c", "mv /bin/away /bin/sh")
		shelltest.Eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
		if got, want := p.paid(), []runner.Swept{{Killed: 1}}; !slices.Equal(got, want) {
			t.Errorf("swept %+v, want %+v", got, want)
		}
		shelltest.WantLiving(t, id)
	})
	for range 4 {
		t.Run("the container is killed", func(t *testing.T) {
			t.Parallel()
			container := engine.RunContainer(t, "")
			p := newPayer(t, cli)
			s := shelltest.Open(t, shelltest.By(p.Kind), shelltest.NewTarget(t, container))
			s.Closed = true
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_ = s.Close() // which may be put off
			}()
			if _, err := cli.ContainerKill(t.Context(), container, client.ContainerKillOptions{}); err != nil {
				t.Error(err)
			}
			<-closed
			<-s.Done
			shelltest.Eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
			if got := p.paid(); !slices.Equal(got, []runner.Swept{{}}) {
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
	p.cfg.Timing.Start, p.cfg.Timing.End = 3*time.Second, 2*shelltest.Patience
	target, began := shelltest.NewTarget(t, container), time.Now()
	_, err := p.Start(t.Context(), target, shelltest.DefaultSize)
	shelltest.WantStep(t, err, "shell")
	if took := time.Since(began); took > shelltest.Patience {
		t.Errorf("it took %s", took)
	}
	shelltest.WantLiving(t, target.Session, "sleep")
	if _, err := cli.ContainerKill(t.Context(), container, client.ContainerKillOptions{}); err != nil {
		t.Fatal(err)
	}
	shelltest.Eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
	if got := p.paid(); !slices.Equal(got, []runner.Swept{{}}) {
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
	shelltest.Eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
	if got := p.paid(); !slices.Equal(got, []runner.Swept{{}}) {
		t.Errorf("swept %+v", got)
	}
	shelltest.WantLiving(t, id)
}
