package instance

import (
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
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

// hostileSweeps are things that a container's root may have its sweeps do; the
// tests of containers of this machine have them all.
var hostileSweeps = map[string]string{
	"its shell hangs":              replaced("/bin/bash", "exec sleep 1000000"),
	"its shell prints without end": replaced("/bin/bash", endless),
	"its shell is nonsense":        replaced("/bin/bash", "echo what"),
}

// endless prints without end: much at once, and on at a pace that leaves the processors to other tests.
const endless = `exec perl -e "syswrite STDOUT, qq(y\n) x 500000; select undef, undef, undef, .1 while syswrite STDOUT, qq(y\n)"`

// replaced replaces a program of a container in which it runs.
func replaced(program, by string) string {
	return `printf '#!/bin/dash\n%s\n' '` + by + `' >/new; chmod 755 /new; mv /new ` + program
}

// TestHostileSweepsOnAnInstance: there the gateway and what guards each terminal try, and no try follows one that hangs.
func TestHostileSweepsOnAnInstance(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	const many = 6
	for _, name := range []string{"its shell hangs", "its shell prints without end", "its shell is nonsense"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hostile, good := engine.RunContainer(t, ""), engine.RunContainer(t, "")
			var mu sync.Mutex
			var swept []runner.Swept
			i := newInstance(t, engine)
			// The pauses are long beside a sweep that hangs, as they are by default.
			r := i.remote(t, Config{Target: TargetContainer, Timing: runner.Timing{Retry: 3 * time.Second}, Swept: func(s runner.Swept) {
				mu.Lock()
				defer mu.Unlock()
				swept = append(swept, s)
			}})
			honest := shelltest.Open(t, shelltest.By(r), i.target(t, containerNameOf(t, engine, good)))
			honest.Ready(t, shelltest.Job("bg", "")+" &")
			var ends []*shelltest.Session
			for range many {
				ends = append(ends, shelltest.Open(t, shelltest.By(r), i.target(t, containerNameOf(t, engine, hostile))))
			}
			for _, s := range ends {
				shelltest.Within(t, shelltest.Patience, "the guard knows the shell", func() bool { return guardWaits(t, s.ID, "5") })
			}
			engine.Exec(t, hostile, "dash", "-ec", hostileSweeps[name])
			var closing sync.WaitGroup
			for _, s := range ends {
				s.Closed = true
				closing.Go(func() { _ = s.Close() })
			}
			honest.Closed = true
			_ = honest.Close()
			closing.Wait()
			shelltest.Eventually(t, "the honest session has ended", func() bool { return len(shelltest.Living(t, honest.ID)) == 0 })
			shelltest.Eventually(t, "all are counted", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(swept) == many+1
			})
			left := 0
			for _, s := range swept {
				left += s.Left
			}
			if left != many {
				t.Errorf("%d ends are counted as %+v", many, swept)
			}
			shelltest.Eventually(t, "nobody tries any more", func() bool {
				for _, s := range ends {
					if len(remnants(t, s.ID)) > 0 {
						return false
					}
				}
				return true
			})
			// The gateway's first tries, those in a row, one for each session that comes when the container has rested, and each
			// guard's first. A shell that is nonsense ends at once.
			n := running(t, engine, hostile)
			t.Logf("%d execs run in the container, for %d shells", n, many)
			if n > many+runner.LaneWidth+runner.MisconductTries+2*many {
				t.Error("these are too many")
			}
		})
	}
}
