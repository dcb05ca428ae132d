package runner_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/host"
)

var env testenv.Env

func TestMain(m *testing.M) { env.Main(m) }

// ending is a kind whose shells end with all that they have started.
func ending(tb testing.TB) shelltest.Starter {
	return host.New(host.Config{
		Command: "exec bash --norc --noprofile -i", Dir: tb.TempDir(), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"},
		Timing: shelltest.Timing,
	})
}

// leader returns the pid and the start time of a session's shell, while it is the
// session's only leader.
func leader(tb testing.TB, session string) (sid, start string) {
	tb.Helper()
	shelltest.Eventually(tb, "there is a shell", func() bool { // whose environment cannot be read while it becomes another program
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
			stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
			fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
			if bytes.Contains(environ, []byte(runner.Marker+"="+session)) && len(fields) > 20 && fields[3] == filepath.Base(dir) {
				sid, start = filepath.Base(dir), fields[19]
			}
		}
		return sid != ""
	})
	return sid, start
}

// sweepShells are those that sweep.sh may meet.
func sweepShells() [][]string {
	shells := [][]string{{"dash"}, {"bash"}}
	if _, err := exec.LookPath("busybox"); err == nil {
		shells = append(shells, []string{"busybox", "sh"})
	}
	return shells
}

// runSweep runs sweep.sh on this machine and returns what it says.
func runSweep(t *testing.T, shell, args []string) string {
	t.Helper()
	return runScript(t, shell, runner.SweepScript, args)
}

func runScript(t *testing.T, shell []string, script string, args []string) string {
	t.Helper()
	argv := slices.Concat(shell, []string{"-c", script, "termgw-sweep"}, args)
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
		keep  bool
		grace time.Duration
		wrong bool
		find  bool
		says  string
		alive []string
		least time.Duration
	}{
		{name: "idle", keep: true, grace: 2 * time.Second, says: "0 0 0"},
		{name: "job", line: shelltest.Job("bg", "") + " &", keep: true, grace: 2 * time.Second, says: "1 0 0"},
		{
			name: "grace", line: shelltest.Job("bg", "$SIG{HUP}=sub{}") + " &", keep: true, grace: 500 * time.Millisecond, says: "1 0 0",
			least: 500 * time.Millisecond,
		},
		{name: "kept", line: "setsid " + shelltest.Job("setsid", "") + " &", keep: true, grace: 2 * time.Second, says: "0 1 0", alive: []string{"setsid"}},
		{name: "kept no more", line: "setsid " + shelltest.Job("setsid", "") + " &", keep: false, grace: 2 * time.Second, says: "1 0 0"},
		{
			name: "strange names",
			line: shelltest.Job("newline", `$0="a) S 1\n2) $ARGV[0]"`) + " & " + shelltest.Job("glob", `$0="* ? [a-z]* $ARGV[0]"`) + " & " +
				shelltest.Job("backslash", `$0="12345678901234\\ $ARGV[0]"`) + " &",
			keep: true, grace: 2 * time.Second, says: "3 0 0",
		},
		{
			name: "another start time", line: shelltest.Job("bg", "") + " &", keep: true, grace: 2 * time.Second, wrong: true,
			says: "0 2 0", alive: []string{"bash", "bg"},
		},
		{
			name: "found", line: shelltest.Job("bg", `$SIG{HUP}=sub{}`) + " & env -i " + shelltest.Job("bare", "") + " & setsid " + shelltest.Job("setsid", "") + " & " +
				"nohup " + shelltest.Job("nohup", "") + " >/dev/null 2>&1 &",
			keep: true, grace: 500 * time.Millisecond, find: true, says: "2 2 0", alive: []string{"nohup", "setsid"},
		},
		{name: "all found", line: "setsid " + shelltest.Job("setsid", "") + " &", keep: false, grace: 2 * time.Second, find: true, says: "1 0 0"},
	}
	for _, shell := range sweepShells() {
		for _, c := range cases {
			t.Run(strings.Join(shell, " ")+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := shelltest.Open(t, shelltest.By(ending(t)), shelltest.NewTarget(t, ""))
				sid, start := leader(t, s.ID)
				s.Send(t, "exec 9>/dev/tty\n"+c.line+"\n")
				for range strings.Count(c.line, "up=") {
					s.Expect(t, "up=42")
				}
				if c.wrong {
					start += "0"
				}
				if c.find {
					sid, start = "find", ""
				}
				began := time.Now()
				said := runSweep(t, shell, runner.Sweep{
					SID: sid, Start: start, Session: s.ID, KeepDetached: c.keep,
					Grace: c.grace, Yield: true,
				}.Args())
				if took := time.Since(began); took < c.least {
					t.Errorf("killed after %s", took)
				}
				if said != c.says {
					t.Errorf("says %q, want %q", said, c.says)
				}
				shelltest.WantLiving(t, s.ID, c.alive...)
			})
		}
	}
}

// TestSweepYieldsToTheLivingAlone: what ends just before it is asked whether it takes a
// signal is nobody else's.
func TestSweepYieldsToTheLivingAlone(t *testing.T) {
	t.Parallel()
	const kill = `kill() {
	[ "$2" = 0 ] || { command kill "$@"; return; }
	command kill -s KILL "$3"
	while [ -d "/proc/$3" ]; do sleep 0.05; done
	return 1
}
`
	for _, shell := range sweepShells() {
		for _, sid := range []string{"", "find"} {
			t.Run(strings.Join(shell, " ")+"/"+sid, func(t *testing.T) {
				t.Parallel()
				s := shelltest.Open(t, shelltest.By(ending(t)), shelltest.NewTarget(t, ""))
				sweep := runner.Sweep{SID: sid, Session: s.ID, KeepDetached: true, Grace: time.Second, Yield: true}
				if sid == "" {
					sweep.SID, sweep.Start = leader(t, s.ID)
				}
				s.Send(t, "exec 9>/dev/tty\n"+shelltest.Job("bg", "")+" &\n")
				s.Expect(t, "up=42")
				if said := runScript(t, shell, kill+runner.SweepScript, sweep.Args()); said != "1 0 0" {
					t.Errorf("says %q", said)
				}
			})
		}
	}
}

// A process that was killed is waited for, where the machine is so busy that it takes seconds to die, and is not left.
func TestSweepWaitsForTheKilled(t *testing.T) {
	t.Parallel()
	const lateKill = `kill() {
	case $2 in
	KILL) [ "$killing" = 1 ] || { killing=1; (sleep 2; command kill -s KILL "$3") >/dev/null & } ;;
	*) command kill "$@" ;;
	esac
}
`
	for _, shell := range sweepShells() {
		t.Run(strings.Join(shell, " "), func(t *testing.T) {
			t.Parallel()
			s := shelltest.Open(t, shelltest.By(ending(t)), shelltest.NewTarget(t, ""))
			sid, start := leader(t, s.ID)
			s.Ready(t, "setsid "+shelltest.Job("late", "$SIG{HUP}=sub{}")+" &")
			said := runScript(t, shell, lateKill+runner.SweepScript, runner.Sweep{SID: sid, Start: start, Session: s.ID, Grace: time.Second}.Args())
			if said != "1 0 0" {
				t.Errorf("it said %q", said)
			}
			shelltest.WantLiving(t, s.ID)
		})
	}
}

// TestSweepSparesABusyJob: what a sweep reads of a process can change while it reads, as
// the state does of one that works and waits in turns.
func TestSweepSparesABusyJob(t *testing.T) {
	t.Parallel()
	const read = `read() {
	command read "$@" || return
	case $next in USR1) next=USR2 ;; *) next=USR1 ;; esac
	command kill -s "$next" "$job"
}
job=`
	for _, shell := range sweepShells() {
		t.Run(strings.Join(shell, " "), func(t *testing.T) {
			t.Parallel()
			s := shelltest.Open(t, shelltest.By(ending(t)), shelltest.NewTarget(t, ""))
			sid, start := leader(t, s.ID)
			s.Send(t, "exec 9>/dev/tty\nnohup "+shelltest.Job("nohup", "$SIG{USR1} = sub { $busy = 1; 1 while $busy }; $SIG{USR2} = sub { $busy = 0 }")+
				" >/dev/null 2>&1 &\n")
			s.Expect(t, "up=42")
			sweep := runner.Sweep{SID: sid, Start: start, Session: s.ID, KeepDetached: true, Grace: time.Second, Yield: true}
			if said := runScript(t, shell, read+pidOf(t, s.ID+".nohup")+"\n"+runner.SweepScript, sweep.Args()); said != "0 1 0" {
				t.Errorf("says %q", said)
			}
			shelltest.WantLiving(t, s.ID, "nohup")
		})
	}
}

// TestSweepOfALeaderThatEnds: its file is open when it ends, and gives nothing.
func TestSweepOfALeaderThatEnds(t *testing.T) {
	t.Parallel()
	const read = `read() {
	[ ! /dev/stdin -ef "/proc/$leader/stat" ] && command read "$@"
}
leader=`
	for _, shell := range sweepShells() {
		t.Run(strings.Join(shell, " "), func(t *testing.T) {
			t.Parallel()
			s := shelltest.Open(t, shelltest.By(ending(t)), shelltest.NewTarget(t, ""))
			sid, start := leader(t, s.ID)
			s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
			sweep := runner.Sweep{SID: sid, Start: start, Session: s.ID, KeepDetached: true, Grace: 200 * time.Millisecond}
			if said := runScript(t, shell, read+sid+"\n"+runner.SweepScript, sweep.Args()); said != "1 0 0" {
				t.Errorf("it said %q", said)
			}
			shelltest.WantLiving(t, s.ID, "bash") // which has not ended, in truth
		})
	}
}

// pidOf returns the pid of the process that has a label among its arguments.
func pidOf(tb testing.TB, label string) string {
	tb.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if args, _ := os.ReadFile(file); slices.Contains(strings.Split(string(args), "\x00"), label) {
			return filepath.Base(filepath.Dir(file))
		}
	}
	tb.Fatalf("no process is %q", label)
	return ""
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
			s := shelltest.Open(t, shelltest.By(ending(t)), shelltest.NewTarget(t, ""))
			sid, start := leader(t, s.ID)
			own := sid + " " + start
			// Leaders of sessions too: one with a terminal of its own, one whose
			// parent is the shell, and two that another process has adopted.
			for _, line := range []string{
				"script -qc '" + strings.ReplaceAll(shelltest.Job("script", ""), "'", `'\''`) + "' /dev/null </dev/null >/dev/null &",
				"setsid " + shelltest.Job("setsid", "") + " &",
				"(setsid " + shelltest.Job("orphan", "") + " &)",
				shelltest.Job("daemon", "use POSIX; exit if fork; POSIX::setsid()"),
			} {
				s.Ready(t, line)
				if said := runSweep(t, shell, runner.FindArgs(s.ID)); said != own {
					t.Errorf("with %s it says %q, want %q", line, said, own)
				}
			}
			if said := runSweep(t, shell, runner.FindArgs(s.ID+"0")); said != "none 0" {
				t.Errorf("of a session that never was it says %q", said)
			}
			if said := runSweep(t, shell, runner.FindArgs(s.ID[:len(s.ID)-1])); said != "none 0" {
				t.Errorf("of a session whose id is the beginning of another's it says %q", said)
			}
			s.Send(t, "exit\n")
			s.Exit(t)
			if said := runSweep(t, shell, runner.FindArgs(s.ID)); said != "none 0" {
				t.Errorf("of a shell that is gone it says %q", said)
			}
		})
	}
}
