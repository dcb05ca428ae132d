package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
)

var workspaceID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// ValidWorkspaceID reports whether an id is one that the endpoint's path admits: 1 to 128 characters of [A-Za-z0-9._-], and
// not what a path means by a dot or two.
func ValidWorkspaceID(id string) bool { return workspaceID.MatchString(id) && id != "." && id != ".." }

// LookupIn serves a fixed list, for MemoryConfig.Lookup.
func LookupIn(list []Workspace) func(context.Context, string) (Workspace, error) {
	byID := make(map[string]Workspace, len(list))
	for _, w := range list {
		byID[w.ID] = w
	}
	return func(_ context.Context, id string) (Workspace, error) {
		w, ok := byID[id]
		if !ok {
			return Workspace{}, ErrNotFound
		}
		return w, nil
	}
}

// ReadWorkspacesFile reads a JSON array of objects with the string fields id, name, instance_id, container, region,
// os_user, host_key, remote_target, role_arn, endpoint_id, source_identity and docker_sudo, and those of more, of which only
// id is required; null is read as empty, and the last two may also be true or false. It is strict, and names every fault at once.
func ReadWorkspacesFile(path string, more ...string) ([]Workspace, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading workspaces: %w", err)
	}
	list, err := parseWorkspaces(data, append(more, "id", "name", "instance_id", "container", "region", "os_user", "host_key", "remote_target",
		"role_arn", "endpoint_id", "source_identity", "docker_sudo"))
	if err != nil {
		return nil, fmt.Errorf("reading workspaces: %s: %w", path, err)
	}
	return list, nil
}

func parseWorkspaces(data []byte, columns []string) ([]Workspace, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	var entries []map[string]json.RawMessage
	if err := dec.Decode(&entries); err != nil {
		return nil, fmt.Errorf("want a JSON array of objects: %w", err)
	}
	if entries == nil {
		return nil, errors.New("want a JSON array of objects, not null")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("want one JSON array, and nothing after it")
	}
	var (
		faults []error
		list   = make([]Workspace, 0, len(entries))
		seen   = map[string]int{}
	)
	for i, entry := range entries {
		w, errs := parseWorkspace(entry, columns)
		if n, dup := seen[w.ID]; dup && w.ID != "" {
			errs = append(errs, fmt.Errorf("the same id as entry %d", n))
		} else {
			seen[w.ID] = i + 1
		}
		for _, err := range errs {
			faults = append(faults, fmt.Errorf("entry %d (id %.140q): %w", i+1, w.ID, err))
		}
		list = append(list, w)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return list, nil
}

// flags are the fields that may also be JSON's true or false.
var flags = []string{"docker_sudo", "source_identity"}

func parseWorkspace(entry map[string]json.RawMessage, columns []string) (Workspace, []error) {
	w := Workspace{Attributes: map[string]string{}}
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(entry)) {
		var value string
		switch {
		case !slices.Contains(columns, name):
			faults = append(faults, fmt.Errorf("unknown field %.100q", name))
		case slices.Contains(flags, name) && json.Unmarshal(entry[name], new(bool)) == nil && string(entry[name]) != "null":
			w.Attributes[name] = string(entry[name])
		case json.Unmarshal(entry[name], &value) != nil:
			faults = append(faults, fmt.Errorf("field %q is not a string", name))
		case name == "id":
			w.ID = value
		case value != "":
			w.Attributes[name] = value
		}
	}
	if !ValidWorkspaceID(w.ID) {
		faults = append(faults, errors.New("the id is not 1 to 128 characters of A-Z a-z 0-9 . _ -"))
	}
	switch target := w.Attributes["remote_target"]; target {
	case "", "container", "host":
	default:
		faults = append(faults, fmt.Errorf("remote_target is %.100q, want container or host", target))
	}
	return w, faults
}
