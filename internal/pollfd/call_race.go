//go:build race

package pollfd

import "syscall"

// call tells the race detector, as package syscall does, that a read comes after the write of its bytes.
func (t *transfer) call(fd uintptr) (n int, errno syscall.Errno) {
	var err error
	if t.trap == syscall.SYS_READ {
		n, err = syscall.Read(int(fd), t.p)
	} else {
		n, err = syscall.Write(int(fd), t.p)
	}
	if err != nil {
		errno, _ = err.(syscall.Errno) //nolint:errorlint // package syscall wraps none
	}
	return n, errno
}
