package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// A container that may start no further process ends its sessions all the same. Sometimes its engine cannot start a sweep
// there (runc's threads count), and tries again.
func TestEndAtThePIDLimit(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for name, hup := range map[string]string{"jobs that hear the hang-up": "DEFAULT", "jobs that catch the hang-up": "sub {}"} {
		for _, shell := range []string{"/bin/bash", "/bin/dash"} {
			t.Run(name+shell, func(t *testing.T) {
				t.Parallel()
				const limit, jobs = 20, 18 // and process 1, and the shell
				container := engine.RunContainerWith(t, "", func(c *client.ContainerCreateOptions) {
					pids := int64(limit)
					c.HostConfig.PidsLimit = &pids
				})
				var swept atomic.Pointer[runner.Swept]
				kind := testKind(cli, Config{KeepDetached: true, Shells: []string{shell}, Swept: func(s runner.Swept) { swept.Store(&s) }})
				t.Cleanup(kind.ends.Close)
				s := shelltest.Open(t, shelltest.By(kind), shelltest.NewTarget(t, container))
				s.Send(t, fmt.Sprintf("i=0; while [ $i -lt %d ]; do perl -e '$SIG{HUP} = %s; sleep 1 while 1' & i=$((i+1)); done; echo all$((1+1))\n", jobs, strings.Replace(hup, "DEFAULT", `"DEFAULT"`, 1)))
				s.Expect(t, "all2")
				shelltest.Eventually(t, "all jobs are there", func() bool { return len(shelltest.Living(t, s.ID)) == jobs+1 })
				s.Closed = true
				_ = s.Close() // or a little later
				shelltest.Eventually(t, "all has ended", func() bool { return len(shelltest.Living(t, s.ID)) == 0 && swept.Load() != nil })
				if got := *swept.Load(); got.Left > 0 {
					t.Errorf("%+v", got)
				}
			})
		}
	}
}

// A container whose first process reaps nothing keeps no zombies of sessions: a shell reaps what it has started.
func TestEndLeavesNoZombies(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for _, shell := range []string{"/bin/bash", "/bin/dash"} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			container := engine.RunContainer(t, "")
			for _, line := range []string{"sleep 7783", "sleep 7783 & sleep 7784 & echo here$((1+1))", "sleep 7783 | sleep 7784 | sleep 7785", "sh -c 'sleep 7783 & sleep 7784'"} {
				s := shelltest.Open(t, func(swept func(runner.Swept)) shelltest.Starter {
					cfg := Config{KeepDetached: true, Shells: []string{shell}, Swept: swept}
					cfg.Timing.Grace = 20 * time.Second // of which a busy machine may need some
					return testKind(cli, cfg)
				}, shelltest.NewTarget(t, container))
				s.Send(t, line+"\n")
				shelltest.Eventually(t, "it runs", func() bool { return len(shelltest.Living(t, s.ID)) > strings.Count(line, "sleep") })
				s.End(t)
			}
			zombies := engine.Exec(t, container, "sh", "-c", `grep -l "^State:.Z" /proc/[0-9]*/status 2>/dev/null | wc -l`)
			if strings.TrimSpace(zombies) != "0" {
				t.Errorf("%s zombies: %s", strings.TrimSpace(zombies), engine.Exec(t, container, "sh", "-c", `grep -h "^Name\|^State\|^PPid" $(grep -l "^State:.Z" /proc/[0-9]*/status)`))
			}
		})
	}
}

// doctor's step tells of a first process that leaves zombies.
func TestStepsTellOfInit(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	k := testKind(engine.Client(t), Config{KeepDetached: true, Shells: []string{"/bin/sh"}})
	reaps := engine.RunContainerWith(t, "", func(c *client.ContainerCreateOptions) {
		c.Config.Cmd = []string{"/bin/sh", "-c", "trap : CHLD; while :; do sleep 1 & wait; done"}
	})
	for container, want := range map[string]string{
		engine.RunContainer(t, ""): `runs; its first process, "sleep", leaves zombies (0 now): start the container with --init`,
		reaps:                      "runs",
	} {
		steps := k.Steps(shelltest.NewTarget(t, container), func(context.Context) error { return nil })
		if found, err := steps[1].Run(t.Context()); found != want || err != nil {
			t.Errorf("told %q, %v", found, err)
		}
	}
}

// openIn opens a terminal by a kind that has bash.
func openIn(t *testing.T, cli *client.Client, container string, shells ...string) *shelltest.Session {
	t.Helper()
	return shelltest.Open(t, func(swept func(runner.Swept)) shelltest.Starter {
		kind := testKind(cli, Config{KeepDetached: true, Shells: shells, Swept: swept})
		t.Cleanup(kind.ends.Close)
		return kind
	}, shelltest.NewTarget(t, container))
}

// A session whose working directory, or whose shell, is gone ends, and the next one opens.
func TestEndWithoutWorkingDirectoryOrShell(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for name, gone := range map[string]string{
		"working directory": "cd /; rmdir /work",
		"shell":             "rm -f /bin/ourshell /usr/bin/ourshell",
		"a directory first in PATH with another grep and sleep": "cd /",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			container := engine.RunContainerWith(t, "", func(c *client.ContainerCreateOptions) {
				c.Config.WorkingDir = "/work"
				c.Config.Env = []string{"PATH=/evil:/usr/bin:/bin", "LD_PRELOAD=/no/such.so"}
			})
			engine.Exec(t, container, "/bin/bash", "-c", `cp /bin/bash /bin/ourshell; mkdir /evil; for p in grep sleep printf; do printf '#!/bin/sh\nexit 3\n' >/evil/$p; chmod 755 /evil/$p; done`)
			s := openIn(t, cli, container, "/bin/ourshell", "/bin/dash")
			s.Ready(t, gone+"; "+shelltest.Job("bg", "")+" &")
			if swept := s.End(t); swept.Left > 0 {
				t.Errorf("%+v", swept)
			}
			shelltest.WantLiving(t, s.ID)
			next := openIn(t, cli, container, "/bin/ourshell", "/bin/dash")
			want := "/work"
			if name == "working directory" {
				want = "/"
			}
			next.Send(t, "echo \"<$PWD>\"\n")
			next.Expect(t, "<"+want+">")
		})
	}
}

// What an image has bash do first decides nothing before the person's shell, which sees the image's environment.
func TestImageEnvironmentDoesNotSteer(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for name, file := range map[string]string{
		"exit":    "exit 3",
		"banner":  "i=0; while [ $i -lt 2000 ]; do echo a banner; i=$((i+1)); done",
		"no echo": "stty -echo",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			container := engine.RunContainerWith(t, "", func(c *client.ContainerCreateOptions) {
				c.Config.Env = []string{"BASH_ENV=/etc/first", "BASH_FUNC_printf%%=() { exit 4; }", "BASH_FUNC_exec%%=() { exit 5; }", "PS1=<prompt>"}
			})
			engine.Exec(t, container, "/bin/dash", "-c", `cat >/etc/first <<'END'
`+file+`
END
echo 'PS1="<prompt>"' >/root/.bashrc`)
			s := openIn(t, cli, container, "/bin/bash")
			s.Expect(t, "<prompt>") // to the first byte
			s.Send(t, `command printf '<%s,%s>\n' "$BASH_ENV" "$(declare -F | wc -l)"`+"\n")
			s.Expect(t, "</etc/first,2>")
		})
	}
}

// Letters of UTF-8 are erased whole, and shown, in a container that says nothing of its locale; one that does is obeyed.
func TestLetters(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for name, test := range map[string]struct {
		env  []string
		lang string
	}{
		"none":     {nil, "C.UTF-8,,"},
		"LANG":     {[]string{"LANG=C"}, "C,,"},
		"LC_ALL":   {[]string{"LC_ALL=C"}, ",C,"},
		"LC_CTYPE": {[]string{"LC_CTYPE=POSIX"}, ",,POSIX"},
	} {
		for _, shell := range []string{"/bin/bash", "/bin/dash"} {
			t.Run(name+shell, func(t *testing.T) {
				t.Parallel()
				container := engine.RunContainerWith(t, "", func(c *client.ContainerCreateOptions) { c.Config.Env = test.env })
				s := openIn(t, cli, container, shell)
				s.Send(t, `echo "<$LANG,$LC_ALL,$LC_CTYPE,$TERM,$COLORTERM,$TERM_PROGRAM>"`+"\n")
				s.Expect(t, "<"+test.lang+",xterm-256color,truecolor,termgw>")
				s.Send(t, "echo here$((1+1)); cat\n")
				s.Expect(t, "here2\r\n") // no line editor has the terminal
				s.Send(t, "é日\x7f\n")
				s.Expect(t, "é日")
				s.Expect(t, "\r\né\r\n")
			})
		}
	}
}

// A terminal opens where one more process may be started and no two, and a shell that cannot be started is told as final.
func TestStartAtThePIDLimit(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for _, shell := range []string{"/bin/bash", "/bin/dash"} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			const limit = 40 // runc needs some for a moment
			container := engine.RunContainerWith(t, "", func(c *client.ContainerCreateOptions) {
				pids := int64(limit)
				c.HostConfig.PidsLimit = &pids
			})
			s := openIn(t, cli, container, shell)
			s.Send(t, fmt.Sprintf("i=0; while [ $i -lt %d ]; do sleep 7786 & i=$((i+1)); done; echo all$((1+1))\n", limit-3))
			s.Expect(t, "all2")
			kind := testKind(cli, Config{KeepDetached: true, Shells: []string{shell}})
			t.Cleanup(kind.ends.Close)
			var term terminal.Terminal
			target := shelltest.NewTarget(t, container)
			shelltest.Eventually(t, "the engine can start a shell", func() bool {
				var err error
				term, err = kind.Start(t.Context(), target, shelltest.DefaultSize)
				var failed *runner.Failure
				if errors.As(err, &failed) && failed.Final {
					t.Fatalf("told as final: %v", err)
				}
				return err == nil
			})
			full := shelltest.Start(t, term)
			full.ID = target.Session
			full.Send(t, "echo here$((1+1))\n")
			full.Expect(t, "here2")
			for _, one := range []*shelltest.Session{s, full} {
				one.Closed = true
				_ = one.Close() // or a little later, when the engine can start a sweep
				shelltest.Eventually(t, "all has ended", func() bool { return len(shelltest.Living(t, one.ID)) == 0 })
			}
		})
	}
}

func TestNoShellIsFinal(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	_, err := testKind(engine.Client(t), Config{KeepDetached: true, Shells: []string{"/missing"}}).
		Start(t.Context(), shelltest.NewTarget(t, engine.RunContainer(t, "")), shelltest.DefaultSize)
	var failed *runner.Failure
	if !errors.As(err, &failed) || !failed.Final {
		t.Errorf("told %v", err)
	}
}
