package instance

import (
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
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// lacking is what an instance does not have.
func lacking(names ...string) map[string]string {
	commands := map[string]string{}
	for _, name := range names {
		commands[name] = ""
	}
	return commands
}

// TestEndsWithoutTools: a terminal ends on an instance that lacks the tools, by the gateway or by the instance alone.
func TestEndsWithoutTools(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	container := engine.RunContainer(t, "")
	for _, c := range []struct {
		name, target string
		lacks        []string
	}{
		{"a container, of Linux's own tools", TargetContainer, []string{"setsid", "timeout", "head", "ss", "sudo"}},
		{"a container, of what could do as well", TargetContainer, []string{"setsid", "timeout", "head", "ss", "sudo", "python3", "perl", "grep", "stty"}},
		{"the instance", TargetHost, []string{"setsid", "timeout", "head", "ss", "sudo"}},
		{"the instance, by perl", TargetHost, []string{"setsid", "python3"}},
	} {
		for _, alone := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, map[bool]string{false: ", by the gateway", true: ", alone"}[alone]), func(t *testing.T) {
				t.Parallel()
				i := &instance{id: nextInstanceID(), sshd: testenv.StartSSHD(t, testenv.SSHDConfig{Docker: engine, Commands: lacking(c.lacks...)})}
				swept := make(chan runner.Swept, 1)
				r := i.remote(t, Config{Target: c.target, Swept: func(s runner.Swept) { swept <- s }})
				s := shelltest.Open(t, shelltest.By(r), i.target(t, container))
				t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
				s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
				s.Ready(t, "nohup "+shelltest.Job("nohup", "")+" >/dev/null 2>&1 &")
				s.Closed = true
				if alone {
					i.mu.Lock()
					i.err = io.ErrNoProgress // for the gateway
					i.mu.Unlock()
					_ = i.tunnel(0).Conn.Close()
				} else {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
					if got, want := <-swept, (runner.Swept{Killed: 1, Kept: 1}); got != want {
						t.Errorf("swept %+v, want %+v", got, want)
					}
				}
				shelltest.Eventually(t, "what was told to stay is all that is alive", func() bool {
					return slices.Equal(shelltest.Living(t, s.ID), []string{"nohup"})
				})
				wantNothingOf(t, s.ID)
				if alone {
					go func() { _ = s.Close() }() // which has nowhere to sweep
				}
			})
		}
	}
}

// guarded is an engine's socket that root alone may open.
func guarded(tb testing.TB, engine *testenv.Docker) (host string) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "tgwsock-")
	if err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(dir, "docker.sock")
	l, err := net.Listen("unix", file)
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.Chmod(file, 0o600)); err != nil {
		tb.Fatal(err)
	}
	var copies sync.WaitGroup
	copies.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", strings.TrimPrefix(engine.Host, "unix://"))
			if err != nil {
				_ = near.Close()
				continue
			}
			one := func(to, from net.Conn) func() {
				return func() {
					_, _ = io.Copy(to, from)
					_ = to.(*net.UnixConn).CloseWrite()
				}
			}
			copies.Go(one(near, far))
			copies.Go(one(far, near))
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		_ = os.RemoveAll(dir)
	})
	return "unix://" + file
}

// sudoers lets the account run a command as root, without a password.
func (i *instance) sudoers(tb testing.TB, command string) {
	tb.Helper()
	testenv.Needs(tb, "sudo", "sudo")
	file := "/etc/sudoers.d/" + i.sshd.User
	text := fmt.Sprintf("%s ALL=(root) NOPASSWD: %s\nDefaults:%s env_keep += \"DOCKER_HOST\"\n", i.sshd.User, command, i.sshd.User)
	if err := os.WriteFile(file, []byte(text), 0o440); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.Remove(file) })
}

// wantTerminals opens terminals in a container by each way that a row may name it, and ends one.
func (i *instance) wantTerminals(t *testing.T, container, id string, row map[string]string) {
	t.Helper()
	target := func(container string) runner.Target {
		target := i.target(t, container)
		for column, value := range row {
			target.Attributes[column] = value
		}
		return target
	}
	swept := make(chan runner.Swept, 10)
	r := i.remote(t, Config{Target: TargetContainer, Swept: func(s runner.Swept) { swept <- s }})
	for _, name := range []string{container, id} { // directly, and by mode choose
		s := shelltest.Open(t, shelltest.By(r), target(name))
		if err := s.Resize(terminal.Size{Cols: 132, Rows: 43}); err != nil {
			t.Fatal(err)
		}
		s.Send(t, "until stty size | grep -q '^43 132$'; do sleep 0.05; done; echo host=$(hostname)\n")
		// docker listens for sizes some time after the shell has started, on a busy machine after more than what guards a
		// terminal waits for: then the person drags the window again.
		seen := make(chan struct{})
		var drags sync.WaitGroup
		drags.Go(func() {
			for {
				select {
				case <-time.After(20 * time.Second):
					_, _ = s.Resize(terminal.Size{Cols: 131, Rows: 43}), s.Resize(terminal.Size{Cols: 132, Rows: 43})
				case <-seen:
					return
				case <-t.Context().Done():
					return
				}
			}
		})
		s.Expect(t, "host="+id[:12])
		close(seen)
		drags.Wait()
		s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
		s.Closed = true
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if got, want := <-swept, (runner.Swept{Killed: 1}); got != want {
			t.Errorf("swept %+v, want %+v", got, want)
		}
		shelltest.WantLiving(t, s.ID)
		wantNothingOf(t, s.ID)
	}
	s := shelltest.Open(t, shelltest.By(r), target(container))
	s.Send(t, "exit 7\n")
	if got := s.Exit(t); got != (terminal.Exit{Code: 7}) {
		t.Errorf("ended with %+v", got)
	}
	s.End(t)
	for _, name := range []string{"none-of-them", "abc123"} {
		if _, err := r.Start(t.Context(), target(name), shelltest.DefaultSize); !errors.Is(err, runner.ErrNotRunning) {
			t.Errorf("container %s: %v", name, err)
		}
	}
	r.cfg.Shells = []string{"/missing"}
	_, err := r.Start(t.Context(), target(container), shelltest.DefaultSize)
	shelltest.WantStep(t, err, "shell")
	var failed *runner.Failure
	if errors.As(err, &failed) && !failed.Final {
		t.Errorf("no shell is not final: %v", err)
	}
}

// TestDockerBySudo: an account that may not use Docker, and may run it by sudo.
func TestDockerBySudo(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	id := engine.RunContainer(t, "")
	i := newInstance(t, nil, "SetEnv DOCKER_HOST="+guarded(t, engine))
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Fatal(err)
	}
	i.sudoers(t, docker)
	r := i.remote(t, Config{Target: TargetContainer})
	for value, step := range map[string]string{"": "docker", "false": "docker", "perhaps": "docker_sudo"} {
		target := i.target(t, id)
		target.Attributes["docker_sudo"] = value
		_, err := r.Start(t.Context(), target, shelltest.DefaultSize)
		shelltest.WantStep(t, err, step)
		var failed *runner.Failure
		if errors.As(err, &failed) && !failed.Final {
			t.Errorf("docker_sudo %q: %v is not final", value, err)
		}
	}
	i.wantTerminals(t, containerNameOf(t, engine, id), id, map[string]string{"docker_sudo": "t"})

	// A sudo that wants a terminal would open one, and end nothing.
	i.sudoers(t, docker+"\nDefaults:"+i.sshd.User+" requiretty")
	target := i.target(t, id)
	target.Attributes["docker_sudo"] = "true"
	_, err = r.Start(t.Context(), target, shelltest.DefaultSize)
	shelltest.WantStep(t, err, "docker")
	var failed *runner.Failure
	if !errors.As(err, &failed) || !failed.Final || !strings.Contains(err.Error(), "tty") || !strings.Contains(failed.Sentence, "cannot use Docker") {
		t.Errorf("told %v, %+v", err, failed)
	}
}

// TestPodmanShim: Podman's docker command, which says what it is and gives names without a slash.
func TestPodmanShim(t *testing.T) {
	t.Parallel()
	engine := testenv.StartPodman(t)
	id := engine.RunContainer(t, "")
	shim := `[ "$1" = --version ] || echo "Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg." >&2
` + engine.PodmanCommand() + ` "$@"`
	i := &instance{id: nextInstanceID(), sshd: testenv.StartSSHD(t, testenv.SSHDConfig{Commands: map[string]string{"docker": shim}})}
	i.sudoers(t, "ALL")
	name := containerNameOf(t, engine, id)
	i.wantTerminals(t, name, id, map[string]string{"docker_sudo": "true"})
	engine.Pause(t, id)
	for _, container := range []string{name, id} {
		target := i.target(t, container)
		target.Attributes["docker_sudo"] = "true"
		if _, err := i.remote(t, Config{Target: TargetContainer}).Start(t.Context(), target, shelltest.DefaultSize); !errors.Is(err, runner.ErrNotRunning) {
			t.Errorf("a paused container, by %s: %v", container, err)
		}
	}
}
