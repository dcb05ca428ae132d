package runner

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// This file has what a container of this machine and one on an instance share.

// ContainerName is what the engine takes as a name. A name from a row that is
// anything else never reaches the engine, where it would be part of a path.
var ContainerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// generatedPrefix begins the names of containers that are made of workspaces' ids. An id may be any word, so any name that
// begins so may be another workspace's, and a workspace's own name, which is its owner's choice, must not lead there.
const generatedPrefix = "ws-"

// ContainerNames are the names that a workspace's container may have, in order.
// The row's `container`, the first if it is given, may also be a whole id.
func (t Target) ContainerNames() []string {
	names := []string{t.Attributes["container"]}
	if t.WorkspaceID != "" {
		names = append(names, generatedPrefix+t.WorkspaceID[:min(12, len(t.WorkspaceID))], generatedPrefix+t.WorkspaceID)
	}
	if name := t.chosenName(); !strings.HasPrefix(name, generatedPrefix) {
		names = append(names, name)
	}
	var valid []string
	for _, name := range names {
		if ContainerName.MatchString(name) && !slices.Contains(valid, name) { // a short id is its own start
			valid = append(valid, name)
		}
	}
	return valid
}

// chosenName is the container's name that a workspace's own name makes.
func (t Target) chosenName() string {
	return strings.ReplaceAll(strings.ToLower(t.Attributes["name"]), " ", "-")
}

// ExplainName adds to an ErrNotRunning that the workspace's name was not looked for, if that is so because of what it begins
// with.
func (t Target) ExplainName(err error) error {
	name := t.chosenName()
	if !errors.Is(err, ErrNotRunning) || !strings.HasPrefix(name, generatedPrefix) || slices.Contains(t.ContainerNames(), name) {
		return err
	}
	return &Failure{
		Sentence: "The workspace's container is not running. Its name is not used to find one, because it begins with \"" + generatedPrefix +
			"\" and could be made of another workspace's id: rename the workspace, or let the workspace query return container.",
		Err: fmt.Errorf("%w; the workspace's name was not looked for, because it begins with %s", err, generatedPrefix),
	}
}

// NotRunning is the failure of a workspace without a running container.
func NotRunning(why string) error {
	return &Failure{
		Fix: "Start the workspace; or correct container or name in its row, by which the container is found.",
		Err: fmt.Errorf("%w: %s", ErrNotRunning, why),
	}
}

// FixShell is the fix of a shell that does not start, or not as it is told.
const FixShell = "Let one of TERMGW_SHELLS be in the workspace, and let it start without help: `docker exec NAME /bin/sh -c true`."

var opened = regexp.MustCompile(`\x1e(\d{1,10}) \([^\x1e]*\) ([^\x1e]*)\x1e`)

var startTime = regexp.MustCompile(`^[0-9]{1,15}$`)

// Opened finds in a terminal's first output the shell's own /proc/PID/stat, which
// it tells between two RS bytes before it becomes the shell. It returns the
// shell's pid and start time, and the output since; ok reports whether it was
// told.
func Opened(output []byte) (pid, start string, rest []byte, ok bool, err error) {
	m := opened.FindSubmatchIndex(output)
	if m == nil {
		return "", "", nil, false, nil
	}
	fields := bytes.Fields(output[m[4]:m[5]])
	if len(fields) < 20 || !startTime.Match(fields[19]) {
		return "", "", nil, false, errors.New("its /proc has no start times")
	}
	return string(output[m[2]:m[3]]), string(fields[19]), output[m[1]:], true, nil
}

// DetachKeys returns a terminal's detach keys, as the engine wants them and as
// bytes. They replace Ctrl-P Ctrl-Q, which would leave a live shell behind and
// delays a typed Ctrl-P. The engine holds back a typed first key until the next,
// so it is one whose effect is seen only then (NUL: set mark, in Emacs). Most are
// random: what nobody knows nobody pastes.
func DetachKeys() (list string, keys []byte) {
	random := rand.Text()
	return "ctrl-@,ctrl-^," + strings.Join(strings.Split(random, ""), ","), []byte("\x00\x1e" + random)
}
