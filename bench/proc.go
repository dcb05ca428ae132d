package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of the times in /proc/PID/stat: USER_HZ, 100 on every
// architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuTime is what a process has used itself, without its children.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseCPU(b)
}

// parseCPU reads utime and stime (proc_pid_stat(5)). The command's name, in
// parentheses, may hold anything; no field after it holds a parenthesis.
func parseCPU(b []byte) (time.Duration, error) {
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat: too few fields")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * clockTick, errors.Join(err1, err2)
}

// footprint is what a process holds.
type footprint struct {
	RSS, PSS, Private    int64 // bytes
	Threads, Descriptors int64
}

func footprintOf(pid int) (footprint, error) {
	var f footprint
	dir := fmt.Sprintf("/proc/%d", pid)
	rollup, err1 := os.ReadFile(dir + "/smaps_rollup")
	status, err2 := os.ReadFile(dir + "/status")
	fds, err3 := os.ReadDir(dir + "/fd")
	if err := errors.Join(err1, err2, err3); err != nil {
		return f, err
	}
	f.RSS = field(rollup, "Rss") << 10
	f.PSS = field(rollup, "Pss") << 10
	f.Private = (field(rollup, "Private_Dirty") + field(rollup, "Private_Clean")) << 10
	f.Threads = field(status, "Threads")
	f.Descriptors = int64(len(fds))
	return f, nil
}

// field reads the number in a line such as "Pss:  1234 kB".
func field(b []byte, name string) int64 {
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				n, _ := strconv.ParseInt(fields[0], 10, 64) // the kernel's own
				return n
			}
		}
	}
	return 0
}

// children lists the processes that any thread of pid has started.
func children(pid int) ([]int, error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(paths) == 0 {
		return nil, errors.Join(fmt.Errorf("no /proc/%d/task/*/children", pid), err)
	}
	var pids []int
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the thread ended
		}
		for _, s := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(s); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids, nil
}

// wantDescriptors is enough for 5,000 sessions of any peer. No more: some
// allocate a table of the limit's size.
const wantDescriptors = 64 << 10

// raiseDescriptors lifts the limit as far as it may; what is started inherits
// it.
func raiseDescriptors() (uint64, error) {
	limit := syscall.Rlimit{Cur: wantDescriptors, Max: wantDescriptors}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		return limit.Cur, nil
	}
	// Not root.
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	limit.Cur = min(limit.Max, wantDescriptors)
	return limit.Cur, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

const ptyMax = "/proc/sys/kernel/pty/max"

// raisePtys makes room for n more terminals on this machine, if it may, and
// returns how many there is room for and what puts the limit back.
func raisePtys(n int) (room int, restore func() error, err error) {
	restore = func() error { return nil }
	limit, err1 := readInt(ptyMax)
	used, err2 := readInt("/proc/sys/kernel/pty/nr")
	reserve, err3 := readInt("/proc/sys/kernel/pty/reserve") // of the limit, for the machine's first /dev/pts: a container has another
	if err := errors.Join(err1, err2, err3); err != nil {
		return 0, restore, err
	}
	used += reserve
	if limit-used >= n {
		return limit - used, restore, nil
	}
	want := used + n + 256
	if err := os.WriteFile(ptyMax, []byte(strconv.Itoa(want)), 0); err != nil {
		return limit - used, restore, nil //nolint:nilerr // not root: the caller makes do with less
	}
	return want - used, func() error { return os.WriteFile(ptyMax, []byte(strconv.Itoa(limit)), 0) }, nil
}

func readInt(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// machine is where the figures come from.
type machine struct {
	CPU         string `json:"cpu"`
	Cores       int    `json:"cores"`
	MemoryMiB   int64  `json:"memory_mib"`
	Kernel      string `json:"kernel"`
	Go          string `json:"go"`
	Load        string `json:"load_before"` // what else the machine did
	Descriptors uint64 `json:"descriptors"`
	PtyMax      int    `json:"pty_max"`
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "model name"); ok {
				m.CPU = strings.TrimSpace(strings.TrimLeft(rest, "\t :"))
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		m.MemoryMiB = field(b, "MemTotal") >> 10
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	m.PtyMax, _ = readInt(ptyMax) // 0: not known
	return m
}
