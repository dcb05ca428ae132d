package runner

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweepHost does on this machine what sweep.sh does in a container, by the same
// rules.
func sweepHost(sid int, start, marker string, all bool, grace time.Duration) (Swept, error) {
	var s Swept
	seen := map[int]bool{}
	signal := func(pids []int, sig unix.Signal) {
		for _, pid := range pids {
			if unix.Kill(pid, sig) == nil {
				_ = unix.Kill(pid, unix.SIGCONT) // a stopped process hears only then
			}
			seen[pid] = seen[pid] || pid != sid
		}
	}
	end, kept, err := belonging(sid, start, marker, all)
	s.Kept = kept
	signal(end, unix.SIGHUP)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(grace); len(end) > 0 && err == nil && time.Now().Before(deadline); <-tick.C {
		end, _, err = belonging(sid, start, marker, all)
	}
	for tries := 100; len(end) > 0 && err == nil && tries > 0; tries-- {
		signal(end, unix.SIGKILL)
		<-tick.C
		end, _, err = belonging(sid, start, marker, all)
	}
	delete(seen, sid)
	s.Left = len(end)
	s.Killed = max(0, len(seen)-s.Left)
	return s, err
}

// belonging lists the living processes of a session that are to end, and counts
// those that stay.
func belonging(sid int, start, marker string, all bool) (end []int, kept int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(dirs) == 0 {
		return nil, 0, errors.Join(errors.New("reading /proc"), err)
	}
	type process struct{ pid, session int }
	var living []process
	for _, dir := range dirs {
		p, err := readStat(dir)
		if err != nil || p.threads < 2 && (p.exiting || strings.ContainsAny(p.state, "ZXx")) {
			continue
		}
		if p.pid == sid && p.start != start {
			sid = -1 // the number went to another process: nothing of ours has it
		}
		living = append(living, process{p.pid, p.session})
	}
	for _, p := range living {
		dir := fmt.Sprintf("/proc/%d", p.pid)
		switch {
		case p.session == sid && (all || p.pid == sid || !ignoresHup(dir)):
			end = append(end, p.pid)
		case p.session == sid:
			kept++
		case !carries(dir, marker):
		case all:
			end = append(end, p.pid)
		default:
			kept++
		}
	}
	return end, kept, nil
}

type stat struct {
	pid, session int
	state, start string
	exiting      bool // it is all but a zombie
	threads      int  // more than one, of a zombie: its first thread has ended, and others live
}

// pfExiting is the flag of a process that exits (PF_EXITING of Linux's sched.h).
const pfExiting = 4

// readStat reads /proc/PID/stat (proc_pid_stat(5)). The command's name, in
// parentheses, may hold anything; no field after it holds a parenthesis.
func readStat(dir string) (stat, error) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return stat{}, err
	}
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 20 {
		return stat{}, errors.New("not as proc_pid_stat(5) says")
	}
	pid, err1 := strconv.Atoi(filepath.Base(dir))
	session, err2 := strconv.Atoi(fields[3])
	flags, err3 := strconv.ParseUint(fields[6], 10, 32)
	threads, err4 := strconv.Atoi(fields[17])
	return stat{pid, session, fields[0], fields[19], flags&pfExiting != 0, threads}, errors.Join(err1, err2, err3, err4)
}

func startTime(pid int) (string, error) {
	s, err := readStat(fmt.Sprintf("/proc/%d", pid))
	return strings.Clone(s.start), err // kept for as long as the session, and the rest is not
}

func ignoresHup(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(b), "\nSigIgn:")
	if !ok {
		return false
	}
	mask, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	ignored, err := strconv.ParseUint(mask, 16, 64)
	return err == nil && ignored&(1<<(unix.SIGHUP-1)) != 0
}

func carries(dir, marker string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "environ"))
	if errors.Is(err, unix.ESRCH) { // the first thread has ended; others have the environment
		tasks, _ := filepath.Glob(filepath.Join(dir, "task", "[0-9]*", "environ"))
		for i := 0; i < len(tasks) && err != nil; i++ {
			b, err = os.ReadFile(tasks[i])
		}
	}
	return err == nil && bytes.Contains(append([]byte{0}, b...), []byte("\x00"+marker+"\x00"))
}
