package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/pkg/terminal"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// bothTargets are both kinds of remote terminal, on one instance.
func bothTargets(t *testing.T) (i *instance, of map[string]func(testing.TB) runner.Target) {
	t.Helper()
	engine := env.Docker(t)
	i = newInstance(t, engine)
	name := containerNameOf(t, engine, engine.RunContainer(t, ""))
	return i, map[string]func(testing.TB) runner.Target{
		TargetContainer: func(tb testing.TB) runner.Target {
			target := i.target(tb, name)
			target.Attributes["remote_target"] = TargetContainer
			return target
		},
		TargetHost: func(tb testing.TB) runner.Target {
			target := i.target(tb, "")
			target.Attributes["remote_target"] = TargetHost
			return target
		},
	}
}

func TestRemote(t *testing.T) {
	t.Parallel()
	i, of := bothTargets(t)
	for name, target := range of {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var swept runner.Swept
			r := i.remote(t, Config{Swept: func(s runner.Swept) { swept = s }})
			want := target(t)
			term, err := r.Start(t.Context(), want, terminal.Size{Cols: 101, Rows: 33})
			if err != nil {
				t.Fatal(err)
			}
			s := shelltest.Start(t, term)
			s.Send(t, "stty size; echo $TERM $TERMGW_SESSION t=$((6*7))\n")
			s.Expect(t, "33 101\r\n")
			s.Expect(t, "xterm-256color "+want.Session+" t=42")
			// Not by a trap of the shell itself: bash that is about to wait for input
			// keeps it until a key comes.
			s.Send(t, "sh -c 'trap \"set -- \\$(stty size); echo now=\\$1x\\$2; exit\" WINCH; echo up=$((6*7)); while :; do sleep 0.1; done'\n")
			s.Expect(t, "up=42")
			if err := s.Resize(terminal.Size{Cols: 132, Rows: 43}); err != nil {
				t.Fatal(err)
			}
			s.Expect(t, "now=43x132")
			s.Send(t, "printf '%s|' a '' 'b  c' '~.'; head -c 300000 /dev/zero | tr '\\0' x; echo; exit 7\n")
			s.Expect(t, "a||b  c|~.|")
			if got := s.Exit(t); got != (terminal.Exit{Code: 7}) {
				t.Errorf("ended with %+v", got)
			}
			if got := strings.Count(string(s.Out), "x"); got < 300000 {
				t.Errorf("%d of 300000 bytes", got)
			}
			if s.End(t); swept != (runner.Swept{}) {
				t.Errorf("swept %+v", swept)
			}
			wantNothingOf(t, want.Session)
		})
	}
}

// TestRemoteFirstSize: the program that is the shell sees it from its start.
func TestRemoteFirstSize(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	i := newInstance(t, engine)
	id := engine.RunContainer(t, "")
	engine.Exec(t, id, "sh", "-ec", "printf '#!/bin/sh\\nif [ \"$1\" = -c ]; then exec /bin/sh \"$@\"; fi\\nstty size\\nexec sleep 1000\\n' >/sized; chmod 755 /sized")
	r := i.remote(t, Config{Shells: []string{"/sized"}, Target: TargetContainer})
	for range 5 {
		s := shelltest.Open(t, shelltest.By(r), i.target(t, id))
		s.Expect(t, "24 80\r\n")
		s.End(t)
	}
}

// TestRemoteResizeAtOnce: a browser tells its size as soon as there is a terminal.
func TestRemoteResizeAtOnce(t *testing.T) {
	t.Parallel()
	i, of := bothTargets(t)
	r := i.remote(t, Config{})
	for name, target := range of {
		t.Run(name, func(t *testing.T) {
			for range 8 {
				s := shelltest.Open(t, shelltest.By(r), target(t))
				if err := s.Resize(terminal.Size{Cols: 132, Rows: 43}); err != nil {
					t.Fatal(err)
				}
				s.Send(t, "until stty size | grep -q '^43 132$'; do sleep 0.05; done; echo t=$((6*7))\n")
				s.Expect(t, "t=42")
				s.End(t)
			}
		})
	}
}

func TestRemoteExits(t *testing.T) {
	t.Parallel()
	i, of := bothTargets(t)
	r := i.remote(t, Config{})
	for name, target := range of {
		for _, c := range []struct {
			input string
			want  terminal.Exit
		}{
			{"exit", terminal.Exit{}},
			{"exit 1", terminal.Exit{Code: 1}},
			{"exit 127", terminal.Exit{Code: 127}},
			{"exit 255", terminal.Exit{Code: 255}}, // which is also ssh's own word for a failure
			{"echo bye; exec sh -c 'exit 3'", terminal.Exit{Code: 3}},
		} {
			t.Run(name+"/"+c.input, func(t *testing.T) {
				s := shelltest.Open(t, shelltest.By(r), target(t))
				s.Send(t, c.input+"\n")
				if got := s.Exit(t); got != c.want {
					t.Errorf("ended with %+v, want %+v", got, c.want)
				}
			})
		}
	}
	for name, target := range of {
		s := shelltest.Open(t, shelltest.By(r), target(t))
		s.Send(t, "kill -9 $$\n")
		if got := s.Exit(t); got != (terminal.Exit{Code: 137, Signal: "SIGKILL"}) {
			t.Errorf("%s ended with %+v", name, got)
		}
	}
}

// TestRemoteCutExit: of a shell that the gateway ended, ssh says 255.
func TestRemoteCutExit(t *testing.T) {
	t.Parallel()
	i, of := bothTargets(t)
	r := i.remote(t, Config{})
	for name, target := range of {
		t.Run(name, func(t *testing.T) {
			s := shelltest.Open(t, shelltest.By(r), target(t))
			s.End(t)
			if exit, err := s.Wait(); err != nil || exit != (terminal.Exit{Code: 129, Signal: "SIGHUP"}) {
				t.Errorf("ended with %+v, %v", exit, err)
			}
			s = shelltest.Open(t, shelltest.By(r), target(t))
			s.Send(t, "exit 255\n")
			s.Rest(t)
			s.End(t)
			if exit, err := s.Wait(); err != nil || exit != (terminal.Exit{Code: 255}) {
				t.Errorf("a shell that had ended, ended with %+v, %v", exit, err)
			}
		})
	}
}

// TestRemoteEnds does what TestCloseEndsWhatBelongs does, over ssh.
func TestRemoteEnds(t *testing.T) {
	t.Parallel()
	i, of := bothTargets(t)
	i.write(t, ".bash_logout", "") // which runs programs that would be counted, where a login shell still has the time
	for name, target := range of {
		for _, c := range []struct {
			name, input string
			all, exits  bool
			stays       []string
			swept       runner.Swept
		}{
			{name: "idle"},
			{name: "foreground", input: shelltest.Job("fg", `$SIG{$_}=sub{} for qw(HUP INT TERM)`), swept: runner.Swept{Killed: 1}},
			{
				name:  "some of each",
				input: shelltest.Job("bg", `$SIG{HUP}=sub{}`) + " & env -i " + shelltest.Job("bare", "$SIG{HUP}=sub{}") + " & nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 & setsid " + shelltest.Job("setsid", "") + " &",
				stays: []string{"nohup", "setsid"}, swept: runner.Swept{Killed: 2, Kept: 2},
			},
			{
				name:  "all of them",
				input: shelltest.Job("bg", `$SIG{HUP}=sub{}`) + " & nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 & setsid " + shelltest.Job("setsid", "") + " &",
				all:   true, swept: runner.Swept{Killed: 3},
			},
			{
				name:  "after an exit",
				input: shelltest.Job("bg", `$SIG{HUP}=sub{}`) + " & env -i " + shelltest.Job("bare", "$SIG{HUP}=sub{}") + " & nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 &",
				exits: true, stays: []string{"nohup"}, swept: runner.Swept{Killed: 2, Kept: 1},
			},
			{name: "shell that ignores HUP", input: "trap '' HUP; echo up=$((6*7)) >&9"},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := shelltest.Open(t, func(swept func(runner.Swept)) shelltest.Starter {
					return i.remote(t, Config{Swept: swept}, func(cfg *Config) { cfg.KeepDetached = !c.all })
				}, target(t))
				t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
				s.Send(t, "exec 9>/dev/tty\n"+c.input+"\n")
				for range strings.Count(c.input, "up=") {
					s.Expect(t, "up=42")
				}
				if c.exits {
					s.Send(t, "exit 5\n")
					if got := s.Exit(t); got != (terminal.Exit{Code: 5}) {
						t.Errorf("ended with %+v", got)
					}
				}
				if got := s.End(t); got != c.swept {
					t.Errorf("swept %+v, want %+v", got, c.swept)
				}
				shelltest.WantLiving(t, s.ID, c.stays...)
				wantNothingOf(t, s.ID)
			})
		}
	}
}

// remnants are the processes of a session that are no job of it: what the
// gateway and the instance run for it.
func remnants(tb testing.TB, session string) []string {
	tb.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	var found []string
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if line := string(cmdline); strings.Contains(line, session) && !strings.Contains(line, session+".") {
			found = append(found, filepath.Base(dir)+" "+runner.OneLine(strings.ReplaceAll(line[:min(len(line), 40)], "\x00", " ")))
		}
	}
	return found
}

// wantNothingOf waits until the instance has nothing left of a session but its
// jobs. It takes as long as the instance leaves to the gateway.
func wantNothingOf(tb testing.TB, session string) {
	tb.Helper()
	shelltest.Eventually(tb, "no process is left on the instance", func() bool { return len(remnants(tb, session)) == 0 })
}

func TestRemoteSharesAConnection(t *testing.T) {
	t.Parallel()
	i, of := bothTargets(t)
	r := i.remote(t, Config{})
	first, second, third := shelltest.Open(t, shelltest.By(r), of[TargetHost](t)), shelltest.Open(t, shelltest.By(r), of[TargetContainer](t)), shelltest.Open(t, shelltest.By(r), of[TargetHost](t))
	for _, s := range []*shelltest.Session{first, second, third} {
		s.Send(t, "echo t=$((6*7))\n")
		s.Expect(t, "t=42")
	}
	if got := i.opened(); got != 1 {
		t.Errorf("%d tunnels", got)
	}
	// Another user's terminal has nothing to do with them.
	other := of[TargetHost](t)
	other.Attributes["os_user"] = "another"
	var step *runner.Failure
	if _, err := r.Start(t.Context(), other, shelltest.DefaultSize); !errors.As(err, &step) || step.Step != "ssh_auth" {
		t.Errorf("as another user: %v", err)
	}
	if got := i.opened(); got != 2 {
		t.Errorf("%d tunnels", got)
	}
	first.End(t)
	second.Send(t, "echo t=$((6*7+1))\n")
	second.Expect(t, "t=43")
}

func TestRemoteConcurrentStarts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                     string
		lines                    []string
		starts, tunnels, allowed int
	}{
		{"one connection", nil, 10, 1, 1},
		{"the eleventh", nil, 11, 2, 2},
		{"three", nil, 25, 3, 3},
		{"an sshd that allows two", []string{"MaxSessions 2"}, 5, 3, 4},
		{"an sshd that allows one", []string{"MaxSessions 1", "MaxStartups 100"}, 12, 12, 12},
		{"an sshd that allows four", []string{"MaxSessions 4", "MaxStartups 100"}, 30, 8, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newInstance(t, nil, c.lines...)
			r := i.remote(t, Config{Timing: runner.Timing{Start: shelltest.Patience}})
			terms := make([]*shelltest.Session, c.starts)
			var starts sync.WaitGroup
			for n := range terms {
				target := i.target(t, "")
				starts.Go(func() {
					term, err := r.Start(t.Context(), target, shelltest.DefaultSize)
					if err != nil {
						t.Error(err)
						return
					}
					terms[n] = shelltest.Start(t, term)
				})
			}
			starts.Wait()
			if t.Failed() {
				return
			}
			for n, s := range terms {
				s.Send(t, fmt.Sprintf("echo t=$((%d+1000))\n", n))
				s.Expect(t, fmt.Sprintf("t=%d", n+1000))
			}
			if got := i.opened(); got < c.tunnels || got > c.allowed {
				t.Errorf("%d tunnels, want %d to %d", got, c.tunnels, c.allowed)
			}
			var ends sync.WaitGroup
			for _, s := range terms {
				ends.Go(func() { s.End(t) })
			}
			ends.Wait()
		})
	}
}

// TestBoundOfSessions: what a refusal tells of sshd's limit.
func TestBoundOfSessions(t *testing.T) {
	t.Parallel()
	clock := newClock()
	newKind := func() *Kind {
		k := &Kind{cfg: Config{Now: clock.Now}, conns: map[destination][]*connection{}, bounds: map[destination]bound{}}
		k.ctx, k.stop = context.WithCancel(t.Context())
		return k
	}
	asked := func(k *Kind, c *connection, opened bool) {
		k.mu.Lock()
		k.take(c)
		k.mu.Unlock()
		k.asks(c)
		k.answered(c, opened, !opened)
	}
	for _, c := range []struct {
		name                 string
		open, ending, refuse int
		own, next            int
		over                 bool
	}{
		{"four at once", 4, 0, 6, 4, 4, false},
		{"some are ending", 2, 3, 1, 5, sessionLimit, false},
		{"none", 0, 0, 1, 0, sessionLimit, true},
	} {
		k := newKind()
		conn := &connection{kind: k, hangUp: func() {}, ctx: k.ctx}
		for range c.open + c.ending {
			asked(k, conn, true)
		}
		for range c.ending {
			k.hasClosed(conn) // and is swept
		}
		for range c.refuse {
			asked(k, conn, false)
		}
		for range c.refuse {
			k.refused(conn, false)
		}
		if own, next := conn.bound.at(clock.Now()), k.bounds[conn.to].at(clock.Now()); own != c.own || next != c.next || conn.over != c.over {
			t.Errorf("%s: %d sessions, %d on the next connection, over %t", c.name, own, next, conn.over)
		}
		clock.add(boundFor)
		if own := conn.bound.at(clock.Now()); own != sessionLimit {
			t.Errorf("%s: %d sessions later", c.name, own)
		}
		k.stop()
		k.wg.Wait()
	}
}

// TestRemoteConnectionEnds: after its last terminal, and a while.
func TestRemoteConnectionEnds(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	r := i.remote(t, Config{Timing: runner.Timing{Linger: 50 * time.Millisecond}})
	s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	s.End(t)
	shelltest.Eventually(t, "the connection is gone", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.conns) == 0
	})
	shelltest.Eventually(t, "its files are gone", func() bool { return shelltest.Entries(t, r.sockets.dir) == 0 })
	shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
	if got := i.opened(); got != 2 {
		t.Errorf("%d tunnels", got)
	}
}

// TestRemoteExpires: a tunnel that is soon cut gets no new terminals.
func TestRemoteExpires(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	i.life = time.Hour
	var mu sync.Mutex
	var later time.Duration
	r := i.remote(t, Config{Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(later)
	}})
	pass := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		later += d
	}
	first := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	expires := first.Terminal.(*sshTerminal).Expires()
	if left := time.Until(expires); left > time.Hour || left < time.Hour-time.Minute {
		t.Errorf("the tunnel ends in %s", left)
	}
	pass(40 * time.Minute)
	shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	if got := i.opened(); got != 1 {
		t.Errorf("%d tunnels with 20 minutes left", got)
	}
	pass(10 * time.Minute)
	next := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	if got := i.opened(); got != 2 {
		t.Errorf("%d tunnels with 10 minutes left", got)
	}
	if got := next.Terminal.(*sshTerminal).Expires(); !got.After(expires) {
		t.Errorf("the next ends at %s, the first at %s", got, expires)
	}
	first.Send(t, "echo t=$((6*7))\n")
	first.Expect(t, "t=42")
}

// A terminal lives as long as AWS lets it where the quota has room, and as long as another's tunnel where it has none.
func TestRemoteSharesWhatIsYoung(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	var later atomic.Int64
	r := i.remote(t, Config{Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }})
	var expires []time.Time // of the tunnels
	for n, step := range []struct {
		pass   time.Duration
		room   bool
		err    error // of Open
		tunnel int   // that the terminal is on
	}{
		{room: true, tunnel: 1},
		{room: true, tunnel: 1},
		{pass: 6 * time.Minute, room: true, tunnel: 2},
		{room: true, tunnel: 2},
		{pass: 6 * time.Minute, tunnel: 2}, // lives for 54 minutes, the first for 48
		{pass: 42 * time.Minute, err: fmt.Errorf("no: %w", ErrQuota), tunnel: 2}, // for 12
		{room: true, tunnel: 3},
	} {
		later.Add(int64(step.pass))
		i.room.Store(step.room)
		i.mu.Lock()
		i.err, i.life = step.err, time.Hour+time.Duration(later.Load())
		i.mu.Unlock()
		s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
		got := s.Terminal.(*sshTerminal).Expires()
		if step.tunnel > len(expires) {
			expires = append(expires, got)
		}
		if !got.Equal(expires[step.tunnel-1]) || i.opened() != len(expires) {
			t.Fatalf("terminal %d: its tunnel ends at %s, of %v; %d were opened", n+1, got, expires, i.opened())
		}
		s.Send(t, "echo t=$((6*7))\n")
		s.Expect(t, "t=42")
	}
}

// An idle tunnel that has grown old is replaced, and gives its place back.
func TestRemoteReplacesAnOldIdleTunnel(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	i.life = time.Hour
	i.room.Store(true)
	var later atomic.Int64
	r := i.remote(t, Config{Timing: runner.Timing{Linger: time.Hour}, Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }})
	shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
	later.Store(int64(30 * time.Minute))
	s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	shelltest.Eventually(t, "the old tunnel has ended", func() bool { return i.ended.Load() == 1 })
	if i.opened() != 2 {
		t.Errorf("%d tunnels", i.opened())
	}
	s.End(t)
}

// An idle tunnel whose place is wanted ends at once. One with a terminal stays.
func TestRemoteIdleTunnelGivesWay(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	r := i.remote(t, Config{Timing: runner.Timing{Linger: time.Hour}})
	shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
	s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	i.wanted.Store(true)
	s.Send(t, "sleep 1; echo t=$((6*7))\n") // for longer than the interval between two calls of Idle
	s.Expect(t, "t=42")
	if i.opened() != 1 || i.ended.Load() != 0 {
		t.Errorf("%d tunnels, %d ended", i.opened(), i.ended.Load())
	}
	s.End(t)
	shelltest.Eventually(t, "the tunnel has ended", func() bool { return i.ended.Load() == 1 })
}

var hostile = []string{
	"", " ", "-", "--", "-o ProxyCommand=touch /tmp/pwned", "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", `\'; touch pwned; \'`,
	"a\nb", "\n", "\t", `"`, `\`, `\\'`, "''", "'", "*", "~", "$HOME", "!!", "%h", "a;b|c&d", "{a,b}", "#", "é☃", "\x01\x1b[31m",
}

// loginShells are the login shells of this machine.
func loginShells(tb testing.TB) (shells []string) {
	tb.Helper()
	for _, name := range []string{"sh", "bash", "dash", "zsh", "fish", "tcsh", "bsd-csh"} {
		if path, err := exec.LookPath(name); err == nil {
			shells = append(shells, path)
		} else {
			tb.Logf("not tried: %s", name)
		}
	}
	return shells
}

// TestShellLine: every login shell hands the arguments on as they are, long ones too, and runs none of them.
func TestShellLine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat(`it's "100%"!\n\\012 $HOME é`+"\n\t", 1000)
	args := append([]string{long}, hostile...)
	for _, shell := range loginShells(t) {
		t.Run(filepath.Base(shell), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			line := shellLine(`shift; printf '%s\0' "$0" "$@"`, args...)
			if strings.ContainsAny(line, "\n!") {
				t.Errorf("a byte that csh would read: %q", line[:200])
			}
			cmd := exec.Command(shell, "-c", line)
			cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "HOME=" + dir}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %.300s", err, out)
			}
			if got, want := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"), append([]string{"termgw"}, args...); !slices.Equal(got, want) {
				t.Errorf("%.2000q\nwant %.2000q", got, want)
			}
			if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
				t.Error("something was run")
			}
		})
	}
}

// TestRemoteHostile: what a row or a ticket says never becomes an option or a
// command, here or on the instance.
func TestRemoteHostile(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	i := newInstance(t, engine)
	r := i.remote(t, Config{Target: TargetContainer})
	for _, name := range hostile {
		for field, set := range map[string]func(*runner.Target){
			"instance": func(t *runner.Target) { t.Attributes["instance_id"] = name },
			"user":     func(t *runner.Target) { t.Attributes["os_user"] = cmpOr(name, "-") },
			"session":  func(t *runner.Target) { t.Session = name },
			"target":   func(t *runner.Target) { t.Attributes["remote_target"] = cmpOr(name, "-") },
			"host key": func(t *runner.Target) { t.Attributes["host_key"] = cmpOr(strings.TrimSpace(name), "-") },
		} {
			target := i.target(t, "")
			set(&target)
			if field == "session" && sessionForm.MatchString(name) {
				continue
			}
			var step *runner.Failure
			if _, err := r.Start(t.Context(), target, shelltest.DefaultSize); !errors.As(err, &step) {
				t.Errorf("%s %q: %v", field, name, err)
			}
		}
	}
	if n := len(i.asked()); n > 0 {
		t.Errorf("asked for %d tunnels", n)
	}
	for _, name := range hostile {
		target := i.target(t, name)
		target.Attributes["name"], target.WorkspaceID = name, name
		if _, err := r.Start(t.Context(), target, shelltest.DefaultSize); !errors.Is(err, runner.ErrNotRunning) {
			t.Errorf("container %q: %v", name, err)
		}
	}
	// On the instance, in the home of the account.
	s := shelltest.Open(t, shelltest.By(r), func() runner.Target { t := i.target(t, ""); t.Attributes["remote_target"] = TargetHost; return t }())
	s.Send(t, "echo files=$(ls | wc -l)\n")
	s.Expect(t, "files=0\r\n")
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func TestRemoteChoosesAContainer(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	i := newInstance(t, engine)
	r := i.remote(t, Config{Target: TargetContainer})
	unique := fmt.Sprintf("%d", time.Now().UnixNano())
	workspace := "0a1b2c3d-4e5f-" + unique
	byID := engine.RunContainer(t, "ws-"+workspace)
	byName := engine.RunContainer(t, "my-"+unique)
	stopped := engine.RunContainer(t, "stopped-"+unique)
	paused := engine.RunContainer(t, "paused-"+unique)
	if _, err := cli.ContainerStop(t.Context(), stopped, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	engine.Pause(t, paused)
	for _, c := range []struct {
		name, container, id, workspace string
		want                           string // "": none
	}{
		{"the row's name", "my-" + unique, workspace, "", byName},
		{"the row's id", byName, workspace, "", byName},
		{"the id", "", workspace, "", byID},
		{"the name", "", "none", "My " + unique, byName},
		{"the row's is stopped, the id's runs", "stopped-" + unique, workspace, "", byID},
		{"the row's is paused, the id's runs", "paused-" + unique, workspace, "", byID},
		{"stopped", "stopped-" + unique, "none", "", ""},
		{"paused", "paused-" + unique, "none", "", ""},
		{"none", "", "none", "none", ""},
		{"the start of an id", "", "none", byName[:8], ""},
		{"the row's start of an id", byName[:12], "none", "", ""},
		{"a part of a name", "my-" + unique[:len(unique)-1], "none", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := i.target(t, c.container)
			target.WorkspaceID, target.Attributes["name"] = c.id, c.workspace
			if c.want == "" {
				term, err := r.Start(t.Context(), target, shelltest.DefaultSize)
				if !errors.Is(err, runner.ErrNotRunning) {
					t.Errorf("%v, %v", term, err)
				}
				return
			}
			s := shelltest.Open(t, shelltest.By(r), target)
			s.Send(t, "echo host=$(hostname)\n")
			s.Expect(t, "host="+c.want[:12])
		})
	}
}

func TestRemoteShells(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	i := newInstance(t, engine)
	name := containerNameOf(t, engine, engine.RunContainer(t, ""))
	r := i.remote(t, Config{Target: TargetContainer, Shells: []string{"/missing", "/bin/sh"}})
	s := shelltest.Open(t, shelltest.By(r), i.target(t, name))
	s.Send(t, "echo $0\n")
	s.Expect(t, "/bin/sh\r\n")

	none := i.remote(t, Config{Target: TargetContainer, Shells: []string{"/missing"}})
	var step *runner.Failure
	if _, err := none.Start(t.Context(), i.target(t, name), shelltest.DefaultSize); !errors.As(err, &step) || step.Step != "shell" {
		t.Errorf("without a shell: %v", err)
	}
}

// TestRemoteLoginShells: the account's login shell may be any.
func TestRemoteLoginShells(t *testing.T) {
	t.Parallel()
	for _, shell := range loginShells(t) {
		t.Run(filepath.Base(shell), func(t *testing.T) {
			t.Parallel()
			i := newInstanceWith(t, shell)
			i.write(t, ".zshrc", "") // zsh would ask who has none
			s := shelltest.Open(t, shelltest.By(i.remote(t, Config{})), i.target(t, ""))
			s.Send(t, "echo shell=$SHELL\n")
			s.Expect(t, "shell="+shell)
			s.End(t)
			wantNothingOf(t, s.ID)
		})
	}
}

func TestRemoteErrors(t *testing.T) {
	t.Parallel()
	awsError := fmt.Errorf("no endpoint: %w", io.ErrNoProgress)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and nobody reads
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	for _, c := range []struct {
		name string
		with func(i *instance, target *runner.Target)
		is   error
		step string
		sshd string // a line of its configuration
		slow bool   // it takes the whole time of a start
	}{
		{name: "no tunnel", with: func(i *instance, _ *runner.Target) { i.err = awsError }, is: io.ErrNoProgress},
		{name: "wrong user", with: func(_ *instance, t *runner.Target) { t.Attributes["os_user"] = "another" }, is: errAuth, step: "ssh_auth"},
		{name: "a tunnel that is closed at once", with: func(i *instance, _ *runner.Target) { i.command = []string{"/bin/true"} }, step: "ssh_closed"},
		{name: "a tunnel command that says why", with: func(i *instance, _ *runner.Target) {
			i.command = []string{"/bin/sh", "-c", "echo no way >&2; exit 1"}
		}, step: "tunnel"},
		{name: "a tunnel command that is not there", with: func(i *instance, _ *runner.Target) { i.command = []string{"/missing"} }, step: "tunnel"},
		{name: "a tunnel command that says nothing", with: func(i *instance, _ *runner.Target) {
			i.command = []string{"/bin/sleep", "1000"}
		}, step: "tunnel", slow: true},
		{name: "a tunnel on which nobody answers", with: func(i *instance, _ *runner.Target) { i.addr = silent.Addr().String() }, step: "ssh_timeout", slow: true},
		{name: "an sshd that opens no session", with: func(*instance, *runner.Target) {}, step: "ssh_sessions", sshd: "MaxSessions 0"},
		{name: "no docker there", with: func(_ *instance, t *runner.Target) {
			t.Attributes["remote_target"], t.Attributes["container"] = TargetContainer, "name"
		}, step: "docker"},
		{name: "no shell for the account", with: func(i *instance, _ *runner.Target) { i.shell = "/usr/sbin/nologin" }, step: "account"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var lines []string
			if c.sshd != "" {
				lines = append(lines, c.sshd)
			}
			i := newInstance(t, nil, lines...)
			target := i.target(t, "")
			c.with(i, &target)
			if i.shell != "" {
				shell := i.shell
				i = newInstanceWith(t, shell)
				target.Attributes["instance_id"] = i.id
			}
			var timing runner.Timing
			if c.slow {
				timing = wholeStart
			}
			r := i.remote(t, Config{Timing: timing})
			began := time.Now()
			_, err := r.Start(t.Context(), target, shelltest.DefaultSize)
			if took, limit := time.Since(began), r.cfg.Timing.Start; took > limit+shelltest.Patience {
				t.Errorf("it took %s", took)
			}
			if err == nil || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v", err)
			}
			var step *runner.Failure
			if errors.As(err, &step) != (c.step != "") || step != nil && step.Step != c.step {
				t.Errorf("%v, want step %q", err, c.step)
			}
			if strings.HasPrefix(c.step, "ssh") && (step == nil || step.Sentence == "") {
				t.Errorf("%v has no sentence", err)
			}
			shelltest.Eventually(t, "nothing is left", func() bool {
				r.mu.Lock()
				defer r.mu.Unlock()
				return len(r.conns) == 0 || c.step == "docker" || c.step == "account"
			})
		})
	}
}

// TestRemoteErrorIsShort: the instance's words go to the log, not without end.
func TestRemoteErrorIsShort(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"not_running", "docker", "a_step_of_its_own"} {
		t.Run(step, func(t *testing.T) {
			i := newInstance(t, nil)
			says := "printf '\\036error " + step + " %s\\036' \"$(head -c 20000 /dev/zero | tr '\\0' x)\"; exit 1\n"
			i.write(t, ".bashrc", says)
			_, err := i.remote(t, Config{}).Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
			var failed *runner.Failure
			want := map[string]string{"docker": "docker", "a_step_of_its_own": "account"}[step]
			if errors.Is(err, runner.ErrNotRunning) != (want == "") || !errors.As(err, &failed) || failed.Step != want {
				t.Errorf("%.200v", err)
			}
			if n := len(err.Error()); n > 500 {
				t.Errorf("%d bytes", n)
			}
		})
	}
}

func TestRemoteHostKeys(t *testing.T) {
	t.Parallel()
	wantChanged := func(t *testing.T, r *Kind, target runner.Target) {
		t.Helper()
		var step *runner.Failure
		_, err := r.Start(t.Context(), target, shelltest.DefaultSize)
		if !errors.As(err, &step) || step.Step != "ssh_hostkey" || !errors.Is(err, errHostKey) {
			t.Errorf("with another host key: %v", err)
		} else if words := err.Error(); strings.Contains(words, r.sockets.dir) || strings.Contains(words, "ssh-keygen") {
			t.Errorf("ssh's own advice is given: %v", err)
		}
	}
	other := newInstance(t, nil).sshd.HostKey(t)
	t.Run("first use", func(t *testing.T) {
		i := newInstance(t, nil)
		r := i.remote(t, Config{})
		shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
		if got, want := i.keys.keys[i.id], i.sshd.HostKey(t); got != want {
			t.Errorf("kept %q, want %q", got, want)
		}
		shelltest.Open(t, shelltest.By(i.remote(t, Config{})), i.target(t, "")).End(t) // another replica
		i.sshd.ChangeHostKey(t)
		wantChanged(t, i.remote(t, Config{}), i.target(t, ""))
	})
	t.Run("another replica was first, with another key", func(t *testing.T) {
		i := newInstance(t, nil)
		r := i.remote(t, Config{})
		r.cfg.HostKeys = late{&i.keys, other}
		wantChanged(t, r, i.target(t, ""))
	})
	t.Run("pinned", func(t *testing.T) {
		i := newInstance(t, nil)
		r := i.remote(t, Config{})
		for _, line := range []string{i.sshd.HostKey(t), i.sshd.HostKey(t) + " a comment", i.id + " " + i.sshd.HostKey(t), other + "\n" + i.sshd.HostKey(t) + "\n", i.sshd.HostKey(t) + "\n @revoked " + i.id + " " + other} {
			target := i.target(t, "")
			target.Attributes["host_key"] = line
			shelltest.Open(t, shelltest.By(r), target).End(t)
		}
		if len(i.keys.keys) > 0 {
			t.Errorf("kept %q", i.keys.keys)
		}
		target := i.target(t, "")
		target.Attributes["host_key"] = other
		wantChanged(t, r, target)
		// Nor one that known_hosts would revoke, or trust to sign.
		for _, line := range []string{"@revoked * " + i.sshd.HostKey(t), "@cert-authority * " + i.sshd.HostKey(t), i.sshd.HostKey(t) + "\n @revoked " + i.id + " " + i.sshd.HostKey(t)} {
			target.Attributes["host_key"] = line
			asked := len(i.asked())
			var step *runner.Failure
			if _, err := r.Start(t.Context(), target, shelltest.DefaultSize); !errors.As(err, &step) || step.Step != "ssh_hostkey" || len(i.asked()) != asked {
				t.Errorf("%q: %v", line, err)
			}
		}
		// Nor one of another type, which says nothing of this one.
		target.Attributes["host_key"] = ecKey
		if _, err := r.Start(t.Context(), target, shelltest.DefaultSize); err == nil {
			t.Error("a host key of another type was taken")
		}
	})
}

// late is a store in which a key appears between the question and the answer.
type late struct {
	*keptKeys
	key string
}

func (l late) KeepHostKey(ctx context.Context, instance, _ string) (string, error) {
	return l.keptKeys.KeepHostKey(ctx, instance, l.key)
}

// TestNameOfAnothersContainer: a workspace that is named like what another's id makes, whatever the form of ids.
func TestNameOfAnothersContainer(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	i := newInstance(t, engine)
	k := i.remote(t, Config{Target: TargetContainer})
	unique := fmt.Sprint(time.Now().UnixNano())
	for _, id := range []string{"abc" + unique, "42" + unique, "a_b." + unique, unique[:3]} {
		engine.RunContainer(t, "ws-"+id)
		target := i.target(t, "")
		target.WorkspaceID, target.Attributes["name"] = "another", "WS "+id
		shelltest.WantNameRefused(t, k, target)
		// Who may write the row may say so.
		target = i.target(t, "ws-"+id)
		target.WorkspaceID = "another"
		shelltest.Open(t, shelltest.By(k), target).End(t)
	}
}
