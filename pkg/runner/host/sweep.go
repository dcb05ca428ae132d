package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// sweep ends the processes of a session on this machine, by the rules of sweep.sh in a
// container.
func sweep(sid int, start, marker string, keepDetached bool, grace time.Duration) (runner.Swept, error) {
	var s runner.Swept
	seen := map[int]bool{}
	signal := func(pids []int, sig unix.Signal) {
		for _, pid := range pids {
			if unix.Kill(pid, sig) == nil {
				_ = unix.Kill(pid, unix.SIGCONT) // a stopped process takes the signal only when it is continued
			}
			seen[pid] = seen[pid] || pid != sid
		}
	}
	end, kept, err := hostProcesses.scan(true).belonging(sid, start, marker, keepDetached)
	s.Kept = kept
	// Later scans need markers only if processes outside the session are to end, too.
	// The number of kept processes is reported from the first scan.
	again := func() (end []int, err error) {
		end, _, err = hostProcesses.scan(!keepDetached).belonging(sid, start, marker, keepDetached)
		return end, err
	}
	signal(end, unix.SIGHUP)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(grace); len(end) > 0 && err == nil && time.Now().Before(deadline); <-tick.C {
		end, err = again()
	}
	for tries := 100; len(end) > 0 && err == nil && tries > 0; tries-- {
		signal(end, unix.SIGKILL)
		<-tick.C
		end, err = again()
	}
	delete(seen, sid)
	s.Left = len(end)
	s.Killed = max(0, len(seen)-s.Left)
	return s, err
}

// hostProcesses is the scanner of all sweeps of this process: /proc lists the
// processes of the whole machine.
var hostProcesses scanner

// scanner scans /proc. A scan costs some 10 µs of CPU for each process of the machine
// (measured, Linux 6.18), so sweeps that wait for a scan at the same time share one
// scan. Otherwise the time in which many sessions end at once would grow with the square
// of their number.
type scanner struct {
	scanning sync.Mutex // held during a scan

	mu   sync.Mutex
	next *scan // has not begun; nil: no sweep waits for a scan
}

// scan is a list of the processes of the machine.
type scan struct {
	once      sync.Once
	markers   bool // the markers of the processes are read too
	processes []stat
	err       error
}

// scan returns a scan that began after the call, and waits for its end. markers
// asks for the markers of the processes; the scan may have them in any case.
func (s *scanner) scan(markers bool) *scan {
	s.mu.Lock()
	if s.next == nil {
		s.next = new(scan)
	}
	next := s.next
	next.markers = next.markers || markers
	s.mu.Unlock()
	next.once.Do(func() {
		s.scanning.Lock()
		defer s.scanning.Unlock()
		s.mu.Lock()
		s.next = nil // later callers need a later scan
		s.mu.Unlock()
		next.err = next.read()
	})
	return next
}

func (s *scan) read() error {
	proc, err := os.Open("/proc")
	if err != nil {
		return fmt.Errorf("reading /proc: %w", err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("reading /proc: %w", err)
	}
	s.processes = make([]stat, 0, len(names))
	var f procFile
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue // no process
		}
		p, err := f.stat(pid)
		if err != nil {
			continue // the process has ended
		}
		if s.markers && !p.dead() {
			p.markers = f.markers(pid)
		}
		s.processes = append(s.processes, p)
	}
	if len(s.processes) == 0 {
		return errors.New("reading /proc: no processes")
	}
	return nil
}

// belonging returns the pids of a session's processes that are to end, and how many are
// kept. A process outside the terminal session sid is found by its marker only.
func (s *scan) belonging(sid int, start, marker string, keepDetached bool) (end []int, kept int, err error) {
	if s.err != nil {
		return nil, 0, s.err
	}
	if slices.ContainsFunc(s.processes, func(p stat) bool { return p.pid == sid && p.start != start }) {
		sid = -1 // another process has the number now: the terminal session is gone
	}
	for _, p := range s.processes {
		switch {
		case p.dead():
		case p.session == sid && (!keepDetached || p.pid == sid || !ignoresHup(p.pid)):
			end = append(end, p.pid)
		case p.session == sid:
			kept++
		case !slices.Contains(p.markers, marker):
		case !keepDetached:
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
	exiting      bool // the process is about to be a zombie
	threads      int  // a zombie with more than one: the first thread has ended, and other threads live
	markers      []string
}

func (p *stat) dead() bool {
	return p.threads < 2 && (p.exiting || strings.ContainsAny(p.state, "ZXx"))
}

// pfExiting is the flag of a process that is exiting (PF_EXITING of Linux's sched.h).
const pfExiting = 4

// procFile reads files of /proc, all into the same buffer.
type procFile struct{ buf []byte }

// read returns a file's contents, which are valid until the next read.
func (f *procFile) read(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	f.buf = slices.Grow(f.buf[:0], 4<<10)
	for {
		n, err := unix.Read(fd, f.buf[len(f.buf):cap(f.buf)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 || err != nil {
			return f.buf, err
		}
		f.buf = f.buf[:len(f.buf)+n]
		f.buf = slices.Grow(f.buf, 1)
	}
}

// stat reads /proc/PID/stat (proc_pid_stat(5)). The command's name, in parentheses, may
// have any bytes; the fields after it have no parenthesis.
func (f *procFile) stat(pid int) (stat, error) {
	b, err := f.read(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 20 {
		return stat{}, errors.New("not as proc_pid_stat(5) says")
	}
	session, err1 := strconv.Atoi(fields[3])
	flags, err2 := strconv.ParseUint(fields[6], 10, 32)
	threads, err3 := strconv.Atoi(fields[17])
	s := stat{pid: pid, session: session, state: fields[0], start: fields[19], exiting: flags&pfExiting != 0, threads: threads}
	return s, errors.Join(err1, err2, err3)
}

func startTime(pid int) (string, error) {
	s, err := new(procFile).stat(pid)
	return strings.Clone(s.start), err // so that the session does not hold the rest of the file in memory
}

func ignoresHup(pid int) bool {
	b, err := new(procFile).read(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(b, []byte("\nSigIgn:"))
	if !ok {
		return false
	}
	mask, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte("\n"))
	ignored, err := strconv.ParseUint(string(mask), 16, 64)
	return err == nil && ignored&(1<<(unix.SIGHUP-1)) != 0
}

// markers returns the markers in a process's environment, as strings NAME=value. There is
// normally one at most.
func (f *procFile) markers(pid int) (markers []string) {
	b, err := f.read(fmt.Sprintf("/proc/%d/environ", pid))
	if errors.Is(err, unix.ESRCH) { // the first thread has ended; others have the environment
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/environ", pid))
		for i := 0; i < len(tasks) && err != nil; i++ {
			b, err = f.read(tasks[i])
		}
	}
	if err != nil {
		return nil
	}
	for variable := range bytes.SplitSeq(b, []byte{0}) {
		if bytes.HasPrefix(variable, []byte(runner.Marker+"=")) {
			markers = append(markers, string(variable))
		}
	}
	return markers
}
