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
	// cgroupPrefix begins that name; the outer process's pid follows, and of a sandbox in a sandbox the inner one's.
	cgroupPrefix = "termgw-sandbox-"
)

// Cgroup is the control group for the containers of a sandbox's engines, as an absolute path below each hierarchy's
// root. Whoever needs the group makes it; it is removed with the sandbox.
func Cgroup() string { return "/" + os.Getenv(cgroupVariable) }

// newCgroup is the name of the group of a sandbox whose outer process this is.
func newCgroup() string {
	if outer := os.Getenv(cgroupVariable); outer != "" {
		return fmt.Sprintf("%s.%d", outer, os.Getpid())
	}
	return fmt.Sprintf("%s%d", cgroupPrefix, os.Getpid())
}

// cgroupRoots match the directories that hold the groups: of cgroups version 2, and of each hierarchy of version 1.
var cgroupRoots = []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"}

// removeCgroups removes the group of a sandbox that has ended, and those that killed outer processes have left. Nothing
// runs in them: all processes of a sandbox end with it.
func removeCgroups(own string) {
	for _, root := range cgroupRoots {
		groups, _ := filepath.Glob(root + cgroupPrefix + "*")
		for _, group := range groups {
			if filepath.Base(group) == own || abandoned(filepath.Base(group)) {
				removeCgroup(group)
			}
		}
	}
}

// abandoned reports whether a group's outer process is gone, or that of the sandbox around it. In a sandbox the others'
// processes are not seen.
func abandoned(name string) bool {
	outermost, _, _ := strings.Cut(strings.TrimPrefix(name, cgroupPrefix), ".")
	pid, err := strconv.Atoi(outermost)
	if err != nil || os.Getenv(cgroupVariable) != "" {
		return false
	}
	_, err = os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err != nil
}

// removeCgroup removes a group and the groups below it. The kernel removes only what is empty.
func removeCgroup(group string) {
	var groups []string
	_ = filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	for _, path := range slices.Backward(groups) {
		_ = os.Remove(path) // a group that is left is tried again by the next sandbox
	}
}
