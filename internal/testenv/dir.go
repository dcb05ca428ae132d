package testenv

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dirPrefix is short: the paths of unix sockets end at 107 bytes.
const dirPrefix = "tgwtest-"

// dir is a part's own directory. The part's processes inherit its lock: the lock is free again when the test process
// and all processes of the part have ended, however they ended.
type dir struct {
	path string
	lock *os.File
}

// newDir makes a directory. First it removes the directories that killed test runs have left.
func newDir() (*dir, error) {
	if err := removeOldDirs(); err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	lock, err := makeLock(path)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	return &dir{path: path, lock: lock}, nil
}

// makeLock makes the lock of a new directory. The lock file gets its name once the lock is held, so that removeOldDirs
// of another test run never finds the lock free.
func makeLock(path string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(path, "lock.new"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a lock: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = os.Rename(lock.Name(), filepath.Join(path, "lock"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a lock: %w", err), lock.Close())
	}
	return lock, nil
}

// endProcesses kills the processes whose command lines name the directory, and waits for their ends.
func (d *dir) endProcesses() error {
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(pollInterval) {
		processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return fmt.Errorf("listing processes: %w", err)
		}
		left := slices.DeleteFunc(processes, func(cmdline string) bool {
			line, _ := os.ReadFile(cmdline) // empty for an ended process
			return !bytes.Contains(line, []byte(d.path+"/"))
		})
		switch {
		case len(left) == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("ending the processes of %s: %d are left", d.path, len(left))
		}
		for _, cmdline := range left {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(cmdline))); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
			}
		}
	}
}

// remove deletes the directory. It is called after the part's processes have ended.
func (d *dir) remove() error {
	return errors.Join(removeTree(d.path), d.lock.Close())
}

// removeOldDirs removes the directories whose lock is free.
func removeOldDirs() error {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return fmt.Errorf("listing old directories: %w", err)
	}
	for _, path := range left {
		lock, ok := claimDir(path)
		if !ok {
			continue
		}
		if err := errors.Join(removeTree(path), lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

// claimDir takes the lock of a directory of this account, if the lock is free. Anyone can make anything in the
// directory for temporary files: the lock file's owner decides, and no link is followed.
func claimDir(path string) (lock *os.File, ok bool) {
	if info, err := os.Lstat(path); err != nil || !info.IsDir() {
		return nil, false
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, false
	}
	var stat unix.Stat_t
	err = errors.Join(unix.Fstat(int(lock.Fd()), &stat), unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	if err != nil || int(stat.Uid) != os.Geteuid() {
		_ = lock.Close() // nothing was written
		return nil, false
	}
	return lock, true
}

// removeTree deletes a directory. First it unmounts what a killed engine has left mounted there: a deletion through a
// mount would delete the mounted files.
func removeTree(path string) error {
	mounts, err := mountsUnder(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another run was faster
	}
	if err != nil {
		return err
	}
	for _, mount := range slices.Backward(mounts) {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", mount, err)
		}
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("removing a part's directory: %w", err)
	}
	return nil
}

// mountsUnder returns the mount points below path, in the order of mounting.
func mountsUnder(path string) ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	var mounts []string
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		// proc(5): the fifth field is the mount point.
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], path+"/") {
			mounts = append(mounts, fields[4])
		}
	}
	return mounts, nil
}
