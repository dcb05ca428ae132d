package runner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// sockets is a private directory for control sockets and the like. It tells when
// a file appears: ssh does not say when its control socket is there.
type sockets struct {
	dir    string
	events *os.File // inotify(7)

	mu      sync.Mutex
	next    int
	waiting map[string]chan struct{} // by name
}

// socketDir is what ssh takes as it is, in options that know %, ~, $ and spaces.
// A socket's path has at most 107 bytes, 17 of which ssh adds for a while.
var socketDir = regexp.MustCompile(`^/[A-Za-z0-9_./-]{1,70}$`)

func newSockets(parent string) (*sockets, error) {
	dir, err := os.MkdirTemp(parent, "tgw-") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("making a directory for sockets: %w", err)
	}
	s := &sockets{dir: dir, waiting: map[string]chan struct{}{}}
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

// serial numbers what has files here.
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

func (s *sockets) close() error  { return s.events.Close() }
func (s *sockets) remove() error { return os.RemoveAll(s.dir) }
