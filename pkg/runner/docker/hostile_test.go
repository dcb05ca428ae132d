package docker

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// running counts the execs that run in a container, as the engine says.
func running(tb testing.TB, engine *testenv.Docker, container string) int {
	tb.Helper()
	c, err := engine.Client(tb).ContainerInspect(tb.Context(), container, client.ContainerInspectOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return len(c.Container.ExecIDs)
}

// hostileSweeps are the things that a container's root may have its sweeps do.
var hostileSweeps = map[string]string{
	"its shell hangs":               replaced("/bin/bash", "exec sleep 1000000"),
	"its shell prints without end":  replaced("/bin/bash", endless),
	"its shell hears no signal":     replaced("/bin/bash", `trap "" HUP INT TERM PIPE; while :; do sleep 1; done`),
	"its shell answers and stays":   replaced("/bin/bash", "echo 0 0 0; exec sleep 1000000 >/dev/null 2>&1"),
	"its shell says nothing":        replaced("/bin/bash", "exec sleep 1000000 >/dev/null 2>&1"),
	"its grep hangs":                replaced("/bin/grep", "exec sleep 1000000"),
	"its shell is nonsense":         replaced("/bin/bash", "echo what"),
	"its shell is no program":       ": >/new; chmod 755 /new; mv /new /bin/bash; chmod 000 /bin/bash; rm /bin/sh",
	"its shell claims that all end": replaced("/bin/bash", "echo 0 0 0"),
	"its shell claims a lot":        replaced("/bin/bash", "echo 9999999 9999999 9999999"),
}

// endless prints without end: much at once, and on at a pace that leaves the processors to other tests.
const endless = `exec perl -e "syswrite STDOUT, qq(y\n) x 500000; select undef, undef, undef, .1 while syswrite STDOUT, qq(y\n)"`

// replaced replaces a program of a container in which it runs.
func replaced(program, by string) string {
	return `printf '#!/bin/dash\n%s\n' '` + by + `' >/new; chmod 755 /new; mv /new ` + program
}

// TestHostileSweeps: the ends of sessions in a container that does not let them end cost the engine a few execs, end in a
// count of one a session, and keep no other container's waiting.
func TestHostileSweeps(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	const many = 8
	for name, turns := range hostileSweeps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPayer(t, cli)
			hostile, good := engine.RunContainer(t, ""), engine.RunContainer(t, "")
			honest := shelltest.Open(t, func(func(runner.Swept)) shelltest.Starter { return p.Kind }, shelltest.NewTarget(t, good))
			honest.Ready(t, shelltest.Job("bg", "")+" &")
			var ends []*shelltest.Session
			for range many {
				ends = append(ends, shelltest.Open(t, shelltest.By(p.Kind), shelltest.NewTarget(t, hostile)))
				ends[len(ends)-1].Started(t)
			}
			engine.Exec(t, hostile, "dash", "-ec", turns)
			p.cfg.Timing.Call, p.cfg.Timing.End = 3*time.Second, 5*time.Second
			var closing sync.WaitGroup
			for _, s := range ends {
				s.Closed = true
				closing.Go(func() { _ = s.Close() })
			}
			honest.Closed = true
			_ = honest.Close() // or a little later, on a busy machine
			closing.Wait()
			shelltest.Eventually(t, "the honest session has ended", func() bool { return len(shelltest.Living(t, honest.ID)) == 0 })
			shelltest.Eventually(t, "all are counted", func() bool { return len(p.paid()) == many+1 })
			var sum runner.Swept
			for _, s := range p.paid() {
				sum.Killed, sum.Kept, sum.Left = max(sum.Killed, s.Killed), max(sum.Kept, s.Kept), sum.Left+s.Left
			}
			if sum.Left != many || sum.Killed > runner.ClaimLimit || sum.Kept > runner.ClaimLimit {
				t.Errorf("%d ends are counted as %+v", many, p.paid())
			}
			if n := running(t, engine, hostile); n > many+runner.LaneWidth {
				t.Errorf("%d execs run in the container, for %d shells", n, many)
			}
			p.stop()
			if got := p.paid(); len(got) > many+1 {
				t.Errorf("counted again: %+v", got)
			}
		})
	}
}

// TestHostileSweepsOfTheAbandoned: the same of sessions whose gateway is gone.
func TestHostileSweepsOfTheAbandoned(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	const many = 6
	for _, name := range []string{"its shell hangs", "its shell prints without end", "its shell is nonsense"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hostile := engine.RunContainer(t, "")
			gone := testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/bash"}})
			var targets []runner.Target
			for range many {
				targets = append(targets, shelltest.NewTarget(t, hostile))
				shelltest.Open(t, shelltest.By(gone), targets[len(targets)-1]).Started(t)
			}
			engine.Exec(t, hostile, "dash", "-ec", hostileSweeps[name])
			gone.cfg.Timing.End = time.Second // at the test's end
			p := newPayer(t, cli)
			p.cfg.Timing.Call, p.cfg.Timing.End = 3*time.Second, 6*time.Second
			var reaping sync.WaitGroup
			for _, target := range targets {
				reaping.Go(func() {
					if err := p.Reap(t.Context(), target); err != nil {
						t.Error(err)
					}
				})
			}
			reaping.Wait()
			shelltest.Eventually(t, "all are counted", func() bool { return len(p.paid()) == many })
			for _, s := range p.paid() {
				if s != (runner.Swept{Left: 1}) {
					t.Errorf("counted %+v", s)
				}
			}
			if n := running(t, engine, hostile); n > many+runner.LaneWidth {
				t.Errorf("%d execs run in the container, for %d shells", n, many)
			}
			// When the container ends, so does the rest.
			if _, err := cli.ContainerKill(t.Context(), hostile, client.ContainerKillOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNoTerminalAmongStrays: shells that a container does not let end cost the engine, so that there are few.
func TestNoTerminalAmongStrays(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli, hostile := engine.Client(t), engine.RunContainer(t, "")
	d := testKind(cli, Config{KeepDetached: true, Shells: []string{falseShell(t, engine, hostile, "echo 0 0 0; exit"), "/bin/bash"}})
	call := d.cfg.Timing.Call
	var opened int
	var err error
	for ; opened < 2*strayLimit; opened++ {
		target := shelltest.NewTarget(t, hostile)
		term, startErr := d.Start(t.Context(), target, shelltest.DefaultSize)
		if err = startErr; err != nil {
			break
		}
		d.cfg.Timing.Call = 100 * time.Millisecond
		_ = term.Close()
		d.cfg.Timing.Call = call
	}
	shelltest.WantStep(t, err, "shell")
	// One that ended by itself, as on a busy machine now and then, makes room for another: how many run is what counts.
	if opened < strayLimit || !strings.Contains(err.Error(), "restart it") {
		t.Errorf("%d terminals opened, and then: %v", opened, err)
	}
	if n := running(t, engine, hostile); n != strayLimit {
		t.Errorf("%d execs run in the container", n)
	}
	shelltest.Open(t, shelltest.By(d), shelltest.NewTarget(t, engine.RunContainer(t, ""))).End(t)
	if _, err := cli.ContainerRestart(t.Context(), hostile, client.ContainerRestartOptions{}); err != nil {
		t.Fatal(err)
	}
	term, err := d.Start(t.Context(), shelltest.NewTarget(t, hostile), shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	d.cfg.Timing.Call = 100 * time.Millisecond
	_ = term.Close()
}
