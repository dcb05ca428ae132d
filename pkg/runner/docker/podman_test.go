package docker

import (
	"testing"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// TestPodman opens terminals by Podman's Docker-compatible API.
func TestPodman(t *testing.T) {
	t.Parallel()
	engine := testenv.StartPodman(t)
	k := testKind(engine.Client(t), Config{Shells: []string{"/bin/bash"}})
	target := shelltest.NewTarget(t, engine.RunContainer(t, "works"))
	s := shelltest.Open(t, shelltest.By(k), target)
	s.Send(t, "exit 7\n")
	if got, want := s.Exit(t), (terminal.Exit{Code: 7}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	shelltest.WantLiving(t, target.Session)
}
