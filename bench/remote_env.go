package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// remoteInstances is how many instances are played: sshds of this machine.
const remoteInstances = 10

// awsAddress is where AWS is played: port 443, to which the AWS CLI always
// connects, of a loopback address that nothing else has.
const awsAddress = "127.77.0.1:443"

// remoteEnv is what remote terminals need: sshds, a played AWS, and for
// containers a Docker engine that runs on this machine.
type remoteEnv struct {
	dir, termgw string
	user        string // the account
	sshds       []string
	hosts       string // a file like /etc/hosts that leads AWS's names to the played one
	ca          string
	endpoint    string // its name
	credentials []string
	key         string  // a ticket's
	docker      *docker // nil: no containers
	container   string  // empty: no containers
	awsPath     string  // a directory with an `aws`; empty: none
	stops       []func() error
}

// missing says why remote terminals cannot be measured here.
type missing string

func (m missing) Error() string { return string(m) }

func newRemoteEnv(ctx context.Context, dir, termgw string, d *docker) (_ *remoteEnv, err error) {
	if os.Geteuid() != 0 {
		return nil, missing("only root starts an sshd with an account of its own")
	}
	for _, name := range []string{"sshd", "ssh", "ssh-keygen", "curl", "useradd", "unshare", "go"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, missing(fmt.Sprintf("needs %s in PATH", name))
		}
	}
	e := &remoteEnv{dir: dir, termgw: termgw, docker: d}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.stop())
		}
	}()
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // the account passes through to its home
		return nil, err
	}
	for _, step := range []func(context.Context) error{e.addAccount, e.findContainer, e.findCLI, e.startInstances, e.makeKey} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (e *remoteEnv) path(name string) string { return filepath.Join(e.dir, name) }

func (e *remoteEnv) stop() error {
	var errs []error
	for i := len(e.stops); i > 0; i-- {
		errs = append(errs, e.stops[i-1]())
	}
	e.stops = nil
	return errors.Join(errs...)
}

// output runs a program and returns what it prints.
func output(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = new(strings.Builder)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, cmd.Stderr)
	}
	return strings.TrimSpace(string(out)), nil
}

func (e *remoteEnv) addAccount(ctx context.Context) error {
	e.user = "tgwbench-" + strconv.Itoa(os.Getpid())
	// "*" is a password that nothing matches; an account without one is locked.
	_, err := output(ctx, "useradd", "--create-home", "--skel", "/var/empty/none", "--home-dir", e.path("home"), "--shell", "/bin/bash", "--password", "*", e.user)
	if err != nil {
		return err
	}
	e.stops = append(e.stops, func() error {
		_, err := output(context.WithoutCancel(ctx), "userdel", "--force", e.user)
		return err
	})
	return nil
}

// findContainer takes the run's workspace, if there is one.
func (e *remoteEnv) findContainer(context.Context) error {
	if e.docker == nil {
		return nil
	}
	if e.docker.own {
		account, err := user.Lookup(e.user)
		if err != nil {
			return err
		}
		uid, err := strconv.Atoi(account.Uid)
		if err != nil {
			return err
		}
		if err := os.Chown(e.docker.socket, uid, -1); err != nil {
			return err
		}
	}
	e.container = e.docker.container
	// A terminal starts with an environment of its own.
	script := "#!/bin/sh\nDOCKER_HOST='" + os.Getenv("DOCKER_HOST") + "' exec docker exec -it " + e.container + " /bin/bash\n"
	return os.WriteFile(e.path("docker-exec"), []byte(script), 0o700) //nolint:gosec // it is a program
}

var cliVersion = regexp.MustCompile(`^aws-cli/2\.(1[2-9]|[2-9][0-9])\.`)

// findCLI takes an AWS CLI that has open-tunnel: the one on PATH, else the one of
// the tests.
func (e *remoteEnv) findCLI(ctx context.Context) error {
	if path, err := exec.LookPath("aws"); err == nil {
		if version, err := output(ctx, path, "--version"); err == nil && cliVersion.MatchString(version) {
			e.awsPath = filepath.Dir(path)
			return nil
		}
	}
	var err error
	e.awsPath, err = output(ctx, filepath.Join("..", "scripts", "aws-cli"))
	return err
}

func instanceID(n int) string { return fmt.Sprintf("i-%017x", n+1) }

// startInstances starts the sshds and the AWS that leads to them, which know of
// each other.
func (e *remoteEnv) startInstances(ctx context.Context) error {
	if _, err := output(ctx, "go", "build", "-C", "..", "-o", e.path("awsplay"), "./internal/awsplay/cmd/awsplay"); err != nil {
		return err
	}
	for _, name := range []string{"hostkey", "id"} {
		if _, err := output(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", e.path(name)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { //nolint:gosec // as the package makes it
		return err
	}
	keys, err := freeAddress()
	if err != nil {
		return err
	}
	args := []string{"-listen", awsAddress, "-keys", keys, "-ca", e.path("ca.pem")}
	for n := range remoteInstances {
		address, err := e.startSSHD(ctx, n, keys)
		if err != nil {
			return err
		}
		e.sshds = append(e.sshds, address)
		args = append(args, "-instance", fmt.Sprintf("%s=10.0.0.%d=%s", instanceID(n), n+1, address))
	}
	return e.startAWS(ctx, args)
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (e *remoteEnv) startSSHD(ctx context.Context, n int, keys string) (string, error) {
	address, err := freeAddress()
	if err != nil {
		return "", err
	}
	_, port, _ := strings.Cut(address, ":")
	config := fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %s\nPidFile none\nUsePAM no\nUseDNS no\nStrictModes no\nPrintMotd no\nPrintLastLog no\n"+
		"MaxStartups 1000\nAuthorizedKeysFile %s\nAuthorizedKeysCommand /usr/bin/curl -sf http://%s/%s/%%u\nAuthorizedKeysCommandUser root\nSetEnv DOCKER_HOST=%s\n",
		port, e.path("hostkey"), e.path("id.pub"), keys, instanceID(n), os.Getenv("DOCKER_HOST"))
	file := e.path("sshd-" + strconv.Itoa(n))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return "", err
	}
	path, err := exec.LookPath("sshd")
	if err != nil {
		return "", err
	}
	_, err = e.start(ctx, exec.Command(path, "-D", "-e", "-f", file), "sshd")
	return address, err
}

// start starts a program that runs as long as the environment.
func (e *remoteEnv) start(ctx context.Context, cmd *exec.Cmd, name string) (*server, error) {
	s, err := launch(ctx, cmd, e.dir, name)
	if err == nil {
		e.stops = append(e.stops, func() error {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
			return nil
		})
	}
	return s, err
}

var (
	toldName = regexp.MustCompile(`/etc/hosts: \S+ (\S+)`)
	toldKeys = regexp.MustCompile(`(AWS_ACCESS_KEY_ID=\S+) (AWS_SECRET_ACCESS_KEY=\S+)`)
)

// startAWS reads from the first lines how it is reached.
func (e *remoteEnv) startAWS(ctx context.Context, args []string) error {
	cmd := exec.Command(e.path("awsplay"), args...)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout = w
	_, err = e.start(ctx, cmd, "awsplay")
	_ = w.Close()
	if err != nil {
		return err
	}
	e.ca = e.path("ca.pem")
	said := ""
	for lines := bufio.NewScanner(r); lines.Scan(); {
		said += lines.Text() + "\n"
		if strings.Contains(lines.Text(), "# sshd:") {
			break
		}
	}
	name, keys := toldName.FindStringSubmatch(said), toldKeys.FindStringSubmatch(said)
	if name == nil || keys == nil {
		return fmt.Errorf("the played AWS does not start: is %s in use? It says %q", awsAddress, said)
	}
	e.credentials, e.endpoint = keys[1:], name[1]
	e.hosts = e.path("hosts")
	ip, _, _ := strings.Cut(awsAddress, ":")
	text := fmt.Sprintf("127.0.0.1 localhost\n%s ec2.us-east-1.amazonaws.com ec2-instance-connect.us-east-1.amazonaws.com %s\n", ip, name[1])
	return os.WriteFile(e.hosts, []byte(text), 0o644) //nolint:gosec // names
}

func (e *remoteEnv) makeKey(ctx context.Context) error {
	e.key = e.path("ticket.json")
	if _, err := output(ctx, e.termgw, "ticket", "keygen", "--out", e.key); err != nil {
		return err
	}
	var rows []map[string]string
	for n := range remoteInstances {
		for _, target := range []string{"host", "container"} {
			rows = append(rows, map[string]string{"id": target + strconv.Itoa(n), "instance_id": instanceID(n), "remote_target": target, "container": e.container})
		}
	}
	b, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	return os.WriteFile(e.path("workspaces.json"), b, 0o600)
}

// gateway is a termgw whose tunnels are opened in one of the two ways.
type remoteGateway struct {
	*server
	env     *remoteEnv
	address string
}

func (e *remoteEnv) gateway(ctx context.Context, tunnel string) (_ *remoteGateway, err error) {
	const script = `mount --bind "$0" /etc/hosts && exec "$@"`
	cmd := exec.Command("unshare", "--mount", "/bin/sh", "-c", script, e.hosts, e.termgw, "serve")
	cmd.Env = slices.Concat(e.credentials, []string{
		"PATH=" + e.awsPath + ":" + os.Getenv("PATH"), "HOME=" + e.dir, "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CA_BUNDLE=" + e.ca, "SSL_CERT_FILE=" + e.ca, "DOCKER_HOST=unix:///none.sock",
		"TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN=", "TERMGW_DRAIN_TIMEOUT=0", "TERMGW_WORKSPACES_FILE=" + e.path("workspaces.json"),
		"TERMGW_TICKET_JWKS=" + strings.TrimSuffix(e.key, ".json") + ".jwks.json", "TERMGW_EICE_TUNNEL=" + tunnel, "TERMGW_EICE_OS_USER=" + e.user,
	})
	s, err := launch(ctx, cmd, e.dir, "termgw")
	if err != nil {
		return nil, err
	}
	g := &remoteGateway{server: s, env: e}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(s.log)
		if err != nil {
			return nil, errors.Join(err, g.stop())
		}
		for line := range strings.Lines(string(b)) {
			var said struct{ Msg, Address string }
			if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "serving terminals" {
				g.address = said.Address
				return g, nil
			}
		}
	}
	return nil, errors.Join(fmt.Errorf("termgw does not start:\n%s", s.tail()), g.stop())
}

// stop ends the gateway in order, so that no tunnel is left, and checks that
// nothing is.
func (g *remoteGateway) stop() error {
	all := descendants(g.pid())
	_ = g.cmd.Process.Signal(unix.SIGTERM)
	err := g.cmd.Wait()
	for _, pid := range all[1:] {
		if unix.Kill(pid, 0) == nil {
			err = errors.Join(err, fmt.Errorf("process %d outlives its gateway", pid))
		}
	}
	return err
}

func (g *remoteGateway) ticket(ctx context.Context, workspace string) (target, error) {
	ticket, err := output(ctx, g.env.termgw, "ticket", "mint", "--key", g.env.key, "--workspace", workspace, "--subject", "bench")
	return target{Kind: "termgw", URL: "ws://" + g.address + "/workspaces/" + workspace + "/terminal?cols=80&rows=24", Ticket: ticket}, err
}

// ssh opens a terminal on an instance by ssh alone.
func (e *remoteEnv) ssh(n int) string {
	_, port, _ := strings.Cut(e.sshds[n], ":")
	return fmt.Sprintf("exec ssh -F none -tt -q -e none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o GlobalKnownHostsFile=none "+
		"-o IgnoreUnknown=ObscureKeystrokeTiming -o ObscureKeystrokeTiming=no -o IdentitiesOnly=yes -i %s -l %s -p %s 127.0.0.1", e.path("id"), e.user, port)
}

// awsSSH opens a terminal on an instance by the AWS CLI and ssh, without a gateway:
// what a person would do who wants a remote command.
func (e *remoteEnv) awsSSH(n int) string {
	const script = `mount --bind "$0" /etc/hosts || exit
		%[1]s send-ssh-public-key --instance-id %[2]s --instance-os-user %[3]s --ssh-public-key "$(cat %[4]s.pub)" >/dev/null || exit
		exec ssh -F none -tt -q -e none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o GlobalKnownHostsFile=none \
			-o IdentitiesOnly=yes -i %[4]s -l %[3]s \
			-o "ProxyCommand=%[1]s open-tunnel --instance-connect-endpoint-id %[5]s --instance-connect-endpoint-dns-name %[6]s --private-ip-address 10.0.0.%[7]d" %[2]s`
	environ := strings.Join(append(slices.Clone(e.credentials), "AWS_REGION=us-east-1", "AWS_CA_BUNDLE="+e.ca, "SSL_CERT_FILE="+e.ca, "HOME="+e.dir), " ")
	endpoint, _, _ := strings.Cut(e.endpoint, ".")
	return fmt.Sprintf("export %s; exec unshare --mount /bin/sh -c '%s' %s", environ,
		fmt.Sprintf(script, filepath.Join(e.awsPath, "aws")+" ec2-instance-connect", instanceID(n), e.user, e.path("id"), endpoint, e.endpoint, n+1), e.hosts)
}

// descendants lists a process and all that it has started.
func descendants(pid int) []int {
	all := []int{pid}
	started, err := children(pid)
	if err != nil {
		return all // it has ended
	}
	for _, child := range started {
		all = append(all, descendants(child)...)
	}
	return all
}

// pss is what a process and all that it has started hold, and how often each
// program runs.
func pss(pid int) (bytes int64, programs map[string]int) {
	programs = map[string]int{}
	for _, pid := range descendants(pid) {
		f, err := footprintOf(pid)
		if err != nil {
			continue // it has ended
		}
		bytes += f.PSS
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		programs[strings.TrimSpace(string(comm))]++
	}
	return bytes, programs
}
