package docker

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// threadsOf counts the threads that live of programs with a session's marker in their environment, and of no others.
func threadsOf(tb testing.TB, session, program string) (n int) {
	tb.Helper()
	tasks, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	for _, dir := range tasks {
		stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if bytes.Contains(environ, []byte(runner.Marker+"="+session)) && bytes.Contains(stat, []byte("("+program+")")) {
			n++
		}
	}
	return n
}

// TestCloseEndsWhatHasNoFirstThread: the kernel calls a process a zombie whose first thread has ended, whatever its others do.
func TestCloseEndsWhatHasNoFirstThread(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "leaderless")
	build := exec.Command("go", "build", "-o", program, "./testdata/leaderless")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "leaderless", Mode: 0o755, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	engine := env.Docker(t)
	for _, p := range places(t) {
		where := program
		if container := p.target(t).Attributes["container"]; container != "" {
			where = "/leaderless"
			if _, err := engine.Client(t).CopyToContainer(t.Context(), container, client.CopyToContainerOptions{
				DestinationPath: "/", Content: bytes.NewReader(archive.Bytes()),
			}); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			name, line string
			all        bool
		}{{"a job", where + " &", false}, {"in a session of its own", "setsid " + where + " &", true}} {
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := shelltest.Open(t, p.kind(t, !c.all), p.target(t))
				s.Ready(t, c.line)
				if c.all { // setsid(1), on its way out, would be counted
					s.Send(t, "wait $!; echo gone=$((6*7))\n")
					s.Expect(t, "gone=42")
				}
				if threadsOf(t, s.ID, "leaderless") == 0 {
					t.Fatal("it does not run")
				}
				if got := s.End(t); got != (runner.Swept{Killed: 1}) {
					t.Errorf("swept %+v", got)
				}
				shelltest.Eventually(t, "it has ended", func() bool { return threadsOf(t, s.ID, "leaderless") == 0 })
			})
		}
	}
	// Without a grep that can, the shell reads.
	t.Run("by builtins", func(t *testing.T) {
		p := hostPlace(hostShell)
		s := shelltest.Open(t, p.kind(t, false), p.target(t))
		s.Ready(t, "setsid "+program+" &")
		script := strings.Replace(runner.SweepScript, "&& greps=1", "&& greps=0", 1)
		out, err := exec.Command("dash", "-c", script, "termgw-sweep", "sid=none", "marker="+runner.Marker+"="+s.ID, "keep_detached=false", "grace=50", "yield=false").CombinedOutput()
		if err != nil || threadsOf(t, s.ID, "leaderless") > 0 {
			t.Errorf("says %q, %v", out, err)
		}
	})
}
