package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/sandbox"
)

// workspaceImage is the name of the image that every engine of this package has.
const workspaceImage = "termgw-test-workspace"

// Docker is an engine that nobody else uses: its own data, containerd namespace and socket, and no network. Stopped, its
// containers are, too, and Start does not start them.
type Docker struct {
	// Host is what DOCKER_HOST takes: unix:///….
	Host string
	// Image is the workspace image: a small Debian or Ubuntu with bash, ps and vi.
	Image string

	service
}

// StartDocker starts an engine for this test; it is stopped and removed when the test ends.
func StartDocker(tb testing.TB) *Docker {
	tb.Helper()
	d, err := newDocker()
	check(tb, err)
	tb.Cleanup(func() {
		if err := d.remove(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

// Client returns a client of the engine, closed when the test ends.
func (d *Docker) Client(tb testing.TB) *client.Client {
	tb.Helper()
	cli, err := client.New(client.WithHost(d.Host))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := cli.Close(); err != nil {
			tb.Error(err)
		}
	})
	return cli
}

// RunContainer starts a container that sleeps until the test ends, when it is removed, and returns its id. Docker
// takes names of two characters or more; an empty one lets it choose. PID 1 is `sleep infinity`, which reaps nobody.
func (d *Docker) RunContainer(tb testing.TB, name string) string {
	tb.Helper()
	return d.RunContainerWith(tb, name, func(*client.ContainerCreateOptions) {})
}

// RunContainerWith is RunContainer of a container that configure has changed: one that runs as another user, say.
func (d *Docker) RunContainerWith(tb testing.TB, name string, configure func(*client.ContainerCreateOptions)) string {
	tb.Helper()
	cli := d.Client(tb)
	options := client.ContainerCreateOptions{
		Name: name,
		Config: &container.Config{
			Image:           d.Image,
			Cmd:             []string{"sleep", "infinity"},
			NetworkDisabled: true,
			// PID 1 does not hear a SIGTERM that it has no handler for: every stop would take 10 s.
			StopSignal: "SIGKILL",
		},
		HostConfig: &container.HostConfig{
			NetworkMode: "none",
			// To compile the profile takes a fifth of every exec's time.
			SecurityOpt: []string{"seccomp=unconfined"},
		},
	}
	configure(&options)
	created, err := cli.ContainerCreate(tb.Context(), options)
	if err != nil {
		tb.Fatalf("creating the container %q: %v", name, err)
	}
	tb.Cleanup(func() {
		err := d.whileUp(func() error { // a container of a stopped engine goes with its data
			_, err := cli.ContainerRemove(context.Background(), created.ID, client.ContainerRemoveOptions{Force: true})
			return err
		})
		if err != nil && !errdefs.IsNotFound(err) { // the test may have removed it
			tb.Errorf("removing the container %q: %v", name, err)
		}
	})
	if _, err := cli.ContainerStart(tb.Context(), created.ID, client.ContainerStartOptions{}); err != nil {
		tb.Fatalf("starting the container %q: %v", name, err)
	}
	return created.ID
}

// Pause pauses a container. The engine gives up when a process of it does not freeze at once, as on a busy machine.
func (d *Docker) Pause(tb testing.TB, containerID string) {
	tb.Helper()
	cli := d.Client(tb)
	var err error
	for range 100 {
		_, err = cli.ContainerPause(tb.Context(), containerID, client.ContainerPauseOptions{})
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "unable to freeze") {
			break
		}
		time.Sleep(pollInterval)
	}
	tb.Fatalf("pausing a container: %v", err)
}

// Unpause lets a paused container run on.
func (d *Docker) Unpause(tb testing.TB, containerID string) {
	tb.Helper()
	if _, err := d.Client(tb).ContainerUnpause(tb.Context(), containerID, client.ContainerUnpauseOptions{}); err != nil {
		tb.Fatalf("letting a container run on: %v", err)
	}
}

// Exec runs a command in a container, without a terminal, and returns what it printed. An exit status other than 0
// fails the test.
func (d *Docker) Exec(tb testing.TB, containerID string, argv ...string) string {
	tb.Helper()
	cli := d.Client(tb)
	created, err := cli.ExecCreate(tb.Context(), containerID, client.ExecCreateOptions{
		Cmd: argv, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		tb.Fatalf("running %q: %v", argv, err)
	}
	stream, err := cli.ExecAttach(tb.Context(), created.ID, client.ExecAttachOptions{})
	if err != nil {
		tb.Fatalf("running %q: %v", argv, err)
	}
	defer stream.Close()
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, stream.Reader); err != nil {
		tb.Fatalf("running %q: %v", argv, err)
	}
	result, err := cli.ExecInspect(tb.Context(), created.ID, client.ExecInspectOptions{})
	if err != nil {
		tb.Fatalf("running %q: %v", argv, err)
	}
	if result.ExitCode != 0 {
		tb.Fatalf("running %q: exit status %d: %s%s", argv, result.ExitCode, &stdout, &stderr)
	}
	return stdout.String()
}

func newDocker() (_ *Docker, err error) {
	dockerd, err := lookPath("dockerd")
	if err != nil {
		return nil, missingError("needs a Docker engine: apt-get install docker.io debootstrap")
	}
	if err := own("a Docker engine"); err != nil {
		return nil, err
	}
	rootfs, err := workspaceRootfs()
	if err != nil {
		return nil, err
	}
	dir, err := newDir()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.remove())
		}
	}()

	// An empty configuration, so that the machine's own does not apply.
	config := filepath.Join(dir.path, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		return nil, fmt.Errorf("writing the engine's configuration: %w", err)
	}
	host := "unix://" + filepath.Join(dir.path, "docker.sock")
	// A dockerd that finds a containerd in /run, another test's, uses that one: a namespace keeps them apart.
	namespace := filepath.Base(dir.path)
	d := &Docker{
		Host:  host,
		Image: workspaceImage,
		service: service{daemon: daemon{
			argv: []string{
				dockerd, "--config-file=" + config, "--host=" + host,
				"--data-root=" + filepath.Join(dir.path, "data"),
				"--exec-root=" + filepath.Join(dir.path, "exec"),
				"--pidfile=" + filepath.Join(dir.path, "dockerd.pid"),
				"--containerd-namespace=" + namespace,
				"--containerd-plugins-namespace=" + namespace + "-plugins",
				// Not by way of systemd, which would be the machine's.
				"--exec-opt=native.cgroupdriver=cgroupfs", "--cgroup-parent=" + sandbox.Cgroup(),
				// Containers have no network. With "none", dockerd deletes an interface called docker0: the sandbox has none.
				"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
			},
			// The last of two settings of a variable counts; dockerd looks for containerd and runc in PATH.
			env:        append(os.Environ(), "PATH="+os.Getenv("PATH")+string(os.PathListSeparator)+sbin),
			stopSignal: syscall.SIGTERM,
			dir:        dir,
		}},
	}
	d.ping = d.answers
	if err := d.start(); err != nil {
		return nil, err
	}
	if err := d.importImage(rootfs); err != nil {
		return nil, errors.Join(err, d.daemon.stop())
	}
	return d, nil
}

func (d *Docker) answers(ctx context.Context) error {
	return d.with(func(cli *client.Client) error {
		_, err := cli.Ping(ctx, client.PingOptions{})
		return err
	})
}

func (d *Docker) importImage(rootfs string) error {
	f, err := os.Open(rootfs)
	if err != nil {
		return fmt.Errorf("importing the workspace image: %w", err)
	}
	defer f.Close()
	return d.with(func(cli *client.Client) error {
		progress, err := cli.ImageImport(context.Background(),
			client.ImageImportSource{Source: f, SourceName: "-"}, d.Image, client.ImageImportOptions{})
		if err != nil {
			return fmt.Errorf("importing the workspace image: %w", err)
		}
		_, err = io.Copy(io.Discard, progress)
		if err := errors.Join(err, progress.Close()); err != nil {
			return fmt.Errorf("importing the workspace image: %w", err)
		}
		return nil
	})
}

// with calls f with a client of its own, which leaves no idle connection behind.
func (d *Docker) with(f func(*client.Client) error) error {
	cli, err := client.New(client.WithHost(d.Host))
	if err != nil {
		return fmt.Errorf("making a Docker client: %w", err)
	}
	return errors.Join(f(cli), cli.Close())
}

// MakeWorkspaceImage makes the root file system of the engines' image, unless an earlier caller on this machine has made
// it. Only a test whose engine runs in a sandbox of a sandbox calls it: the inner sandbox has no way to a package mirror.
func MakeWorkspaceImage(tb testing.TB) {
	tb.Helper()
	check(tb, own("an engine"))
	_, err := workspaceRootfs()
	check(tb, err)
}

// workspaceRootfs returns the image's root file system, which the first caller on a machine makes.
func workspaceRootfs() (string, error) {
	return debootstrapped("workspace-image", "the workspace image")
}

// debootstrapped runs a script that makes something by debootstrap unless it is there, and returns the path that it prints.
func debootstrapped(script, what string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cmd := sandbox.Outside(exec.Command(filepath.Join(root, "scripts", script)))
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+string(os.PathListSeparator)+sbin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if _, lookErr := lookPath("debootstrap"); lookErr != nil {
			return "", missingError("needs debootstrap for " + what + ": apt-get install debootstrap")
		}
		return "", fmt.Errorf("making %s: %w\n%s", what, err, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
}

// moduleRoot is the nearest directory above with a go.mod: tests run in their package's directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("finding the repository: no go.mod above the working directory")
}
