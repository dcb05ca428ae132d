package sandbox_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/sandbox"
	"github.com/molecule-ai/termgw/internal/testenv"
)

// role in the environment of this test binary makes it the program of a sandbox in the tests' own sandbox. So the machine
// of these tests is a sandbox too: nothing else changes it meanwhile.
const role = "TEST_SANDBOX_ROLE"

var roles = map[string]func(){
	"exits": func() { os.Exit(7) },
	"dies":  func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL); select {} },
	"signals": func() {
		for _, sig := range deafTo {
			fmt.Print(signal.Ignored(sig), " ")
		}
	},
	"network": func() {
		for _, cmd := range []*exec.Cmd{exec.Command("ip", "-o", "link"), sandbox.Outside(exec.Command("ip", "-o", "link"))} {
			out, err := cmd.CombinedOutput()
			fmt.Printf("%v %s---\n", err, out)
		}
	},
}

func TestMain(m *testing.M) {
	sandbox.Enter()
	if act := roles[os.Getenv(role)]; act != nil {
		act()
		return
	}
	os.Exit(m.Run())
}

// inner is this test binary in a sandbox of its own.
func inner(t *testing.T, as string, args ...string) *exec.Cmd {
	t.Helper()
	if !sandbox.Inside() {
		t.Skip("needs namespaces: run the tests as root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TERMGW_SANDBOX=") }), role+"="+as)
	return cmd
}

func TestExitStatus(t *testing.T) {
	for as, want := range map[string]int{"exits": 7, "dies": 128 + 9} {
		_, err := inner(t, as).Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != want {
			t.Errorf("%s: %v, want status %d", as, err, want)
		}
	}
}

// deafTo are the signals that nohup and a script's background ignore.
var deafTo = []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT}

// TestStartedDeaf: a child ignores what its parent ignores.
func TestStartedDeaf(t *testing.T) {
	cmd := inner(t, "signals")
	deaf := exec.Command("env", append([]string{"--ignore-signal=HUP", "--ignore-signal=INT", "--ignore-signal=QUIT"}, cmd.Args...)...)
	deaf.Env = cmd.Env
	out, err := deaf.Output()
	if err != nil || string(out) != "false false false " {
		t.Errorf("%s, %v", out, err)
	}
}

func TestOutside(t *testing.T) {
	addBridge(t, "seen0")
	out, err := inner(t, "network").Output()
	if err != nil {
		t.Fatal(err)
	}
	own, machine, _ := strings.Cut(string(out), "---\n")
	if strings.Contains(own, "seen0") || !strings.Contains(own, "lo: <LOOPBACK,UP") || !strings.Contains(machine, "seen0") {
		t.Errorf("inside:\n%s\noutside:\n%s", own, machine)
	}
}

func addBridge(t *testing.T, name string) {
	t.Helper()
	if !sandbox.Inside() {
		t.Skip("needs namespaces: run the tests as root")
	}
	if out, err := exec.Command("ip", "link", "add", name, "type", "bridge").CombinedOutput(); err != nil {
		t.Skipf("this kernel has no bridges: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", name).Run() })
}

// TestMachineStaysAsItWas ends tests that have engines, a database and an SSH server, with an account, in three ways. The
// machine has an engine's docker0, which another engine without a network would delete.
func TestMachineStaysAsItWas(t *testing.T) {
	if os.Getenv(role) == "parts" {
		engine := testenv.StartDocker(t)
		engine.RunContainer(t, "stays")
		testenv.StartPodman(t).RunContainer(t, "stays")
		testenv.StartPostgres(t).NewDatabase(t)
		testenv.StartSSHD(t, testenv.SSHDConfig{Docker: engine})
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	addBridge(t, "docker0")
	testenv.MakeWorkspaceImage(t)
	for name, end := range map[string]func(outer *os.Process, stdin io.Closer) error{
		"by itself": func(_ *os.Process, stdin io.Closer) error { return stdin.Close() },
		"Ctrl-C":    func(outer *os.Process, _ io.Closer) error { return unix.Kill(-outer.Pid, unix.SIGINT) },
		"kill -9":   func(outer *os.Process, _ io.Closer) error { return outer.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			before := look(t)
			cmd := inner(t, "parts", "-test.run=^TestMachineStaysAsItWas$", "-test.v")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			cmd.Stderr = os.Stderr
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := ""
			for lines := bufio.NewScanner(stdout); lines.Scan() && lines.Text() != "ready"; {
				said += lines.Text() + "\n"
			}
			if strings.Contains(said, "--- SKIP") {
				t.Skip(said)
			}
			if err := end(cmd.Process, stdin); err != nil {
				t.Error(err)
			}
			_, _ = io.Copy(io.Discard, stdout) // until the last process that has it is gone
			_ = stdin.Close()
			if err := cmd.Wait(); (err == nil) != (name == "by itself") {
				t.Errorf("it ended with %v:\n%s", err, said)
			}
			var changes []string
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
				if changes = before.changes(look(t)); len(changes) == 0 || time.Now().After(deadline) {
					break // what was killed is gone a little later
				}
			}
			for _, change := range changes {
				t.Error(change)
			}
		})
	}
}

// machine is what tests could change of it: for each name, how it is.
type machine map[string]string

func (m machine) changes(now machine) (changes []string) {
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if was, ok := m[name]; !ok {
			changes = append(changes, fmt.Sprintf("new: %s: %s", name, now[name]))
		} else if was != now[name] {
			changes = append(changes, fmt.Sprintf("%s was %s, is %s", name, was, now[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if _, ok := now[name]; !ok {
			changes = append(changes, fmt.Sprintf("gone: %s: %s", name, m[name]))
		}
	}
	return changes
}

// counters are the values of the kernel that change by themselves.
var counters = regexp.MustCompile(`^/proc/sys/(fs/(dentry-state|file-nr|inode-nr|inode-state|aio-nr|mqueue|quota)|kernel/(random|ns_last_pid|pty/nr|sched|seccomp|tainted)|.*(_count|stat_refresh)$)`)

func look(t *testing.T) machine {
	t.Helper()
	m := machine{}
	for _, args := range [][]string{{"-o", "link"}, {"-o", "address"}, {"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"rule"}} {
		out, err := exec.Command("ip", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		m["ip "+strings.Join(args, " ")] = string(out)
	}
	for _, rules := range []string{"iptables-save", "ip6tables-save"} {
		if out, err := exec.Command(rules).Output(); err == nil {
			m[rules] = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`).ReplaceAllString(string(out), "")
		}
	}
	for _, root := range []string{"/etc", "/run", "/var/lib", "/var/log", "/proc/sys"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || counters.MatchString(path) {
				return nil //nolint:nilerr // it has gone meanwhile, or changes by itself
			}
			info, err := os.Lstat(path)
			if err != nil {
				return nil //nolint:nilerr // it has gone meanwhile
			}
			if root == "/proc/sys" {
				if value, err := os.ReadFile(path); err == nil {
					m[path] = string(value)
				}
				return nil
			}
			stat := info.Sys().(*syscall.Stat_t)
			m[path] = fmt.Sprintf("%s of %d:%d, %d bytes of %s", info.Mode(), stat.Uid, stat.Gid, info.Size(), info.ModTime())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range processes {
		if command, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil {
			m[dir] = string(command)
		}
	}
	return m
}
