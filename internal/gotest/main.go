// Command gotest runs `go test -json` and prints the results for a person: a line for each package that ends, a line of
// progress when nothing else is printed, and at the end the slowest tests, the output of the failed tests and the
// command that repeats them. It does not choose the tests.
//
//	gotest ROOT GO ARGUMENT…
//
// ROOT is the repository, GO the go command, and the arguments are those of `go test`. The last line counts the tests.
// The exit status is go's; it is 1 if no test has run.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/sandbox"
)

const (
	// quiet is the longest time without a line of output.
	quiet = 15 * time.Second
	// grace is how long the tests may take to end after an interrupt.
	grace = 20 * time.Second
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: gotest ROOT GO ARGUMENT…")
		os.Exit(2)
	}
	os.Exit(run(os.Args[1], os.Args[2], os.Args[3:]))
}

func run(root, goCommand string, args []string) int {
	// A death signal is sent when the parent's thread ends: for go that is this thread.
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	signals := sandbox.CatchSignals()

	r := newReport(os.Stdout, time.Now)
	r.saved = filepath.Join(root, ".cache", "test-output")
	r.verbose = hasFlag(args, "v")

	lines := make(chan []byte)
	//nolint:gosec // G702: the arguments are those of whoever runs the tests
	cmd := exec.Command(goCommand, append([]string{"test", "-json"}, args...)...)
	cmd.Stdout, cmd.Stderr = &lineWriter{lines: lines}, &lineWriter{lines: lines}
	// In their own process group go and the tests get a terminal's Ctrl-C once, from here.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = grace // for processes that outlive go and hold its output open
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		return 1
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var interrupt syscall.Signal
	var giveUp <-chan time.Time
	for running := true; running; {
		select {
		case line := <-lines:
			r.line(line)
		case <-tick.C:
			r.progress()
		case sig := <-signals:
			if interrupt == 0 {
				interrupt = sig.(syscall.Signal)
				r.printf("\n%s: the tests that run are ended\n", unix.SignalName(interrupt))
				_ = unix.Kill(-cmd.Process.Pid, interrupt)
				giveUp = time.After(grace)
			} else {
				_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			}
		case <-giveUp:
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				r.printf("gotest: %v\n", err)
			}
			running = false
		}
	}

	status := cmd.ProcessState.ExitCode()
	wait := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case interrupt != 0:
		status = 128 + int(interrupt)
	case wait.Signaled():
		r.printf("\ngo test was ended by %s\n", unix.SignalName(wait.Signal()))
		status = 128 + int(wait.Signal())
	}
	again := repeat{args: args, goCommand: goCommand, root: root, required: os.Getenv("TERMGW_TEST_REQUIRE") == "1"}
	return r.end(status, again)
}

// lineWriter sends every written line, with its end, to a channel.
type lineWriter struct {
	lines chan<- []byte
	part  []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.part = append(w.part, p...)
	for {
		end := bytes.IndexByte(w.part, '\n')
		if end < 0 {
			return len(p), nil
		}
		w.lines <- bytes.Clone(w.part[:end+1])
		w.part = w.part[end+1:]
	}
}
