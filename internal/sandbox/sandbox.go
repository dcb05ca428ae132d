// Package sandbox runs a program in Linux namespaces of its own, so that tests with real daemons leave the machine as it
// was, however they end: network, processes, mounts, /etc, /run, /var/lib and temporary files are the program's own.
//
// Three processes take part. The outer one has started in the machine's namespaces; it waits, and when it dies the kernel
// kills the second. That one is process 1 of the new namespaces: it prepares them, starts the program and reaps what
// lost its parent; when it ends, the kernel kills every process that is left and unmounts everything. The program itself
// is the third.
//
// Only root can make namespaces that a Docker engine runs in: for everybody else, and where root lacks the right, the
// program runs in the machine's own, and [Inside] reports false.
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

// stageVariable tells a process which of the three it is. In the program it stays set, and is inherited: what the
// program starts is in the sandbox already.
const stageVariable = "TERMGW_SANDBOX"

// The values of stageVariable.
const (
	stageInit    = "init"    // process 1 of the namespaces
	stageInside  = "inside"  // the program
	stageOutside = "outside" // the program, where no namespaces could be made
)

// Enter returns in a process that is in a sandbox. In one that is not, it starts this program again in a new sandbox,
// with the same arguments, waits for it, and exits as it exits. So it belongs at the very beginning of main or TestMain.
func Enter() {
	switch os.Getenv(stageVariable) {
	case stageInside, stageOutside:
	case stageInit:
		runInit(os.Args, self())
	default:
		runOuter()
	}
}

// Run runs a command in a sandbox, and exits as the command exits.
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

// outsideNetwork is where the sandbox keeps the machine's own network namespace.
const outsideNetwork = privateDir + "/outside.net"

// Outside makes a command that has not started run in the machine's own network, for what it downloads. It stays in the
// sandbox for everything else.
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

// runOuter starts process 1, or the program itself where there can be no namespaces.
func runOuter() {
	runtime.LockOSThread() // Pdeathsig is about the thread that has started the child
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
				// Process 1 hears nothing but what it asks for, and this: everything ends with it.
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

// CatchSignals returns the signals that end the run. A signal that this process was started to ignore, as nohup and a
// script's background do, has no effect here. Every child starts with default dispositions: a child inherits what its
// parent ignores, never what its parent catches.
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

// self is the program that runs.
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

// wait waits for the child alone.
func wait(child *os.Process, err error) (unix.WaitStatus, error) {
	if err != nil {
		return 0, err
	}
	return reapUntil(child.Pid, child.Pid)
}

// reapUntil reaps which, as waitpid(2) says it, until the child pid has ended.
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

// exitAs ends this process as a shell tells the end of its child.
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
