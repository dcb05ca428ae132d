package runner

import (
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// job is a command line of one process, with the label <session>.label, that
// says up=42 when it is ready and lives until a signal ends it. setup is Perl,
// which Debian and Ubuntu always have: it forks, handles signals and renames
// itself without a second process, so that what is counted is what a case says.
// It is not ready while what started it is on its way out, and would be counted:
// setsid(1), a subshell, or the process that setup forked it from.
func job(label, setup string) string {
	return `perl -e '` + setup + `; while (open P, "/proc/" . getppid . "/stat") { ` +
		`last unless <P> =~ /\((setsid|perl|bash|dash|sh)\) [^Z] \d+ \d+ (\d+)/ && ($1 =~ /^[sp]e/ || $2 != getppid); ` +
		`select undef, undef, undef, .01 } ` +
		`open T, ">&=9"; syswrite T, "up=" . 6*7 . "\n"; close T; sleep 1 while 1' ` +
		`"$TERMGW_SESSION.` + label + `"`
}

// place is somewhere to open terminals.
type place struct {
	name   string
	bash   bool
	runner func(tb testing.TB, all bool) func(func(Swept)) Starter
	target func(tb testing.TB) Target
}

// dockerPlace opens terminals by shell in one container.
func dockerPlace(name, shell string, cli *client.Client, container string) place {
	return place{
		name: name, bash: strings.HasSuffix(shell, "bash"),
		runner: func(_ testing.TB, all bool) func(func(Swept)) Starter {
			return func(swept func(Swept)) Starter {
				return testDocker(cli, DockerConfig{Shells: []string{shell}, EndDetached: all, Swept: swept})
			}
		},
		target: func(tb testing.TB) Target { return newTarget(tb, container) },
	}
}

// hostPlace opens terminals of this machine.
func hostPlace(command string) place {
	return place{
		name: "host", bash: true,
		runner: func(tb testing.TB, all bool) func(func(Swept)) Starter {
			return func(swept func(Swept)) Starter {
				return NewHost(HostConfig{
					Command: command, Dir: tb.TempDir(), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"},
					EndDetached: all, Swept: swept, Timing: timing,
				})
			}
		},
		target: func(tb testing.TB) Target { return newTarget(tb, "") },
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
		all   bool     // EndDetached
		bash  bool     // the case is about bash
		alive []string // before
		stays []string // after
		swept Swept
	}{
		{name: "idle shell"},
		{
			name:  "foreground program",
			input: []string{job("fg", "")}, ups: 1, alive: []string{"fg"},
			swept: Swept{Killed: 1},
		},
		{
			name:  "foreground program that catches HUP, INT and TERM",
			input: []string{job("fg", `$SIG{$_}=sub{} for qw(HUP INT TERM)`)}, ups: 1, alive: []string{"fg"},
			swept: Swept{Killed: 1},
		},
		{
			name:  "background job",
			input: []string{job("bg", "") + " &"}, ups: 1, alive: []string{"bg"},
			swept: Swept{Killed: 1},
		},
		{
			name:  "background job that catches HUP",
			input: []string{job("bg", `$SIG{HUP}=sub{}`) + " &"}, ups: 1, alive: []string{"bg"},
			swept: Swept{Killed: 1},
		},
		{
			name:  "job that forks on HUP",
			input: []string{job("bg", `$SIG{HUP}=sub{$SIG{HUP}=sub{}; fork}`) + " &"}, ups: 1, alive: []string{"bg"},
			swept: Swept{Killed: 2},
		},
		{
			name:  "job without the marker",
			input: []string{"env -i " + job("bg", "") + " &"}, ups: 1, alive: []string{"bg"},
			swept: Swept{Killed: 1},
		},
		{
			name:  "stopped job",
			input: []string{job("stopped", "")}, ups: 1, alive: []string{"stopped"},
			keys: "\x1a", hears: "Stopped",
			swept: Swept{Killed: 1},
		},
		{
			name:  "disowned job",
			input: []string{job("bg", "") + " & disown"}, ups: 1, alive: []string{"bg"}, bash: true,
			swept: Swept{Killed: 1},
		},
		{
			name:  "job of a subshell that is gone",
			input: []string{"(" + job("bg", "") + " &)"}, ups: 1, alive: []string{"bg"},
			swept: Swept{Killed: 1},
		},
		{
			name:  "shell that ignores HUP",
			input: []string{"trap '' HUP; echo up=$((6*7))"}, ups: 1,
		},
		{
			name:  "name with a parenthesis, a state and a newline",
			input: []string{job("bg", `$0="a) S 1\n2 $ARGV[0]"`) + " &"}, ups: 1, alive: []string{"bg"},
			swept: Swept{Killed: 1},
		},
		{
			name: "name with a newline that is told to stay",
			input: []string{
				"nohup " + job("nohup", `$0="1) Z 1\n\n2 $ARGV[0]"`) + " >/dev/null 2>&1 &",
			}, ups: 1, alive: []string{"nohup"},
			stays: []string{"nohup"}, swept: Swept{Kept: 1},
		},
		{
			name:  "nohup",
			input: []string{"nohup " + job("nohup", "") + " >/dev/null 2>&1 &"}, ups: 1, alive: []string{"nohup"},
			stays: []string{"nohup"}, swept: Swept{Kept: 1},
		},
		{
			name:  "nohup in the foreground",
			input: []string{"nohup " + job("nohup", "")}, ups: 1, alive: []string{"nohup"},
			stays: []string{"nohup"}, swept: Swept{Kept: 1},
		},
		{
			name:  "setsid",
			input: []string{"setsid " + job("setsid", "") + " &"}, ups: 1, alive: []string{"setsid"},
			stays: []string{"setsid"}, swept: Swept{Kept: 1},
		},
		{
			name:  "setsid without the marker",
			input: []string{"setsid env -i " + job("setsid", "") + " &"}, ups: 1, alive: []string{"setsid"},
			stays: []string{"setsid"},
		},
		{
			name:  "daemon",
			input: []string{job("daemon", "use POSIX; exit if fork; POSIX::setsid(); exit if fork")}, ups: 1, alive: []string{"daemon"},
			stays: []string{"daemon"}, swept: Swept{Kept: 1},
		},
		{
			name: "some of each",
			input: []string{
				"nohup " + job("nohup", "") + " >/dev/null 2>&1 &",
				"setsid " + job("setsid", "") + " &",
				job("bg", "") + " &",
			}, ups: 3, alive: []string{"bg", "nohup", "setsid"},
			stays: []string{"nohup", "setsid"}, swept: Swept{Killed: 1, Kept: 2},
		},
		{
			name: "all of it ends",
			input: []string{
				"nohup " + job("nohup", "") + " >/dev/null 2>&1 &",
				"setsid " + job("setsid", "") + " &",
				job("bg", "") + " &",
				job("daemon", "use POSIX; exit if fork; POSIX::setsid(); exit if fork"),
			}, ups: 4, alive: []string{"bg", "daemon", "nohup", "setsid"}, all: true,
			swept: Swept{Killed: 4},
		},
		{
			name:  "zombie",
			input: []string{"nohup " + job("parent", "fork or exit") + " >/dev/null 2>&1 &"}, ups: 1, alive: []string{"parent"},
			stays: []string{"parent"}, swept: Swept{Kept: 1},
		},
	}
	for _, p := range places(t) {
		for _, c := range cases {
			if c.bash && !p.bash {
				continue
			}
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := open(t, p.runner(t, c.all), p.target(t))
				t.Cleanup(func() { killLiving(t, s.id) })
				s.send(t, "exec 9>/dev/tty\n")
				for _, line := range c.input {
					s.send(t, line+"\n")
				}
				for range c.ups {
					s.expect(t, "up=42")
				}
				if c.keys != "" {
					s.send(t, c.keys)
					s.expect(t, c.hears)
				}
				eventually(t, "alive are the shell and "+strings.Join(c.alive, ", "), func() bool {
					alive := slices.DeleteFunc(living(t, s.id), func(name string) bool { return name == "bash" || name == "sh" })
					return slices.Equal(alive, c.alive)
				})
				if got := s.end(t); got != c.swept {
					t.Errorf("swept: %+v, want %+v", got, c.swept)
				}
				wantLiving(t, s.id, c.stays...)
			})
		}
	}
}

// ready types a line and waits until its process is there.
func (s *session) ready(tb testing.TB, line string) {
	tb.Helper()
	s.send(tb, "exec 9>/dev/tty\n"+line+"\n")
	s.expect(tb, "up=42")
}

func TestCloseSparesOtherSessions(t *testing.T) {
	t.Parallel()
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			ended, other := open(t, p.runner(t, true), p.target(t)), open(t, p.runner(t, true), p.target(t))
			ended.ready(t, job("ended", "")+" &")
			other.ready(t, job("other", "")+" &")
			other.ready(t, "setsid "+job("setsid", "")+" &")
			if got := ended.end(t); got != (Swept{Killed: 1}) {
				t.Errorf("swept %+v", got)
			}
			wantLiving(t, ended.id)
			other.send(t, "echo still=$((6*7))\n")
			other.expect(t, "still=42")
			if got := other.end(t); got != (Swept{Killed: 2}) {
				t.Errorf("swept %+v", got)
			}
			wantLiving(t, other.id)
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
		swept Swept
	}{
		{
			name: "own jobs of a user", with: container("1000:1000"),
			input: job("bg", `$SIG{HUP}=sub{}`) + " &", swept: Swept{Killed: 1},
		},
		{
			name: "all that a user has detached", with: container("1000:1000"), all: true,
			input: "setsid " + job("setsid", "") + " &", swept: Swept{Killed: 1},
		},
		{
			name: "root's job as nobody", with: container("root"),
			input: nobody + job("nobody", "") + " &", swept: Swept{Killed: 1},
		},
		{
			// As su or sudo do; what a user may not signal, root ends.
			name: "a user's job as nobody", with: container("1000:1000"),
			input: "/su " + job("nobody", "") + " &", swept: Swept{Killed: 1},
		},
		{
			name: "a user's job as nobody that catches HUP", with: container("1000:1000"),
			input: "/su " + job("nobody", `$SIG{HUP}=sub{}`) + " &", swept: Swept{Killed: 1},
		},
		{
			name: "a user's job as nobody that is told to stay", with: container("1000:1000"),
			input: "nohup /su " + job("nobody", "") + " >/dev/null 2>&1 &",
			stays: []string{"nobody"}, swept: Swept{Kept: 1},
		},
		{
			name: "a user's jobs as nobody and as himself", with: container("1000:1000"),
			input: "nohup " + job("nohup", "") + " >/dev/null 2>&1 & /su " + job("nobody", "") + " &",
			stays: []string{"nohup"}, swept: Swept{Killed: 1, Kept: 1},
		},
		{
			name: "all of a user and of nobody", with: container("1000:1000"), all: true,
			input: "setsid " + job("setsid", "") + " & nohup " + job("nohup", "") + " >/dev/null 2>&1 & /su " + job("nobody", "$SIG{HUP}=sub{}") + " &",
			swept: Swept{Killed: 3},
		},
		{
			// Here root may not signal others: what cannot be ended is told.
			name: "root without the right to kill", with: container("1000:1000", "KILL"),
			input: "/su " + job("nobody", "$SIG{HUP}=sub{}") + " & " + job("bg", "") + " &",
			stays: []string{"nobody"}, swept: Swept{Killed: 1, Left: 1},
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
				s := open(t, p.runner(t, c.all), p.target(t))
				t.Cleanup(func() { killLiving(t, s.id) })
				s.send(t, "exec 9>/dev/tty\n"+c.input+"\n")
				for range strings.Count(c.input, "up=") {
					s.expect(t, "up=42")
				}
				if got := s.end(t); got != c.swept {
					t.Errorf("swept %+v, want %+v", got, c.swept)
				}
				wantLiving(t, s.id, c.stays...)
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
				s := open(t, p.runner(t, false), p.target(t))
				t.Cleanup(func() { killLiving(t, s.id) })
				s.ready(t, job("bg", "$SIG{HUP}=sub{}")+" &")
				s.ready(t, "setsid "+job("setsid", "")+" &")
				if got := s.end(t); got != (Swept{Killed: 1, Kept: 1}) {
					t.Errorf("swept %+v", got)
				}
				wantLiving(t, s.id, "setsid")

				all := open(t, p.runner(t, true), p.target(t))
				all.ready(t, "setsid "+job("setsid", "")+" &")
				if got := all.end(t); got != (Swept{Killed: 1}) {
					t.Errorf("swept %+v", got)
				}
				wantLiving(t, all.id)
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
			s := open(t, p.runner(t, false), p.target(t))
			t.Cleanup(func() { killLiving(t, s.id) })
			s.ready(t, job("bg", "$SIG{HUP}=sub{}")+" &")
			s.ready(t, "nohup "+job("nohup", "")+" >/dev/null 2>&1 &")
			s.send(t, "exit 5\n")
			if got := s.exit(t); got != (terminal.Exit{Code: 5}) {
				t.Errorf("ended with %+v", got)
			}
			wantLiving(t, s.id, "bg", "nohup")
			if got := s.end(t); got != (Swept{Killed: 1, Kept: 1}) {
				t.Errorf("swept %+v", got)
			}
			wantLiving(t, s.id, "nohup")
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
			s := open(t, p.runner(t, false), p.target(t))
			s.send(t, "stty raw -echo; echo up=$((6*7)); sleep 1000\n")
			s.expect(t, "up=42")
			written := make(chan error)
			go func() {
				_, err := s.Write(make([]byte, 8<<20))
				written <- err
			}()
			s.end(t)
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
			var swept Swept
			term, err := p.runner(t, false)(func(s Swept) { swept = s }).Start(t.Context(), target, defaultSize)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := term.Write([]byte("yes\n")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "yes runs", func() bool { return slices.Contains(living(t, target.Session), "yes") })
			if err := term.Close(); err != nil || swept != (Swept{Killed: 1}) {
				t.Errorf("swept %+v, %v", swept, err)
			}
			wantLiving(t, target.Session)
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
		var swept Swept
		d := testDocker(engine.Client(t), DockerConfig{Shells: []string{shell}, Swept: func(s Swept) { swept = s }})
		term, err := d.Start(t.Context(), newTarget(t, container), defaultSize)
		if err != nil {
			t.Fatal(err)
		}
		s := start(t, term)
		s.closed = true
		if err := s.Close(); err == nil || swept != (Swept{Left: 1}) {
			t.Errorf("of %q it counted %+v, %v", answer, swept, err)
		}
	}
}

// TestEndThatWaitsKeepsNobody: a container can make its own end take long.
func TestEndThatWaitsKeepsNobody(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	hostile, good := engine.RunContainer(t, ""), engine.RunContainer(t, "")
	shell := falseShell(t, engine, hostile, ">/waits; sleep 1000")
	d := testDocker(engine.Client(t), DockerConfig{
		Shells: []string{shell, "/bin/sh"}, Timing: Timing{Turn: 10 * time.Millisecond, End: patience},
	})
	waits := open(t, by(d), newTarget(t, hostile))
	ends := open(t, by(d), newTarget(t, good))
	for range endsAtOnce - 1 {
		d.turns.permits <- struct{}{}
	}
	waits.closed = true
	var closing sync.WaitGroup
	closing.Go(func() { _ = waits.Close() }) // until the container is killed
	engine.Exec(t, hostile, "sh", "-c", "until [ -e /waits ]; do sleep 0.05; done")
	ends.end(t)
	if _, err := engine.Client(t).ContainerKill(t.Context(), hostile, client.ContainerKillOptions{}); err != nil {
		t.Error(err)
	}
	closing.Wait()
}
