// Command leaderless goes on without its first thread: /proc/PID/stat calls it a zombie. It hears SIGHUP and goes on, and says
// "up=42" on descriptor 9 when it is so far.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func init() { runtime.LockOSThread() } // main stays on the first thread

func main() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	go func() {
		for {
			time.Sleep(10 * time.Millisecond)
			if status, err := os.ReadFile("/proc/self/stat"); err == nil && strings.Contains(string(status), ") Z ") {
				break
			}
		}
		_, _ = fmt.Fprintln(os.NewFile(9, ""), "up=42")
		_ = syscall.Close(9)
		select {}
	}()
	_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
}
