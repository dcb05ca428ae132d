package pollfd

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Pty is the master of a pty, whose reader keeps Go's poller out of a flood.
//
// A kernel worker moves what a program prints 4,095 bytes at a time, and each
// time wakes whoever polls the master: here a thread of the runtime's, which
// finds that the terminal is being read already. That was a fifth of the
// gateway's time in a flood. So from the first flood on the poller has an epoll
// set instead, which has the master in it (epoll(7) allows that), and hears
// nothing while the master is out of the set's interest.
type Pty struct {
	now      atomic.Pointer[FD] // the master
	set      *os.File           // nil: no flood yet, the master itself is in the poller
	wait     *transfer          // a read that waits for the set
	interest uint32             // of the set, in the master

	mu       sync.Mutex
	closed   bool
	file     *os.File  // the master, in the poller
	bare     *bare     // or not in it, beside a set
	out      *os.File  // and in it again, while a Write waits
	deadline time.Time // Read's
}

// interesting is what wakes a Read.
const interesting = unix.EPOLLIN | unix.EPOLLET&(1<<32-1)

// NewPty takes a master over, and closes f.
func NewPty(f *os.File) (*Pty, error) {
	fd, err := duplicate(int(f.Fd())) // Fd makes it blocking, and leaves it in the poller
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("unblocking a pty: %w", err)
	}
	p := &Pty{file: os.NewFile(uintptr(fd), f.Name())}
	io, err := New(p.file)
	if err != nil {
		_ = p.file.Close()
		return nil, err
	}
	p.now.Store(io)
	return p, nil
}

func duplicate(fd int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicating a pty: %w", err)
	}
	return fd, nil
}

// Read waits for a byte. A pty has no end of file: a master whose other side
// nobody holds gives syscall.EIO.
func (p *Pty) Read(b []byte) (int, error) {
	if p.set == nil {
		return p.now.Load().Read(b)
	}
	if err := p.listen(interesting); err != nil {
		return 0, err
	}
	return p.wait.run(b, true)
}

// TryRead reads what is there now. Until the next Read, what comes wakes nobody.
func (p *Pty) TryRead(b []byte) (int, error) {
	if p.set == nil {
		p.quieten()
	} else if err := p.listen(0); err != nil {
		return 0, err
	}
	return p.now.Load().TryRead(b)
}

// quieten puts a set between the poller and the master. Without a descriptor to
// spare it leaves things as they are.
func (p *Pty) quieten() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return
	}
	_ = unix.SetNonblock(fd, true) // means nothing to a set, and to os.NewFile: into the poller
	set := os.NewFile(uintptr(fd), "epoll")
	conn, err := set.SyscallConn()
	var master int
	if err == nil {
		err = control(p.now.Load(), func(fd int) (err error) {
			master, err = duplicate(fd)
			return err
		})
	}
	if err != nil {
		_ = set.Close()
		return
	}
	_ = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, master, &unix.EpollEvent{}) // two new descriptors: nothing can be wrong
	_ = set.SetReadDeadline(p.deadline)
	p.bare = &bare{fd: master}
	p.now.Store(newFD(p.bare))
	_ = p.file.Close() // a Write that waits there goes on with the other
	p.file = nil
	p.set = set
	wait := &transfer{raw: conn.Read}
	wait.once = func(uintptr) bool {
		wait.n, wait.err = p.now.Load().TryRead(wait.p)
		return wait.n > 0 || wait.err != nil
	}
	p.wait = wait
}

// control runs a function on a descriptor.
func control(c interface{ Control(func(uintptr)) error }, do func(fd int) error) error {
	failed := os.ErrClosed
	if err := c.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return os.ErrClosed
	}
	return failed
}

// listen changes what wakes the poller, which looks at once, too.
func (p *Pty) listen(interest uint32) error {
	if p.interest == interest {
		return nil
	}
	conn, err := p.set.SyscallConn()
	if err != nil {
		return os.ErrClosed
	}
	err = control(conn, func(set int) error {
		return control(p.now.Load(), func(master int) error {
			return unix.EpollCtl(set, unix.EPOLL_CTL_MOD, master, &unix.EpollEvent{Events: interest})
		})
	})
	if err == nil {
		p.interest = interest
	}
	return err
}

// TryWrite writes what there is room for now.
func (p *Pty) TryWrite(b []byte) (int, error) {
	for {
		io := p.now.Load()
		n, err := io.TryWrite(b)
		if !errors.Is(err, os.ErrClosed) || io == p.now.Load() {
			return n, err
		}
	}
}

// Write writes all of b. It waits while the program does not read.
func (p *Pty) Write(b []byte) (int, error) {
	for done := 0; ; {
		n, err := p.TryWrite(b[done:])
		if done += n; err != nil || done == len(b) {
			return done, err
		}
		io := p.now.Load()
		if err := p.waitWrite(io); err != nil && io == p.now.Load() {
			return done, err
		}
	}
}

// waitWrite waits until there is room to write. Only then the poller has the
// master beside a set, which tells only of what can be read.
func (p *Pty) waitWrite(io *FD) error {
	out, err := p.polled()
	if err != nil {
		return err
	}
	if out == nil {
		return io.WaitWrite()
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		_ = out.Close()
		p.out = nil
	}()
	if io, err = New(out); err != nil {
		return err
	}
	return io.WaitWrite()
}

// polled is the master in the poller once more, or nil if it is in there.
func (p *Pty) polled() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, os.ErrClosed
	}
	if p.bare == nil {
		return nil, nil
	}
	fd, err := duplicate(p.bare.fd)
	if err == nil {
		p.out = os.NewFile(uintptr(fd), "pty")
	}
	return p.out, err
}

// Control runs a function on the master, as syscall.RawConn does.
func (p *Pty) Control(do func(fd uintptr)) error {
	p.mu.Lock() // so that it is done once, whichever the descriptor is
	defer p.mu.Unlock()
	return p.now.Load().Control(do)
}

// SetReadDeadline bounds Read, as os.File does.
func (p *Pty) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	if p.set != nil {
		return p.set.SetReadDeadline(t)
	}
	return p.file.SetReadDeadline(t)
}

// Close hangs up, and wakes a Read and a Write that wait: os.ErrClosed.
func (p *Pty) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	p.closed = true
	if p.bare == nil {
		return p.file.Close() //nolint:wrapcheck // says which file
	}
	_ = p.set.Close()
	if p.out != nil {
		_ = p.out.Close()
	}
	return p.bare.close()
}

// bare is a descriptor that is not in the poller, and whose calls do not wait.
// os.File would put it in: it goes by the non-blocking mode, which a descriptor
// shares with its duplicates.
type bare struct {
	mu sync.RWMutex // held for reading by each call: the number is another file's after close
	fd int          // -1: closed
}

// Control runs a function on the descriptor.
func (b *bare) Control(do func(uintptr)) error {
	return b.Read(func(fd uintptr) bool {
		do(fd)
		return true
	})
}

// Read makes a call that does not wait, as Write does.
func (b *bare) Read(do func(uintptr) bool) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.fd < 0 {
		return os.ErrClosed
	}
	do(uintptr(b.fd))
	return nil
}

func (b *bare) Write(do func(uintptr) bool) error { return b.Read(do) }

func (b *bare) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	fd := b.fd
	b.fd = -1
	return unix.Close(fd) //nolint:wrapcheck // of a descriptor of ours it fails for nothing
}
