package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/internal/awsplay"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/eice"
	"github.com/molecule-ai/termgw/pkg/store"
)

// Terminals on instances, by the real gateway, a real ssh and sshd, and containers of a real engine. AWS is played.

// awsKeys are what the played AWS takes; none of it may show anywhere.
var awsKeys = awsplay.Credentials{
	AccessKeyID: "AKIAEXAMPLEEXAMPLE00", SecretAccessKey: "secret/of+the/gateway/and/nobody/else", SessionToken: "a/session+token=that/is/signed",
}

const (
	awsAccount = "210987654321"
	awsRole    = "arn:aws:iam::" + awsAccount + ":role/termgw"
	docsPage   = "docs/infra/workspace-terminal.md"
)

// cloud is the played AWS, and one sshd that all of its instances lead to.
type cloud struct {
	*awsplay.Server
	sshd  *testenv.SSHD
	ahead atomic.Int64 // of the played AWS's clock, in ns
	slow  atomic.Bool  // logins come when the pushed key is too old

	mu  sync.Mutex
	ids []string // of instances

	proxy, ca  string
	keys, curl string         // address and program by which sshd asks for pushed keys
	tunnels    sync.WaitGroup // through the proxy
}

// newCloud starts AWS for a platform. The instances' sessions reach the engine.
func (p *platform) newCloud(tb testing.TB, engine *testenv.Docker) *cloud {
	tb.Helper()
	return p.newCloudWith(tb, testenv.SSHDConfig{Docker: engine})
}

// noKeeper are the commands of instances where nothing can hold a terminal.
var noKeeper = map[string]string{"sha256sum": ""}

// newPlainCloud is newCloud with instances where terminals end with their tunnel.
func (p *platform) newPlainCloud(tb testing.TB, engine *testenv.Docker) *cloud {
	tb.Helper()
	return p.newCloudWith(tb, testenv.SSHDConfig{Docker: engine, Commands: noKeeper})
}

func (p *platform) newCloudWith(tb testing.TB, cfg testenv.SSHDConfig) *cloud {
	tb.Helper()
	p.remoteColumns(tb)
	c := newAWS(tb, awsplay.Config{}, "eice-0123456789abcdef0")
	c.startSSHD(tb, cfg)
	return c
}

// remoteColumns adds the columns of workspaces on instances, and what no output may show of such a platform.
func (p *platform) remoteColumns(tb testing.TB) {
	tb.Helper()
	p.exec(tb, `ALTER TABLE workspaces ADD container text, ADD os_user text, ADD host_key text, ADD remote_target text,
		ADD region text, ADD role_arn text, ADD endpoint_id text, ADD source_identity text`)
	p.secretly = append(p.secretly, awsKeys.AccessKeyID, awsKeys.SecretAccessKey, awsKeys.SessionToken,
		awsAccount, "arn:aws", "X-Amz-", "PRIVATE KEY")
}

// newAWS starts AWS, with an endpoint and no sshd. The config's account, credentials and clock are set here, and how long a
// pushed key is good: a busy machine needs more than AWS's minute for a login.
func newAWS(tb testing.TB, cfg awsplay.Config, endpointID string) *cloud {
	tb.Helper()
	curl, err := exec.LookPath("curl")
	if err != nil {
		if os.Getenv("TERMGW_TEST_REQUIRE") == "1" {
			tb.Fatal(err)
		}
		tb.Skip("needs curl, by which sshd asks for pushed keys: apt-get install curl")
	}
	c := &cloud{curl: curl}
	cfg.Account, cfg.Credentials, cfg.KeyLife = awsAccount, awsKeys, patience
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }
	c.Server, err = awsplay.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := c.Listen("127.0.0.1:0"); err != nil {
		tb.Fatal(err)
	}
	c.ca = filepath.Join(tb.TempDir(), "ca.pem")
	if err := os.WriteFile(c.ca, c.CAPEM(), 0o600); err != nil {
		tb.Fatal(err)
	}
	proxy := httptest.NewServer(http.HandlerFunc(c.connect))
	keys := httptest.NewServer(http.HandlerFunc(c.authorizedKeys))
	c.proxy, c.keys = proxy.URL, keys.URL
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
		proxy.Close()
		keys.Close()
		c.tunnels.Wait()
	})
	c.PutEndpoint(awsplay.Endpoint{ID: endpointID})
	return c
}

// startSSHD starts the sshd of the cloud's instances. The config's lines go before the cloud's own.
func (c *cloud) startSSHD(tb testing.TB, cfg testenv.SSHDConfig) {
	tb.Helper()
	cfg.Lines = append(slices.Clone(cfg.Lines), "AuthorizedKeysCommand "+c.curl+" -sf "+c.keys+"/%u")
	c.sshd = testenv.StartSSHD(tb, cfg)
}

// connect is a proxy that leads every name of AWS to the played one.
func (c *cloud) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := net.SplitHostPort(r.Host)
	if r.Method != http.MethodConnect || err != nil || port != "443" || !strings.HasSuffix(host, ".amazonaws.com") && !strings.HasSuffix(host, ".api.aws") {
		http.Error(w, "only AWS is reached here", http.StatusForbidden)
		return
	}
	aws, err := c.Dial(r.Context(), "tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer aws.Close()
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	c.tunnels.Add(1)
	defer c.tunnels.Done()
	defer client.Close()
	if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	out := make(chan struct{})
	go func() {
		defer close(out)
		_, _ = io.Copy(client, aws) // its end is the tunnel's
		_ = client.Close()
	}()
	_, _ = io.Copy(aws, client)
	_ = aws.Close()
	<-out
}

// authorizedKeys tells sshd the keys that let a user in just now.
func (c *cloud) authorizedKeys(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slow.Load() {
		c.ahead.Store(int64(patience))
	}
	for _, id := range c.ids {
		for _, line := range c.AuthorizedKeys(id, strings.TrimPrefix(r.URL.Path, "/")) {
			_, _ = fmt.Fprintln(w, line)
		}
	}
}

// environ is what a gateway in this cloud is started with. The engine of its own machine is not there.
func (c *cloud) environ(tb testing.TB, more ...string) []string {
	tb.Helper()
	return append([]string{
		"HTTPS_PROXY=" + c.proxy, "AWS_CA_BUNDLE=" + c.ca, "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ACCESS_KEY_ID=" + awsKeys.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + awsKeys.SecretAccessKey, "AWS_SESSION_TOKEN=" + awsKeys.SessionToken,
		"TERMGW_EICE_OS_USER=" + c.sshd.User, "DOCKER_HOST=unix://" + filepath.Join(tb.TempDir(), "none.sock"),
		`TERMGW_WORKSPACE_QUERY=SELECT COALESCE(instance_id, '') AS instance_id, COALESCE(name, '') AS name, COALESCE(container, '') AS container,
			COALESCE(os_user, '') AS os_user, COALESCE(host_key, '') AS host_key, COALESCE(remote_target, '') AS remote_target,
			region, role_arn, endpoint_id, source_identity FROM workspaces WHERE id = $1`,
	}, more...)
}

// newInstance makes one that runs and leads to the sshd. It is AWS's when it is put.
func (c *cloud) newInstance() awsplay.Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.ids) + 1
	c.ids = append(c.ids, fmt.Sprintf("i-%017x", n))
	return awsplay.Instance{ID: c.ids[n-1], PrivateIP: fmt.Sprintf("10.0.%d.%d", n/200, n%200+1), Target: c.sshd.Addr}
}

// onInstance adds a workspace on an instance of its own, which runs, and returns the instance's id.
func (p *platform) onInstance(tb testing.TB, c *cloud, workspace string) string {
	tb.Helper()
	i := c.newInstance()
	c.PutInstance(i)
	p.workspace(tb, workspace, i.ID)
	return i.ID
}

// onChangedInstance adds a workspace on an instance of its own, and returns their ids. It is in the container; row is one more
// column and its value, and set changes the instance; either may be none.
func (p *platform) onChangedInstance(tb testing.TB, c *cloud, container, row string, set func(*awsplay.Instance)) (workspace, instance string) {
	tb.Helper()
	i := c.newInstance()
	workspace = "of-" + i.ID
	p.workspace(tb, workspace, i.ID)
	p.exec(tb, "UPDATE workspaces SET container = $2 WHERE id = $1", workspace, container)
	if row != "" {
		p.exec(tb, "UPDATE workspaces SET "+row+" WHERE id = $1", workspace)
	}
	if set != nil {
		set(&i)
	}
	c.PutInstance(i)
	return workspace, i.ID
}

// apiCalls counts all calls of AWS.
func (c *cloud) apiCalls() (n int) {
	for _, op := range []awsplay.Op{awsplay.DescribeInstances, awsplay.DescribeEndpoints, awsplay.SendSSHPublicKey, awsplay.OpenTunnel} {
		n += c.Calls(op)
	}
	return n
}

// places counts the tunnels' places that gateways hold.
func (p *platform) places(tb testing.TB) (n int) {
	tb.Helper()
	if err := p.db.QueryRowContext(tb.Context(), "SELECT count(*) FROM termgw.tunnels WHERE replica <> 'another'").Scan(&n); err != nil {
		tb.Fatal(err)
	}
	return n
}

// running are the processes of this machine with a text in their command line.
func running(tb testing.TB, text string) (commands []string) {
	tb.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		tb.Fatal(err)
	}
	for _, file := range files {
		if command, _ := os.ReadFile(file); strings.Contains(string(command), text) {
			commands = append(commands, strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return commands
}

func TestRemoteTerminal(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	instance := p.onInstance(t, aws, "ws")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, aws.environ(t)...)

	first := g.dial(t, "ws", p.ticket(t, "ws"), dialing{query: "cols=100&rows=30"})
	if m := first.message(t, "ready"); m.Target != "remote" || m.Workspace != "ws" {
		t.Errorf("told %+v", m)
	}
	if got := first.run(t, "echo $((6*7)); stty size"); got != "42\r\n30 100\r\n" {
		t.Errorf("the shell says %q", got)
	}
	first.control(t, `{"type":"resize","cols":120,"rows":40}`)
	eventually(t, "it has its new size", func() bool { return first.run(t, "stty size") == "40 120\r\n" })

	calls := aws.apiCalls()
	if calls != 4 || aws.Tunnels() != 1 || p.places(t) != 1 {
		t.Errorf("a terminal cost %d calls, %d tunnels, %d places", calls, aws.Tunnels(), p.places(t))
	}
	second := g.open(t, "ws", dialing{})
	if got := second.run(t, "hostname; cat /proc/1/cmdline | tr '\\0' ' '; echo"); !strings.Contains(got, "sleep infinity") {
		t.Errorf("the second terminal is elsewhere: %q", got)
	}
	if n := aws.apiCalls() - calls; n != 0 || aws.Tunnels() != 1 || container.shells(t) < 2 {
		t.Errorf("the second terminal cost %d calls; %d tunnels, %d shells", n, aws.Tunnels(), container.shells(t))
	}

	// Whoever reads this machine's process list sees no secret, and ssh gets none of the gateway's environment.
	children := 0
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range stats {
		stat, _ := os.ReadFile(file)
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); len(fields) < 2 || fields[1] != strconv.Itoa(g.cmd.Process.Pid) {
			continue
		}
		children++
		for _, name := range []string{"cmdline", "environ"} {
			text, _ := os.ReadFile(filepath.Join(filepath.Dir(file), name))
			p.checkSecrets(t, "a child's "+name, string(text))
			if strings.Contains(string(text), "AWS_") || strings.Contains(string(text), "TERMGW_DATABASE") {
				t.Errorf("a child's %s has the gateway's environment: %q", name, text)
			}
		}
	}
	if children != 1 {
		t.Errorf("%d children, want the connection's ssh", children)
	}
	seen := first.run(t, "env; cat /proc/*/cmdline /proc/*/environ | tr '\\0' '\\n'")
	p.checkSecrets(t, "the shell", seen)

	metric := fmt.Sprintf(ends, "exit", "remote")
	before := g.metric(t, metric)
	first.send(t, "exit 7\r")
	if m := first.message(t, "exit"); m.Code != 7.0 {
		t.Errorf("told %+v", m)
	}
	if code := first.closed(t); code != websocket.StatusNormalClosure {
		t.Errorf("closed with %d", code)
	}
	if r := p.lastRowOf(t, first.message(t, "ready").Session); r.reason != "exit" || r.exitCode.Int64 != 7 {
		t.Errorf("the row says %+v", r)
	}
	g.wantMoved(t, metric, before)
	if got := second.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("the other terminal answers %q", got)
	}

	g.signal(t, os.Interrupt)
	if code := second.closed(t); code != 1012 {
		t.Errorf("closed with %d", code)
	}
	if status := g.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, g.log.String())
	}
	container.empty(t)
	if n := p.places(t); n != 0 || aws.Tunnels() != 0 {
		t.Errorf("%d places and %d tunnels are left", n, aws.Tunnels())
	}
	eventually(t, "no process is left on either side", func() bool { return len(running(t, instance)) == 0 })
}

// lastRowOf waits for the end of a session.
func (p *platform) lastRowOf(tb testing.TB, id string) (r row) {
	tb.Helper()
	eventually(tb, "the session's end is recorded", func() bool {
		err := p.db.QueryRowContext(tb.Context(), "SELECT COALESCE(end_reason, ''), ended_at IS NOT NULL, exit_code FROM termgw.sessions WHERE id = $1", id).
			Scan(&r.reason, &r.ended, &r.exitCode)
		if err != nil {
			tb.Fatal(err)
		}
		return r.ended
	})
	return r
}

func TestRemoteHost(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	p.onInstance(t, aws, "own-host")
	container := newBox(t, env.Docker(t), "own-host") // has the right name, and must not be used
	g := p.serve(t, aws.environ(t, "TERMGW_REMOTE_TARGET=host")...)
	c := g.dial(t, "own-host", p.ticket(t, "own-host"), dialing{})
	if m := c.message(t, "ready"); m.Target != "remote" {
		t.Errorf("told %+v", m)
	}
	c.wait(t, "a prompt", func() bool { return len(c.output) > 0 })
	id := c.message(t, "ready").Session
	if got, want := c.run(t, "id -un; echo $TERMGW_SESSION; shopt -q login_shell && echo login"), aws.sshd.User+"\r\n"+id+"\r\nlogin\r\n"; got != want {
		t.Errorf("the shell says %q, want %q", got, want)
	}
	if execs := container.execEvents(t); len(execs) > 0 {
		t.Errorf("the container was used: %q", execs)
	}
	c.send(t, "sleep 1003 &\r")
	eventually(t, "the job runs", func() bool { return len(running(t, "sleep\x001003")) == 1 })
	c.send(t, "exit 3\r")
	if m := c.message(t, "exit"); m.Code != 3.0 {
		t.Errorf("told %+v", m)
	}
	eventually(t, "nothing of the session is left", func() bool {
		return len(running(t, "sleep\x001003")) == 0 && len(running(t, id)) == 0
	})
}

// An sshd opens ten sessions on a connection: the eleventh terminal has another, and nobody sees that.
func TestRemoteEleventhTerminal(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	p.onInstance(t, aws, "ws")
	p.exec(t, "UPDATE workspaces SET remote_target = 'host'")
	g := p.serve(t, aws.environ(t)...)
	var open []*tty
	for n := range 11 {
		open = append(open, g.open(t, "ws", dialing{}))
		if want := n/10 + 1; aws.Tunnels() != want || p.places(t) != want {
			t.Errorf("%d terminals use %d tunnels, %d places", n+1, aws.Tunnels(), p.places(t))
		}
	}
	for n, c := range open {
		if got := c.run(t, fmt.Sprintf("echo $((%d*7))", n)); got != fmt.Sprintf("%d\r\n", n*7) {
			t.Errorf("terminal %d says %q", n, got)
		}
	}
}

// An endpoint carries 20 tunnels, which are 200 terminals: none is lost, and all answer.
func TestRemoteTwoHundredTerminals(t *testing.T) {
	const instances, each = 10, 20
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	for n := range instances {
		p.onInstance(t, aws, fmt.Sprintf("ws%d", n))
	}
	p.exec(t, "UPDATE workspaces SET remote_target = 'host'")
	g := p.serve(t, aws.environ(t)...)
	open := make([]*tty, instances*each)
	for round := range each { // of one on each instance
		for n := range instances {
			workspace := fmt.Sprintf("ws%d", n)
			open[round*instances+n] = g.dial(t, workspace, p.ticket(t, workspace), dialing{})
		}
		for _, c := range open[round*instances : (round+1)*instances] {
			c.wait(t, "a prompt", func() bool { return len(c.output) > 0 })
		}
	}
	if aws.Tunnels() != 2*instances || p.places(t) != 2*instances {
		t.Errorf("%d tunnels, %d places", aws.Tunnels(), p.places(t))
	}
	spread(t, len(open), 8, func(n int) {
		if got := open[n].run(t, fmt.Sprintf("echo $((%d*7))", n)); got != fmt.Sprintf("%d\r\n", n*7) {
			t.Errorf("terminal %d says %q", n, got)
		}
		open[n].close(t) // a gateway that ends has little time for so many
		p.lastRowOf(t, open[n].message(t, "ready").Session)
	})
}

// However a remote terminal ends, what belongs to it goes, and what was told to stay, stays.
func TestRemoteLeavesNothing(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	g, doomed := p.serve(t, aws.environ(t)...), p.serve(t, aws.environ(t)...)
	for _, test := range []struct {
		name  string
		leave func(t *testing.T, workspace string, container *box)
	}{
		{"the client closes", func(t *testing.T, workspace string, container *box) {
			c := g.open(t, workspace, dialing{})
			c.run(t, jobs)
			container.started(t)
			c.close(t)
		}},
		{"TCP reset", func(t *testing.T, workspace string, container *box) {
			c := g.open(t, workspace, dialing{})
			c.run(t, jobs)
			container.started(t)
			c.reset(t)
		}},
		{"kill -9 of the client", func(t *testing.T, workspace string, container *box) {
			cmd := command(t, []string{"TERMGW_TICKET=" + p.ticket(t, workspace)}, "connect", g.terminal(workspace))
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			c := start(t, cmd)
			if _, err := io.WriteString(in, jobs+"\n"); err != nil {
				t.Fatal(err)
			}
			container.started(t)
			c.signal(t, os.Kill)
			c.wait(t)
		}},
		{"kill -9 of the gateway", func(t *testing.T, workspace string, container *box) {
			c := doomed.open(t, workspace, dialing{})
			c.run(t, jobs)
			container.started(t)
			doomed.signal(t, os.Kill)
			doomed.wait(t)
		}},
		{"the tunnel is cut in a flood", func(t *testing.T, workspace string, container *box) {
			c := g.open(t, workspace, dialing{})
			c.run(t, jobs)
			container.started(t)
			c.send(t, "yes\r")
			c.expect(t, strings.Repeat("y\r\n", 10_000))
			aws.Cut()
			c.expect(t, strings.Repeat("y\r\n", 10_000))
			c.close(t)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			workspace := strings.ReplaceAll(t.Name()[strings.Index(t.Name(), "/")+1:], "_", "-")
			instance := p.onInstance(t, aws, workspace)
			container := newBox(t, env.Docker(t), workspace)
			test.leave(t, workspace, container)
			container.empty(t, stay...)
			var session string
			err := p.db.QueryRowContext(t.Context(), "SELECT id FROM termgw.sessions WHERE workspace_id = $1", workspace).Scan(&session)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "nothing watches any more", func() bool { return len(running(t, session)) == 0 })
			if test.name == "kill -9 of the gateway" {
				eventually(t, "its ssh is gone", func() bool { return len(running(t, instance)) == 0 })
			}
		})
	}
	if n := g.metric(t, orphansLeft); n != 0 {
		t.Errorf("%v processes were left", n)
	}
}

// Each way to fail has its detail and a sentence, and costs no shell, no tunnel and no process.
func TestRemoteFaults(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	container := newBox(t, env.Docker(t), "faulty") // no other test's name: an instance looks after a terminal for some seconds more, by its container's name
	g := p.serve(t, aws.environ(t)...)
	wrongEndpoint := p.serve(t, aws.environ(t, "TERMGW_EICE_ENDPOINT_ID=eice-0123456789abcdeff")...)
	noRegion := p.serve(t, aws.environ(t, "AWS_REGION=")...)
	fips := p.serve(t, aws.environ(t, "AWS_USE_FIPS_ENDPOINT=true")...)
	noKeys := p.serve(t, append(aws.environ(t), "AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "AWS_SESSION_TOKEN=")...)

	aws.PutEndpoint(awsplay.Endpoint{ID: "eice-0000000000000000c", VPC: "vpc-creating", State: "create-in-progress"})
	aws.PutEndpoint(awsplay.Endpoint{ID: "eice-00000000000000f1b", VPC: "vpc-no-fips", NoFIPS: true})
	full := aws.PutEndpoint(awsplay.Endpoint{ID: "eice-0000000000000000f", VPC: "vpc-full"})
	p.exec(t, `INSERT INTO termgw.tunnels (id, endpoint, instance_id, replica, renewed_at)
		SELECT n::text, $1, 'i-1', 'another', now() + interval '1 hour' FROM generate_series(1, $2) n`, full.ID, eice.MaxTunnels)

	// As AWS words it: with what nobody may see.
	denied := func(op awsplay.Op, code string) func(*awsplay.Instance) {
		return func(*awsplay.Instance) {
			aws.Fail(op, awsplay.Fault{Status: http.StatusForbidden, Code: code, Message: "User: arn:aws:sts::" + awsAccount +
				":assumed-role/gateway/session is not authorized to perform: " + string(op) + " on resource: arn:aws:ec2:us-east-1:" + awsAccount + ":instance/*"})
		}
	}
	aws.PutRole(awsplay.Role{ARN: awsRole})
	fails := func(op awsplay.Op, f awsplay.Fault) func(*awsplay.Instance) {
		return func(*awsplay.Instance) { aws.Fail(op, f) }
	}
	told := map[string]string{} // details, by sentence
	for _, test := range []struct {
		name    string
		detail  string
		set     func(*awsplay.Instance)
		row     string // a column and its value
		gateway *served
		code    string // backend_failed
		close   websocket.StatusCode
	}{
		{name: "the instance is stopped", detail: "instance_stopped", set: func(i *awsplay.Instance) { i.State = "stopped" }},
		{name: "the instance is starting", detail: "instance_pending", set: func(i *awsplay.Instance) { i.State = "pending" }},
		{name: "the instance is being terminated", detail: "instance_shutting_down", set: func(i *awsplay.Instance) { i.State = "shutting-down" }},
		{name: "the instance is terminated", detail: "instance_terminated", set: func(i *awsplay.Instance) { i.State = "terminated" }},
		{name: "the instance is unknown", detail: "instance_unknown", set: func(i *awsplay.Instance) { i.ID = "i-0000aaaa" }},
		{name: "no address", detail: "instance_no_address", set: func(i *awsplay.Instance) { i.PrivateIP = "" }},
		{name: "IPv6 only", detail: "endpoint_address_type", set: func(i *awsplay.Instance) { i.PrivateIP, i.IPv6 = "", "2001:db8::1" }},
		{name: "an id that is none", detail: "instance_id", row: "instance_id = 'i-1 -oProxyCommand=reboot'"},
		{name: "no endpoint", detail: "endpoint_none", set: func(i *awsplay.Instance) { i.VPC = "vpc-none" }},
		{name: "the endpoint is being created", detail: "endpoint_creating", set: func(i *awsplay.Instance) { i.VPC = "vpc-creating" }},
		{name: "the configured endpoint is unknown", detail: "endpoint_unknown", gateway: wrongEndpoint},
		{name: "no region", detail: "region", gateway: noRegion},
		{name: "no FIPS name", detail: "endpoint_fips", gateway: fips, set: func(i *awsplay.Instance) { i.VPC = "vpc-no-fips" }},
		{name: "a target that is none", detail: "remote_target", row: "remote_target = 'serial'"},
		{name: "a role that is none", detail: "role_arn", row: "role_arn = 'termgw'"},
		{name: "an endpoint's id that is none", detail: "endpoint_id", row: "endpoint_id = 'eice-1 --debug'"},
		{name: "a source identity that is neither", detail: "source_identity", row: "source_identity = 'perhaps', role_arn = '" + awsRole + "'"},
		{name: "a source identity without a role", detail: "source_identity", row: "source_identity = 'true'"},
		{name: "IAM: AssumeRole", detail: "iam_assume_role", row: "role_arn = '" + awsRole + "-of-nobody'"},
		{name: "throttled: AssumeRole", detail: "throttled", row: "role_arn = '" + awsRole + "'", set: fails(awsplay.AssumeRole, awsplay.Fault{Status: 400, Code: "Throttling", Message: "Rate exceeded"})},
		{name: "IAM: DescribeInstances", detail: "iam_describe_instances", set: denied(awsplay.DescribeInstances, "UnauthorizedOperation")},
		{name: "IAM: DescribeInstanceConnectEndpoints", detail: "iam_describe_endpoints", set: denied(awsplay.DescribeEndpoints, "UnauthorizedOperation")},
		{name: "IAM: SendSSHPublicKey", detail: "iam_send_key", set: denied(awsplay.SendSSHPublicKey, "AccessDeniedException")},
		{name: "IAM: ec2:osuser", detail: "iam_send_key", set: func(i *awsplay.Instance) { i.OSUsers = []string{"ubuntu"} }},
		{name: "IAM: OpenTunnel", detail: "iam_open_tunnel", set: denied(awsplay.OpenTunnel, "AccessDeniedException")},
		{name: "the key is refused by AWS", detail: "key_refused", set: fails(awsplay.SendSSHPublicKey, awsplay.Fault{Status: 400, Code: "InvalidArgsException", Message: "no"})},
		{name: "the key is refused by sshd", detail: "ssh_auth", row: "os_user = 'nobody'"},
		{name: "the key is a minute old at the login", detail: "ssh_auth", set: func(*awsplay.Instance) { aws.slow.Store(true) }},
		{name: "an OS user that is none", detail: "os_user", row: "os_user = 'root; reboot'"},
		{name: "the tunnel is refused", detail: "tunnel_refused", set: fails(awsplay.OpenTunnel, awsplay.Fault{Status: 400, Code: "InvalidParameter", Message: "no"})},
		{name: "a security group", detail: "security_group", set: func(i *awsplay.Instance) { i.Target = "" }},
		{name: "another host key than the row's", detail: "ssh_hostkey", row: "host_key = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUwSLuvlcpyY4dF5UkAIjJQJqaf8pWcHHMvYGkY9qWp'"},
		{name: "AWS's quota", detail: "eice_tunnels", code: "too_many_sessions", close: 4429, set: fails(awsplay.OpenTunnel,
			awsplay.Fault{Status: 429, Code: "ServiceQuotaExceededException", Message: "The maximum number of tunnels is open."})},
		{name: "our count of it", detail: "eice_tunnels", code: "too_many_sessions", close: 4429, set: func(i *awsplay.Instance) { i.VPC = "vpc-full" }},
		{name: "throttled", detail: "throttled", set: fails(awsplay.DescribeInstances, awsplay.Fault{Status: 503, Code: "RequestLimitExceeded", Message: "slow down"})},
		{name: "AWS does not answer", detail: "aws_unreachable", set: fails(awsplay.OpenTunnel, awsplay.Fault{Hang: true})},
		{name: "AWS's own fault", detail: "aws_fault", set: fails(awsplay.DescribeInstances, awsplay.Fault{Status: 500, Code: "InternalError", Message: "sorry"})},
		{name: "no credentials", detail: "credentials", gateway: noKeys},
		{name: "wrong credentials", detail: "credentials", set: func(*awsplay.Instance) {
			aws.SetCredentials(awsplay.Credentials{AccessKeyID: "AKIAANOTHERANOTHER00", SecretAccessKey: "another"})
		}},
		{name: "expired credentials", detail: "credentials_expired", set: func(*awsplay.Instance) {
			expired := awsKeys
			expired.Expired = true
			aws.SetCredentials(expired)
		}},
		{name: "a clock that is 10 minutes off", detail: "clock", set: func(*awsplay.Instance) { aws.ahead.Store(int64(10 * time.Minute)) }},
		{name: "no container", code: "container_not_running", close: 4404, row: "container = 'none'"},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer func() {
				aws.Heal()
				aws.SetCredentials(awsKeys)
				aws.slow.Store(false)
				aws.ahead.Store(0)
			}()
			g, status, code := g, websocket.StatusCode(4502), "backend_failed"
			if test.gateway != nil {
				g = test.gateway
			}
			if test.close != 0 {
				status, code = test.close, test.code
			}
			workspace, _ := p.onChangedInstance(t, aws, "ws-faulty", test.row, test.set)

			execs := container.execs(t)
			metric := fmt.Sprintf(ends, code, "remote")
			before := g.metric(t, metric)
			m := wantRefusal(t, g, g.dial(t, workspace, p.ticket(t, workspace), dialing{}), code, status, metric, before)
			if m.Detail != test.detail {
				t.Errorf("detail %q, want %q", m.Detail, test.detail)
			}
			if aws := (&eice.Error{Detail: eice.Detail(m.Detail)}); aws.Sentence() != "" && m.Retryable == aws.Final() {
				t.Errorf("%s is retryable: %t", m.Detail, m.Retryable)
			}
			if !strings.Contains(m.Message, docsPage) && status != 4429 {
				t.Errorf("%q names no page", m.Message)
			}
			if other, ok := told[m.Message]; ok && other != m.Detail {
				t.Errorf("%q is said of %s too", m.Message, other)
			}
			told[m.Message] = m.Detail
			p.checkSecrets(t, "the message", m.Message+m.Detail)
			if n := container.execs(t) - execs; n > 0 || container.shells(t) > 0 {
				t.Errorf("%d execs", n)
			}
			if r := p.lastRow(t, workspace); r.reason != code || r.exitCode.Valid {
				t.Errorf("the audit trail says %+v", r)
			}
			if test.detail == "" {
				return // the connection lingers for the next terminal
			}
			eventually(t, "no process, tunnel or place is left", func() bool {
				return g.resources(t).children == 0 && aws.Tunnels() == 0 && p.places(t) == 0
			})
		})
	}
	p.onInstance(t, aws, "healthy")
	newBox(t, env.Docker(t), "healthy")
	if got := g.open(t, "healthy", dialing{}).run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("after all that, a shell says %q", got)
	}
}

// Rows name the roles of two accounts. Where a row asks for it, each person has a role session, and a connection, in their
// own name; else people share.
func TestRemoteRoles(t *testing.T) {
	t.Parallel()
	t.Run("native", func(t *testing.T) { testRoles(t, func(aws *cloud) []string { return aws.environ(t) }) })
	t.Run("AWS CLI", func(t *testing.T) { testRoles(t, func(aws *cloud) []string { return aws.awsCLI(t) }) })
}

func testRoles(t *testing.T, environ func(*cloud) []string) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	const shared, named = "arn:aws:iam::111111111111:role/shared", "arn:aws:iam::222222222222:role/named"
	p.secretly = append(p.secretly, "ASIAEXAMPLE", "issued/secret", "issued/token", "111111111111", "222222222222") // as awsplay issues
	aws.PutRole(awsplay.Role{ARN: shared})
	aws.PutRole(awsplay.Role{ARN: named, SourceIdentity: true})
	aws.PutEndpoint(awsplay.Endpoint{ID: "eice-00000000000000111", Account: "111111111111"})
	aws.PutEndpoint(awsplay.Endpoint{ID: "eice-00000000000000222", Account: "222222222222", VPC: "vpc-hub"})
	together, one := p.onChangedInstance(t, aws, "none", "remote_target = 'host', role_arn = '"+shared+"'", func(i *awsplay.Instance) { i.Account = "111111111111" })
	apart, other := p.onChangedInstance(t, aws, "none",
		"remote_target = 'host', source_identity = 'true', endpoint_id = 'eice-00000000000000222', role_arn = '"+named+"'",
		func(i *awsplay.Instance) { i.Account = "222222222222"; i.VPC = "vpc-hub" })
	g := p.serve(t, environ(aws)...)
	for n, workspace := range []string{together, apart} {
		for _, who := range []string{"ann", "bob@example.com", "ann"} {
			c := g.dial(t, workspace, p.ticketOf(t, workspace, who), dialing{})
			c.wait(t, "a prompt", func() bool { return len(c.output) > 0 })
			if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
				t.Errorf("a shell says %q", got)
			}
		}
		if got, want := aws.Tunnels(), []int{1, 3}[n]; got != want {
			t.Errorf("%d tunnels, want %d", got, want)
		}
	}
	opened := map[awsplay.Request]int{}
	for _, r := range aws.Requests() {
		if r.Op == awsplay.OpenTunnel {
			r.ID = ""
			opened[r]++
		}
	}
	for _, want := range []awsplay.Request{
		{Op: awsplay.OpenTunnel, Account: "111111111111", Role: shared},
		{Op: awsplay.OpenTunnel, Account: "222222222222", Role: named, SourceIdentity: "ann"},
		{Op: awsplay.OpenTunnel, Account: "222222222222", Role: named, SourceIdentity: "bob@example.com"},
	} {
		if opened[want] != 1 {
			t.Errorf("%+v was made %d times: %v", want, opened[want], opened)
		}
	}
	// A subject that AWS does not take opens nothing, and no retry helps.
	c := g.dial(t, apart, p.ticketOf(t, apart, "ann lee"), dialing{})
	if m := c.message(t, "error"); m.Detail != "source_identity" || m.Retryable || !strings.Contains(m.Message, "2 to 64") {
		t.Errorf("told %+v", m)
	}
	// The trail leads from the person to CloudTrail and back.
	for _, test := range []struct{ workspace, instance, endpoint, who string }{
		{together, one, "eice-00000000000000111", ""}, {apart, other, "eice-00000000000000222", "ann"},
	} {
		var trail []byte
		err := p.db.QueryRowContext(t.Context(), "SELECT trail FROM termgw.sessions WHERE workspace_id = $1 AND subject = 'ann' AND trail IS NOT NULL LIMIT 1", test.workspace).Scan(&trail)
		var got map[string]string
		if err != nil || json.Unmarshal(trail, &got) != nil {
			t.Fatalf("%v: %s", err, trail)
		}
		if got["endpoint"] != test.endpoint || got["instance"] != test.instance || got["source_identity"] != test.who {
			t.Errorf("the trail is %v", got)
		}
		for _, request := range []string{"request_role", "request_instance", "request_endpoint", "request_key", "request_tunnel"} {
			if request == "request_tunnel" && t.Name() == "TestRemoteRoles/AWS_CLI" {
				continue // the CLI does not tell it
			}
			if !slices.ContainsFunc(aws.Requests(), func(r awsplay.Request) bool {
				return r.ID == got[request] && (request == "request_role" || r.SourceIdentity == test.who)
			}) {
				t.Errorf("AWS made no %s %q", request, got[request])
			}
		}
	}
}

// An instance with an IPv6 address alone opens, by an endpoint's dual-stack name.
func TestRemoteIPv6(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	aws.PutEndpoint(awsplay.Endpoint{
		ID: "eice-00000000000000006", VPC: "vpc-6", AddressType: "ipv6", DualStackName: "eice-6.ec2-instance-connect-endpoint.us-east-1.api.aws",
	})
	for name, environ := range map[string][]string{"native": aws.environ(t), "AWS CLI": aws.awsCLI(t)} {
		t.Run(name, func(t *testing.T) {
			workspace, _ := p.onChangedInstance(t, aws, "none", "remote_target = 'host'", func(i *awsplay.Instance) {
				i.PrivateIP, i.IPv6, i.VPC = "", "2001:db8::5", "vpc-6"
			})
			if got := p.serve(t, environ...).open(t, workspace, dialing{}).run(t, "echo $((6*7))"); got != "42\r\n" {
				t.Errorf("a shell says %q", got)
			}
		})
	}
}

// Credentials that run out cut nobody who has a connection, nor the next terminal on it.
func TestRemoteCredentialsRunOut(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	p.onInstance(t, aws, "ws")
	p.onInstance(t, aws, "another")
	p.exec(t, "UPDATE workspaces SET remote_target = 'host'")
	g := p.serve(t, aws.environ(t)...)
	open := g.open(t, "ws", dialing{})
	expired := awsKeys
	expired.Expired = true
	aws.SetCredentials(expired)
	for _, c := range []*tty{open, g.open(t, "ws", dialing{})} {
		if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
			t.Errorf("a shell says %q", got)
		}
	}
	metric := fmt.Sprintf(ends, "backend_failed", "remote")
	m := wantRefusal(t, g, g.dial(t, "another", p.ticket(t, "another"), dialing{}), "backend_failed", 4502, metric, 0)
	if m.Detail != "credentials_expired" {
		t.Errorf("told %+v", m)
	}
	aws.SetCredentials(awsKeys)
	g.open(t, "another", dialing{})
}

// TestRemoteOutlives: a terminal goes on where its tunnel is cut or goes silent, and knows of no hour.
func TestRemoteOutlives(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	p.onInstance(t, aws, "ws")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, aws.environ(t)...)
	c := g.open(t, "ws", dialing{})
	if m := c.message(t, "ready"); m.Tunnel != 0 {
		t.Errorf("told %+v", m)
	}
	c.run(t, "n=1")
	for n, breaks := range []func(){aws.Cut, aws.Stall} {
		breaks()
		c.send(t, "echo $((n+=1))=\r") // typed while there may be no way
		c.expect(t, fmt.Sprintf("%d=\r\n", n+2))
	}
	if got := c.run(t, "echo $n"); got != "3\r\n" {
		t.Errorf("the shell says %q", got)
	}
	c.close(t)
	container.empty(t)
	g.nothingLeft(t, container)
}

// A tunnel that only goes silent, without a close or a reset, keeps a shell for less than two minutes.
func TestRemoteTunnelGoesSilent(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newPlainCloud(t, env.Docker(t))
	p.onInstance(t, aws, "ws")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, aws.environ(t)...)
	c := g.open(t, "ws", dialing{})
	c.run(t, jobs)
	container.started(t)
	aws.Stall()
	container.empty(t, stay...)
	if code, m := c.closed(t), c.message(t, "error"); code != 4502 || m.Detail != "tunnel_stalled" || !m.Retryable || !strings.Contains(m.Message, docsPage) {
		t.Errorf("closed with %d, told %+v", code, m)
	}
	again := g.open(t, "ws", dialing{})
	if got := again.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("a new shell says %q", got)
	}
	again.close(t)
	container.empty(t, stay...)
	g.nothingLeft(t, container, stay...)
}

// The first gateway that reaches an instance keeps its host key for all.
func TestRemoteHostKeyChanged(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	instance := p.onInstance(t, aws, "ws")
	container := newBox(t, env.Docker(t), "ws")
	first, second := p.serve(t, aws.environ(t)...), p.serve(t, aws.environ(t)...)
	first.open(t, "ws", dialing{}).close(t)
	container.empty(t)
	again := second.open(t, "ws", dialing{})
	again.close(t)
	container.empty(t)

	third := p.serve(t, aws.environ(t)...)
	aws.sshd.ChangeHostKey(t)
	metric := fmt.Sprintf(ends, "backend_failed", "remote")
	m := wantRefusal(t, third, third.dial(t, "ws", p.ticket(t, "ws"), dialing{}), "backend_failed", 4502, metric, 0)
	if m.Detail != "ssh_hostkey" || !strings.Contains(m.Message, docsPage) {
		t.Errorf("told %+v", m)
	}
	if n := container.shells(t); n > 0 { // not execs: the instance may still look after the first two
		t.Errorf("%d shells", n)
	}
	// What an operator does when the instance was made anew on purpose.
	kept := p.hostKeys(t)
	if len(kept) != 1 || kept[0].Instance != instance || kept[0].Type != "ssh-ed25519" || !strings.HasPrefix(kept[0].Fingerprint, "SHA256:") {
		t.Errorf("kept %+v", kept)
	}
	status, out, said := p.operate(t, nil, "hostkeys", "list")
	if status != 0 || !strings.Contains(out, instance+"  ssh-ed25519  "+kept[0].Fingerprint+"  "+moment(kept[0].Since)+"\n") {
		t.Errorf("exit status %d:\n%s%s", status, out, said)
	}
	status, out, said = p.operate(t, nil, "hostkeys", "forget", instance, "i-0ddba11")
	if status != 1 || !strings.HasPrefix(out, "forgot the host key of "+instance+": ssh-ed25519 "+kept[0].Fingerprint+", kept since ") ||
		!strings.Contains(out, "goes on with the key that it began with") || !strings.Contains(said, "no host key is kept for i-0ddba11; ") {
		t.Errorf("exit status %d:\n%s%s", status, out, said)
	}
	if kept := p.hostKeys(t); len(kept) != 0 {
		t.Errorf("kept %+v", kept)
	}
	third.open(t, "ws", dialing{}).close(t)
	container.empty(t)
}

// hostKeys are what `hostkeys list --json` prints.
func (p *platform) hostKeys(tb testing.TB) (list []hostKeyJSON) {
	tb.Helper()
	status, out, said := p.operate(tb, nil, "hostkeys", "list", "--json")
	if status != 0 {
		tb.Fatalf("exit status %d: %s", status, said)
	}
	for line := range strings.Lines(out) {
		var k hostKeyJSON
		if err := json.Unmarshal([]byte(line), &k); err != nil {
			tb.Fatalf("%v: %q", err, line)
		}
		list = append(list, k)
	}
	return list
}

// The places of an endpoint are counted over all gateways, and are free when one ends.
func TestRemotePlacesAreShared(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	for _, workspace := range []string{"ws1", "ws2", "ws3"} {
		p.onInstance(t, aws, workspace)
	}
	p.exec(t, "UPDATE workspaces SET remote_target = 'host'")
	p.exec(t, `INSERT INTO termgw.tunnels (id, endpoint, instance_id, replica, renewed_at)
		SELECT n::text, 'eice-0123456789abcdef0', 'i-1', 'another', now() + interval '1 hour' FROM generate_series(1, $1) n`, eice.MaxTunnels-2)
	one, two := p.serve(t, aws.environ(t)...), p.serve(t, aws.environ(t)...)
	leaving, staying := one.open(t, "ws1", dialing{}), two.open(t, "ws2", dialing{})
	opened := aws.Calls(awsplay.OpenTunnel)
	for _, g := range []*served{one, two} {
		metric := fmt.Sprintf(ends, "too_many_sessions", "remote")
		m := wantRefusal(t, g, g.dial(t, "ws3", p.ticket(t, "ws3"), dialing{}), "too_many_sessions", 4429, metric, 0)
		if m.Detail != "eice_tunnels" || !m.Retryable {
			t.Errorf("told %+v", m)
		}
	}
	if n := aws.Calls(awsplay.OpenTunnel) - opened; n != 0 {
		t.Errorf("AWS was asked for %d tunnels more", n)
	}
	one.open(t, "ws1", dialing{}) // shares a tunnel, so it needs no place

	one.stop(t)
	if code := leaving.closed(t); code != 1012 {
		t.Errorf("closed with %d", code)
	}
	two.open(t, "ws3", dialing{})
	if got := staying.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("the other terminal answers %q", got)
	}
	if n := p.places(t); n != 2 {
		t.Errorf("%d places", n)
	}
}

// A tunnel that only lingers gives its place to an instance that needs one, this gateway's or another's.
func TestRemoteIdleTunnelsGiveWay(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	for n := range 6 {
		p.onInstance(t, aws, fmt.Sprintf("ws%d", n))
	}
	p.exec(t, "UPDATE workspaces SET remote_target = 'host'")
	p.exec(t, `INSERT INTO termgw.tunnels (id, endpoint, instance_id, replica, renewed_at)
		SELECT n::text, 'eice-0123456789abcdef0', 'i-1', 'another', now() + interval '1 hour' FROM generate_series(1, $1) n`, eice.MaxTunnels-2)
	one, two := p.serve(t, aws.environ(t)...), p.serve(t, aws.environ(t)...)
	var took time.Duration
	closes := func(g *served, workspace string) {
		t.Helper()
		began := time.Now()
		c := g.open(t, workspace, dialing{})
		took = time.Since(began)
		c.close(t)
		p.lastRowOf(t, c.message(t, "ready").Session)
		eventually(t, workspace+"'s tunnel is idle", func() bool { return p.idle(t, workspace) })
	}
	closes(one, "ws0")
	closes(one, "ws1")
	t.Logf("with a free place a terminal was there after %s", took)
	began := time.Now()
	one.open(t, "ws2", dialing{}) // the place of its own
	t.Logf("an own idle tunnel gave way: the terminal was there after %s", time.Since(began))
	began = time.Now()
	busy := two.open(t, "ws3", dialing{}) // the place of the other gateway's
	t.Logf("another gateway's idle tunnel gave way: the terminal was there after %s", time.Since(began))
	if n := p.places(t); n != 2 || aws.Tunnels() != 2 {
		t.Errorf("%d places, %d tunnels", n, aws.Tunnels())
	}
	began = time.Now()
	if code := two.dial(t, "ws4", p.ticket(t, "ws4"), dialing{}).closed(t); code != 4429 {
		t.Errorf("with no idle tunnel: closed with %d", code)
	}
	t.Logf("without an idle tunnel it was refused after %s", time.Since(began))

	// AWS counts more than gateways do: people have tunnels by the AWS CLI.
	busy.close(t)
	p.lastRowOf(t, busy.message(t, "ready").Session)
	eventually(t, "the tunnel is idle", func() bool { return p.idle(t, "ws3") })
	p.exec(t, "DELETE FROM termgw.tunnels WHERE replica = 'another'")
	aws.Fail(awsplay.OpenTunnel, awsplay.Fault{Status: 429, Code: "ServiceQuotaExceededException", Message: "The maximum number of tunnels is open.", Times: 1})
	two.open(t, "ws4", dialing{})
	if n := p.places(t); n != 2 || aws.Tunnels() != 2 {
		t.Errorf("%d places, %d tunnels", n, aws.Tunnels())
	}
}

// A proxy that hashes the path sends all terminals of a workspace to one gateway, which has one tunnel to the instance. When
// the gateway is gone, they open at the other.
func TestRemoteHashedByPath(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	const instances, each = 5, 2
	for n := range 2 * instances {
		p.onInstance(t, aws, fmt.Sprintf("ws%d", n))
	}
	p.exec(t, "UPDATE workspaces SET remote_target = 'host'")
	r := p.serveReplicas(t, 2, aws.environ(t)...)
	tunnels := func(front *served, first int) (tunnels int) {
		t.Helper()
		before := p.places(t)
		for range each {
			for n := range instances {
				front.open(t, fmt.Sprintf("ws%d", first+n), dialing{})
			}
		}
		return p.places(t) - before
	}
	inTurn, hashed := tunnels(r.any, 0), tunnels(r.hashed, instances)
	t.Logf("%d terminals on %d instances: %d tunnels in turn, %d by the path's hash", each*instances, instances, inTurn, hashed)
	if inTurn != 2*instances || hashed != instances {
		t.Errorf("%d tunnels in turn, %d by the path's hash", inTurn, hashed)
	}
	r.gateways[0].stop(t)
	for n := range instances {
		c := r.hashed.open(t, fmt.Sprintf("ws%d", instances+n), dialing{})
		if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
			t.Errorf("with one gateway left a terminal says %q", got)
		}
	}
}

// idle reports whether a gateway has noted that the tunnel to a workspace's instance has no terminal.
func (p *platform) idle(tb testing.TB, workspace string) (is bool) {
	tb.Helper()
	err := p.db.QueryRowContext(tb.Context(), `SELECT COALESCE(bool_and(idle_at IS NOT NULL), false) FROM termgw.tunnels
		WHERE instance_id = (SELECT instance_id FROM workspaces WHERE id = $1)`, workspace).Scan(&is)
	if err != nil {
		tb.Fatal(err)
	}
	return is
}

// Every detail that a client can be told, and every one that termgw doctor may print, has its row in the page that the
// sentences name; no row is of a detail that there is no more.
func TestDocsHaveEveryDetail(t *testing.T) {
	t.Parallel()
	page := readFile(t, "../../"+docsPage)
	want := map[string]string{ // of other parts, which name few
		"remote": "pkg/router", "timeout": "pkg/router", store.LimitTunnels: "pkg/store",
	}
	note := func(file, detail string) { want[detail] = file }
	for _, found := range regexp.MustCompile(`(?m)^\t\w+ +Detail = "(\w+)"$`).FindAllStringSubmatch(readFile(t, "../../pkg/eice/errors.go"), -1) {
		note("pkg/eice/errors.go", found[1])
	}
	for _, found := range regexp.MustCompile(`\bfail ([a-z_]+) `).FindAllStringSubmatch(readFile(t, "../../pkg/runner/instance/remote.sh"), -1) {
		if found[1] != "not_running" { // which is a code of its own
			note("pkg/runner/instance/remote.sh", found[1])
		}
	}
	files, err := filepath.Glob("../../pkg/runner/*.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := filepath.Glob("../../pkg/runner/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, kinds...) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, found := range regexp.MustCompile(`\b(?:failed\(|malformed\(|Failure{Step: )"(\w+)"|\bstep :?= "(\w+)"|\), "(ssh_\w+)", (?:err\w+|nil)}`).FindAllStringSubmatch(readFile(t, file), -1) {
			note(file, found[1]+found[2]+found[3])
		}
	}
	if len(want) < 40 || want["ssh_auth"] == "" || want["security_group"] == "" || want["docker"] == "" {
		t.Fatalf("the code is not read right: %d details", len(want))
	}
	rows := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([^|]+) \\| ([^|]+) \\|$").FindAllStringSubmatch(page, -1) {
		if rows[row[1]] {
			t.Errorf("%s has two rows", row[1])
		}
		rows[row[1]] = true
		if want[row[1]] == "" {
			t.Errorf("no code tells of %s", row[1])
		}
	}
	for detail, file := range want {
		if !rows[detail] {
			t.Errorf("%s, of %s, has no row with its cause and fix", detail, file)
		}
	}
	_, classes, _ := strings.Cut(page, "A later try by itself can mend ")
	classes, _, _ = strings.Cut(classes, ": clients are told so")
	for detail, file := range want {
		if file != "pkg/eice/errors.go" {
			continue
		}
		if final := (&eice.Error{Detail: eice.Detail(detail)}).Final(); final == strings.Contains(classes, "`"+detail+"`") {
			t.Errorf("%s is final: %t, and the page says otherwise", detail, final)
		}
	}
	for _, found := range regexp.MustCompile(`(?m)^\t"(\w+)": +"`).FindAllStringSubmatch(readFile(t, "../../pkg/runner/instance/failures.go"), -1) {
		if want[found[1]] == "" {
			t.Errorf("a sentence is for %s, which nothing tells of", found[1])
		}
	}

	// The policy can be pasted.
	_, rest, _ := strings.Cut(page, "```json\n")
	block, _, _ := strings.Cut(rest, "```")
	var policy struct {
		Version   string
		Statement []struct {
			Effect, Resource string
			Action           any // one, or a list
		}
	}
	if err := json.Unmarshal([]byte(block), &policy); err != nil || policy.Version != "2012-10-17" {
		t.Fatalf("the IAM policy: %v", err)
	}
	actions := fmt.Sprint(policy.Statement)
	for _, action := range []string{
		"ec2:DescribeInstances", "ec2:DescribeInstanceConnectEndpoints", "ec2-instance-connect:SendSSHPublicKey", "ec2-instance-connect:OpenTunnel",
	} {
		if !strings.Contains(actions, action) {
			t.Errorf("the IAM policy does not allow %s", action)
		}
	}
}

func readFile(tb testing.TB, path string) string {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}
