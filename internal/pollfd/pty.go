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

// Pty is the master of a pty, and keeps Go's poller out of a flood.
//
// A kernel worker moves a program's output 4,095 bytes at a time, and each time wakes the thread that polls the master.
// That thread belongs to Go's runtime, and finds that the master is being read already: a fifth of the gateway's time
// in a flood. So from the first flood on the poller has an epoll set instead of the master, and the set has the master
// (epoll(7) allows that). The poller hears nothing while the master is out of the set's interest.
type Pty struct {
	master   atomic.Pointer[FD]
	set      *os.File  // nil: no flood yet, the master itself is in the poller
	waiting  *transfer // a Read that waits for the set
	interest uint32    // of the set, in the master

	mu       sync.Mutex
	closed   bool
	file     *os.File  // the master in the poller; nil: there is a set
	bare     *bare     // the master outside the poller; nil: there is no set
	out      *os.File  // a duplicate in the poller, while a Write waits and there is a set
	deadline time.Time // of Read
}

// interesting is the interest with which a byte wakes a Read.
const interesting = unix.EPOLLIN | unix.EPOLLET&(1<<32-1)

// NewPty returns the Pty of the master f, and closes f. The caller closes the Pty.
func NewPty(f *os.File) (*Pty, error) {
	fd, err := duplicate(int(f.Fd())) // Fd makes the master blocking, and leaves f in the poller
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
	p.master.Store(io)
	return p, nil
}

func duplicate(fd int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicating a pty: %w", err)
	}
	return fd, nil
}

// Read waits for a byte. A pty has no end of file: Read returns syscall.EIO when no process holds the other side.
func (p *Pty) Read(b []byte) (int, error) {
	if p.set == nil {
		return p.master.Load().Read(b)
	}
	if err := p.listen(interesting); err != nil {
		return 0, err
	}
	return p.waiting.run(b, true)
}

// TryRead reads the bytes that are there now. Bytes that arrive before the next Read wake no thread.
func (p *Pty) TryRead(b []byte) (int, error) {
	if p.set == nil {
		p.quieten()
	} else if err := p.listen(0); err != nil {
		return 0, err
	}
	return p.master.Load().TryRead(b)
}

// quieten puts a set between the poller and the master. Without a free descriptor nothing changes.
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
	_ = unix.SetNonblock(fd, true) // has no effect on a set, but os.NewFile then puts it into the poller
	set := os.NewFile(uintptr(fd), "epoll")
	conn, err := set.SyscallConn()
	var master int
	if err == nil {
		err = control(p.master.Load(), func(fd int) (err error) {
			master, err = duplicate(fd)
			return err
		})
	}
	if err != nil {
		_ = set.Close()
		return
	}
	_ = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, master, &unix.EpollEvent{}) // cannot fail for two new descriptors
	_ = set.SetReadDeadline(p.deadline)
	p.bare = &bare{fd: master}
	p.master.Store(newFD(p.bare))
	_ = p.file.Close() // a Write that waits in it goes on with p.bare
	p.file = nil
	p.set = set
	waiting := &transfer{raw: conn.Read}
	waiting.once = func(uintptr) bool {
		waiting.n, waiting.err = p.master.Load().TryRead(waiting.p)
		return waiting.n > 0 || waiting.err != nil
	}
	p.waiting = waiting
}

// control runs do on a descriptor. It returns the error of do, or os.ErrClosed.
func control(c interface{ Control(func(uintptr)) error }, do func(fd int) error) error {
	failed := os.ErrClosed
	if err := c.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return os.ErrClosed
	}
	return failed
}

// listen sets the set's interest, and makes the poller look at the master at once.
func (p *Pty) listen(interest uint32) error {
	if p.interest == interest {
		return nil
	}
	conn, err := p.set.SyscallConn()
	if err != nil {
		return os.ErrClosed
	}
	err = control(conn, func(set int) error {
		return control(p.master.Load(), func(master int) error {
			return unix.EpollCtl(set, unix.EPOLL_CTL_MOD, master, &unix.EpollEvent{Events: interest})
		})
	})
	if err == nil {
		p.interest = interest
	}
	return err
}

// TryWrite writes as many bytes as there is room for now.
func (p *Pty) TryWrite(b []byte) (int, error) {
	for {
		io := p.master.Load()
		n, err := io.TryWrite(b)
		if !errors.Is(err, os.ErrClosed) || io == p.master.Load() {
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
		io := p.master.Load()
		if err := p.waitWrite(io); err != nil && io == p.master.Load() {
			return done, err
		}
	}
}

// waitWrite waits until there is room to write. A set reports only what can be read, so with a set a duplicate of the
// master is in the poller meanwhile.
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

// polled returns a duplicate of the master in the poller, or nil if the master itself is there.
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
	p.mu.Lock() // quieten changes the descriptor
	defer p.mu.Unlock()
	return p.master.Load().Control(do)
}

// SetReadDeadline sets the deadline of Read, as os.File.SetReadDeadline does.
func (p *Pty) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	if p.set != nil {
		return p.set.SetReadDeadline(t)
	}
	return p.file.SetReadDeadline(t)
}

// Close hangs up. A Read and a Write that wait return os.ErrClosed.
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

// bare is a descriptor outside the poller, for calls that do not wait. os.File would put it into the poller, because it
// is in non-blocking mode, which a descriptor shares with its duplicates.
type bare struct {
	mu sync.RWMutex // held for reading by each call: after close the number may be another file's
	fd int          // -1: closed
}

// Control runs a function on the descriptor.
func (b *bare) Control(do func(uintptr)) error {
	return b.Read(func(fd uintptr) bool {
		do(fd)
		return true
	})
}

// Read runs do, which must not wait; its result is ignored. Write does the same.
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
