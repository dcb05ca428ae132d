package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/testenv"
)

// box is a container of a workspace. What goes on in it is seen from outside, by this machine's /proc: that needs no
// exec, which would be counted, and nothing in the container.
type box struct {
	engine *testenv.Docker
	id     string
	init   int    // the pid of its first process, on this machine
	procs  string // the file that lists the processes of its control group
}

// newBox runs the container of the workspace with an id.
func newBox(tb testing.TB, engine *testenv.Docker, workspace string) *box {
	tb.Helper()
	b := &box{engine: engine, id: engine.RunContainer(tb, "ws-"+workspace)}
	found, err := engine.Client(tb).ContainerInspect(tb.Context(), b.id, client.ContainerInspectOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	b.init = found.Container.State.Pid
	b.procs = cgroupProcs(tb, b.init)
	return b
}

// cgroupProcs is the file that lists the processes of a process's control group (cgroups(7)).
func cgroupProcs(tb testing.TB, pid int) string {
	tb.Helper()
	file := ""
	for line := range strings.Lines(procFile(tb, pid, "cgroup")) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(fields) == 3 && fields[1] == "pids": // of version 1, which has a hierarchy a controller
			return filepath.Join("/sys/fs/cgroup/pids", fields[2], "cgroup.procs")
		case len(fields) == 3 && fields[1] == "": // of version 2
			file = filepath.Join("/sys/fs/cgroup", fields[2], "cgroup.procs")
		}
	}
	if _, err := os.Stat(file); err != nil {
		tb.Fatalf("no list of what runs in a container: %v", err)
	}
	return file
}

// process is one that lives in a container.
type process struct {
	pid              int
	command, environ string
}

// processes lists what lives in the container besides its first process.
func (b *box) processes(tb testing.TB) []process {
	tb.Helper()
	pids, err := os.ReadFile(b.procs)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // the container has ended
	}
	if err != nil {
		tb.Fatal(err)
	}
	var found []process
	for _, field := range strings.Fields(string(pids)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			tb.Fatal(err)
		}
		// A zombie has no command line any more: nobody reaps in these containers.
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if len(command) == 0 || pid == b.init {
			continue
		}
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		found = append(found, process{pid, strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " ")), string(environ)})
	}
	return found
}

// commands are the command lines of what lives in the container, sorted.
func (b *box) commands(tb testing.TB) []string {
	tb.Helper()
	commands := []string{}
	for _, p := range b.processes(tb) {
		commands = append(commands, p.command)
	}
	slices.Sort(commands)
	return commands
}

// shells counts the processes that carry a session's mark.
func (b *box) shells(tb testing.TB) (n int) {
	tb.Helper()
	for _, p := range b.processes(tb) {
		if strings.Contains(p.environ, "TERMGW_SESSION=") {
			n++
		}
	}
	return n
}

// empty waits until nothing lives in the container but its first process and these.
func (b *box) empty(tb testing.TB, but ...string) {
	tb.Helper()
	slices.Sort(but)
	var left []string
	defer func() {
		if tb.Failed() {
			tb.Logf("the container has %q", left)
		}
	}()
	eventually(tb, fmt.Sprintf("the container has only %q", but), func() bool {
		left = b.commands(tb)
		return slices.Equal(left, but)
	})
}

// execs counts the execs that were ever made in the container, of the engine's last 256 events.
func (b *box) execs(tb testing.TB) int {
	tb.Helper()
	return len(b.execEvents(tb))
}

// execEvents are those execs, with their commands.
func (b *box) execEvents(tb testing.TB) (execs []string) {
	tb.Helper()
	now := time.Now()
	past := b.engine.Client(tb).Events(tb.Context(), client.EventsListOptions{
		Since: "0", Until: fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond()),
		Filters: make(client.Filters).Add("container", b.id),
	})
	for {
		select {
		case event := <-past.Messages:
			if strings.HasPrefix(string(event.Action), "exec_create") {
				execs = append(execs, string(event.Action))
			}
		case err := <-past.Err:
			if !errors.Is(err, io.EOF) {
				tb.Fatal(err)
			}
			return execs
		}
	}
}
