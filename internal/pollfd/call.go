//go:build !race

package pollfd

import (
	"syscall"
	"unsafe"
)

// large is a transfer that is made as a full system call, in bytes: its time
// counts, and a processor that does nothing else must wake the monitor, which
// is what gives the others their share.
const large = 2 << 10

func (t *transfer) call(fd uintptr) (int, syscall.Errno) {
	call := syscall.RawSyscall
	if len(t.p) >= large {
		call = syscall.Syscall
	}
	n, _, errno := call(t.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.p))), uintptr(len(t.p))) //nolint:gosec // the call ends before p does
	return int(n), errno
}
