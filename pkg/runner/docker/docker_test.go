package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/terminal"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// setSecrets sets what a gateway's environment may hold.
func setSecrets(t *testing.T) {
	t.Setenv("TERMGW_DATABASE_URL", "postgres://termgw:hunter2@db/platform")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
}

func TestEnvironment(t *testing.T) {
	setSecrets(t)
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			s := shelltest.Open(t, p.kind(t, true), p.target(t))
			s.Send(t, "echo; tr '\\0' '\\n' </proc/$$/environ; exit\n")
			got := strings.Split(strings.ReplaceAll(string(s.Rest(t)), "\x1b[?2004l\r", ""), "\r\n")
			for _, want := range []string{"TERM=xterm-256color", runner.Marker + "=" + s.ID} {
				found := 0
				for _, line := range got {
					if line == want {
						found++
					}
				}
				if found != 1 {
					t.Errorf("%s is there %d times in %q", want, found, got)
				}
			}
			all := strings.Join(got, "\n")
			for _, secret := range []string{"hunter2", "AWS_", "TERMGW_DATABASE"} {
				if strings.Contains(all, secret) {
					t.Errorf("%s is in %q", secret, got)
				}
			}
		})
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			term, err := p.kind(t, true)(func(runner.Swept) {}).Start(t.Context(), p.target(t), terminal.Size{Cols: 123, Rows: 45})
			if err != nil {
				t.Fatal(err)
			}
			s := shelltest.Start(t, term)
			s.Send(t, "stty size\n")
			s.Expect(t, "45 123\r\n")
			s.Send(t, "trap 'stty size' WINCH\n")
			for _, size := range []terminal.Size{{Cols: 200, Rows: 60}, {Cols: 1, Rows: 1}, {Cols: 1000, Rows: 1000}} {
				if err := s.Resize(size); err != nil {
					t.Fatal(err)
				}
				s.Send(t, "stty size\n")
				s.Expect(t, fmt.Sprintf("%d %d\r\n", size.Rows, size.Cols))
			}
			s.End(t)
		})
	}
}

// TestSizeIsThereBeforeTheFirstByte asks for it in what the shell itself runs
// first, and sees nothing of the gateway's own words with it.
func TestSizeIsThereBeforeTheFirstByte(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	container := engine.RunContainer(t, "")
	engine.Exec(t, container, "sh", "-c", "echo 'stty size; exit 4' >/root/.bashrc")
	d := testKind(engine.Client(t), Config{KeepDetached: true, Shells: []string{"/bin/bash"}})
	for range 10 {
		term, err := d.Start(t.Context(), shelltest.NewTarget(t, container), terminal.Size{Cols: 123, Rows: 45})
		if err != nil {
			t.Fatal(err)
		}
		s := shelltest.Start(t, term)
		if got := string(s.Rest(t)); got != "45 123\r\n" {
			t.Errorf("the terminal's first bytes are %q", got)
		}
		if got := s.Exit(t); got != (terminal.Exit{Code: 4}) {
			t.Errorf("ended with %+v", got)
		}
		s.End(t)
	}
}

func TestExit(t *testing.T) {
	t.Parallel()
	cases := map[string]terminal.Exit{
		"exit 0":            {},
		"exit 3":            {Code: 3},
		"exit 130":          {Code: 130},
		"exec sh -c 'exit'": {},
		"kill -KILL $$":     {Code: 137, Signal: "SIGKILL"},
		"kill -HUP $$":      {Code: 129, Signal: "SIGHUP"},
	}
	for _, p := range places(t) {
		for input, want := range cases {
			t.Run(p.name+"/"+input, func(t *testing.T) {
				t.Parallel()
				s := shelltest.Open(t, p.kind(t, true), p.target(t))
				s.Send(t, input+"\n")
				if got := s.Exit(t); got != want {
					t.Errorf("ended with %+v, want %+v", got, want)
				}
				if got := s.End(t); got != (runner.Swept{}) {
					t.Errorf("swept %+v", got)
				}
			})
		}
	}
}

// flood prints megabytes of numbered lines; flooded is what a terminal makes
// of them.
const flood = `perl -e 'printf "%07d\n", $_ for 1..150000'`

func flooded() []byte {
	var b bytes.Buffer
	for i := range 150000 {
		fmt.Fprintf(&b, "%07d\r\n", i+1)
	}
	return b.Bytes()
}

// TestAllOutputBeforeTheEnd also ends shells that leave a job, which holds the
// terminal: its own end would come never.
func TestAllOutputBeforeTheEnd(t *testing.T) {
	t.Parallel()
	want := flooded()
	for _, p := range places(t) {
		for _, c := range []struct {
			name, before string
			swept        runner.Swept
		}{
			{"alone", "", runner.Swept{}},
			{"with a job", shelltest.Job("bg", "") + " &", runner.Swept{Killed: 1}},
			{"with a job that writes on", shelltest.Job("bg", `$SIG{ALRM}=sub{syswrite STDOUT, "." unless kill 0, '"$$"'; alarm 1}; alarm 1`) + " &", runner.Swept{Killed: 1}},
			{"with a job that floods on", shelltest.Job("bg", `if (!fork) {select undef, undef, undef, .01 while kill 0, '"$$"'; syswrite STDOUT, "." x 4096 while 1}`) + " &", runner.Swept{Killed: 2}},
		} {
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				s := shelltest.Open(t, p.kind(t, true), p.target(t))
				s.Send(t, "exec 9>/dev/tty; stty -echo\n"+c.before+"\n")
				if c.before != "" {
					s.Expect(t, "up=42")
				}
				s.Send(t, flood+"; exit 7\n")
				out := s.Rest(t)
				if !bytes.Contains(out, want) {
					t.Errorf("%d bytes, want all of %d in order; the last are %q", len(out), len(want), out[max(0, len(out)-40):])
				}
				if got := s.Exit(t); got != (terminal.Exit{Code: 7}) {
					t.Errorf("ended with %+v", got)
				}
				if got := s.End(t); got != c.swept {
					t.Errorf("swept %+v, want %+v", got, c.swept)
				}
				shelltest.WantLiving(t, s.ID)
			})
		}
	}
}

// TestSlowReaderGetsAll reads long after the shell has gone: a client that
// renders slowly.
func TestSlowReaderGetsAll(t *testing.T) {
	t.Parallel()
	for _, p := range places(t) {
		for name, before := range map[string]string{"alone": "", "with a job": shelltest.Job("bg", "") + " & "} {
			t.Run(p.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				target := p.target(t)
				term, err := p.kind(t, true)(func(runner.Swept) {}).Start(t.Context(), target, shelltest.DefaultSize)
				if err != nil {
					t.Fatal(err)
				}
				// Few enough bytes for the kernel to hold.
				if _, err := term.Write([]byte("exec 9>/dev/tty; stty -echo; " + before + "perl -e 'print \"x\" x 3000, \"END\"'; exit\n")); err != nil {
					t.Fatal(err)
				}
				shelltest.Eventually(t, "the shell has exited", func() bool {
					for _, name := range shelltest.Living(t, target.Session) {
						if name != "bg" {
							return false
						}
					}
					return true
				})
				<-time.After(2 * time.Second)
				s := shelltest.Start(t, term)
				if got := s.Rest(t); !bytes.Contains(got, append(bytes.Repeat([]byte("x"), 3000), "END"...)) {
					t.Errorf("lost output: %q", got)
				}
				s.End(t)
			})
		}
	}
}

func TestShells(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	engine.Exec(t, container, "sh", "-c", "echo not a program >/bin/noexec")
	start := func(t *testing.T, target runner.Target, shells ...string) (terminal.Terminal, error) {
		kind := testKind(cli, Config{KeepDetached: true, Shells: shells})
		defer kind.ends.Close() // of what a failed start has left
		return kind.Start(t.Context(), target, shelltest.DefaultSize)
	}
	t.Run("the first that is there", func(t *testing.T) {
		s := shelltest.Open(t, func(swept func(runner.Swept)) shelltest.Starter {
			shells := []string{"/bin/missing", "/missing/too", "/bin/noexec", "/etc", "/bin/dash", "/bin/bash"}
			return testKind(cli, Config{KeepDetached: true, Shells: shells, Swept: swept})
		}, shelltest.NewTarget(t, container))
		s.Send(t, "readlink /proc/$$/exe\n")
		s.Expect(t, "/bin/dash\r\n")
	})
	t.Run("none", func(t *testing.T) {
		target := shelltest.NewTarget(t, container)
		_, err := start(t, target, "/bin/missing", "/etc")
		shelltest.WantStep(t, err, "shell")
		shelltest.WantLiving(t, target.Session)
	})
	t.Run("one that ends at once", func(t *testing.T) {
		target := shelltest.NewTarget(t, container)
		_, err := start(t, target, "/bin/false")
		shelltest.WantStep(t, err, "shell")
		shelltest.WantLiving(t, target.Session)
	})
	t.Run("one that prints without end", func(t *testing.T) {
		target := shelltest.NewTarget(t, engine.RunContainer(t, ""))
		engine.Exec(t, target.Attributes["container"], "sh", "-c",
			`printf '#!/bin/sh\n[ "$3" = termgw-sweep ] || while :; do echo y; done\nexec /bin/sh "$@"\n' >/endless; chmod 755 /endless`)
		_, err := start(t, target, "/endless")
		shelltest.WantStep(t, err, "shell")
		shelltest.WantLiving(t, target.Session)
	})
}

func TestDetachKeysReachTheProgram(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := dockerPlace("", "/bin/bash", engine.Client(t), engine.RunContainer(t, ""))
	s := shelltest.Open(t, p.kind(t, true), p.target(t))
	for _, typed := range []string{"\x10", "\x10\x11", "\x00a", "\x11\x10"} {
		s.Send(t, fmt.Sprintf("stty raw -echo; echo up=$((6*7)); head -c%d | od -An -tx1; stty sane\n", len(typed)))
		s.Expect(t, "up=42")
		s.Send(t, typed)
		s.Expect(t, fmt.Sprintf("\n % x", typed))
	}
}

// TestContainerEndsUnderASession reads only after the end.
func TestContainerEndsUnderASession(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	for name, end := range map[string]func(context.Context, string) error{
		"stopped": func(ctx context.Context, id string) error {
			_, err := cli.ContainerStop(ctx, id, client.ContainerStopOptions{})
			return err
		},
		"killed": func(ctx context.Context, id string) error {
			_, err := cli.ContainerKill(ctx, id, client.ContainerKillOptions{})
			return err
		},
		"removed": func(ctx context.Context, id string) error {
			_, err := cli.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			container := engine.RunContainer(t, "")
			target := shelltest.NewTarget(t, container)
			swept := runner.Swept{Left: -1}
			d := testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/bash"}, Swept: func(s runner.Swept) { swept = s }})
			term, err := d.Start(t.Context(), target, shelltest.DefaultSize)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := term.Write([]byte("stty -echo; perl -e 'print \"x\" x 20000, \"END\"'; touch /printed; sleep 1000\n")); err != nil {
				t.Fatal(err)
			}
			shelltest.Eventually(t, "all is printed", func() bool {
				return engine.Exec(t, container, "sh", "-c", "test -e /printed && echo yes || echo no") == "yes\n"
			})
			if err := end(t.Context(), container); err != nil {
				t.Fatal(err)
			}
			s := shelltest.Start(t, term)
			if got := s.Rest(t); !bytes.Contains(got, append(bytes.Repeat([]byte("x"), 20000), "END"...)) {
				t.Errorf("lost output: %d bytes, the last are %q", len(got), got[max(0, len(got)-40):])
			}
			if got := s.Exit(t); got != (terminal.Exit{Code: 137, Signal: "SIGKILL"}) {
				t.Errorf("ended with %+v", got)
			}
			s.End(t)
			if swept != (runner.Swept{}) {
				t.Errorf("swept %+v", swept)
			}
			shelltest.WantLiving(t, target.Session)
		})
	}
}

func TestContainerIsGoneAtClose(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	p := dockerPlace("", "/bin/bash", cli, container)
	s := shelltest.Open(t, p.kind(t, true), p.target(t))
	var swept runner.Swept
	k := testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/bash"}, Swept: func(s runner.Swept) { swept = s }})
	paused := shelltest.Open(t, shelltest.By(k), p.target(t))

	// In a paused container nothing can be ended, and that is told.
	engine.Pause(t, container)
	paused.Closed = true
	if err := paused.Close(); err == nil {
		t.Error("closed in a paused container")
	}
	if k.ends.Close(); swept != (runner.Swept{Left: 1}) {
		t.Errorf("swept %+v", swept)
	}
	paused.Rest(t)
	engine.Unpause(t, container)
	if _, err := cli.ContainerKill(t.Context(), container, client.ContainerKillOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := s.End(t); got != (runner.Swept{}) {
		t.Errorf("swept %+v", got)
	}
	shelltest.WantLiving(t, s.ID)
}

// TestEngineResetsTheStream: unlike an end, it is a failure, and says of what.
func TestEngineResetsTheStream(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	engine, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = engine.(*net.TCPConn).SetLinger(0)
	_ = engine.Close()
	term := &execTerminal{conn: conn}
	n, err := term.Read(make([]byte, 16))
	if n != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%d, %v", n, err)
	}
	shelltest.WantStep(t, err, "docker")
}

func TestEngineIsKilledUnderASession(t *testing.T) {
	t.Parallel()
	engine := testenv.StartDocker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	c, err := cli.ContainerInspect(t.Context(), container, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	main := c.Container.State.Pid
	shim := parent(t, main)
	var swept runner.Swept
	k := testKind(cli, Config{Shells: []string{"/bin/bash"}, Swept: func(s runner.Swept) { swept = s }})
	s := shelltest.Open(t, shelltest.By(k), shelltest.NewTarget(t, container))
	pidfile, err := os.ReadFile(filepath.Join(filepath.Dir(strings.TrimPrefix(engine.Host, "unix://")), "dockerd.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(pidfile)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.Rest(t)
	if exit, err := s.Wait(); err == nil {
		t.Errorf("Wait knows %+v", exit)
	} else {
		shelltest.WantStep(t, err, "docker")
	}
	s.Closed = true
	if err := s.Close(); err == nil {
		t.Error("closed without an engine")
	}
	if k.ends.Close(); swept != (runner.Swept{Left: 1}) {
		t.Errorf("swept %+v", swept)
	}
	// A killed engine leaves the container running.
	for _, pid := range []int{shim, main} {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	engine.Stop(t)
	shelltest.Eventually(t, "the session is gone", func() bool { return len(shelltest.Living(t, s.ID)) == 0 })
}

func parent(tb testing.TB, pid int) int {
	tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nPPid:")
	field, _, _ := strings.Cut(rest, "\n")
	ppid, err := strconv.Atoi(strings.TrimSpace(field))
	if err != nil {
		tb.Fatal(err)
	}
	return ppid
}

// TestStartWithoutADescriptor: the engine's client does not tell why it could
// not connect.
func TestStartWithoutADescriptor(t *testing.T) {
	engine := env.Docker(t)
	target := shelltest.NewTarget(t, engine.RunContainer(t, ""))
	d := testKind(engine.Client(t), Config{KeepDetached: true, Shells: []string{"/bin/bash"}})
	var was unix.Rlimit
	if err := unix.Prlimit(os.Getpid(), unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	free, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0) // the lowest free one
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(free); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(os.Getpid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}
	_, err = d.Start(t.Context(), target, shelltest.DefaultSize)
	if restoreErr := unix.Prlimit(os.Getpid(), unix.RLIMIT_NOFILE, &was, nil); restoreErr != nil {
		t.Fatal(restoreErr)
	}
	shelltest.WantStep(t, err, "docker")
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("the error is %v", err)
	}
}

// TestCancelledStartLeavesNothing cancels at every moment of a start.
func TestCancelledStartLeavesNothing(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	d := testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/bash"}})
	var ids []string
	for after := time.Duration(0); after < 120*time.Millisecond; after += 8 * time.Millisecond {
		target := shelltest.NewTarget(t, container)
		ids = append(ids, target.Session)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		term, err := d.Start(ctx, target, shelltest.DefaultSize)
		cancel()
		if err == nil {
			shelltest.Start(t, term).EndSoon(t)
		}
	}
	if err := d.Close(); err != nil { // which tries once more what has taken too long
		t.Error(err)
	}
	// What the engine has started late shows by now.
	p := dockerPlace("", "/bin/bash", engine.Client(t), container)
	shelltest.Open(t, p.kind(t, true), p.target(t)).End(t)
	for _, id := range ids {
		shelltest.WantLiving(t, id)
	}
}

// TestStartCancelledWhileTheShellStarts cancels when the engine has just been
// told to start the shell, which it then does whatever becomes of its client.
func TestStartCancelledWhileTheShellStarts(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	container := engine.RunContainer(t, "")
	var ids []string
	for range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		cli, err := client.New(client.WithHost(engine.Host), client.WithDialContext(
			func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(engine.Host, "unix://"))
				return &cancelOnStart{conn, cancel}, err
			}))
		if err != nil {
			t.Fatal(err)
		}
		target := shelltest.NewTarget(t, container)
		ids = append(ids, target.Session)
		d := testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/bash"}})
		if term, err := d.Start(ctx, target, shelltest.DefaultSize); err == nil {
			t.Error("started")
			shelltest.Start(t, term).EndSoon(t)
		}
		shelltest.WantLiving(t, target.Session)
		if err := cli.Close(); err != nil {
			t.Error(err)
		}
	}
	// What the engine has started late shows by now.
	p := dockerPlace("", "/bin/bash", engine.Client(t), container)
	shelltest.Open(t, p.kind(t, true), p.target(t)).End(t)
	for _, id := range ids {
		shelltest.WantLiving(t, id)
	}
}

// cancelOnStart cancels once the request to start an exec is written.
type cancelOnStart struct {
	net.Conn
	cancel context.CancelFunc
}

func (c *cancelOnStart) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if line, _, _ := bytes.Cut(p, []byte("\r\n")); bytes.Contains(line, []byte("/start")) {
		c.cancel()
	}
	return n, err
}

// A key in a container takes the same way as in a pty.
func TestNoGoroutineAKey(t *testing.T) {
	engine := env.Docker(t)
	kind := testKind(engine.Client(t), Config{KeepDetached: true, Shells: []string{"/bin/sh"}})
	term, err := kind.Start(t.Context(), shelltest.NewTarget(t, engine.RunContainer(t, "")), shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	shelltest.WantNoGoroutineAKey(t, term)
}
