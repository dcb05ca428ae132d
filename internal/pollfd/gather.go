package pollfd

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Large is a piece of a flood, in bytes: a read after which more may be there at
// once, and a write that takes its turn. A pty gives 4,095 bytes at once at most.
const Large = 2 << 10

// gatherTries is how often Gather looks for more. The program gets the processor
// before each.
const gatherTries = 16

// turns lets floods read and write in turn: on all processors of the process but
// one at a time, so that one is free for a keystroke. Go's scheduler looks for
// what has arrived only when a processor has nothing to run, or every 10 ms:
// beside four floods on two processors a keystroke's echo took 4 ms at the
// median, with turns it takes 0.2.
var turns = sync.OnceValue(func() chan struct{} { return make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)) })

// InTurn makes one system call of a flood, or a few, that do not wait.
func InTurn(call func()) {
	turns() <- struct{}{}
	defer func() { <-turns() }()
	call()
}

// Gather reads what is there, and what a program prints when it is given the
// processor, until p is full: a pty hands out what was printed 4 KiB at a time as
// soon as it is there; who reads at once switches to and fro with the program for
// each of them, on one processor while the other is idle. Read must not wait.
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
