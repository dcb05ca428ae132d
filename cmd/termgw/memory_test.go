package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/sandbox"
)

// memoryGroup is a control group with a limit of memory.
type memoryGroup struct {
	dir              string
	limit, peak, now string // its files, which differ with the version of cgroups
}

// newMemoryGroup makes a control group that may use so many bytes; it is removed with the sandbox.
func newMemoryGroup(tb testing.TB, limit int64) memoryGroup {
	tb.Helper()
	if !sandbox.Inside() {
		tb.Skip("needs a memory control group: run the tests as root")
	}
	m := memoryGroup{"/sys/fs/cgroup/memory" + sandbox.Cgroup() + "/gateway", "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.usage_in_bytes"}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); errors.Is(err, fs.ErrNotExist) {
		m = memoryGroup{"/sys/fs/cgroup" + sandbox.Cgroup() + "/gateway", "memory.max", "memory.peak", "memory.current"}
		for _, above := range []string{"/sys/fs/cgroup", filepath.Dir(m.dir)} {
			_ = os.Mkdir(above, 0o755)
			_ = os.WriteFile(filepath.Join(above, "cgroup.subtree_control"), []byte("+memory"), 0o600) // else the limit cannot be set
		}
	}
	err := os.MkdirAll(m.dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(m.dir, m.limit), []byte(strconv.FormatInt(limit, 10)), 0o600)
	}
	if err != nil {
		tb.Skipf("needs a memory control group: %v", err)
	}
	return m
}

// enter is a command that becomes the one after it, in the group.
func (m memoryGroup) enter() []string {
	return []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, m.dir}
}

func (m memoryGroup) read(tb testing.TB, file string) int64 {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(m.dir, file))
	if err != nil {
		tb.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// The Go runtime keeps within the group's memory, unless GOMEMLIMIT says otherwise; both are told at the start.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	group := newMemoryGroup(t, 512<<20)
	for _, test := range []struct {
		environ     string
		limit, held float64
	}{
		{"LANG=C", 512 << 20 * 9 / 10, 512 << 20 * 9 / 10 / 8},
		{"GOMEMLIMIT=1GiB", 1 << 30, 128 << 20},
		{"GOMEMLIMIT=64MiB", 64 << 20, 8 << 20},
	} {
		var p platform
		p.makeKey(t)
		cmd := command(t, []string{
			"TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN=", "TERMGW_TICKET_JWKS=" + p.jwks,
			"TERMGW_WORKSPACES_FILE=" + workspacesFile(t), "DOCKER_HOST=unix:///nonexistent.sock", test.environ,
		}, "serve")
		by := group.enter()
		env := cmd.Env
		cmd = exec.Command(by[0], append(by[1:], cmd.Path, "serve")...)
		cmd.Env = env
		g := &served{child: start(t, cmd)}
		eventually(t, "the gateway says where it listens", func() bool { return g.said("serving terminals") != "" })
		for _, line := range g.logLines() {
			if line["msg"] == "serving terminals" && (line["memory_limit"] != float64(int64(test.limit)) || line["held_bytes"] != float64(int64(test.held))) {
				t.Errorf("%s: %v", test.environ, line)
			}
		}
	}
}

// Four people with ten terminals each, whose programs read nothing, print without end and are interrupted: each sends
// messages of the largest size for as long as they are taken. A gateway with 512 MiB of memory holds, and somebody else
// notices nothing.
func TestMemoryUnderAttack(t *testing.T) {
	const people, each = 4, 10
	group := newMemoryGroup(t, 512<<20)
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	box := newBox(t, env.Docker(t), "ws")
	program := filepath.Join(t.TempDir(), "termgw") // without a race detector, which takes several times the memory
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building termgw: %v\n%s", err, out)
	}
	by := group.enter()
	by[2] = `echo $$ >"$0/cgroup.procs" && exec "$1" serve`
	g := p.serveBy(t, append(by, program), "TERMGW_LOG_LEVEL=info", "TERMGW_MAX_SESSIONS_PER_SUBJECT=10", "TERMGW_PING_INTERVAL=1h")

	attackers := make([]*attacker, people*each)
	spread(t, len(attackers), 4, func(i int) {
		a := g.attack(t, "ws", p.ticket(t, "ws", bySubject(fmt.Sprint("mallory", i/each))))
		attackers[i] = a
		a.output(t, 1) // a prompt
		if err := a.frame(wsFinal|wsBinary, []byte("stty raw -echo; exec yes\r")); err != nil {
			t.Error(err)
			return
		}
		a.output(t, 60<<10)
		if err := a.frame(wsFinal|wsBinary, []byte("\x03")); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	taken := func() (n int64) {
		for _, a := range attackers {
			n += a.sent.Load()
		}
		return n
	}
	for _, a := range attackers {
		go func() {
			paste := make([]byte, 1<<20)
			for a.frame(wsFinal|wsBinary, paste) == nil { // until the end
			}
		}()
	}
	before := int64(-1)
	eventually(t, "nothing more is taken, or nobody is there to take it", func() bool {
		time.Sleep(500 * time.Millisecond)
		was := before
		before = taken()
		select {
		case <-g.exited:
			t.Fatalf("the gateway is gone, after %d MiB: %v", before>>20, g.err)
		default:
		}
		return was == before
	})

	honest := g.open(t, "ws", dialing{})
	for range 5 {
		if got := honest.run(t, "echo $((6*7))"); !strings.Contains(got, "42") {
			t.Errorf("somebody else got %q", got)
		}
	}
	honest.run(t, "stty -echo")
	const size = 3 << 20
	paste := strings.Repeat("0123456789abcde\n", size/16)
	honest.send(t, fmt.Sprintf("echo $((1000+1)); head -c %d | sha256sum\r", size))
	honest.expect(t, "1001")
	for piece := range slices.Chunk([]byte(paste), 256<<10) {
		honest.send(t, string(piece))
	}
	honest.expect(t, fmt.Sprintf("%x", sha256.Sum256([]byte(paste))))
	honest.send(t, "exit 3\r")
	if m := honest.message(t, "exit"); m.Code != float64(3) {
		t.Errorf("exit %+v", m)
	}
	if code := honest.closed(t); code != 1000 {
		t.Errorf("closed with %d", code)
	}
	t.Logf("%d MiB were taken; the group's peak is %d MiB, the gateway has %d MiB", taken()>>20, group.read(t, group.peak)>>20, g.memory(t, "VmRSS")>>20)
	g.stop(t) // also of these sessions in order
	box.empty(t)
}
