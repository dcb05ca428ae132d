package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// podmanConfig replaces the machine's configuration of Podman. crun does not start containers on a machine with control
// groups of both versions; dockerd brings runc. A machine has one set of locks in shared memory, for all engines.
const podmanConfig = `[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
`

// StartPodman starts Podman's Docker-compatible API for this test, with its own data and socket, and without a network.
// When the test ends, the engine is stopped and removed. Unlike Docker's, its containers run on when it is stopped.
func StartPodman(tb testing.TB) *Docker {
	tb.Helper()
	return startEngine(tb, newPodman)
}

func newPodman() (*Docker, error) {
	podman, err := lookPath("podman")
	if err != nil {
		return nil, missingError("needs Podman: apt-get install podman runc debootstrap")
	}
	d, err := newEngine(func(dir, host string) ([]string, []string, error) {
		config := filepath.Join(dir, "containers.conf")
		if err := os.WriteFile(config, []byte(podmanConfig), 0o600); err != nil {
			return nil, nil, fmt.Errorf("writing the engine's configuration: %w", err)
		}
		return []string{
			podman,
			"--root=" + filepath.Join(dir, "data"), "--runroot=" + filepath.Join(dir, "run"), "--tmpdir=" + filepath.Join(dir, "tmp"),
			"--network-config-dir=" + filepath.Join(dir, "net"), "--storage-driver=overlay",
			"system", "service", "--time=0", host,
		}, []string{"CONTAINERS_CONF=" + config, "TMPDIR=" + dir}, nil // an imported image stays in TMPDIR
	})
	if err != nil {
		return nil, err
	}
	d.outlived = true // by conmon, which waits for containers and execs, and for 5 minutes after an exec's end
	return d, nil
}

// PodmanCommand returns the start of a line of sh, as root, that runs a podman command on the containers of an engine that
// StartPodman has started.
func (d *Docker) PodmanCommand() string {
	dir := d.daemon.dir.path
	return fmt.Sprintf("CONTAINERS_CONF=%[1]s/containers.conf exec podman --root=%[1]s/data --runroot=%[1]s/run --tmpdir=%[1]s/tmp "+
		"--network-config-dir=%[1]s/net --storage-driver=overlay", dir)
}
