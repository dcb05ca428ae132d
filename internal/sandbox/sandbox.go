// Package sandbox runs a program in Linux namespaces of its own, so that tests with real daemons leave the machine as
// it was, however they end: network, processes, mounts, /etc, /run, /var/lib, /var/log and temporary files are the
// program's own.
//
// Three processes take part. The outer process runs in the machine's namespaces and waits; when it dies, the kernel
// kills process 1. Process 1 of the new namespaces prepares them, starts the program and reaps orphans; when process 1
// ends, the kernel kills all processes that are left and unmounts everything. The program is the third process.
//
// Only root can make namespaces that a Docker engine runs in. For other users, and for a root without the right, the
// program runs in the machine's namespaces, and [Inside] reports false.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageVariable tells a process which of the three it is. The program's children inherit the program's value: they are
// in the sandbox already.
const stageVariable = "TERMGW_SANDBOX"

// The values of stageVariable.
const (
	stageInit    = "init"    // process 1 of the namespaces
	stageInside  = "inside"  // the program
	stageOutside = "outside" // the program, where no namespaces could be made
)

// Enter starts this program again in a new sandbox, with the same arguments, waits for its end, and exits with its
// status. In the new process Enter returns. It is to be called first in main or TestMain.
func Enter() {
	switch os.Getenv(stageVariable) {
	case stageInside, stageOutside:
	case stageInit:
		runInit(os.Args, self())
	default:
		runOuter()
	}
}

// Run runs a command in a sandbox, and exits with its status.
func Run(argv []string) {
	switch os.Getenv(stageVariable) {
	case stageInside, stageOutside:
		exitAs(wait(start(command(argv))))
	case stageInit:
		runInit(argv, "")
	default:
		runOuter()
	}
}

// Inside reports whether this process is in a sandbox.
func Inside() bool { return os.Getenv(stageVariable) == stageInside }

// outsideNetwork is the sandbox's file of the machine's network namespace.
const outsideNetwork = privateDir + "/outside.net"

// Outside makes a command that has not started use the machine's network, for downloads. Everything else of the command
// stays in the sandbox.
func Outside(cmd *exec.Cmd) *exec.Cmd {
	if !Inside() || cmd.Err != nil {
		return cmd
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		cmd.Err = err
		return cmd
	}
	cmd.Args = append([]string{nsenter, "--net=" + outsideNetwork, "--", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = nsenter
	return cmd
}

// runOuter starts process 1, or the program itself where namespaces cannot be made, and exits with the program's
// status.
func runOuter() {
	runtime.LockOSThread() // Pdeathsig kills the child when the thread that started it ends
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	interrupted := CatchSignals()

	cmd := command(os.Args)
	cmd.Path = self()
	cgroup := newCgroup()
	cmd.Env = append(os.Environ(), stageVariable+"="+stageInit, outerPIDVariable+"="+fmt.Sprint(os.Getpid()), cgroupVariable+"="+cgroup)
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC
	child, err := start(cmd)
	if errors.Is(err, unix.EPERM) {
		cmd = command(os.Args)
		cmd.Path = self()
		cmd.Env = append(os.Environ(), stageVariable+"="+stageOutside)
		child, err = start(cmd)
	}
	if err == nil {
		go func() {
			for sig := range interrupted {
				// Process 1 gets only the signals that it catches, and SIGKILL, which ends the whole sandbox.
				if sig != unix.SIGQUIT {
					sig = unix.SIGKILL
				}
				_ = child.Signal(sig)
			}
		}()
	}
	status, err := wait(child, err)
	removeCgroups(cgroup)
	exitAs(status, err)
}

// CatchSignals returns the signals that end the run: SIGHUP, SIGINT, SIGQUIT and SIGTERM. A signal that this process
// was started to ignore, as nohup and a script's background do, has no effect here. Every child starts with default
// dispositions: a child inherits its parent's ignored signals, never the caught ones.
func CatchSignals() <-chan os.Signal {
	ending := make(chan os.Signal, 8)
	ignored := make(chan os.Signal, 1) // never read
	for sig := unix.Signal(1); sig < 32; sig++ {
		if signal.Ignored(sig) {
			signal.Notify(ignored, sig)
			continue
		}
		switch sig {
		case unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM:
			signal.Notify(ending, sig)
		}
	}
	return ending
}

// self returns the path of the running program.
func self() string {
	path, err := os.Executable()
	if err != nil {
		return "/proc/self/exe"
	}
	return path
}

func command(argv []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:gosec // what the caller wants to run
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

func start(cmd *exec.Cmd) (*os.Process, error) {
	err := cmd.Start()
	return cmd.Process, err
}

// wait reaps the child alone.
func wait(child *os.Process, err error) (unix.WaitStatus, error) {
	if err != nil {
		return 0, err
	}
	return reapUntil(child.Pid, child.Pid)
}

// reapUntil reaps the processes that which selects, as in waitpid(2), until the child pid has ended.
func reapUntil(pid, which int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(which, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("waiting for a child: %w", err)
		case ended == pid:
			return status, nil
		}
	}
}

// exitAs ends this process with the status that a shell gives for the child: 128 + signal for a killed child.
func exitAs(status unix.WaitStatus, err error) {
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		os.Exit(1)
	case status.Signaled():
		fmt.Fprintln(os.Stderr, "sandbox: the program was ended by", unix.SignalName(status.Signal()))
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(status.ExitStatus())
}
