//go:build image

package imagetest

import (
	"archive/tar"
	"crypto/sha256"
	"database/sql"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/awsplay"
	"github.com/molecule-ai/termgw/internal/testenv"
)

// socketGroup owns the engine's socket; a gateway gets it by --group-add.
const socketGroup = 4242

const (
	slim = "termgw:test-slim"
	full = "termgw:test"
)

func TestImage(t *testing.T) {
	need(t, "docker", "docker.io")
	e := startEngine(t)
	for _, image := range [][]string{{"--target", "slim", "-t", slim}, {"-t", full}} {
		began := time.Now()
		if out, err := e.build(image...); err != nil {
			t.Fatalf("building %v: %v\n%s", image, err, out)
		}
		t.Logf("docker build %s: %.0f s", strings.Join(image, " "), time.Since(began).Seconds())
	}
	// The same program, built outside.
	program := filepath.Join(t.TempDir(), "termgw")

	t.Run("bytes", func(t *testing.T) { testBytes(t, e, program) })
	t.Run("arm64", func(t *testing.T) { testARM64(t, e, program) })
	t.Run("contents", func(t *testing.T) { testContents(t, e) })
	t.Run("files", func(t *testing.T) { testFiles(t, e, program) })
	t.Run("pins", func(t *testing.T) { testPins(t, e) })
	t.Run("gateway", func(t *testing.T) { testGateway(t, e, program) })
	t.Run("instance", func(t *testing.T) { testInstance(t, e, program) })
	t.Run("start", func(t *testing.T) { testStart(t, e) })
	t.Run("taken", func(t *testing.T) { testTaken(t, e) }) // the last: it changes the base image
}

// buildOutside builds the program of a copy that has just what .dockerignore lets in.
func buildOutside(t *testing.T, program, arch string) {
	t.Helper()
	outside := t.TempDir()
	for _, name := range []string{"Makefile", "go.mod", "go.sum", "cmd", "internal", "pkg", "web/embed.go", "web/dist/.gitkeep", "scripts/keeper"} {
		to := filepath.Join(outside, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-r", filepath.Join(root, name), to).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	mk := exec.Command("make", "--no-print-directory", "-C", outside, "build", "VERSION="+version, "COMMIT="+commit, "DATE="+date)
	mk.Env = append(os.Environ(), "GOARCH="+arch)
	if out, err := mk.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	if err := os.Rename(filepath.Join(outside, "bin/termgw"), program); err != nil {
		t.Fatal(err)
	}
}

// testBytes builds the program outside, and compares.
func testBytes(t *testing.T, e engine, program string) {
	buildOutside(t, program, runtime.GOARCH)
	built, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(built))
	for _, image := range []string{slim, full} {
		inside := e.docker(t, "run", "--rm", "--network", "none", "--entrypoint", "sha256sum", image, "/usr/local/bin/termgw")
		if !strings.HasPrefix(inside, sum+" ") {
			t.Errorf("%s has %s; built outside, %s", image, inside, sum)
		}
	}
	t.Logf("the program: %.1f MB, sha256 %s in the image and outside", float64(len(built))/1e6, sum)
	if len(built) > 30e6 {
		t.Errorf("the program is over 30 MB: %d", len(built))
	}
}

func testContents(t *testing.T, e engine) {
	base := e.size(t, "debian:trixie-slim")
	t.Logf("slim: %.1f MB above its base (%.1f MB); the AWS CLI: %.1f MB more",
		e.size(t, slim)-base, base, e.size(t, full)-e.size(t, slim))
	if above := e.size(t, slim) - base; above > 60 {
		t.Errorf("slim is %.1f MB above its base", above)
	}
	for _, image := range []string{slim, full} {
		if user := e.docker(t, "image", "inspect", "-f", "{{.Config.User}}", image); user != "1000:1000" {
			t.Errorf("%s runs as %q", image, user)
		}
		if id := e.inside(t, image, "id"); id != "uid=1000(termgw) gid=1000(termgw) groups=1000(termgw)" {
			t.Errorf("%s: %s", image, id)
		}
		want := fmt.Sprintf("termgw %s (commit %s, %s, %s linux/%s)\n", version, commit, date, runtime.Version(), runtime.GOARCH)
		if said := e.inside(t, image, "termgw", "version"); !strings.HasPrefix(said, want) {
			t.Errorf("%s is %q, not %q", image, said, want)
		}
		if said := e.inside(t, image, "ssh", "-V"); !strings.HasPrefix(said, "OpenSSH_") {
			t.Errorf("%s: %s", image, said)
		}
		var labels map[string]string
		if err := json.Unmarshal([]byte(e.docker(t, "image", "inspect", "-f", "{{json .Config.Labels}}", image)), &labels); err != nil {
			t.Fatal(err)
		}
		for label, want := range map[string]string{"title": "termgw", "version": version, "revision": commit, "created": date, "licenses": "MIT"} {
			if got := labels["org.opencontainers.image."+label]; got != want {
				t.Errorf("%s: the label %s is %q", image, label, got)
			}
		}
	}
	said := e.inside(t, full, "aws", "--version")
	parts := regexp.MustCompile(`^aws-cli/(\d+)\.(\d+)\.`).FindStringSubmatch(said)
	if parts == nil {
		t.Fatalf("the AWS CLI says %q", said)
	}
	major, _ := strconv.Atoi(parts[1])
	minor, _ := strconv.Atoi(parts[2])
	if major < 2 || major == 2 && minor < 12 {
		t.Errorf("%s has no open-tunnel", said)
	}
	if said, err := e.try("run", "--rm", "--network", "none", "--entrypoint", "aws", slim, "--version"); err == nil {
		t.Errorf("slim has an AWS CLI: %s", said)
	}
	t.Logf("%s; %s", said, e.inside(t, slim, "ssh", "-V"))
}

// testFiles reads the files of the images: none gives rights, and the licences of all that is linked are there.
func testFiles(t *testing.T, e engine, program string) {
	linked, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if len(linked.Deps) == 0 {
		t.Fatal("the program names no module")
	}
	for _, image := range []string{slim, full} {
		notices, license := "", ""
		e.walk(t, image, func(h *tar.Header, content io.Reader) {
			if h.Typeflag != tar.TypeDir && h.Mode&0o6000 != 0 {
				t.Errorf("%s: %s has mode %o", image, h.Name, h.Mode)
			}
			if _, ok := h.PAXRecords["SCHILY.xattr.security.capability"]; ok {
				t.Errorf("%s: %s has capabilities", image, h.Name)
			}
			text := func() string {
				b, err := io.ReadAll(content)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			switch h.Name {
			case "usr/share/doc/termgw/third-party.txt":
				notices = text()
			case "usr/share/doc/termgw/LICENSE":
				license = text()
			}
		})
		if !strings.Contains(license, "MIT License") {
			t.Errorf("%s: the licence is %q", image, license)
		}
		for _, module := range linked.Deps {
			if !strings.Contains(notices, "\n"+module.Path+" "+module.Version+"\n") {
				t.Errorf("%s: no licence of %s %s", image, module.Path, module.Version)
			}
		}
		if !strings.Contains(notices, "\nGo "+linked.GoVersion+"\n") {
			t.Errorf("%s: no licence of Go", image)
		}
	}
	t.Logf("%d modules", len(linked.Deps))
}

// walk calls visit for each file of an image.
func (e engine) walk(t *testing.T, image string, visit func(*tar.Header, io.Reader)) {
	t.Helper()
	const container = "termgw-files"
	e.docker(t, "create", "--network", "none", "--name", container, image)
	defer e.docker(t, "rm", container)
	export := e.command("docker", "export", container)
	files, err := export.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := export.Start(); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		visit(h, r)
	}
	if _, err := io.Copy(io.Discard, files); err != nil {
		t.Fatal(err)
	}
	if err := export.Wait(); err != nil {
		t.Fatalf("docker export: %v", err)
	}
}

// inside runs a program of an image.
func (e engine) inside(t *testing.T, image, program string, args ...string) string {
	t.Helper()
	return e.docker(t, append([]string{"run", "--rm", "--network", "none", "--read-only", "--entrypoint", program, image}, args...)...)
}

// size is in MB.
func (e engine) size(t *testing.T, image string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(e.docker(t, "image", "inspect", "-f", "{{.Size}}", image), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n / 1e6
}

// gateway is a container that serves.
type gateway struct {
	engine
	id, address string
	settings    string // what is mounted at /etc/termgw
	program     string // outside
}

// serve starts a gateway as deploy/README.md says: nothing can be written, no capability, no way to one.
func (e engine) serve(t *testing.T, program, settings, image string, options ...string) gateway {
	t.Helper()
	g := gateway{engine: e, settings: settings, program: program}
	args := slices.Concat([]string{
		"run", "--detach", "--network", "host", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
		"--volume", e.socket + ":/var/run/docker.sock", "--volume", settings + ":/etc/termgw:ro",
		"--env", "TERMGW_LISTEN=127.0.0.1:0", "--env", "TERMGW_ADMIN_LISTEN=", "--env", "TERMGW_DRAIN_TIMEOUT=5s",
		"--env", "TERMGW_TICKET_JWKS=/etc/termgw/ticket.jwks.json", "--env", "TERMGW_WORKSPACES_FILE=/etc/termgw/workspaces.json",
	}, options, []string{image})
	g.id = e.docker(t, args...)
	g.address = g.listens(t)
	g.ready(t)
	return g
}

// serving is the log's line of the address that the gateway chose.
var serving = regexp.MustCompile(`"msg":"serving terminals","address":"([^"]+)"`)

// listens returns the address that the gateway chose.
func (g gateway) listens(t *testing.T) string {
	t.Helper()
	var found []string
	eventually(t, func() bool {
		log := g.log(t)
		found = serving.FindStringSubmatch(log)
		return found != nil
	}, func() string { return "the gateway does not serve: " + g.log(t) })
	return found[1]
}

func (g gateway) log(t *testing.T) string {
	t.Helper()
	return g.docker(t, "logs", "--tail", "100", g.id)
}

func (g gateway) ready(t *testing.T) {
	t.Helper()
	eventually(t, func() bool {
		response, err := http.Get("http://" + g.address + "/readyz")
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	}, func() string { return "not ready: " + g.log(t) })
}

// connect opens a terminal with the program's own client.
func (g gateway) connect(t *testing.T, workspace string) *command {
	t.Helper()
	mint := exec.Command(g.program, "ticket", "mint", "--key", filepath.Join(filepath.Dir(g.settings), "ticket.json"),
		"--workspace", workspace, "--subject", "me@example.com")
	ticket, err := mint.Output()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, []string{"TERMGW_TICKET=" + strings.TrimSpace(string(ticket))},
		g.program, "connect", "ws://"+g.address+"/workspaces/"+workspace+"/terminal")
}

// processes are those of the gateway's container, a line each: process id, user id, state, command.
func (g gateway) processes(t *testing.T) []string {
	t.Helper()
	return strings.Split(g.docker(t, "top", g.id, "-eo", "pid,uid,stat,comm"), "\n")[1:]
}

// end tells the gateway to end, and returns its exit status.
func (g gateway) end(t *testing.T) string {
	t.Helper()
	g.docker(t, "kill", "--signal", "TERM", g.id)
	stuck := time.AfterFunc(patience, func() { _, _ = g.try("kill", g.id) })
	defer stuck.Stop()
	return g.docker(t, "wait", g.id)
}

// settings makes a directory of a key set and workspaces; the private key is beside it.
func settings(t *testing.T, program string, workspaces ...map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command(program, "ticket", "keygen", "--out", filepath.Join(dir, "ticket.json")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	list, err := json.Marshal(workspaces)
	if err != nil {
		t.Fatal(err)
	}
	mounted := filepath.Join(dir, "etc")
	write(t, filepath.Join(mounted, "workspaces.json"), list)
	set, err := os.ReadFile(filepath.Join(dir, "ticket.jwks.json"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(mounted, "ticket.jwks.json"), set)
	return mounted
}

// testGateway opens terminals on a container of the engine that the gateway itself runs on.
func testGateway(t *testing.T, e engine, program string) {
	workspace := e.RunContainer(t, "ws-one")
	mounted := settings(t, program, map[string]string{"id": "one"})

	t.Run("without the socket's group", func(t *testing.T) {
		g := e.serve(t, program, mounted, slim)
		c := g.connect(t, "one")
		if status := c.wait(t); status != 255 || !strings.Contains(c.said(), "backend_failed: docker") {
			t.Errorf("exit status %d, %q", status, c.said())
		}
		if status := g.end(t); status != "0" {
			t.Errorf("the gateway ended with %s", status)
		}
	})
	t.Run("terminals, and a drain", func(t *testing.T) {
		g := e.serve(t, program, mounted, slim, "--group-add", strconv.Itoa(socketGroup))
		c := g.connect(t, "one")
		c.enter(t, "hostname; id -u; exit $((6*7))")
		if status := c.wait(t); status != 42 || !strings.Contains(c.said(), workspace[:12]) {
			t.Errorf("exit status %d, %q", status, c.said())
		}

		c = g.connect(t, "one")
		c.enter(t, "sleep 1000 & echo shell-$((6*7))")
		c.expect(t, "shell-42")
		for _, p := range g.processes(t) {
			if fields := strings.Fields(p); fields[1] != "1000" {
				t.Errorf("in the gateway's container: %s", p)
			}
		}
		if status := g.end(t); status != "0" {
			t.Errorf("the gateway ended with %s: %s", status, g.log(t))
		}
		if status := c.wait(t); status != 255 || !strings.Contains(c.said(), "(draining)") {
			t.Errorf("the client ended with %d: %q", status, c.said())
		}
		// PID 1 there reaps nobody.
		for _, p := range strings.Split(e.Exec(t, workspace, "ps", "-eo", "stat=,args="), "\n") {
			if strings.Contains(p, "1000") && !strings.HasPrefix(p, "Z") {
				t.Errorf("left in the workspace: %s", p)
			}
		}
		// Sockets of ssh need a directory, and nothing can be written.
		if log := g.log(t); !strings.Contains(log, "no terminals on instances") {
			t.Errorf("not said: %s", log)
		}
	})
}

// awsName leads to the played AWS: containers know it by --add-host.
const awsName = "aws.termgw.test"

// loopback is an address of this process alone: another run may want the same ports.
func loopback() string {
	return fmt.Sprintf("127.77.%d.%d", os.Getpid()>>8&0xff, os.Getpid()&0xff)
}

// testInstance opens terminals on an instance by the image's own ssh, and by its AWS CLI, and looks for what PID 1,
// which is the gateway, has not reaped.
func testInstance(t *testing.T, e engine, program string) {
	need(t, "curl", "curl")
	keys := awsplay.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "a-played-secret"}
	aws, err := awsplay.New(awsplay.Config{Credentials: keys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := aws.Close(); err != nil {
			t.Error(err)
		}
	})
	awsAddress := loopback()
	if _, err := aws.Listen(awsAddress + ":443"); err != nil { // the AWS CLI knows no other port
		t.Fatal(err)
	}
	pushed := httptest.NewServer(aws.Keys())
	t.Cleanup(pushed.Close)
	const instance = "i-0123456789abcdef0"
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal(err)
	}
	sshd := testenv.StartSSHD(t, testenv.SSHDConfig{
		Lines: []string{"AuthorizedKeysCommand " + curl + " -sf " + pushed.URL + "/" + instance + "/%u"},
	})
	aws.PutInstance(awsplay.Instance{ID: instance, PrivateIP: "10.0.0.5", Target: sshd.Addr})
	endpoint := aws.PutEndpoint(awsplay.Endpoint{ID: "eice-0123456789abcdef0"})

	mounted := settings(t, program,
		map[string]string{"id": "far", "instance_id": instance, "os_user": sshd.User, "remote_target": "host"},
		map[string]string{"id": "refused", "instance_id": instance, "os_user": "nobody", "remote_target": "host"})
	write(t, filepath.Join(mounted, "ca.pem"), aws.CAPEM())

	for tunnel, image := range map[string]string{"native": slim, "aws-cli": full} {
		t.Run(tunnel, func(t *testing.T) {
			g := e.serve(t, program, mounted, image, "--tmpfs", "/tmp",
				"--add-host", awsName+":"+awsAddress, "--add-host", endpoint.DNSName+":"+awsAddress,
				"--env", "TERMGW_EICE_TUNNEL="+tunnel,
				"--env", "AWS_REGION=us-east-1", "--env", "AWS_ACCESS_KEY_ID="+keys.AccessKeyID, "--env", "AWS_SECRET_ACCESS_KEY="+keys.SecretAccessKey,
				"--env", "AWS_ENDPOINT_URL=https://"+awsName,
				"--env", "SSL_CERT_FILE=/etc/termgw/ca.pem", "--env", "AWS_CA_BUNDLE=/etc/termgw/ca.pem")
			for range 3 {
				c := g.connect(t, "far")
				c.enter(t, "id -un; sleep 1000 & exit $((6*7))")
				if status := c.wait(t); status != 42 || !strings.Contains(c.said(), sshd.User) {
					t.Fatalf("exit status %d, %q\n%s", status, c.said(), g.log(t))
				}
			}
			left := g.connect(t, "far")
			left.enter(t, "echo shell-$((6*7))")
			left.expect(t, "shell-42")
			if err := left.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			left.wait(t)
			refused := g.connect(t, "refused")
			if status := refused.wait(t); status != 255 || !strings.Contains(refused.said(), "backend_failed") {
				t.Errorf("exit status %d, %q", status, refused.said())
			}
			stays := g.connect(t, "far")
			stays.enter(t, "echo shell-$((6*7))")
			stays.expect(t, "shell-42")

			// The gateway, a connection's ssh, the one terminal's, and the AWS CLI.
			processes := g.processes(t)
			t.Logf("processes with a terminal open:\n%s", strings.Join(processes, "\n"))
			eventually(t, func() bool {
				return !slices.ContainsFunc(g.processes(t), func(p string) bool { return strings.HasPrefix(strings.Fields(p)[2], "Z") })
			}, func() string { return "not reaped: " + strings.Join(g.processes(t), "\n") })
			if status := g.end(t); status != "0" {
				t.Errorf("the gateway ended with %s", status)
			}
			if log := g.log(t); strings.Contains(log, "no terminals on instances") || strings.Contains(log, keys.SecretAccessKey) {
				t.Errorf("its log: %s", log)
			}
		})
	}
}

// testStart migrates a database with the image, and measures how long a gateway that uses it takes to be ready.
func testStart(t *testing.T, e engine) {
	url := testenv.StartPostgres(t).NewDatabase(t)
	db, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := db.Exec("CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text)"); err != nil {
		t.Fatal(err)
	}
	migrated := e.docker(t, "run", "--rm", "--network", "host", "--read-only", "--env", "TERMGW_DATABASE_URL="+url, slim, "migrate")
	if !strings.Contains(migrated, "applied ") {
		t.Errorf("migrate said %q", migrated)
	}
	mounted := t.TempDir()
	write(t, filepath.Join(mounted, "ticket.jwks.json"), []byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","alg":"EdDSA","use":"sig","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))

	address := loopback() + ":8080" // known before the gateway tells
	var took, own []time.Duration
	for range 5 {
		id := e.docker(t, "create", "--network", "host", "--read-only", "--volume", mounted+":/etc/termgw:ro",
			"--env", "TERMGW_LISTEN="+address, "--env", "TERMGW_ADMIN_LISTEN=",
			"--env", "TERMGW_TICKET_JWKS=/etc/termgw/ticket.jwks.json", "--env", "TERMGW_DATABASE_URL="+url, slim)
		g := gateway{engine: e, id: id, address: address}
		ready := make(chan time.Time, 1)
		go func() { // received below, always
			for began := time.Now(); time.Since(began) < patience; time.Sleep(2 * time.Millisecond) {
				response, err := http.Get("http://" + g.address + "/readyz")
				if err != nil {
					continue
				}
				_ = response.Body.Close()
				if response.StatusCode == http.StatusOK {
					ready <- time.Now()
					return
				}
			}
			close(ready)
		}()
		began := time.Now()
		_, err := e.try("start", id)
		at, ok := <-ready
		if err != nil || !ok {
			t.Fatalf("not ready: %v; %s", err, g.log(t))
		}
		started, err := time.Parse(time.RFC3339Nano, e.docker(t, "inspect", "-f", "{{.State.StartedAt}}", id))
		if err != nil {
			t.Fatal(err)
		}
		took, own = append(took, at.Sub(began)), append(own, at.Sub(started))
		if status := g.end(t); status != "0" {
			t.Errorf("the gateway ended with %s", status)
		}
	}
	slices.Sort(took)
	slices.Sort(own)
	t.Logf("ready %d ms after its process began, %d ms after `docker start` (medians of 5: %v, %v)",
		own[2].Milliseconds(), took[2].Milliseconds(), own, took)
}

// testPins lets scripts/pin-images ask a registry, and compares with what the registry says.
func testPins(t *testing.T, e engine) {
	need(t, "docker-registry", "docker-registry")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "registry.yml")
	write(t, config, []byte("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: "+filepath.Join(dir, "registry")+"\nhttp:\n  addr: "+address+"\n"))
	registry := start(t, nil, "docker-registry", "serve", config)
	eventually(t, func() bool {
		answer, err := http.Get("http://" + address + "/v2/")
		if err != nil {
			return false
		}
		return answer.Body.Close() == nil && answer.StatusCode == http.StatusOK
	}, registry.said)

	names := map[string]string{"Dockerfile": "ARG DEBIAN_IMAGE=%s\n", "deploy/compose.yaml": "    image: %s # why\n"}
	repository := address + "/base"
	e.docker(t, "tag", "debian:trixie-slim", repository+":1.2-slim")
	e.docker(t, "push", repository+":1.2-slim")
	e.docker(t, "rmi", repository+":1.2-slim")
	for name, line := range names {
		write(t, filepath.Join(dir, name), fmt.Appendf(nil, line, repository+":1.2-slim@sha256:"+strings.Repeat("0", 64)))
	}
	script, err := os.ReadFile(filepath.Join(root, "scripts/pin-images"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "scripts/pin-images"), script)
	if out, err := e.command("bash", filepath.Join(dir, "scripts/pin-images")).CombinedOutput(); err != nil {
		t.Fatalf("pin-images: %v\n%s", err, out)
	}

	asked, err := http.NewRequest(http.MethodHead, "http://"+address+"/v2/base/manifests/1.2-slim", nil)
	if err != nil {
		t.Fatal(err)
	}
	asked.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json")
	answer, err := http.DefaultClient.Do(asked)
	if err != nil {
		t.Fatal(err)
	}
	if err := answer.Body.Close(); err != nil {
		t.Fatal(err)
	}
	want := answer.Header.Get("Docker-Content-Digest")
	if !strings.HasPrefix(want, "sha256:") {
		t.Fatalf("the registry says %d, %q", answer.StatusCode, want)
	}
	for name, line := range names {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if want := fmt.Sprintf(line, repository+":1.2-slim@"+want); err != nil || string(got) != want {
			t.Errorf("%s: %v, %q, not %q", name, err, got, want)
		}
	}
}

// testTaken builds on base images whose uid and gid 1000 are somebody's.
func testTaken(t *testing.T, e engine) {
	e.docker(t, "tag", "debian:trixie-slim", "termgw-test-base")
	base := func(t *testing.T, run string) {
		t.Helper()
		dir := t.TempDir()
		write(t, filepath.Join(dir, "Dockerfile"), []byte("FROM termgw-test-base\nRUN "+run+"\n"))
		e.docker(t, "build", "--network", "none", "-t", "debian:trixie-slim", dir)
	}
	t.Run("a user and a group", func(t *testing.T) {
		base(t, "groupadd -g 1000 node && useradd -u 1000 -g node -G games -m node && useradd -o -u 1000 -g games again && useradd -u 1500 -g node other")
		if out, err := e.build("--target", "slim", "-t", "termgw:test-taken"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if id := e.inside(t, "termgw:test-taken", "id"); id != "uid=1000(termgw) gid=1000(termgw) groups=1000(termgw)" {
			t.Error(id)
		}
	})
	t.Run("for good", func(t *testing.T) {
		base(t, "ln -sf /bin/true /usr/sbin/useradd")
		out, err := e.build("--target", "slim", "-t", "termgw:test-lost")
		if err == nil || !strings.Contains(out, "uid and gid 1000 are not termgw's alone") {
			t.Errorf("built: %v\n%s", err, out)
		}
	})
}
