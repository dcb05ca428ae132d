//go:build !race

package pollfd

import (
	"syscall"
	"unsafe"
)

// large is the size in bytes from which a write is a full system call. A large write takes time, and a processor that
// runs nothing else must wake the monitor thread, which gives the other goroutines their share. In a flood a large
// write follows a few large reads. Those sleep for 20 to 40 µs in a pty: as full system calls they would lose the
// processor to the monitor, which would go on looking every 20 µs.
const large = 2 << 10

func (t *transfer) call(fd uintptr) (int, syscall.Errno) {
	call := syscall.RawSyscall
	if t.trap == syscall.SYS_WRITE && len(t.p) >= large {
		call = syscall.Syscall
	}
	n, _, errno := call(t.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.p))), uintptr(len(t.p))) //nolint:gosec // the call ends before p does
	return int(n), errno
}
