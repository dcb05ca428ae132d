package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/internal/awsplay"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/eice"
)

// Terminals through `aws ec2-instance-connect open-tunnel`: the real AWS CLI, which takes the gateway's own way to the
// played AWS.

// awsCLI is what a gateway is started with, so that it uses the AWS CLI, whose tunnel reads another variable for its CA.
func (c *cloud) awsCLI(tb testing.TB, more ...string) []string {
	tb.Helper()
	path := testenv.AWSCLI(tb) + string(os.PathListSeparator) + os.Getenv("PATH")
	return append(c.environ(tb, "TERMGW_EICE_TUNNEL=aws-cli", "PATH="+path, "SSL_CERT_FILE="+c.ca), more...)
}

// tunnelProcesses are the gateway's children that carry a tunnel.
func (g *served) tunnelProcesses(tb testing.TB) (dirs []string) {
	tb.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		tb.Fatal(err)
	}
	for _, file := range stats {
		stat, _ := os.ReadFile(file)
		_, rest, _ := strings.Cut(string(stat), ") ")
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if strings.HasPrefix(rest[min(2, len(rest)):], fmt.Sprint(g.cmd.Process.Pid, " ")) && strings.Contains(string(cmdline), "\x00open-tunnel\x00") {
			dirs = append(dirs, filepath.Dir(file))
		}
	}
	return dirs
}

func gone(dir string) bool {
	_, err := os.Stat(dir)
	return os.IsNotExist(err)
}

func TestAWSCLI(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newPlainCloud(t, env.Docker(t))
	p.onInstance(t, aws, "ws")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, aws.awsCLI(t)...)
	var carrier string // the process that carries the tunnel
	open := func(t *testing.T) *tty {
		t.Helper()
		c := g.open(t, "ws", dialing{})
		if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
			t.Errorf("the shell says %q", got)
		}
		found := g.tunnelProcesses(t)
		if len(found) != 1 || aws.Tunnels() != 1 || p.places(t) != 1 {
			t.Fatalf("%d processes, %d tunnels, %d places", len(found), aws.Tunnels(), p.places(t))
		}
		carrier = found[0]
		return c
	}

	first := open(t)
	if m := first.message(t, "ready"); m.Target != "remote" {
		t.Errorf("told %+v", m)
	}
	second := open(t)
	if n := aws.Calls(awsplay.OpenTunnel); n != 1 {
		t.Errorf("two terminals cost %d tunnels", n)
	}
	// What the machine's process list shows, and what the CLI is given: the way to credentials, and nothing of ours.
	argv, _ := os.ReadFile(filepath.Join(carrier, "cmdline"))
	p.checkSecrets(t, "the tunnel's arguments", string(argv))
	environ, _ := os.ReadFile(filepath.Join(carrier, "environ"))
	if strings.Contains(string(environ), "TERMGW_") || !strings.Contains(string(environ), "AWS_SESSION_TOKEN=") {
		t.Errorf("the tunnel's environment is %q", environ)
	}

	// The CLI does not hear that ssh has ended, nor has a terminal that would tell it.
	aws.Cut()
	for _, c := range []*tty{first, second} {
		if code, m := c.closed(t), c.message(t, "error"); code != 4502 || m.Detail != "tunnel_cut" || !m.Retryable {
			t.Errorf("closed with %d, told %+v", code, m)
		}
	}
	eventually(t, "the first CLI is gone", func() bool { return gone(carrier) })
	open(t).close(t)
	container.empty(t)
	g.stop(t)
	if !gone(carrier) {
		t.Error("the CLI outlives a gateway that ended in order")
	}
	g = p.serve(t, aws.awsCLI(t)...)
	open(t)
	g.signal(t, os.Kill)
	g.wait(t)
	eventually(t, "the CLI is gone with a gateway that was killed", func() bool { return gone(carrier) && aws.Tunnels() == 0 })
}

// What the CLI says becomes what AWS's own answers become; where it says nothing and never ends, time decides.
func TestAWSCLIFaults(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	endpoint := aws.PutEndpoint(awsplay.Endpoint{ID: "eice-0123456789abcdef0"})
	g := p.serve(t, aws.awsCLI(t)...)
	refused := func(status int, code, message string) func(*awsplay.Instance) {
		return func(*awsplay.Instance) {
			aws.Fail(awsplay.OpenTunnel, awsplay.Fault{Status: status, Code: code, Message: message})
		}
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatal(err)
	}
	without := t.TempDir()
	if err := os.Symlink(ssh, filepath.Join(without, "ssh")); err != nil {
		t.Fatal(err)
	}
	wants := func(t *testing.T, g *served, instance, detail, code string, status websocket.StatusCode) {
		t.Helper()
		workspace := "of-" + instance
		metric := fmt.Sprintf(ends, code, "remote")
		m := wantRefusal(t, g, g.dial(t, workspace, p.ticket(t, workspace), dialing{}), code, status, metric, g.metric(t, metric))
		if retryable := !(&eice.Error{Detail: eice.Detail(detail)}).Final(); m.Retryable != retryable {
			t.Errorf("%s is retryable: %t", detail, m.Retryable)
		}
		if m.Detail != detail || status == 4502 && !strings.Contains(m.Message, docsPage) {
			t.Errorf("told %+v, want %s", m, detail)
		}
		p.checkSecrets(t, "the message", m.Message)
		eventually(t, "no process or place is left", func() bool {
			var places int
			if err := p.db.QueryRowContext(t.Context(), "SELECT count(*) FROM termgw.tunnels WHERE instance_id = $1", instance).Scan(&places); err != nil {
				t.Fatal(err)
			}
			return g.resources(t).children == 0 && places == 0
		})
	}
	for _, test := range []struct {
		name, detail string
		set          func(*awsplay.Instance)
	}{
		{"IAM: OpenTunnel", "iam_open_tunnel", refused(http.StatusForbidden, "AccessDeniedException",
			"User: arn:aws:sts::"+awsAccount+":assumed-role/gateway/session is not authorized to perform: ec2-instance-connect:OpenTunnel")},
		{"AWS's quota", "eice_tunnels", refused(http.StatusTooManyRequests, "ServiceQuotaExceededException", "The maximum number of tunnels is open.")},
		{"the tunnel is refused", "tunnel_refused", refused(http.StatusBadRequest, "InvalidParameter", "no")},
		{"a security group", "security_group", func(i *awsplay.Instance) { i.Target = "" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer aws.Heal()
			i := aws.newInstance()
			p.workspace(t, "of-"+i.ID, i.ID)
			test.set(&i)
			aws.PutInstance(i)
			if test.detail == "eice_tunnels" {
				wants(t, g, i.ID, test.detail, "too_many_sessions", 4429)
			} else {
				wants(t, g, i.ID, test.detail, "backend_failed", 4502)
			}
		})
	}
	for name, environ := range map[string]string{
		"no CLI":   "PATH=" + without,
		"no trust": "SSL_CERT_FILE=",
		"no name":  "NO_PROXY=" + endpoint.DNSName,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // two of them take their whole time
			i := aws.newInstance()
			p.workspace(t, "of-"+i.ID, i.ID)
			aws.PutInstance(i)
			detail := "tunnel"
			if name == "no CLI" {
				detail = "aws_cli"
			}
			wants(t, p.serve(t, aws.awsCLI(t, environ, asProgram+"=15s")...), i.ID, detail, "backend_failed", 4502)
		})
	}
}
