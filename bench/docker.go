package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// docker is the engine of a run, and a workspace in it.
type docker struct {
	socket    string
	api       *http.Client
	container string // the workspace's name
	own       bool   // this run has started the engine
	stops     []func() error
}

// docker returns the run's engine: the one that answers at DOCKER_HOST, or else one
// that it starts. DOCKER_HOST names the engine from then on. Without an error, nil
// means that there can be no engine, as a note says.
func (b *bench) docker(ctx context.Context) (*docker, error) {
	if b.engine != nil || b.noEngine {
		return b.engine, nil
	}
	d, err := newDocker(ctx, b.dir)
	var why missing
	switch {
	case errors.As(err, &why):
		b.report.note("no containers: %s", why)
		b.noEngine = true
		return nil, nil
	case err != nil:
		return nil, err
	}
	b.engine = d
	return d, nil
}

func newDocker(ctx context.Context, dir string) (_ *docker, err error) {
	if _, err := exec.LookPath("docker"); err != nil {
		return nil, missing("needs docker in PATH")
	}
	host := os.Getenv("DOCKER_HOST")
	if host == "" {
		host = "unix:///var/run/docker.sock"
	}
	socket, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return nil, missing("DOCKER_HOST must begin with unix://")
	}
	d := &docker{socket: socket, container: fmt.Sprint("tgwbench-", os.Getpid())}
	d.api = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.socket)
		},
		MaxIdleConnsPerHost: atOnce,
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
		}
	}()
	if d.call(ctx, http.MethodGet, "/_ping", nil, nil) != nil {
		if err := d.start(ctx, dir); err != nil {
			return nil, err
		}
	}
	// For the docker command, and for the gateways that start from here on.
	if err := os.Setenv("DOCKER_HOST", "unix://"+d.socket); err != nil {
		return nil, err
	}
	if err := d.run(ctx); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	_, err = output(ctx, "docker", "cp", self, d.container+":"+streamer)
	return d, err
}

// streamer is the path of this program in the workspace.
const streamer = "/termgw-bench"

// engineScript runs an engine in a sandbox: its data are in the sandbox's /run, in
// memory. Containers have no network. Outside of a sandbox, dockerd --bridge=none
// would delete the machine's interface docker0.
const engineScript = `[ "$TERMGW_SANDBOX" = inside ] || { echo "no sandbox can be made" >&2; exit 1; }
mkdir /run/engine && cd /run/engine && echo '{}' >daemon.json && PATH=$PATH:/usr/sbin:/sbin && exec dockerd --host="unix://$1" \
	--config-file=/run/engine/daemon.json --data-root=/run/engine/data --exec-root=/run/engine/exec --pidfile=/run/engine/dockerd.pid \
	--exec-opt=native.cgroupdriver=cgroupfs --cgroup-parent="/$TERMGW_SANDBOX_CGROUP" \
	--bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false`

// start starts an engine that ends with this process.
func (d *docker) start(ctx context.Context, dir string) error {
	const need = "no engine answers at DOCKER_HOST, and to start one needs "
	if os.Geteuid() != 0 {
		return missing(need + "root")
	}
	for _, name := range []string{"dockerd", "/usr/sbin/dockerd"} {
		if _, err := exec.LookPath(name); err == nil {
			d.own = true
		}
	}
	if !d.own {
		return missing(need + "dockerd")
	}
	d.socket = filepath.Join(dir, "docker.sock")
	s, err := launch(ctx, exec.Command(filepath.Join("..", "scripts", "sandbox"), "/bin/sh", "-c", engineScript, "engine", d.socket), dir, "dockerd")
	if err != nil {
		return err
	}
	d.stops = append(d.stops, func() error {
		_ = s.cmd.Process.Signal(unix.SIGTERM) // the sandbox ends, with all processes in it
		_ = s.cmd.Wait()                       // killed
		return nil
	})
	for deadline := time.Now().Add(2 * patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = d.call(ctx, http.MethodGet, "/_ping", nil, nil); err == nil {
			return nil
		}
	}
	return fmt.Errorf("starting an engine: %w\n%s", err, s.tail())
}

func (d *docker) stop() error {
	d.api.CloseIdleConnections()
	var errs []error
	for i := len(d.stops); i > 0; i-- {
		errs = append(errs, d.stops[i-1]())
	}
	d.stops = nil
	return errors.Join(errs...)
}

// call makes a request of the engine's API. The answer is decoded from JSON; nil
// takes any.
func (d *docker) call(ctx context.Context, method, path string, body, answer any) error {
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = strings.NewReader(string(b))
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, payload)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := d.api.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode >= http.StatusBadRequest:
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, strings.TrimSpace(string(b)))
	case answer == nil:
		return nil
	default:
		return json.Unmarshal(b, answer)
	}
}

// execs counts the execs that run in the workspace, as the engine says.
func (d *docker) execs(ctx context.Context) (int, error) {
	var container struct{ ExecIDs []string }
	err := d.call(ctx, http.MethodGet, "/containers/"+d.container+"/json", nil, &container)
	return len(container.ExecIDs), err
}

// settle waits until the engine has ended every exec of the workspace.
func (d *docker) settle(ctx context.Context) error {
	for deadline := time.Now().Add(3 * patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if n, err := d.execs(ctx); err != nil || n == 0 {
			return err
		}
	}
	return errRunOn
}

var errRunOn = errors.New("execs run on in the container")

// restart ends what runs in the workspace.
func (d *docker) restart(ctx context.Context) error {
	return d.call(ctx, http.MethodPost, "/containers/"+d.container+"/restart?t=0", nil, nil)
}

// exec runs a program in the workspace that ends at once.
func (d *docker) exec(ctx context.Context, argv ...string) error {
	var created struct{ ID string }
	err := d.call(ctx, http.MethodPost, "/containers/"+d.container+"/exec", map[string]any{"Cmd": argv, "AttachStdout": true, "AttachStderr": true}, &created)
	if err != nil {
		return err
	}
	return d.call(ctx, http.MethodPost, "/exec/"+created.ID+"/start", struct{}{}, nil)
}

// run starts the workspace. It goes with the engine, if that is the run's own.
func (d *docker) run(ctx context.Context) error {
	rootfs, err := output(ctx, filepath.Join("..", "scripts", "workspace-image"))
	if err != nil {
		return err
	}
	image, err := output(ctx, "docker", "import", rootfs)
	if err != nil {
		return err
	}
	if !d.own {
		d.stops = append(d.stops, func() error {
			ctx := context.WithoutCancel(ctx)
			_, err1 := output(ctx, "docker", "rm", "-f", d.container)
			_, err2 := output(ctx, "docker", "rmi", image)
			return errors.Join(err1, err2)
		})
	}
	_, err = output(ctx, "docker", "run", "-d", "--network", "none", "--name", d.container, image, "sleep", "infinity")
	return err
}
