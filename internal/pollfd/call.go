//go:build !race

package pollfd

import (
	"syscall"
	"unsafe"
)

// large is a write that is made as a full system call, in bytes: its time
// counts, and a processor that does nothing else must wake the monitor, which
// is what gives the others their share. In a flood a large write follows a few
// large reads. Those sleep for 20 to 40 µs in a pty, at which the monitor would
// take the processor away, and go on looking every 20 µs.
const large = 2 << 10

func (t *transfer) call(fd uintptr) (int, syscall.Errno) {
	call := syscall.RawSyscall
	if t.trap == syscall.SYS_WRITE && len(t.p) >= large {
		call = syscall.Syscall
	}
	n, _, errno := call(t.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.p))), uintptr(len(t.p))) //nolint:gosec // the call ends before p does
	return int(n), errno
}
