package host

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// find returns the process with this pid in a scan.
func (s *scan) find(pid int) (p stat, ok bool) {
	i := slices.IndexFunc(s.processes, func(p stat) bool { return p.pid == pid })
	if i < 0 {
		return stat{}, false
	}
	return s.processes[i], true
}

// TestScanBeginsAfterTheCall: whatever scans others share meanwhile, a caller sees what has begun and what has ended before
// its call.
func TestScanBeginsAfterTheCall(t *testing.T) {
	t.Parallel()
	var s scanner
	var callers sync.WaitGroup
	for n := range 8 {
		callers.Go(func() {
			for i := range 10 {
				marker := fmt.Sprintf("%s=%d-%d", runner.Marker, n, i)
				cmd := exec.Command("sleep", "1000000")
				cmd.Env = []string{"OTHER=1", marker, "X" + runner.Marker + "=x"}
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				pid := cmd.Process.Pid
				shelltest.Eventually(t, "it has its environment", func() bool { // which comes a moment after the program
					b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
					return len(b) > 0
				})
				if p, ok := s.scan(true).find(pid); !ok || p.dead() || !slices.Equal(p.markers, []string{marker}) {
					t.Errorf("a process that runs is %+v", p)
				}
				_ = cmd.Process.Kill()
				_ = cmd.Wait() // killed
				if p, ok := s.scan(false).find(pid); ok {
					t.Errorf("a process that is gone is %+v", p)
				}
			}
		})
	}
	callers.Wait()
}

// TestScanIsShared: callers that wait for the same scan to end share the next, with what any of them wants.
func TestScanIsShared(t *testing.T) {
	t.Parallel()
	var s scanner
	waiting := func(markers bool) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next != nil && s.next.markers == markers
	}
	s.scanning.Lock() // by a scan that is under way
	scans := make(chan *scan)
	go func() { scans <- s.scan(false) }()
	shelltest.Eventually(t, "the first caller waits", func() bool { return waiting(false) })
	go func() { scans <- s.scan(true) }()
	shelltest.Eventually(t, "the second caller waits", func() bool { return waiting(true) })
	s.scanning.Unlock()
	first, second := <-scans, <-scans
	if first != second || !first.markers || len(first.processes) == 0 {
		t.Errorf("scans %p and %p, of %d processes", first, second, len(first.processes))
	}
	if third := s.scan(false); third == first || third.markers {
		t.Error("a caller after a scan's end gets that scan")
	}
}

// reads counts this process's calls of read, by all threads.
func reads(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip(err) // a kernel without the accounting
	}
	_, rest, _ := strings.Cut(string(b), "syscr: ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return n
}

// TestManyEndsAtOnce: the ends of sessions read /proc a few times for all of them, not a few times each.
func TestManyEndsAtOnce(t *testing.T) {
	const n = 100
	var all [n]*shelltest.Session
	for i := range all {
		all[i] = shelltest.Open(t, kind(t, upAndIdle, true), shelltest.NewTarget(t, ""))
		all[i].Expect(t, "up=42")
	}
	before := reads(t)
	var ends sync.WaitGroup
	for _, s := range all {
		ends.Go(func() { s.End(t) })
	}
	ends.Wait()
	read := reads(t) - before
	t.Logf("%d reads", read)
	if read > n*n {
		t.Errorf("%d reads for the ends of %d sessions: each of them reads all of /proc", read, n)
	}
	for _, s := range all {
		shelltest.WantLiving(t, s.ID)
	}
}

// TestSweepOfAnotherZombie: the shell's pid has gone to a process that has ended and that nobody has waited for, and whose
// session lives on.
func TestSweepOfAnotherZombie(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000000 >/dev/null & echo $!")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	leader, job := cmd.Process.Pid, 0
	defer func() {
		_ = unix.Kill(-leader, unix.SIGKILL)
		_ = cmd.Wait() // killed
	}()
	if _, err := fmt.Fscan(out, &job); err != nil {
		t.Fatal(err)
	}
	shelltest.Eventually(t, "the leader is a zombie", func() bool {
		p, err := new(procFile).stat(leader)
		return err == nil && p.state == "Z"
	})
	start, err := startTime(leader)
	if err != nil {
		t.Fatal(err)
	}
	swept, err := sweep(leader, start+"0", runner.Marker+"=another", false, shelltest.Timing.Grace)
	if err != nil || swept != (runner.Swept{}) {
		t.Errorf("swept %+v, %v", swept, err)
	}
	if p, err := new(procFile).stat(job); err != nil || p.dead() {
		t.Errorf("the other session's job is %+v, %v", p, err)
	}
}

// TestSweepOfAnotherStartTime: when the shell's pid has gone to another
// process, no process of that one's session is touched.
func TestSweepOfAnotherStartTime(t *testing.T) {
	t.Parallel()
	s := shelltest.Open(t, kind(t, hostShell, true), shelltest.NewTarget(t, ""))
	s.Ready(t, shelltest.Job("bg", "")+" &")
	term := s.Terminal.(*hostTerminal)
	for _, keepDetached := range []bool{false, true} {
		swept, err := sweep(term.PID, term.start+"0", runner.Marker+"=another", keepDetached, shelltest.Timing.Grace)
		if err != nil || swept != (runner.Swept{}) {
			t.Errorf("swept %+v, %v", swept, err)
		}
	}
	shelltest.WantLiving(t, s.ID, "bash", "bg")
}
