//go:build image

// Package imagetest builds the images of the Dockerfile, runs them, and opens terminals through them: on containers of
// the same engine, and on an instance by way of a played AWS. It also checks what deploy/ has for one host: the compose
// file and the systemd unit. It takes minutes and Debian's mirror, so it is behind a build tag: `make image-test`.
package imagetest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/sandbox"
	"github.com/molecule-ai/termgw/internal/testenv"
)

// root is the repository.
const root = "../.."

// patience bounds every wait for something that takes a second on an idle machine.
const patience = 3 * time.Minute

// The build's arguments.
const (
	version = "v1.2.3-test"
	commit  = "0123456789abcdef0123456789abcdef01234567"
	date    = "2026-01-02T03:04:05Z"
)

// engine is an engine of the test's own, with stand-ins for the base images.
type engine struct {
	*testenv.Docker
	socket string
	proxy  []string // arguments of a build
}

// startEngine starts it. Its socket belongs to a group that nobody is in.
func startEngine(t *testing.T) engine {
	t.Helper()
	d := testenv.StartDocker(t)
	e := engine{d, strings.TrimPrefix(d.Host, "unix://"), startProxy(t)}
	if err := os.Chown(e.socket, 0, socketGroup); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if out, err := sandbox.Outside(e.command("../../scripts/base-images")).CombinedOutput(); err != nil {
		t.Fatalf("making base images: %v\n%s", err, out)
	}
	t.Logf("base images: %.0f s", time.Since(began).Seconds())
	return e
}

func (e engine) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host, "DOCKER_BUILDKIT=0")
	return cmd
}

// try runs docker and returns what it said, and docker fails the test unless that went well.
func (e engine) try(args ...string) (string, error) {
	out, err := e.command(append([]string{"docker"}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (e engine) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.try(args...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// build runs docker build on the repository, as anyone would. With the host's network: the engine has no other.
func (e engine) build(args ...string) (string, error) {
	return e.try(slices.Concat([]string{
		"build", "--network", "host", "--build-arg", "VERSION=" + version,
		"--build-arg", "COMMIT=" + commit, "--build-arg", "DATE=" + date,
		// The stand-ins have no digests.
		"--build-arg", "GOLANG_IMAGE=golang:1.26-trixie", "--build-arg", "DEBIAN_IMAGE=debian:trixie-slim",
	}, e.proxy, args, []string{root})...)
}

// command is a program that runs beside the test, with what it said.
type command struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser

	mu  sync.Mutex
	out bytes.Buffer
}

// start starts it; it is killed when the test ends.
func start(t *testing.T, env []string, argv ...string) *command {
	t.Helper()
	c := &command{cmd: exec.Command(argv[0], argv[1:]...)}
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stdout, c.cmd.Stderr = c, c
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
		}
	})
	return c
}

// Write keeps output.
func (c *command) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *command) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

func (c *command) enter(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(c.stdin, line+"\r"); err != nil {
		t.Fatalf("typing: %v; the terminal: %q", err, c.said())
	}
}

func (c *command) expect(t *testing.T, want string) {
	t.Helper()
	eventually(t, func() bool { return strings.Contains(c.said(), want) }, func() string {
		return "no " + want + " in " + c.said()
	})
}

// wait returns the exit status.
func (c *command) wait(t *testing.T) int {
	t.Helper()
	stuck := time.AfterFunc(patience, func() { _ = c.cmd.Process.Kill() })
	defer stuck.Stop()
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return c.cmd.ProcessState.ExitCode()
}

func eventually(t *testing.T, ok func() bool, otherwise func() string) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatal(otherwise())
		}
	}
}

// need skips or fails the test for want of a program.
func need(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("TERMGW_TEST_REQUIRE") == "1" {
		t.Fatalf("needs %s: apt-get install %s", program, pkg)
	}
	t.Skipf("needs %s: apt-get install %s", program, pkg)
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
		t.Fatal(err)
	}
}
