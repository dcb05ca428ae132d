package runner

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSweepScript runs sweep.sh in every shell that it may meet, on sessions of
// this machine.
func TestSweepScript(t *testing.T) {
	shells := [][]string{{"dash"}, {"bash"}}
	if _, err := exec.LookPath("busybox"); err == nil {
		shells = append(shells, []string{"busybox", "sh"})
	}
	cases := []struct {
		name  string
		line  string
		keep  string
		grace int // hundredths of a second
		wrong bool
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
	}
	for _, shell := range shells {
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
				start := term.start
				if c.wrong {
					start += "0"
				}
				argv := slices.Concat(shell, []string{
					"-c", sweepScript, "termgw-sweep",
					strconv.Itoa(term.pid), start, Marker + "=" + s.id, c.keep, strconv.Itoa(c.grace), "1",
				})
				cmd := exec.Command(argv[0], argv[1:]...)
				cmd.Env = []string{}
				var stderr strings.Builder
				cmd.Stderr = &stderr
				began := time.Now()
				out, err := cmd.Output()
				if took := time.Since(began); took < c.least {
					t.Errorf("killed after %s", took)
				}
				if err != nil || strings.TrimSpace(string(out)) != c.says || stderr.Len() > 0 {
					t.Errorf("says %q, want %q; %v %s", out, c.says, err, &stderr)
				}
				wantLiving(t, s.id, c.alive...)
			})
		}
	}
}

// TestSweepOfAnotherStartTime: when the shell's pid has gone to another
// process, no process of that one's session is touched.
func TestSweepOfAnotherStartTime(t *testing.T) {
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
			swept, err := sweepHost(term.pid, term.start+"0", Marker+"=another", all)
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
		if _, err := newDocker(cli, DockerConfig{Shells: []string{"/missing"}}).Start(t.Context(), p.target(t), defaultSize); err == nil {
			t.Error("a shell that is missing has started")
		}
	}
	eventually(t, fmt.Sprintf("%d descriptors again", files), func() bool { return descriptors(t) <= files })
}
