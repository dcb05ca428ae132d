package docker

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/terminal"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/host"
)

// place is somewhere to open terminals.
type place struct {
	name   string
	bash   bool
	kind   func(tb testing.TB, keepDetached bool) func(func(runner.Swept)) shelltest.Starter
	target func(tb testing.TB) runner.Target
}

// dockerPlace opens terminals by shell in one container.
func dockerPlace(name, shell string, cli *client.Client, container string) place {
	return place{
		name: name, bash: strings.HasSuffix(shell, "bash"),
		kind: func(_ testing.TB, keepDetached bool) func(func(runner.Swept)) shelltest.Starter {
			return func(swept func(runner.Swept)) shelltest.Starter {
				return testKind(cli, Config{Shells: []string{shell}, KeepDetached: keepDetached, Swept: swept})
			}
		},
		target: func(tb testing.TB) runner.Target { return shelltest.NewTarget(tb, container) },
	}
}

// hostPlace opens terminals of this machine.
func hostPlace(command string) place {
	return place{
		name: "host", bash: true,
		kind: func(tb testing.TB, keepDetached bool) func(func(runner.Swept)) shelltest.Starter {
			return func(swept func(runner.Swept)) shelltest.Starter {
				return host.New(host.Config{
					Command: command, Dir: tb.TempDir(), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"},
					KeepDetached: keepDetached, Swept: swept, Timing: shelltest.Timing,
				})
			}
		},
		target: func(tb testing.TB) runner.Target { return shelltest.NewTarget(tb, "") },
	}
}

const hostShell = "exec bash --norc --noprofile -i"

// places are the three that must not differ: a container's bash and its dash,
// each of which also runs the sweep, and the host.
func places(t *testing.T) []place {
	t.Helper()
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	return []place{
		dockerPlace("docker-bash", "/bin/bash", cli, container),
		dockerPlace("docker-dash", "/bin/sh", cli, container),
		hostPlace(hostShell),
	}
}

func TestCloseEndsWhatBelongs(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		input []string // lines
		ups   int      // how many processes say that they are ready
		keys  string   // typed then
		hears string   // what the terminal says to that
		all   bool     // not KeepDetached
		bash  bool     // the case is about bash
		alive []string // before
		stays []string // after
		swept runner.Swept
	}{
		{name: "idle shell"},
		{
			name:  "foreground program",
			input: []string{shelltest.Job("fg", "")}, ups: 1, alive: []string{"fg"},
			swept: runner.Swept{Killed: 1},
		},
		{
			name:  "foreground program that catches HUP, INT and TERM",
			input: []string{shelltest.Job("fg", `$SIG{$_}=sub{} for qw(HUP INT TERM)`)}, ups: 1, alive: []string{"fg"},
			swept: runner.Swept{Killed: 1},
		},
		{
			name:  "background job",
			input: []string{shelltest.Job("bg", "") + " &"}, ups: 1, alive: []string{"bg"},
			swept: runner.Swept{Killed: 1},
		},
		{
			name:  "background job that catches HUP",
			input: []string{shelltest.Job("bg", `$SIG{HUP}=sub{}`) + " &"}, ups: 1, alive: []string{"bg"},
			swept: runner.Swept{Killed: 1},
		},
		{
			name:  "job that forks on HUP",
			input: []string{shelltest.Job("bg", `$SIG{HUP}=sub{$SIG{HUP}=sub{}; fork}`) + " &"}, ups: 1, alive: []string{"bg"},
			swept: runner.Swept{Killed: 2},
		},
		{
			name:  "job without the marker",
			input: []string{"env -i " + shelltest.Job("bg", "") + " &"}, ups: 1, alive: []string{"bg"},
			swept: runner.Swept{Killed: 1},
		},
		{
			name:  "stopped job",
			input: []string{shelltest.Job("stopped", "")}, ups: 1, alive: []string{"stopped"},
			keys: "\x1a", hears: "Stopped",
			swept: runner.Swept{Killed: 1},
		},
		{
			name:  "disowned job",
			input: []string{shelltest.Job("bg", "") + " & disown"}, ups: 1, alive: []string{"bg"}, bash: true,
			swept: runner.Swept{Killed: 1},
		},
		{
			name:  "job of a subshell that is gone",
			input: []string{"(" + shelltest.Job("bg", "") + " &)"}, ups: 1, alive: []string{"bg"},
			swept: runner.Swept{Killed: 1},
		},
		{
			name:  "shell that ignores HUP",
			input: []string{"trap '' HUP; echo up=$((6*7))"}, ups: 1,
		},
		{
			name:  "name with a parenthesis, a state and a newline",
			input: []string{shelltest.Job("bg", `$0="a) S 1\n2 $ARGV[0]"`) + " &"}, ups: 1, alive: []string{"bg"},
			swept: runner.Swept{Killed: 1},
		},
		{
			name: "name with a newline that is told to stay",
			input: []string{
				"nohup " + shelltest.Job("nohup", `$0="1) Z 1\n\n2 $ARGV[0]"`) + " >/dev/null 2>&1 &",
			}, ups: 1, alive: []string{"nohup"},
			stays: []string{"nohup"}, swept: runner.Swept{Kept: 1},
		},
		{
			name:  "nohup",
			input: []string{"nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 &"}, ups: 1, alive: []string{"nohup"},
			stays: []string{"nohup"}, swept: runner.Swept{Kept: 1},
		},
		{
			name:  "nohup in the foreground",
			input: []string{"nohup " + shelltest.Job("nohup", "")}, ups: 1, alive: []string{"nohup"},
			stays: []string{"nohup"}, swept: runner.Swept{Kept: 1},
		},
		{
			name:  "setsid",
			input: []string{"setsid " + shelltest.Job("setsid", "") + " &"}, ups: 1, alive: []string{"setsid"},
			stays: []string{"setsid"}, swept: runner.Swept{Kept: 1},
		},
		{
			name:  "setsid without the marker",
			input: []string{"setsid env -i " + shelltest.Job("setsid", "") + " &"}, ups: 1, alive: []string{"setsid"},
			stays: []string{"setsid"},
		},
		{
			name:  "daemon",
			input: []string{shelltest.Job("daemon", "use POSIX; exit if fork; POSIX::setsid(); exit if fork")}, ups: 1, alive: []string{"daemon"},
			stays: []string{"daemon"}, swept: runner.Swept{Kept: 1},
		},
		{
			name: "some of each",
			input: []string{
				"nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 &",
				"setsid " + shelltest.Job("setsid", "") + " &",
				shelltest.Job("bg", "") + " &",
			}, ups: 3, alive: []string{"bg", "nohup", "setsid"},
			stays: []string{"nohup", "setsid"}, swept: runner.Swept{Killed: 1, Kept: 2},
		},
		{
			name: "all of it ends",
			input: []string{
				"nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 &",
				"setsid " + shelltest.Job("setsid", "") + " &",
				shelltest.Job("bg", "") + " &",
				shelltest.Job("daemon", "use POSIX; exit if fork; POSIX::setsid(); exit if fork"),
			}, ups: 4, alive: []string{"bg", "daemon", "nohup", "setsid"}, all: true,
			swept: runner.Swept{Killed: 4},
		},
		{
			name:  "zombie",
			input: []string{"nohup " + shelltest.Job("parent", "fork or exit") + " >/dev/null 2>&1 &"}, ups: 1, alive: []string{"parent"},
			stays: []string{"parent"}, swept: runner.Swept{Kept: 1},
		},
	}
	for _, p := range places(t) {
		for _, c := range cases {
			if c.bash && !p.bash {
				continue
			}
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := shelltest.Open(t, p.kind(t, !c.all), p.target(t))
				t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
				s.Send(t, "exec 9>/dev/tty\n")
				for _, line := range c.input {
					s.Send(t, line+"\n")
				}
				for range c.ups {
					s.Expect(t, "up=42")
				}
				if c.keys != "" {
					s.Send(t, c.keys)
					s.Expect(t, c.hears)
				}
				shelltest.Eventually(t, "alive are the shell and "+strings.Join(c.alive, ", "), func() bool {
					alive := slices.DeleteFunc(shelltest.Living(t, s.ID), func(name string) bool { return name == "bash" || name == "sh" })
					return slices.Equal(alive, c.alive)
				})
				if got := s.End(t); got != c.swept {
					t.Errorf("swept: %+v, want %+v", got, c.swept)
				}
				shelltest.WantLiving(t, s.ID, c.stays...)
			})
		}
	}
}

func TestCloseSparesOtherSessions(t *testing.T) {
	t.Parallel()
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			ended, other := shelltest.Open(t, p.kind(t, false), p.target(t)), shelltest.Open(t, p.kind(t, false), p.target(t))
			ended.Ready(t, shelltest.Job("ended", "")+" &")
			other.Ready(t, shelltest.Job("other", "")+" &")
			other.Ready(t, "setsid "+shelltest.Job("setsid", "")+" &")
			if got := ended.End(t); got != (runner.Swept{Killed: 1}) {
				t.Errorf("swept %+v", got)
			}
			shelltest.WantLiving(t, ended.ID)
			other.Send(t, "echo still=$((6*7))\n")
			other.Expect(t, "still=42")
			if got := other.End(t); got != (runner.Swept{Killed: 2}) {
				t.Errorf("swept %+v", got)
			}
			shelltest.WantLiving(t, other.ID)
		})
	}
}

func TestCloseAsAnotherUser(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	const nobody = "setpriv --reuid=65534 --clear-groups "
	container := func(user string, drop ...string) func(*client.ContainerCreateOptions) {
		return func(o *client.ContainerCreateOptions) {
			o.Config.User, o.HostConfig.CapDrop = user, drop
		}
	}
	cases := []struct {
		name  string
		with  func(*client.ContainerCreateOptions)
		input string
		all   bool
		stays []string
		swept runner.Swept
	}{
		{
			name: "own jobs of a user", with: container("1000:1000"),
			input: shelltest.Job("bg", `$SIG{HUP}=sub{}`) + " &", swept: runner.Swept{Killed: 1},
		},
		{
			name: "all that a user has detached", with: container("1000:1000"), all: true,
			input: "setsid " + shelltest.Job("setsid", "") + " &", swept: runner.Swept{Killed: 1},
		},
		{
			name: "root's job as nobody", with: container("root"),
			input: nobody + shelltest.Job("nobody", "") + " &", swept: runner.Swept{Killed: 1},
		},
		{
			// As su or sudo do; what a user may not signal, root ends.
			name: "a user's job as nobody", with: container("1000:1000"),
			input: "/su " + shelltest.Job("nobody", "") + " &", swept: runner.Swept{Killed: 1},
		},
		{
			name: "a user's job as nobody that catches HUP", with: container("1000:1000"),
			input: "/su " + shelltest.Job("nobody", `$SIG{HUP}=sub{}`) + " &", swept: runner.Swept{Killed: 1},
		},
		{
			name: "a user's job as nobody that is told to stay", with: container("1000:1000"),
			input: "nohup /su " + shelltest.Job("nobody", "") + " >/dev/null 2>&1 &",
			stays: []string{"nobody"}, swept: runner.Swept{Kept: 1},
		},
		{
			name: "a user's jobs as nobody and as himself", with: container("1000:1000"),
			input: "nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 & /su " + shelltest.Job("nobody", "") + " &",
			stays: []string{"nohup"}, swept: runner.Swept{Killed: 1, Kept: 1},
		},
		{
			name: "all of a user and of nobody", with: container("1000:1000"), all: true,
			input: "setsid " + shelltest.Job("setsid", "") + " & nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 & /su " + shelltest.Job("nobody", "$SIG{HUP}=sub{}") + " &",
			swept: runner.Swept{Killed: 3},
		},
		{
			// Here root may not signal others: what cannot be ended is told.
			name: "root without the right to kill", with: container("1000:1000", "KILL"),
			input: "/su " + shelltest.Job("nobody", "$SIG{HUP}=sub{}") + " & " + shelltest.Job("bg", "") + " &",
			stays: []string{"nobody"}, swept: runner.Swept{Killed: 1, Left: 1},
		},
	}
	for _, shell := range []string{"/bin/bash", "/bin/sh"} {
		for _, c := range cases {
			t.Run(shell+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				id := engine.RunContainerWith(t, "", c.with)
				as(t, cli, id, "cp /usr/bin/setpriv /su.bin; chmod 4755 /su.bin; "+
					"printf '#!/bin/sh\nexec /su.bin --reuid=65534 --clear-groups \"$@\"' >/su; chmod 755 /su")
				p := dockerPlace("", shell, cli, id)
				s := shelltest.Open(t, p.kind(t, !c.all), p.target(t))
				t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
				s.Send(t, "exec 9>/dev/tty\n"+c.input+"\n")
				for range strings.Count(c.input, "up=") {
					s.Expect(t, "up=42")
				}
				if got := s.End(t); got != c.swept {
					t.Errorf("swept %+v, want %+v", got, c.swept)
				}
				shelltest.WantLiving(t, s.ID, c.stays...)
			})
		}
	}
}

// as runs a script as root in a container of another user.
func as(tb testing.TB, cli *client.Client, container, script string) {
	tb.Helper()
	exec, err := cli.ExecCreate(tb.Context(), container, client.ExecCreateOptions{
		User: "0", AttachStdout: true, AttachStderr: true, Cmd: []string{"sh", "-ec", script},
	})
	if err != nil {
		tb.Fatal(err)
	}
	stream, err := cli.ExecAttach(tb.Context(), exec.ID, client.ExecAttachOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	defer stream.Close()
	if out, err := io.ReadAll(stream.Reader); err != nil || len(out) > 0 {
		tb.Fatalf("%s: %q, %v", script, out, err)
	}
}

// TestCloseInABareContainer takes away what a minimal image may lack.
func TestCloseInABareContainer(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for _, missing := range []string{"grep", "sleep", "grep sleep"} {
		for _, shell := range []string{"/bin/bash", "/bin/sh"} {
			t.Run(shell+" without "+missing, func(t *testing.T) {
				t.Parallel()
				id := engine.RunContainer(t, "")
				engine.Exec(t, id, "sh", "-ec", "cd /usr/bin; mkdir /away; mv "+missing+" /away")
				p := dockerPlace("", shell, cli, id)
				s := shelltest.Open(t, p.kind(t, true), p.target(t))
				t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
				s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
				s.Ready(t, "setsid "+shelltest.Job("setsid", "")+" &")
				if got := s.End(t); got != (runner.Swept{Killed: 1, Kept: 1}) {
					t.Errorf("swept %+v", got)
				}
				shelltest.WantLiving(t, s.ID, "setsid")

				all := shelltest.Open(t, p.kind(t, false), p.target(t))
				all.Ready(t, "setsid "+shelltest.Job("setsid", "")+" &")
				if got := all.End(t); got != (runner.Swept{Killed: 1}) {
					t.Errorf("swept %+v", got)
				}
				shelltest.WantLiving(t, all.ID)
			})
		}
	}
}

// TestCloseOfAnExitedShell also ends what it has left.
func TestCloseOfAnExitedShell(t *testing.T) {
	t.Parallel()
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := shelltest.Open(t, p.kind(t, true), p.target(t))
			t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
			s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
			s.Ready(t, "nohup "+shelltest.Job("nohup", "")+" >/dev/null 2>&1 &")
			s.Send(t, "exit 5\n")
			if got := s.Exit(t); got != (terminal.Exit{Code: 5}) {
				t.Errorf("ended with %+v", got)
			}
			shelltest.WantLiving(t, s.ID, "bg", "nohup")
			if got := s.End(t); got != (runner.Swept{Killed: 1, Kept: 1}) {
				t.Errorf("swept %+v", got)
			}
			shelltest.WantLiving(t, s.ID, "nohup")
		})
	}
}

// TestCloseWakesWrite: a program that does not read, and a person who pastes
// all the same.
func TestCloseWakesWrite(t *testing.T) {
	t.Parallel()
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := shelltest.Open(t, p.kind(t, true), p.target(t))
			s.Send(t, "stty raw -echo; echo up=$((6*7)); sleep 1000\n")
			s.Expect(t, "up=42")
			written := make(chan error)
			go func() {
				_, err := s.Write(make([]byte, 8<<20))
				written <- err
			}()
			s.End(t)
			if err := <-written; err == nil {
				t.Error("8 MiB went where nobody has read")
			}
		})
	}
}

// TestCloseWhileNobodyReads: a client that is stuck, and a program that is
// blocked by that.
func TestCloseWhileNobodyReads(t *testing.T) {
	t.Parallel()
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			target := p.target(t)
			var swept runner.Swept
			term, err := p.kind(t, true)(func(s runner.Swept) { swept = s }).Start(t.Context(), target, shelltest.DefaultSize)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := term.Write([]byte("yes\n")); err != nil {
				t.Fatal(err)
			}
			shelltest.Eventually(t, "yes runs", func() bool { return slices.Contains(shelltest.Living(t, target.Session), "yes") })
			if err := term.Close(); err != nil || swept != (runner.Swept{Killed: 1}) {
				t.Errorf("swept %+v, %v", swept, err)
			}
			shelltest.WantLiving(t, target.Session)
			if _, err := io.Copy(io.Discard, term); err != nil {
				t.Error(err)
			}
		})
	}
}

// falseShell puts a shell into a container that does something else when it is to
// sweep.
func falseShell(tb testing.TB, engine *testenv.Docker, container, instead string) (shell string) {
	tb.Helper()
	engine.Exec(tb, container, "sh", "-ec", `printf '#!/bin/sh\nif [ "$3" = termgw-sweep ]; then %s; fi\nexec /bin/sh "$@"\n' "$0" >/false && chmod 755 /false`, instead)
	return "/false"
}

// TestHostileCounts: what a container says of its end is its own word.
func TestHostileCounts(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	container := engine.RunContainer(t, "")
	for _, answer := range []string{"0 -1 0", "-1 0 0", "0 0 99999999999", "1 2", "1 2 3 4", "0x1 0 0", "", "1 0 0; killed"} {
		shell := falseShell(t, engine, container, "echo '"+answer+"'; exit")
		var swept runner.Swept
		d := testKind(engine.Client(t), Config{KeepDetached: true, Shells: []string{shell}, Swept: func(s runner.Swept) { swept = s }})
		term, err := d.Start(t.Context(), shelltest.NewTarget(t, container), shelltest.DefaultSize)
		if err != nil {
			t.Fatal(err)
		}
		s := shelltest.Start(t, term)
		s.Closed = true
		if err := s.Close(); err == nil {
			t.Errorf("closed by %q", answer)
		}
		if d.ends.Close(); swept != (runner.Swept{Left: 1}) {
			t.Errorf("of %q it counted %+v", answer, swept)
		}
	}
}

// TestEndThatWaitsKeepsNobody: a container can make its own end take long.
func TestEndThatWaitsKeepsNobody(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	hostile, good := engine.RunContainer(t, ""), engine.RunContainer(t, "")
	shell := falseShell(t, engine, hostile, ">/waits; sleep 1000")
	d := testKind(engine.Client(t), Config{
		Shells: []string{shell, "/bin/sh"}, Timing: runner.Timing{Turn: 10 * time.Millisecond, End: shelltest.Patience},
	})
	waits := shelltest.Open(t, shelltest.By(d), shelltest.NewTarget(t, hostile))
	ends := shelltest.Open(t, shelltest.By(d), shelltest.NewTarget(t, good))
	for n := range runner.EndsAtOnce - 1 {
		if _, err := d.ends.Turn(t.Context(), fmt.Sprint("another ", n)); err != nil {
			t.Fatal(err)
		}
	}
	waits.Closed = true
	var closing sync.WaitGroup
	closing.Go(func() { _ = waits.Close() }) // until the container is killed
	engine.Exec(t, hostile, "sh", "-c", "until [ -e /waits ]; do sleep 0.05; done")
	ends.End(t)
	if _, err := engine.Client(t).ContainerKill(t.Context(), hostile, client.ContainerKillOptions{}); err != nil {
		t.Error(err)
	}
	closing.Wait()
}

// TestSweepOfAnotherStartTime: when the shell's pid has gone to another
// process, no process of that one's session is touched.
func TestSweepOfAnotherStartTime(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := dockerPlace("", "/bin/sh", engine.Client(t), engine.RunContainer(t, ""))
	s := shelltest.Open(t, p.kind(t, true), p.target(t))
	s.Ready(t, shelltest.Job("bg", "")+" &")
	term := s.Terminal.(*execTerminal)
	stale := &execTerminal{
		kind: term.kind, container: term.container, shell: term.shell, log: term.log,
		session: "another", pid: term.pid, start: term.start + "0",
	}
	for _, keepDetached := range []bool{false, true} {
		swept, err := stale.sweep(t.Context(), "", keepDetached, true)
		if err != nil || swept != (runner.Swept{}) {
			t.Errorf("swept %+v, %v", swept, err)
		}
	}
	shelltest.WantLiving(t, s.ID, "bg", "sh")
}

// TestNoDescriptorIsLeft also counts starts that fail.
func TestNoDescriptorIsLeft(t *testing.T) {
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	p := dockerPlace("", "/bin/bash", cli, container)
	shelltest.Open(t, p.kind(t, true), p.target(t)).End(t) // the client keeps connections
	files := shelltest.Descriptors(t)
	for range 5 {
		shelltest.Open(t, p.kind(t, true), p.target(t)).End(t)
		if _, err := testKind(cli, Config{Shells: []string{"/missing"}}).Start(t.Context(), p.target(t), shelltest.DefaultSize); err == nil {
			t.Error("a shell that is missing has started")
		}
	}
	shelltest.Eventually(t, fmt.Sprintf("%d descriptors again", files), func() bool { return shelltest.Descriptors(t) <= files })
}
