package runner

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// containerName is what the engine takes as a name. A name from a row that is
// anything else never reaches the engine, where it would be part of a path.
var containerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// generatedPrefix begins the names of containers that are made of workspaces' ids. An id may be any word, so any name that
// begins so may be another workspace's, and a workspace's own name, which is its owner's choice, must not lead there.
const generatedPrefix = "ws-"

// candidates are the names that a workspace's container may have, in order.
func candidates(t Target) []string {
	names := []string{t.Container}
	if t.WorkspaceID != "" {
		names = append(names, generatedPrefix+t.WorkspaceID[:min(12, len(t.WorkspaceID))], generatedPrefix+t.WorkspaceID)
	}
	if name := chosenName(t); !strings.HasPrefix(name, generatedPrefix) {
		names = append(names, name)
	}
	var valid []string
	for _, name := range names {
		if containerName.MatchString(name) && !slices.Contains(valid, name) { // a short id is its own start
			valid = append(valid, name)
		}
	}
	return valid
}

// chosenName is the container's name that a workspace's own name makes.
func chosenName(t Target) string { return strings.ReplaceAll(strings.ToLower(t.Name), " ", "-") }

// explainName adds to an ErrNotRunning that the workspace's name was not looked for, if that is so because of what it begins
// with.
func explainName(t Target, err error) error {
	name := chosenName(t)
	if !errors.Is(err, ErrNotRunning) || !strings.HasPrefix(name, generatedPrefix) || slices.Contains(candidates(t), name) {
		return err
	}
	return &spoken{
		fmt.Errorf("%w; the workspace's name was not looked for, because it begins with %s", err, generatedPrefix),
		"The workspace's container is not running. Its name is not used to find one, because it begins with \"" + generatedPrefix +
			"\" and could be made of another workspace's id: rename the workspace, or let the workspace query return container.",
	}
}

// Container is a running container, by its name.
type Container struct{ Name, Image string }

// Containers lists what runs, in the order of names.
func (d *Docker) Containers(ctx context.Context) ([]Container, error) {
	running, err := d.cli.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, &Error{"docker", fmt.Errorf("listing containers: %w", err)}
	}
	var list []Container
	for _, c := range running.Items {
		// A name with a second slash is another container's link to this one.
		for _, name := range c.Names {
			if name = strings.TrimPrefix(name, "/"); containerName.MatchString(name) {
				list = append(list, Container{name, c.Image})
				break
			}
		}
	}
	slices.SortFunc(list, func(a, b Container) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// findContainer returns the id of the first candidate that runs.
func (d *Docker) findContainer(ctx context.Context, t Target) (string, error) {
	id, err := d.findCandidate(ctx, t)
	return id, explainName(t, err)
}

func (d *Docker) findCandidate(ctx context.Context, t Target) (string, error) {
	var seen []string
	for _, name := range candidates(t) {
		found, err := d.cli.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
		switch {
		case errdefs.IsNotFound(err):
			continue
		case err != nil:
			return "", &Error{"docker", fmt.Errorf("inspecting container %s: %w", name, err)}
		}
		c := found.Container
		// The engine also finds a container by the start of its id, which is
		// not how workspaces are named: a workspace called "f2" has no right
		// to the container whose id starts so. A row's `container` may hold a
		// whole id.
		if c.Name != "/"+name && (name != t.Container || c.ID != name) {
			continue
		}
		switch {
		case c.State != nil && c.State.Paused: // which the engine counts as running, and runs nothing in
			seen = append(seen, name+" is paused")
		case c.State != nil && c.State.Running:
			return c.ID, nil
		default:
			seen = append(seen, name+" is stopped")
		}
	}
	if len(seen) > 0 {
		return "", fmt.Errorf("%w: %s", ErrNotRunning, strings.Join(seen, ", "))
	}
	return "", fmt.Errorf("%w: looked for %s", ErrNotRunning, strings.Join(candidates(t), ", "))
}
