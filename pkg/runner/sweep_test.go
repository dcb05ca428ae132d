package runner

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sweepShells are those that sweep.sh may meet.
func sweepShells() [][]string {
	shells := [][]string{{"dash"}, {"bash"}}
	if _, err := exec.LookPath("busybox"); err == nil {
		shells = append(shells, []string{"busybox", "sh"})
	}
	return shells
}

// runSweep runs sweep.sh on this machine and returns what it says.
func runSweep(t *testing.T, shell []string, args ...string) string {
	t.Helper()
	argv := slices.Concat(shell, []string{"-c", sweepScript, "termgw-sweep"}, args)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Errorf("sweep.sh: %v %s", err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// TestSweepScript runs sweep.sh in every shell that it may meet, on sessions of
// this machine.
func TestSweepScript(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		line  string
		keep  string
		grace int // hundredths of a second
		wrong bool
		find  bool
		says  string
		alive []string
		least time.Duration
	}{
		{name: "idle", keep: "1", grace: 200, says: "0 0 0"},
		{name: "job", line: job("bg", "") + " &", keep: "1", grace: 200, says: "1 0 0"},
		{
			name: "grace", line: job("bg", "$SIG{HUP}=sub{}") + " &", keep: "1", grace: 50, says: "1 0 0",
			least: 500 * time.Millisecond,
		},
		{name: "kept", line: "setsid " + job("setsid", "") + " &", keep: "1", grace: 200, says: "0 1 0", alive: []string{"setsid"}},
		{name: "kept no more", line: "setsid " + job("setsid", "") + " &", keep: "0", grace: 200, says: "1 0 0"},
		{
			name: "strange names",
			line: job("newline", `$0="a) S 1\n2) $ARGV[0]"`) + " & " + job("glob", `$0="* ? [a-z]* $ARGV[0]"`) + " & " +
				job("backslash", `$0="12345678901234\\ $ARGV[0]"`) + " &",
			keep: "1", grace: 200, says: "3 0 0",
		},
		{
			name: "another start time", line: job("bg", "") + " &", keep: "1", grace: 200, wrong: true,
			says: "0 2 0", alive: []string{"bash", "bg"},
		},
		{
			name: "found", line: job("bg", `$SIG{HUP}=sub{}`) + " & env -i " + job("bare", "") + " & setsid " + job("setsid", "") + " & " +
				"nohup " + job("nohup", "") + " >/dev/null 2>&1 &",
			keep: "1", grace: 50, find: true, says: "2 2 0", alive: []string{"nohup", "setsid"},
		},
		{name: "all found", line: "setsid " + job("setsid", "") + " &", keep: "0", grace: 200, find: true, says: "1 0 0"},
	}
	for _, shell := range sweepShells() {
		for _, c := range cases {
			t.Run(strings.Join(shell, " ")+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				p := hostPlace(hostShell)
				s := open(t, p.runner(t, true), p.target(t))
				s.send(t, "exec 9>/dev/tty\n"+c.line+"\n")
				for range strings.Count(c.line, "up=") {
					s.expect(t, "up=42")
				}
				term := s.Terminal.(*hostTerminal)
				sid, start := strconv.Itoa(term.pid), term.start
				if c.wrong {
					start += "0"
				}
				if c.find {
					sid, start = "find", ""
				}
				began := time.Now()
				said := runSweep(t, shell, sid, start, Marker+"="+s.id, c.keep, strconv.Itoa(c.grace), "1")
				if took := time.Since(began); took < c.least {
					t.Errorf("killed after %s", took)
				}
				if said != c.says {
					t.Errorf("says %q, want %q", said, c.says)
				}
				wantLiving(t, s.id, c.alive...)
			})
		}
	}
}

// TestSweepFindsTheShell: sweep.sh that is told the marker alone.
func TestSweepFindsTheShell(t *testing.T) {
	// Orphans go to this process, as they may to systemd or to containerd's
	// shim, and not to process 1, which is told apart more easily.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	for _, shell := range sweepShells() {
		t.Run(strings.Join(shell, " "), func(t *testing.T) {
			p := hostPlace(hostShell)
			s := open(t, p.runner(t, true), p.target(t))
			term := s.Terminal.(*hostTerminal)
			marker := Marker + "=" + s.id
			own := fmt.Sprintf("%d %s", term.pid, term.start)
			// Leaders of sessions too: one with a terminal of its own, one whose
			// parent is the shell, and two that another process has adopted.
			for _, line := range []string{
				"script -qc '" + strings.ReplaceAll(job("script", ""), "'", `'\''`) + "' /dev/null </dev/null >/dev/null &",
				"setsid " + job("setsid", "") + " &",
				"(setsid " + job("orphan", "") + " &)",
				job("daemon", "use POSIX; exit if fork; POSIX::setsid()"),
			} {
				s.ready(t, line)
				if said := runSweep(t, shell, "find", "print", marker); said != own {
					t.Errorf("with %s it says %q, want %q", line, said, own)
				}
			}
			if said := runSweep(t, shell, "find", "print", marker+"0"); said != "none 0" {
				t.Errorf("of a session that never was it says %q", said)
			}
			if said := runSweep(t, shell, "find", "print", marker[:len(marker)-1]); said != "none 0" {
				t.Errorf("of a session whose id is the beginning of another's it says %q", said)
			}
			s.send(t, "exit\n")
			s.exit(t)
			if said := runSweep(t, shell, "find", "print", marker); said != "none 0" {
				t.Errorf("of a shell that is gone it says %q", said)
			}
		})
	}
}

// TestSweepOfAnotherStartTime: when the shell's pid has gone to another
// process, no process of that one's session is touched.
func TestSweepOfAnotherStartTime(t *testing.T) {
	t.Parallel()
	t.Run("docker", func(t *testing.T) {
		engine := env.Docker(t)
		p := dockerPlace("", "/bin/sh", engine.Client(t), engine.RunContainer(t, ""))
		s := open(t, p.runner(t, false), p.target(t))
		s.ready(t, job("bg", "")+" &")
		term := s.Terminal.(*dockerTerminal)
		stale := &dockerTerminal{
			docker: term.docker, container: term.container, shell: term.shell, log: term.log,
			session: "another", pid: term.pid, start: term.start + "0",
		}
		for _, all := range []bool{false, true} {
			swept, err := stale.sweep(t.Context(), "", all, true)
			if err != nil || swept != (Swept{}) {
				t.Errorf("swept %+v, %v", swept, err)
			}
		}
		wantLiving(t, s.id, "bg", "sh")
	})
	t.Run("host", func(t *testing.T) {
		p := hostPlace(hostShell)
		s := open(t, p.runner(t, false), p.target(t))
		s.ready(t, job("bg", "")+" &")
		term := s.Terminal.(*hostTerminal)
		for _, all := range []bool{false, true} {
			swept, err := sweepHost(term.pid, term.start+"0", Marker+"=another", all, timing.Grace)
			if err != nil || swept != (Swept{}) {
				t.Errorf("swept %+v, %v", swept, err)
			}
		}
		wantLiving(t, s.id, "bash", "bg")
	})
}

// TestDockerLeavesNoDescriptor also counts starts that fail.
func TestDockerLeavesNoDescriptor(t *testing.T) {
	engine := env.Docker(t)
	cli, container := engine.Client(t), engine.RunContainer(t, "")
	p := dockerPlace("", "/bin/bash", cli, container)
	open(t, p.runner(t, false), p.target(t)).end(t) // the client keeps connections
	files := descriptors(t)
	for range 5 {
		open(t, p.runner(t, false), p.target(t)).end(t)
		if _, err := testDocker(cli, DockerConfig{Shells: []string{"/missing"}}).Start(t.Context(), p.target(t), defaultSize); err == nil {
			t.Error("a shell that is missing has started")
		}
	}
	eventually(t, fmt.Sprintf("%d descriptors again", files), func() bool { return descriptors(t) <= files })
}
