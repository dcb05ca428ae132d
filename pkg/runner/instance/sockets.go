package instance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// sockets is a private directory for control sockets, key sockets and known hosts. It
// reports when a file appears: ssh does not report its control socket.
type sockets struct {
	dir    string
	lock   *os.File // the directory, locked until the process ends
	events *os.File // inotify(7)

	mu      sync.Mutex
	next    int
	waiting map[string]chan struct{} // by name
}

// socketDir matches paths that mean the same in ssh's options, where %, ~, $ and
// spaces have a meaning. A socket's path has at most 107 bytes, 17 of which are for a
// suffix of ssh's.
var socketDir = regexp.MustCompile(`^/[A-Za-z0-9_./-]{1,70}$`)

func newSockets(parent string) (*sockets, error) {
	removeAbandoned(parent)
	dir, lock, err := makeSocketDir(parent)
	if err != nil {
		return nil, fmt.Errorf("making a directory for sockets: %w", err)
	}
	s := &sockets{dir: dir, lock: lock, waiting: map[string]chan struct{}{}}
	if !socketDir.MatchString(dir) {
		return nil, errors.Join(fmt.Errorf("making a directory for sockets: %q is too long, or has more than letters, digits and _./-: set TMPDIR", dir), s.remove())
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		s.events = os.NewFile(uintptr(fd), "inotify")
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_CREATE)
	}
	if err != nil {
		if s.events != nil {
			_ = s.events.Close()
		}
		return nil, errors.Join(fmt.Errorf("watching a directory for sockets: %w", err), s.remove())
	}
	return s, nil
}

// serial returns a new number for the names of a connection's files.
func (s *sockets) serial() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return strconv.Itoa(s.next)
}

// expect returns a channel that is closed when a file of this name is made.
func (s *sockets) expect(name string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	appeared := make(chan struct{})
	s.waiting[name] = appeared
	return appeared
}

func (s *sockets) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, name)
}

// watch reads events until close.
func (s *sockets) watch() {
	buf := make([]byte, 16<<10)
	for {
		n, err := s.events.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			// struct inotify_event: wd, mask, cookie, len, then the name.
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:16]))
			s.appeared(strings.TrimRight(string(b[unix.SizeofInotifyEvent:end]), "\x00"))
			b = b[end:]
		}
	}
}

func (s *sockets) appeared(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if appeared, ok := s.waiting[name]; ok {
		close(appeared)
		delete(s.waiting, name)
	}
}

func (s *sockets) close() error { return s.events.Close() }

func (s *sockets) remove() error {
	return errors.Join(os.RemoveAll(s.dir), s.lock.Close())
}

const socketDirPrefix = "tgw_"

// makeSocketDir makes a private directory and locks it. Another gateway may remove
// the directory before it is locked; makeSocketDir makes another then.
func makeSocketDir(parent string) (dir string, lock *os.File, err error) {
	for range 10 {
		dir, err = os.MkdirTemp(parent, socketDirPrefix) // mode 0700
		if err != nil {
			return "", nil, err
		}
		lock, err = lockDir(dir, unix.LOCK_EX)
		if err == nil && isAt(lock, dir) {
			return dir, lock, nil
		}
		if lock != nil {
			_ = lock.Close()
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", nil, errors.Join(err, os.Remove(dir))
		}
	}
	return "", nil, errors.New("other gateways remove it")
}

// lockDir opens a directory of this user and locks it. No child inherits the lock, and
// the kernel releases it when the process ends.
func lockDir(path string, how int) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	var stat unix.Stat_t
	err = unix.Fstat(fd, &stat)
	if err == nil && int(stat.Uid) != os.Geteuid() {
		err = os.ErrPermission
	}
	if err == nil {
		err = unix.Flock(fd, how)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(fd, how)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}

// isAt reports whether an open directory is still the one at path.
func isAt(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(open, there)
}

// removeAbandoned removes the directories of killed gateways. It removes the files by
// the descriptor of the locked directory: the path may lead elsewhere by now.
func removeAbandoned(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, socketDirPrefix+"*"))
	for _, dir := range dirs {
		f, err := lockDir(dir, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // the directory of a live gateway, or of another user
		}
		names, _ := f.Readdirnames(-1)
		for _, name := range names {
			_ = unix.Unlinkat(int(f.Fd()), name, 0)
		}
		_ = unix.Rmdir(dir)
		_ = f.Close()
	}
}
