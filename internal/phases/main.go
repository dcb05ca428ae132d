// Command phases runs targets of the Makefile side by side, each as soon as the targets that it needs have succeeded.
// It keeps each target's output together, and prints which targets run, which failed, and how to repeat the failed
// ones.
//
//	phases TITLE LAST <TABLE
//
// A line of the table is `TARGET: NEEDED TARGETS`. Of the targets that can start, the upper one starts first. A
// target's output is printed when the target ends, that of LAST after everything else. A failed target stops only the
// targets that need it.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/sandbox"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: phases TITLE LAST <TABLE")
		os.Exit(2)
	}
	status, err := run(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "phases:", err)
	}
	os.Exit(status)
}

func run(title, last string) (status int, err error) {
	table, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 2, fmt.Errorf("reading the table: %w", err)
	}
	phases, err := parse(string(table))
	if err != nil {
		return 2, err
	}
	// One phase for each processor: those that wait more than they compute run several things at once themselves.
	most := max(2, runtime.NumCPU())
	if jobs := os.Getenv("PHASES"); jobs != "" {
		if most, err = strconv.Atoi(jobs); err != nil || most < 1 {
			return 2, fmt.Errorf("PHASES=%s is no number of phases that run at the same time", jobs)
		}
	}
	logs, err := os.MkdirTemp("", title+"-")
	if err != nil {
		return 1, fmt.Errorf("making a folder for the output: %w", err)
	}
	again := "make "
	if os.Getenv("TERMGW_TEST_REQUIRE") == "1" {
		again = "TERMGW_TEST_REQUIRE=1 make "
	}
	r := &runner{
		title: title, last: last, phases: phases, most: most, logs: logs, out: os.Stdout,
		command: []string{"make"}, again: again, env: environment(),
		every: 30 * time.Second, grace: 30 * time.Second,
	}

	// A death signal is sent when the parent's thread ends: for a phase that is this thread.
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0)
	status = r.run(sandbox.CatchSignals())
	if status == 0 {
		err = os.RemoveAll(logs)
	}
	return status, err
}

// environment returns the environment of the phases. Phases do not belong to the make that runs this program, and take
// no tokens of its -j.
func environment() []string {
	var env []string
	for _, variable := range os.Environ() {
		switch name, _, _ := strings.Cut(variable, "="); name {
		case "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PHASES":
		default:
			env = append(env, variable)
		}
	}
	return env
}

// parse returns the phases of the table, in its order.
func parse(table string) ([]*phase, error) {
	var phases []*phase
	known := map[string]*phase{}
	for line := range strings.Lines(table) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		name, needs, ok := strings.Cut(line, ":")
		p := &phase{name: strings.TrimSpace(name)}
		if !ok || p.name == "" || known[p.name] != nil {
			return nil, fmt.Errorf("the table has the line %q", line)
		}
		for _, name := range strings.Fields(needs) {
			// A phase needs only phases above it, so no circle is possible.
			if known[name] == nil {
				return nil, fmt.Errorf("%s needs %s, which is not above it", p.name, name)
			}
			p.needs = append(p.needs, known[name])
		}
		known[p.name] = p
		phases = append(phases, p)
	}
	if len(phases) == 0 {
		return nil, errors.New("the table is empty")
	}
	return phases, nil
}

// signalGroup sends a signal to every process of a phase.
func (p *phase) signalGroup(sig syscall.Signal) { _ = unix.Kill(-p.cmd.Process.Pid, sig) }
