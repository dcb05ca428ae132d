package pollfd

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Large is the size in bytes of a piece of a flood: after a read of this size more bytes may follow at once, and a
// write of this size takes a turn. A pty returns at most 4,095 bytes a read.
const Large = 2 << 10

// gatherTries is how often Gather looks for more bytes. The program gets the processor before each time.
const gatherTries = 16

// permits makes floods take turns: they read and write on all processors of the process but one at a time, so that one
// is free for a keystroke. Go's scheduler looks for arrived bytes only when a processor has nothing to run, or every 10
// ms: beside four floods on two processors a keystroke's echo took 4 ms at the median, with turns 0.2 ms.
var permits = sync.OnceValue(func() chan struct{} { return make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)) })

// InTurn waits for a flood's turn and runs call: one system call, or a few, that do not wait.
func InTurn(call func()) {
	permits() <- struct{}{}
	defer func() { <-permits() }()
	call()
}

// Gather reads the bytes that are there, and those that the program prints when it gets the processor, until p is full.
// A pty hands out 4 KiB of output at a time, as soon as they are printed: a reader that takes them at once alternates
// with the program on one processor, while the other is idle. read must not wait.
func Gather(p []byte, read func([]byte) (int, error)) (n int, err error) {
	InTurn(func() {
		for tries := gatherTries; ; tries-- {
			var m int
			m, err = read(p[n:])
			if n += m; err != nil || n == len(p) || tries == 0 {
				return
			}
			_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	})
	return n, err
}
