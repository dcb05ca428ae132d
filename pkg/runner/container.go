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

// ContainerName matches the engine's names. Any other name from a row never reaches
// the engine, where it would be part of a path.
var ContainerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// generatedPrefix is the prefix of containers' names that are made of workspaces' ids. An id may be any word, so a name with
// the prefix may be another workspace's; a workspace's own name, which its owner chooses, must not lead there.
const generatedPrefix = "ws-"

// ContainerNames returns the names that a workspace's container may have, in order.
// The first is the row's column container, which may also be a whole id.
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

// chosenName returns the container's name for the workspace's own name.
func (t Target) chosenName() string {
	return strings.ReplaceAll(strings.ToLower(t.Attributes["name"]), " ", "-")
}

// ExplainName adds to an ErrNotRunning that the workspace's name was not looked for because of its prefix, if so.
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
		Fix: "Start the workspace, or unpause it; or correct container or name in its row, by which the container is found.",
		Err: fmt.Errorf("%w: %s", ErrNotRunning, why),
	}
}

// FixShell is the fix of a shell that does not start, or not as it is told.
const FixShell = "Let the shell start without help and do what is typed: look at what its profile starts or waits for. In a container one of TERMGW_SHELLS has to be there: `docker exec NAME /bin/sh -c true`."

var opened = regexp.MustCompile(`\x1e(\d{1,10}) \([^\x1e]*\) ([^\x1e]*)\x1e`)

var startTime = regexp.MustCompile(`^[0-9]{1,15}$`)

// Opened finds in a terminal's first output the /proc/PID/stat that the opening prints
// between two RS bytes before it becomes the shell. It returns the shell's pid and
// start time, and the output after that; ok reports whether the stat was there.
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
// delays a typed Ctrl-P. The engine holds a typed first key back until the next key, so
// the first is one whose effect shows only then (NUL: set mark, in Emacs). The rest
// are random, so that no paste contains them.
func DetachKeys() (list string, keys []byte) {
	random := rand.Text()
	return "ctrl-@,ctrl-^," + strings.Join(strings.Split(random, ""), ","), []byte("\x00\x1e" + random)
}
