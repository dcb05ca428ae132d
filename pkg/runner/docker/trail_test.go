package docker

import (
	"maps"
	"testing"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// A session's trail has the ids by which the engine's events name its container and its exec.
func TestTrail(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	container := engine.RunContainer(t, "")
	d := testKind(engine.Client(t), Config{KeepDetached: true, Shells: []string{"/bin/sh"}})
	target := shelltest.NewTarget(t, container)
	target.Trail = runner.Trail{}
	term, err := d.Start(t.Context(), target, shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	s := shelltest.Start(t, term)
	want := runner.Trail{"container": container, "exec": term.(*execTerminal).exec, "engine": engine.Host}
	if !maps.Equal(target.Trail, want) || len(container) != 64 {
		t.Errorf("got %v, want %v", target.Trail, want)
	}
	s.End(t)
}
