package sandbox

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	// cgroupVariable holds the name of the sandbox's control group.
	cgroupVariable = "TERMGW_SANDBOX_CGROUP"
	// cgroupPrefix begins the name; the outer process's pid follows. A sandbox in a sandbox adds a dot and its own
	// outer process's pid.
	cgroupPrefix = "termgw-sandbox-"
)

// Cgroup returns the control group for the containers of a sandbox's engines, as an absolute path below each
// hierarchy's root. The caller makes the group; the sandbox's end removes it.
func Cgroup() string { return "/" + os.Getenv(cgroupVariable) }

// newCgroup returns the name of the group of this outer process's sandbox.
func newCgroup() string {
	if outer := os.Getenv(cgroupVariable); outer != "" {
		return fmt.Sprintf("%s.%d", outer, os.Getpid())
	}
	return fmt.Sprintf("%s%d", cgroupPrefix, os.Getpid())
}

// cgroupRoots match the directories that hold the groups, in cgroups version 2 and in each hierarchy of version 1.
var cgroupRoots = []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"}

// removeCgroups removes the group of a sandbox that has ended, and the groups of sandboxes whose outer process was
// killed. The groups are empty: all processes of a sandbox end with it.
func removeCgroups(own string) {
	for _, root := range cgroupRoots {
		groups, _ := filepath.Glob(root + cgroupPrefix + "*")
		for _, group := range groups {
			if filepath.Base(group) == own || outerGone(filepath.Base(group)) {
				removeCgroup(group)
			}
		}
	}
}

// outerGone reports whether the outer process of a group's outermost sandbox is gone. In a sandbox, which does not see
// the processes of others, it reports false.
func outerGone(name string) bool {
	outermost, _, _ := strings.Cut(strings.TrimPrefix(name, cgroupPrefix), ".")
	pid, err := strconv.Atoi(outermost)
	if err != nil || os.Getenv(cgroupVariable) != "" {
		return false
	}
	_, err = os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err != nil
}

// removeCgroup removes a group and the groups below it. The kernel removes only empty groups.
func removeCgroup(group string) {
	var groups []string
	_ = filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	for _, path := range slices.Backward(groups) {
		_ = os.Remove(path) // the next sandbox tries a group that is left again
	}
}
