package instance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/terminal"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// faultJobs are one of each, of which nohup and setsid stay.
var faultJobs = "exec 9>/dev/tty\n" +
	shelltest.Job("bg", "$SIG{HUP}=sub{}") + " & env -i " + shelltest.Job("bare", "$SIG{HUP}=sub{}") + " & nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 & setsid " + shelltest.Job("setsid", "") + " &\n"

const faultUps = 4

// broken reads to the end of a terminal that is not its shell's.
func broken(tb testing.TB, s *shelltest.Session) {
	tb.Helper()
	select {
	case <-s.Done:
	case <-time.After(shelltest.Patience):
		tb.Fatal("the output has no end")
	}
	if s.ReadErr == nil || errors.Is(s.ReadErr, io.EOF) {
		tb.Errorf("the output ended with %v", s.ReadErr)
	}
	if exit, err := s.Wait(); err == nil {
		tb.Errorf("the shell ended with %+v", exit)
	}
}

// children lists this process's ssh processes whose arguments hold text.
func children(tb testing.TB, text string) (pids []int) {
	tb.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	for _, dir := range dirs {
		stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) || !strings.Contains(string(cmdline), text) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			tb.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func killOne(tb testing.TB, text string) {
	tb.Helper()
	pids := children(tb, text)
	if len(pids) != 1 {
		tb.Fatalf("%d children with %q", len(pids), text)
	}
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		tb.Fatal(err)
	}
}

func TestRemoteFaults(t *testing.T) {
	t.Parallel()
	i, of := bothTargets(t)
	for name, target := range of {
		for _, c := range []struct {
			name  string
			fault func(t *testing.T, i *instance, r *Kind, s *shelltest.Session)
			step  string
		}{
			{"the connection's ssh is killed", func(t *testing.T, _ *instance, r *Kind, _ *shelltest.Session) {
				killOne(t, r.sockets.dir+"/1.key")
			}, "ssh"},
			{"the connection's ssh is told to end", func(t *testing.T, _ *instance, r *Kind, _ *shelltest.Session) {
				if err := unix.Kill(children(t, r.sockets.dir+"/1.key")[0], unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}, ""},
			{"the tunnel is cut", func(t *testing.T, i *instance, _ *Kind, _ *shelltest.Session) {
				if err := i.tunnel(0).Conn.Close(); err != nil {
					t.Fatal(err)
				}
			}, ""},
			{"the tunnel is cut in a flood", func(t *testing.T, i *instance, _ *Kind, s *shelltest.Session) {
				s.Send(t, "yes\n")
				s.Expect(t, "y\r\ny\r\n")
				if err := i.tunnel(0).Conn.Close(); err != nil {
					t.Fatal(err)
				}
			}, ""},
			{"the tunnel goes silent", func(_ *testing.T, i *instance, _ *Kind, _ *shelltest.Session) { i.tunnel(0).stall() }, "tunnel_stalled"},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				i := &instance{id: i.id, sshd: i.sshd} // tunnels of its own
				var mu sync.Mutex
				var swept []runner.Swept
				r := i.remote(t, Config{Timing: runner.Timing{Alive: time.Second, Renew: time.Second, Lease: shortLease}, Swept: func(s runner.Swept) {
					mu.Lock()
					defer mu.Unlock()
					swept = append(swept, s)
				}})
				want := target(t)
				want.Attributes["instance_id"] = i.id
				s := shelltest.Open(t, shelltest.By(r), want)
				t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
				s.Send(t, faultJobs)
				for range faultUps {
					s.Expect(t, "up=42")
				}
				c.fault(t, i, r, s)
				broken(t, s)
				var step *runner.Failure
				if c.step != "" && (!errors.As(s.ReadErr, &step) || step.Step != c.step) {
					t.Errorf("the output ended with %v, want step %q", s.ReadErr, c.step)
				}
				if errors.As(s.ReadErr, &step) && step.Sentence == "" {
					t.Errorf("%v has no sentence", s.ReadErr)
				}
				s.Closed = true
				_ = s.Close() // which may put the end off
				shelltest.Eventually(t, "the end was counted", func() bool {
					mu.Lock()
					defer mu.Unlock()
					return len(swept) == 1
				})
				if swept[0].Left != 0 || swept[0].Kept != 2 {
					t.Errorf("swept %+v", swept[0])
				}
				shelltest.WantLiving(t, s.ID, "nohup", "setsid")
				wantNothingOf(t, s.ID)
			})
		}
	}
}

// TestRemoteSilentTunnel: what happens before the silence is noticed.
func TestRemoteSilentTunnel(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	swept := make(chan runner.Swept, 2)
	r := i.remote(t, Config{Swept: func(s runner.Swept) { swept <- s }})
	s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
	i.tunnel(0).stall()
	shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t) // not over it
	<-swept
	s.Closed = true
	if err := s.Close(); err == nil {
		t.Error("the end over it was seen")
	}
	if got := <-swept; got != (runner.Swept{Killed: 1}) {
		t.Errorf("swept %+v", got)
	}
	shelltest.WantLiving(t, s.ID)
}

// TestRemoteWedgedConnection: the next terminal opens over another connection at once, when the first one's ssh is stopped, has
// no control socket, or hangs, also while other terminals' output flows; those go on when it does.
func TestRemoteWedgedConnection(t *testing.T) {
	t.Parallel()
	stop := func(t *testing.T, r *Kind) (heal func()) {
		t.Helper()
		pid := children(t, r.sockets.dir+"/1.key")[0]
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		return func() { _ = unix.Kill(pid, unix.SIGCONT) }
	}
	for _, c := range []struct {
		name    string
		flood   bool // of output
		command bool // carries the tunnel
		wedge   func(t *testing.T, r *Kind) (heal func())
	}{
		{name: "its ssh is stopped", wedge: stop},
		{name: "its ssh is stopped in a flood", flood: true, wedge: stop},
		{name: "its ssh is stopped, and a command carries the tunnel", command: true, wedge: stop},
		{name: "its control socket is gone", wedge: func(t *testing.T, r *Kind) func() {
			t.Helper()
			if err := os.Remove(r.sockets.dir + "/1.ctl"); err != nil {
				t.Fatal(err)
			}
			return func() {}
		}},
		{name: "its control socket is silent", wedge: func(t *testing.T, r *Kind) func() {
			t.Helper()
			path := r.sockets.dir + "/1.ctl"
			if err := os.Rename(path, path+".away"); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			return func() { _ = os.Rename(path+".away", path) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			i := newInstance(t, nil)
			if c.command {
				host, port, _ := strings.Cut(i.sshd.Addr, ":")
				i.command = []string{"/bin/bash", "-c", "exec 3<>/dev/tcp/" + host + "/" + port + "; cat <&3 & exec cat >&3"}
			}
			r := i.remote(t, Config{})
			first := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
			if c.flood {
				first.Send(t, "yes\n")
				first.Expect(t, "y\r\ny\r\n")
			}
			heal := c.wedge(t, r)
			t.Cleanup(heal)
			second := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
			second.Send(t, "echo t=$((6*7))\n")
			second.Expect(t, "t=42")
			third := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
			if connOf(second.Terminal) == connOf(first.Terminal) || connOf(third.Terminal) != connOf(second.Terminal) {
				t.Error("the second is not over another connection, or the third not over the second's")
			}
			heal()
			if c.flood {
				first.Send(t, "\x03")
				first.Expect(t, "^C")
			}
			first.Send(t, "echo t=$((6*7))\n")
			first.Expect(t, "t=42")
			second.End(t)
			third.End(t)
			first.Closed = true
			_ = first.Close() // which may be put off, for want of the socket
		})
	}
}

// TestRemoteHungContainer: a container or an engine that keeps a sweep or a start
// waiting costs its own terminal alone, and the instance no tunnel, and of
// processes one that waits for it to answer.
func TestRemoteHungContainer(t *testing.T) {
	t.Parallel()
	const start, hang = `while [ "$1" != -c ]; do shift; done; exec /bin/sh -c "$2" /bin/sh`, `echo $$ >>"${0%/*}/hung"; exec sleep 1000`
	for _, c := range []struct {
		name            string
		shell, inspects string // how a terminal starts, and the engine answers
		opens           bool
	}{
		{"its sweep hangs", start, "echo found true false 1", true},
		{"its start hangs", hang, "echo found true false 1", false},
		{"the engine hangs", start, hang, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			i := newInstance(t, nil)
			account, err := user.Lookup(i.sshd.User)
			if err != nil {
				t.Fatal(err)
			}
			docker := "#!/bin/sh\ncase \"$1 $2\" in\n*inspect*) " + c.inspects + " ;;\n*-it*) " + c.shell + " ;;\n*) " + hang + " ;;\nesac\n"
			program, hung := filepath.Join(account.HomeDir, "docker"), filepath.Join(account.HomeDir, "hung")
			if err := errors.Join(
				os.WriteFile(program, []byte(docker), 0o755), os.WriteFile(hung, nil, 0o666), os.Chmod(hung, 0o666),
				os.WriteFile(filepath.Join(account.HomeDir, ".bashrc"), []byte("PATH="+account.HomeDir+":$PATH\n"), 0o644),
			); err != nil {
				t.Fatal(err)
			}
			var timing runner.Timing
			if !c.opens {
				timing = wholeStart
			}
			r := i.remote(t, Config{Timing: timing})
			neighbour := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
			want := i.target(t, "hung")
			want.Attributes["remote_target"] = TargetContainer
			term, err := r.Start(t.Context(), want, shelltest.DefaultSize)
			if (err == nil) != c.opens {
				t.Fatalf("the start: %v", err)
			}
			if c.opens {
				if err := term.Close(); err == nil {
					t.Error("the end was seen")
				}
			}
			shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
			neighbour.Send(t, "echo t=$((6*7))\n")
			neighbour.Expect(t, "t=42")
			neighbour.End(t)
			if got := i.opened(); got != 1 {
				t.Errorf("%d tunnels", got)
			}
			r.mu.Lock()
			for _, conns := range r.conns {
				for _, c := range conns {
					if c.over || c.bound != (bound{}) {
						t.Errorf("the connection takes %+v sessions, over %t", c.bound, c.over)
					}
				}
			}
			r.mu.Unlock()
			r.stop() // it would try again
			// What guards the session gives up after some tries, on a slow machine before this looks.
			shelltest.Within(t, shelltest.Patience, "all that is left on the instance is what waits, if that", func() bool {
				left := len(remnants(t, want.Session))
				return left == 0 || left == 1 && guardWaits(t, want.Session, laterSweeps...)
			})
			text, err := os.ReadFile(hung)
			if err != nil || len(text) == 0 {
				t.Errorf("%q, %v", text, err)
			}
			for _, word := range strings.Fields(string(text)) {
				if line, _ := os.ReadFile("/proc/" + word + "/cmdline"); string(line) == "sleep\x001000\x00" {
					t.Errorf("process %s is left", word)
				}
			}
			if err := os.WriteFile(program, []byte("#!/bin/sh\necho 0 0 0\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			shelltest.Within(t, shelltest.Patience, "nothing is left on the instance", func() bool { return len(remnants(t, want.Session)) == 0 })
		})
	}
}

// TestRemoteAlive: how soon a silent tunnel is noticed, by a terminal and by one
// that is asked for: 15 s with the second that ending its ssh may take.
func TestRemoteAlive(t *testing.T) {
	t.Parallel()
	timing := runner.Timing{}.WithDefaults()
	if limit := startTime(timing) + time.Second; limit > 15*time.Second || loginTime(timing) >= startTime(timing) {
		t.Errorf("a start ends after %s, its login after %s", limit, loginTime(timing))
	}
	if limit := time.Duration(aliveCount(timing)) * timing.Alive; limit <= timing.Patience() {
		t.Errorf("ssh gives up after %s", limit)
	}
}

// TestRemoteInstanceEndsByItself leaves everything to the instance: the gateway
// is killed, and the connection ends with it or not even that, or the container
// is paused meanwhile.
func TestRemoteInstanceEndsByItself(t *testing.T) {
	t.Parallel()
	const gateway = "TERMGW_TEST_REMOTE_GATEWAY"
	if raw := os.Getenv(gateway); raw != "" {
		gatewayToKill(t, raw)
	}
	i, of := bothTargets(t)
	for _, c := range []struct {
		target         string
		silent, paused bool
	}{
		{target: TargetHost},
		{target: TargetContainer},
		{target: TargetHost, silent: true},
		{target: TargetContainer, silent: true},
		{target: TargetContainer, paused: true},
	} {
		t.Run(c.target+map[bool]string{true: "/the tunnel is silent"}[c.silent]+map[bool]string{true: "/paused"}[c.paused], func(t *testing.T) {
			t.Parallel()
			want := of[c.target](t)
			if c.paused {
				want.Attributes["container"] = env.Docker(t).RunContainer(t, "")
			}
			t.Cleanup(func() { shelltest.KillLiving(t, want.Session) })
			between := newRelay(t, i.sshd.Addr)
			tmp, err := os.MkdirTemp("", "tgwkill-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(tmp) })
			raw, err := json.Marshal(killed{
				Addr: between.addr(), User: i.sshd.User, Instance: i.id,
				Session: want.Session, Container: want.Attributes["container"], Target: want.Attributes["remote_target"],
			})
			if err != nil {
				t.Fatal(err)
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self, "-test.run=^TestRemoteInstanceEndsByItself$")
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp, gateway+"="+string(raw))
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			ready := false
			for !ready && lines.Scan() {
				word, rest, _ := strings.Cut(lines.Text(), " ")
				switch word {
				case "push":
					if err := i.sshd.Push(rest); err != nil {
						t.Error(err)
					}
					_, _ = io.WriteString(in, "pushed\n")
				case "ready":
					shelltest.Eventually(t, "the instance knows the shell", func() bool { return guardWaits(t, want.Session, "5") })
					_, _ = io.WriteString(in, "go on\n")
				case "lost":
					ready = true
				default:
					t.Log(lines.Text())
				}
			}
			alive := shelltest.Living(t, want.Session)
			if c.silent {
				between.stall()
			}
			if c.paused {
				env.Docker(t).Pause(t, want.Attributes["container"])
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait()
			if !ready || !slices.Equal(alive, []string{"bare", "bg", "nohup", "setsid", "shell"}) {
				t.Fatalf("ready %v, alive %q", ready, alive)
			}
			if c.paused {
				shelltest.Within(t, shelltest.Patience, "the instance waits, having tried twice", func() bool { return guardWaits(t, want.Session, laterSweeps...) })
				env.Docker(t).Unpause(t, want.Attributes["container"])
			}
			shelltest.Within(t, shelltest.Patience, "what was told to stay is all that is alive", func() bool {
				return slices.Equal(shelltest.Living(t, want.Session), []string{"nohup", "setsid"})
			})
			wantNothingOf(t, want.Session)
		})
	}
}

// killed is what a gateway that will be killed needs to know.
type killed struct{ Addr, User, Instance, Session, Container, Target string }

// gatewayToKill is a gateway with one terminal. It does not return.
func gatewayToKill(t *testing.T, raw string) {
	var k killed
	if err := json.Unmarshal([]byte(raw), &k); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewScanner(os.Stdin)
	i := &instance{id: k.Instance, addr: k.Addr, push: func(key string) error {
		fmt.Println("push", key)
		answers.Scan()
		return nil
	}}
	r, err := Open(Config{KeepDetached: true, Tunnels: i, HostKeys: &i.keys, OSUser: k.User, Shells: []string{"/bin/bash"}, Timing: runner.Timing{Lease: shortLease, Renew: time.Second, Retry: shelltest.Timing.Retry}})
	if err != nil {
		t.Fatal(err)
	}
	term, err := r.Start(t.Context(), runner.Target{
		Session: k.Session, Attributes: map[string]string{"container": k.Container, "remote_target": k.Target, "instance_id": k.Instance},
		Log: slog.New(slog.DiscardHandler),
	}, shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	s := shelltest.Start(t, term)
	s.Send(t, faultJobs)
	for range faultUps {
		s.Expect(t, "up=42")
	}
	fmt.Println("ready")
	answers.Scan()
	// The shell loses its marker too.
	s.Send(t, `exec env -i bash --norc -is "$TERMGW_SESSION.shell"`+"\necho lost=$((6*7))\n")
	s.Expect(t, "lost=42")
	fmt.Println("lost")
	select {}
}

// shortLease is as long as a busy machine may keep a gateway from renewing it.
const shortLease = 15 * time.Second

// relay lies between a gateway and an sshd.
type relay struct {
	listener net.Listener
	to       string
	silent   chan struct{}
	wg       sync.WaitGroup

	gate  sync.RWMutex // held while nothing passes
	mu    sync.Mutex
	conns []net.Conn
}

func newRelay(tb testing.TB, to string) *relay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &relay{listener: l, to: to, silent: make(chan struct{})}
	r.wg.Go(r.serve)
	tb.Cleanup(func() {
		_ = l.Close()
		r.mu.Lock()
		for _, c := range r.conns {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.listener.Addr().String() }

// stall lets nothing through any more, not even an end.
func (r *relay) stall() { close(r.silent) }

func (r *relay) serve() {
	for {
		near, err := r.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", r.to)
		if err != nil {
			_ = near.Close()
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, near, far)
		r.mu.Unlock()
		r.wg.Go(func() { r.copy(near, far) })
		r.wg.Go(func() { r.copy(far, near) })
	}
}

func (r *relay) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-r.silent:
			if err != nil {
				return
			}
			continue // it is read, as by a proxy with large buffers
		default:
		}
		r.gate.RLock()
		_, writeErr := to.Write(buf[:n])
		r.gate.RUnlock()
		if err != nil || writeErr != nil {
			_, _ = to.Close(), from.Close()
			return
		}
	}
}

// TestRemoteSilence: a break that the instance's lease outlasts costs nothing, in either direction.
func TestRemoteSilence(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	between := newRelay(t, i.sshd.Addr)
	i.addr = between.addr()
	r := i.remote(t, Config{Timing: runner.Timing{Alive: time.Second, Renew: time.Second, Lease: 2 * shortLease}})
	s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	silence := s.Terminal.(terminal.Silent).Silence
	// With a time, read drops the part of a line that it has when the time is over.
	s.Send(t, "read -r go; n=0; until read -t 0; do echo n=$((n+=1)); sleep 0.01; done; read -r line; echo line=$line=$n\ngo\n")
	s.Expect(t, "n=10\r\n")
	between.gate.Lock()
	s.Send(t, "typed meanwhile\n")
	// Longer than ssh and the tunnel would wait, if they waited for two of their probes.
	shelltest.Within(t, shelltest.Patience, "it is silent for long", func() bool {
		quiet := silence()
		return quiet.Lasts > quiet.Limit/2
	})
	between.gate.Unlock()
	s.Expect(t, "line=typed meanwhile=")
	if quiet := silence(); quiet.Lasts > quiet.Limit/2 {
		t.Errorf("it is silent for %s", quiet.Lasts)
	}
	s.Send(t, "exit\n")
	s.Rest(t)
	last := 0
	for _, m := range regexp.MustCompile(`n=(\d+)\r\n`).FindAllSubmatch(s.Out, -1) {
		if last++; string(m[1]) != strconv.Itoa(last) {
			t.Fatalf("after line %d comes line %s", last-1, m[1])
		}
	}
	if !bytes.Contains(s.Out, fmt.Appendf(nil, "line=typed meanwhile=%d\r\n", last)) {
		t.Errorf("the last line is %d", last)
	}
	s.End(t)
}

// TestRemoteLease: a terminal whose gateway lives is kept, also while only the
// instance has something to say; one is not that nobody renews. Whoever reads output renews it, too.
func TestRemoteLease(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	with := func(renew time.Duration) *Kind {
		return i.remote(t, Config{Timing: runner.Timing{Lease: shortLease, Renew: renew}})
	}
	const chat = "trap 'echo resized=$((6*7))' WINCH; while :; do echo tick; sleep 0.2; done\n"
	renewed := shelltest.Open(t, shelltest.By(with(time.Second)), i.target(t, ""))
	renewed.Send(t, chat)
	renewed.Expect(t, "tick\r\n")
	target := i.target(t, "")
	lapsed, err := with(time.Hour).Start(t.Context(), target, shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lapsed.Close() }() // of which nothing is left
	if _, err := lapsed.Write([]byte(chat)); err != nil {
		t.Fatal(err)
	}
	shelltest.Within(t, shelltest.Patience, "nothing is left of what nobody renews", func() bool {
		return len(shelltest.Living(t, target.Session)) == 0 && len(remnants(t, target.Session)) == 0
	})
	renewed.Send(t, "\x03")
	renewed.Send(t, "echo t=$((6*7))\n")
	renewed.Expect(t, "t=42")
	renewed.End(t)
	if strings.Contains(string(renewed.Out), "resized=42") {
		t.Error("what renews the lease is seen by the shell")
	}
}

// TestRemoteLeaseTimes: the promise is two minutes, and a gateway that is stopped
// for one keeps its terminals.
func TestRemoteLeaseTimes(t *testing.T) {
	t.Parallel()
	timing := runner.Timing{}.WithDefaults()
	look, ends := 5*time.Second, 2*time.Second+3*shelltest.Timing.Grace
	if most := timing.Lease + look + ends; most > 2*time.Minute-10*time.Second {
		t.Errorf("a shell may live for %s", most)
	}
	// The gateway listens each second.
	if patience := timing.Patience(); patience < 80*time.Second || patience+timing.Renew+time.Second >= timing.Lease {
		t.Errorf("a gateway waits for %s", patience)
	}
	if stopped := timing.Lease - timing.Renew; stopped < time.Minute+10*time.Second {
		t.Errorf("a gateway may be stopped for %s", stopped)
	}
}

// laterSweeps are the seconds that a guard sleeps before the third sweep, or one of
// the next: powers of two, in seconds.
var laterSweeps = []string{"2", "4", "8", "16", "32"}

// guardWaits tells whether what guards a session on the instance has nothing to
// do but sleep for so many seconds: 5 while it waits for the session's end.
func guardWaits(tb testing.TB, session string, seconds ...string) bool {
	tb.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		tb.Fatal(err)
	}
	for _, path := range stats {
		stat, _ := os.ReadFile(path)
		_, rest, _ := strings.Cut(string(stat), " (sleep) ")
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			continue
		}
		own, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		parent, _ := os.ReadFile(filepath.Join("/proc", fields[1], "cmdline"))
		said, isSleep := strings.CutPrefix(strings.TrimSuffix(string(own), "\x00"), "sleep\x00")
		if isSleep && slices.Contains(seconds, said) && strings.Contains(string(parent), "\x00mode=watch\x00") && strings.Contains(string(parent), "\x00session="+session+"\x00") {
			return true
		}
	}
	return false
}

// TestRemoteCancelledStart leaves nothing, whenever it is cancelled.
func TestRemoteCancelledStart(t *testing.T) {
	t.Parallel()
	i, of := bothTargets(t)
	r := i.remote(t, Config{})
	shelltest.Open(t, shelltest.By(r), of[TargetHost](t)) // the connection is there
	for name, target := range of {
		for _, after := range []time.Duration{0, 5, 15, 30, 60, 90, 120} {
			t.Run(fmt.Sprint(name, "/", int(after)), func(t *testing.T) {
				t.Parallel()
				want := target(t)
				ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
				defer cancel()
				term, err := r.Start(ctx, want, shelltest.DefaultSize)
				if err == nil {
					shelltest.Start(t, term).EndSoon(t)
				}
				wantNothingOf(t, want.Session)
				shelltest.Eventually(t, "nothing is alive", func() bool { return len(shelltest.Living(t, want.Session)) == 0 })
			})
		}
	}
}

// TestRemoteTunnelCommand: what carries the tunnel is a command with children,
// which does not hear the end of its stdin.
func TestRemoteTunnelCommand(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	mark := "tunnel-of-" + i.sshd.User
	host, port, _ := strings.Cut(i.sshd.Addr, ":")
	i.command = []string{"/bin/bash", "-c", "exec 3<>/dev/tcp/" + host + "/" + port + "; cat <&3 & cat >&3; sleep 1000", mark}
	r := i.remote(t, Config{Timing: runner.Timing{Linger: time.Millisecond}})
	s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	s.Send(t, "echo t=$((6*7))\n")
	s.Expect(t, "t=42")
	group := children(t, mark)
	if len(group) != 1 {
		t.Fatalf("%d tunnel commands", len(group))
	}
	c := connectionOf(t, r)
	if c.pump.heard.Load() == 0 {
		t.Error("what came through the command was not counted")
	}
	if err := unix.Kill(-group[0], unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	heard, silent := c.pump.heard.Load(), c.listen()
	shelltest.Eventually(t, "a command that is stopped is silent", func() bool {
		if now := c.pump.heard.Load(); now != heard { // it was on its way
			heard, silent = now, c.listen()
		}
		return silent()
	})
	if err := unix.Kill(-group[0], unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.End(t)
	shelltest.Eventually(t, "the command and its children are gone", func() bool {
		return errors.Is(unix.Kill(-group[0], 0), unix.ESRCH)
	})
}

// connectionOf is the only connection of a kind.
func connectionOf(tb testing.TB, k *Kind) *connection {
	tb.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, conns := range k.conns {
		if len(k.conns) == 1 && len(conns) == 1 {
			return conns[0]
		}
	}
	tb.Fatalf("connections to %d destinations", len(k.conns))
	return nil
}

// TestRemoteSecrets: the key is in no file, argument or environment, and the
// directory of sockets is private, and gone after Close.
func TestRemoteSecrets(t *testing.T) {
	i, of := bothTargets(t)
	hold := make(chan struct{})
	i.delay = hold
	r, err := Open(Config{KeepDetached: true, Tunnels: i, HostKeys: &i.keys, OSUser: i.sshd.User, Shells: []string{"/bin/sh"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TERMGW_TEST_SECRET", "a-secret-of-the-gateway")
	type result struct {
		term terminal.Terminal
		err  error
	}
	results := make(chan result, 1)
	target := of[TargetContainer](t)
	go func() {
		term, err := r.Start(t.Context(), target, shelltest.DefaultSize)
		results <- result{term, err}
	}()
	shelltest.Eventually(t, "ssh waits for the tunnel", func() bool { return len(children(t, r.sockets.dir)) == 1 })
	check := func(agent bool) {
		t.Helper()
		info, err := os.Stat(r.sockets.dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the directory: %v, %v", info, err)
		}
		err = filepath.WalkDir(r.sockets.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if strings.Contains(string(b), "PRIVATE") || strings.Contains(string(b), "openssh-key") {
				t.Errorf("%s holds %q", path, b)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		for _, pid := range children(t, r.sockets.dir) {
			environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			if got := strings.Split(strings.TrimSuffix(string(environ), "\x00"), "\x00"); !slices.Equal(got, sshEnv) {
				t.Errorf("environment %q", got)
			}
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if strings.Contains(string(cmdline), "PRIVATE") || strings.Contains(string(cmdline), strings.Fields(i.asked()[0])[1]) {
				t.Errorf("arguments %q", cmdline)
			}
		}
		_, err = os.Stat(r.sockets.dir + "/1.key")
		if (err == nil) != agent {
			t.Errorf("the agent's socket: %v", err)
		}
	}
	shelltest.Eventually(t, "the key is on its way", func() bool { return len(i.asked()) > 0 })
	check(true)
	close(hold)
	got := <-results
	if got.err != nil {
		t.Fatal(got.err)
	}
	s := shelltest.Start(t, got.term)
	check(false)
	s.End(t)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.sockets.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory after Close: %v", err)
	}
	if pids := children(t, r.sockets.dir); len(pids) > 0 {
		t.Errorf("%d children after Close", len(pids))
	}
	if _, err := r.Start(t.Context(), of[TargetHost](t), shelltest.DefaultSize); err == nil {
		t.Error("a terminal after Close")
	}
}

// TestRemoteThreads: no OS thread is held by a terminal that waits.
func TestRemoteThreads(t *testing.T) {
	i := newInstance(t, nil)
	r := i.remote(t, Config{})
	shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	before := shelltest.Tasks(t)
	for range 18 {
		shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	}
	if after := shelltest.Tasks(t); after > before+6 {
		t.Errorf("%d threads before, %d after 18 terminals", before, after)
	}
}
