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
	"slices"
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

// workspaceImage is the name of the image in every engine of this package.
const workspaceImage = "termgw-test-workspace"

// Docker is an engine with its own data, containerd namespace and socket, and without a network. Stop ends its
// containers too, and Start does not start them again.
type Docker struct {
	// Host is the address for DOCKER_HOST: unix:///….
	Host string
	// Image is the workspace image: a small Debian or Ubuntu with bash, ps and vi.
	Image string

	service
}

// StartDocker starts an engine for this test. When the test ends, the engine is stopped and removed.
func StartDocker(tb testing.TB) *Docker {
	tb.Helper()
	return startEngine(tb, newDocker)
}

func startEngine(tb testing.TB, start func() (*Docker, error)) *Docker {
	tb.Helper()
	d, err := start()
	check(tb, err)
	tb.Cleanup(func() {
		if err := d.remove(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

// Client returns a client of the engine. When the test ends, the client is closed.
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

// RunContainer starts a container that sleeps, and returns its id. When the test ends, the container is removed. A name
// has two characters or more; for an empty name Docker chooses one. PID 1 is `sleep infinity`, which reaps no children.
func (d *Docker) RunContainer(tb testing.TB, name string) string {
	tb.Helper()
	return d.RunContainerWith(tb, name, func(*client.ContainerCreateOptions) {})
}

// RunContainerWith is RunContainer with options that configure has changed: another user, say.
func (d *Docker) RunContainerWith(tb testing.TB, name string, configure func(*client.ContainerCreateOptions)) string {
	tb.Helper()
	cli := d.Client(tb)
	options := client.ContainerCreateOptions{
		Name: name,
		Config: &container.Config{
			Image:           d.Image,
			Cmd:             []string{"sleep", "infinity"},
			NetworkDisabled: true,
			// PID 1 gets no SIGTERM without a handler for it: every stop would take 10 s.
			StopSignal: "SIGKILL",
		},
		HostConfig: &container.HostConfig{
			NetworkMode: "none",
			Resources:   container.Resources{CgroupParent: sandbox.Cgroup()}, // which Podman has no setting for
			// Compiling the seccomp profile takes a fifth of every exec's time.
			SecurityOpt: []string{"seccomp=unconfined"},
		},
	}
	configure(&options)
	created, err := cli.ContainerCreate(tb.Context(), options)
	if err != nil {
		tb.Fatalf("creating the container %q: %v", name, err)
	}
	tb.Cleanup(func() {
		err := d.whileUp(func() error { // a stopped engine's containers are removed with its data
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
	waitForFirstProcess(tb, cli, created.ID)
	return created.ID
}

// waitForFirstProcess waits until a container's first process is its own program: for some milliseconds after its start
// it is still runc, which catches signals that the program does not.
func waitForFirstProcess(tb testing.TB, cli *client.Client, containerID string) {
	tb.Helper()
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(pollInterval) {
		inspected, err := cli.ContainerInspect(tb.Context(), containerID, client.ContainerInspectOptions{})
		if err != nil {
			tb.Fatalf("looking at the container %s: %v", containerID, err)
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", inspected.Container.State.Pid)) // of no process: it has ended
		if err != nil || !strings.HasPrefix(string(name), "runc:") {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("the first process of the container %s was still runc after %s", containerID, stopTimeout)
		}
	}
}

// Pause pauses a container, and tries again if the engine gives up because a process does not freeze at once.
func (d *Docker) Pause(tb testing.TB, containerID string) {
	tb.Helper()
	cli := d.Client(tb)
	var err error
	for range 100 {
		_, err = cli.ContainerPause(tb.Context(), containerID, client.ContainerPauseOptions{})
		if err == nil {
			return
		}
		// As Docker and Podman say it. Podman leaves out runc's reason.
		if !strings.Contains(err.Error(), "unable to freeze") && !strings.Contains(err.Error(), "runc pause") {
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

// Exec runs a command in a container, without a terminal, and returns its stdout. If the exit status is not 0, the test
// fails.
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

func newDocker() (*Docker, error) {
	dockerd, err := lookPath("dockerd")
	if err != nil {
		return nil, missingError("needs a Docker engine: apt-get install docker.io debootstrap")
	}
	return newEngine(func(dir, host string) ([]string, []string, error) {
		// An empty configuration, so that the machine's own does not apply.
		config := filepath.Join(dir, "daemon.json")
		if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
			return nil, nil, fmt.Errorf("writing the engine's configuration: %w", err)
		}
		// dockerd uses a containerd that it finds in /run, also another test's: a namespace keeps the engines apart.
		namespace := filepath.Base(dir)
		return []string{
			dockerd, "--config-file=" + config, "--host=" + host,
			"--data-root=" + filepath.Join(dir, "data"),
			"--exec-root=" + filepath.Join(dir, "exec"),
			"--pidfile=" + filepath.Join(dir, "dockerd.pid"),
			"--containerd-namespace=" + namespace,
			"--containerd-plugins-namespace=" + namespace + "-plugins",
			// The systemd driver would use the machine's systemd.
			"--exec-opt=native.cgroupdriver=cgroupfs", "--cgroup-parent=" + sandbox.Cgroup(),
			// Containers have no network. With "none", dockerd deletes an interface docker0, which the sandbox does not have.
			"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
		}, nil, nil
	})
}

// newEngine starts an engine that has the workspace image. configure returns the engine's command line and what its
// environment has besides, for the engine's directory and address.
func newEngine(configure func(dir, host string) (argv, env []string, err error)) (_ *Docker, err error) {
	if err := unavailable("an engine"); err != nil {
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
	host := "unix://" + filepath.Join(dir.path, "docker.sock")
	argv, env, err := configure(dir.path, host)
	if err != nil {
		return nil, err
	}
	d := &Docker{
		Host:  host,
		Image: workspaceImage,
		service: service{daemon: daemon{
			argv: argv,
			// Engines search PATH for containerd, conmon and runc. The last of two settings of a variable counts.
			env:        slices.Concat(os.Environ(), []string{"PATH=" + os.Getenv("PATH") + string(os.PathListSeparator) + sbin}, env),
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
	return d.withClient(func(cli *client.Client) error {
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
	return d.withClient(func(cli *client.Client) error {
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

// withClient calls f with a new client, and closes the client, so that no idle connection is left.
func (d *Docker) withClient(f func(*client.Client) error) error {
	cli, err := client.New(client.WithHost(d.Host))
	if err != nil {
		return fmt.Errorf("making a Docker client: %w", err)
	}
	return errors.Join(f(cli), cli.Close())
}

// MakeWorkspaceImage makes the root file system of the engines' image, unless this machine has it. Only a test whose
// engine runs in a sandbox within a sandbox calls it: the inner sandbox cannot reach a package mirror.
func MakeWorkspaceImage(tb testing.TB) {
	tb.Helper()
	check(tb, unavailable("an engine"))
	_, err := workspaceRootfs()
	check(tb, err)
}

// workspaceRootfs returns the path of the image's root file system. The first caller on a machine makes it.
func workspaceRootfs() (string, error) {
	return debootstrapped("workspace-image", "the workspace image")
}

// debootstrapped runs a script that makes files by debootstrap unless they exist, and returns the printed path.
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

// moduleRoot returns the nearest directory above with a go.mod: tests run in their package's directory.
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
