package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// Container is a running container, by its name.
type Container struct{ Name, Image string }

// Containers lists what runs, in the order of names.
func (k *Kind) Containers(ctx context.Context) ([]Container, error) {
	running, err := k.cli.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, failed("docker", fmt.Errorf("listing containers: %w", err))
	}
	var list []Container
	for _, c := range running.Items {
		// A name with a second slash is another container's link to this one.
		for _, name := range c.Names {
			if name = strings.TrimPrefix(name, "/"); runner.ContainerName.MatchString(name) {
				list = append(list, Container{name, c.Image})
				break
			}
		}
	}
	slices.SortFunc(list, func(a, b Container) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// findContainer returns the id of the first candidate that runs.
func (k *Kind) findContainer(ctx context.Context, t runner.Target) (string, error) {
	id, err := k.findCandidate(ctx, t)
	return id, t.ExplainName(err)
}

func (k *Kind) findCandidate(ctx context.Context, t runner.Target) (string, error) {
	var seen []string
	for _, name := range t.ContainerNames() {
		found, err := k.cli.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
		switch {
		case errdefs.IsNotFound(err):
			continue
		case err != nil:
			return "", failed("docker", fmt.Errorf("inspecting container %s: %w", name, err))
		}
		c := found.Container
		// The engine also finds a container by the start of its id, which is
		// not how workspaces are named: a workspace called "f2" has no right
		// to the container whose id starts so. A row's `container` may hold a
		// whole id.
		if c.Name != "/"+name && (name != t.Attributes["container"] || c.ID != name) {
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
		return "", runner.NotRunning(strings.Join(seen, ", "))
	}
	return "", runner.NotRunning("looked for " + strings.Join(t.ContainerNames(), ", "))
}

// ended reports whether the engine says that a container does not run.
func (k *Kind) ended(ctx context.Context, id string) bool {
	c, err := k.cli.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	return errdefs.IsNotFound(err) || err == nil && c.Container.State != nil && !c.Container.State.Running
}
