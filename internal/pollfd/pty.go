package pollfd

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Pty is the master of a pty, whose reader keeps Go's poller out of a flood.
//
// A kernel worker moves what a program prints 4,095 bytes at a time, and each
// time wakes whoever polls the master: here a thread of the runtime's, which
// finds that the terminal is being read already. That was a fifth of the
// gateway's time in a flood. So the poller has an epoll set instead, which has
// the master in it (epoll(7) allows that), and hears nothing while the master
// is out of the set's interest.
type Pty struct {
	FD          // of master: for what does not wait
	master, set *os.File
	wait        transfer // for set to be readable, and a read of master then
	events      uint32   // of master, that set is interested in

	mu     sync.Mutex
	closed bool
	out    *os.File // while a Write waits: master again, in the poller
}

// events that wake a Read.
const readable = unix.EPOLLIN | unix.EPOLLET&(1<<32-1)

// NewPty takes a master over, and closes f.
func NewPty(f *os.File) (*Pty, error) {
	defer func() { _ = f.Close() }()
	// A duplicate, because f may be in the poller; made blocking, so that os.File
	// does not put this one in; and unblocked behind its back.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating %s: %w", f.Name(), err)
	}
	p := &Pty{master: os.NewFile(uintptr(fd), f.Name())}
	if err := p.init(fd); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Pty) init(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("unblocking %s: %w", p.master.Name(), err)
	}
	io, err := New(p.master)
	if err != nil {
		return err
	}
	p.FD = *io
	p.read.once, p.write.once = p.read.do, p.write.do
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("making an epoll set: %w", err)
	}
	_ = unix.SetNonblock(set, true) // means nothing to a set, and to os.NewFile: into the poller
	p.set = os.NewFile(uintptr(set), "epoll")
	p.events = readable
	if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: readable}); err != nil {
		return fmt.Errorf("polling %s: %w", p.master.Name(), err)
	}
	conn, err := p.set.SyscallConn()
	if err != nil {
		return err
	}
	p.wait.raw = conn.Read
	p.wait.once = func(uintptr) bool {
		p.wait.n, p.wait.err = p.FD.TryRead(p.wait.p)
		return p.wait.n > 0 || p.wait.err != nil
	}
	return nil
}

// Read waits for a byte. A pty has no end of file: a master whose other side
// nobody holds gives syscall.EIO.
func (p *Pty) Read(b []byte) (int, error) {
	if err := p.interest(readable); err != nil {
		return 0, err
	}
	return p.wait.run(b, true)
}

// TryRead reads what is there now. Until the next Read, what comes wakes nobody.
func (p *Pty) TryRead(b []byte) (int, error) {
	if err := p.interest(0); err != nil {
		return 0, err
	}
	return p.FD.TryRead(b)
}

// interest changes what wakes the poller, which looks at once, too.
func (p *Pty) interest(events uint32) error {
	if p.events == events {
		return nil
	}
	var failed error
	err := p.Control(func(master uintptr) {
		conn, err := p.set.SyscallConn()
		if err == nil {
			err = conn.Control(func(set uintptr) {
				failed = unix.EpollCtl(int(set), unix.EPOLL_CTL_MOD, int(master), &unix.EpollEvent{Events: events})
			})
		}
		if err != nil {
			failed = os.ErrClosed
		}
	})
	if err != nil || failed != nil {
		return os.ErrClosed // nothing else can be wrong with two open descriptors
	}
	p.events = events
	return nil
}

// Write writes all of b. It waits while the program does not read.
func (p *Pty) Write(b []byte) (int, error) {
	for done := 0; ; {
		n, err := p.TryWrite(b[done:])
		if done += n; err != nil || done == len(b) {
			return done, err
		}
		if err := p.WaitWrite(); err != nil {
			return done, err
		}
	}
}

// WaitWrite waits until there is room to write. Only then the poller has the
// master itself: a set is told from by its being readable alone.
func (p *Pty) WaitWrite() error {
	out, err := p.writer()
	if err != nil {
		return err
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		_ = out.Close()
		p.out = nil
	}()
	w, err := New(out)
	if err != nil {
		return err
	}
	return w.WaitWrite()
}

func (p *Pty) writer() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, os.ErrClosed
	}
	var fd int
	var failed error
	err := p.Control(func(master uintptr) { fd, failed = unix.FcntlInt(master, unix.F_DUPFD_CLOEXEC, 0) })
	switch {
	case err != nil:
		return nil, os.ErrClosed
	case failed != nil:
		return nil, fmt.Errorf("duplicating %s: %w", p.master.Name(), failed)
	}
	p.out = os.NewFile(uintptr(fd), p.master.Name())
	return p.out, nil
}

// SetReadDeadline bounds Read, as os.File does.
func (p *Pty) SetReadDeadline(t time.Time) error { return p.set.SetReadDeadline(t) }

// SyscallConn is the master's.
func (p *Pty) SyscallConn() (syscall.RawConn, error) { return p.master.SyscallConn() }

// Close hangs up, and wakes a Read and a Write that wait: os.ErrClosed.
func (p *Pty) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	p.closed = true
	if p.set != nil {
		_ = p.set.Close()
	}
	if p.out != nil {
		_ = p.out.Close()
	}
	return p.master.Close() //nolint:wrapcheck // says which file
}
