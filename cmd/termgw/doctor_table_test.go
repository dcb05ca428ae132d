package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/crypto/ssh"

	"github.com/molecule-ai/termgw/internal/awsplay"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/eice"
)

// The doctor's table: paths to an instance, each with one thing broken, and what the doctor says of it. The page holds
// the table as this test makes it.

var update = flag.Bool("update", false, "rewrite the table of broken set-ups in "+tablePage)

const tablePage = "docs/infra/workspace-terminal.md"

// brokenSite is the path to one workspace on an instance of its own, in a cloud of its own.
type brokenSite struct {
	*cloud
	t         *testing.T
	p         *platform
	n         int // of the set-up
	workspace string
	instance  awsplay.Instance
	environ   []string
}

// broken is a set-up with one thing broken.
type broken struct {
	what string              // for the page
	sshd *testenv.SSHDConfig // nil: as it should be
	set  func(*brokenSite)   // breaks it; nil: sshd is what is broken
	slow time.Duration       // of the start of a shell, if that takes its whole time
	aws  awsplay.Config

	step       string // that fails, and its detail, if it has one; empty: none
	cause, fix string // words of what the doctor says
	says       string // words of a step that went well
}

func withLines(lines ...string) *testenv.SSHDConfig { return &testenv.SSHDConfig{Lines: lines} }

// columns sets columns of the workspace's row.
func columns(values string) func(*brokenSite) {
	return func(s *brokenSite) { s.p.exec(s.t, "UPDATE workspaces SET "+values+" WHERE id = $1", s.workspace) }
}

// account runs a command on the instance's account.
func account(argv ...string) func(*brokenSite) {
	return func(s *brokenSite) {
		cmd := exec.Command(argv[0], append(argv[1:], s.sshd.User)...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
}

// home writes a file into the account's home.
func home(name, text string) func(*brokenSite) {
	return func(s *brokenSite) {
		u, err := user.Lookup(s.sshd.User)
		if err == nil {
			err = os.WriteFile(filepath.Join(u.HomeDir, name), []byte(text+"\n"), 0o644)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// variables adds variables to the environment of the gateway.
func variables(more ...string) func(*brokenSite) {
	return func(s *brokenSite) { s.environ = append(s.environ, more...) }
}

// onInstance changes the instance.
func onInstance(change func(*awsplay.Instance)) func(*brokenSite) {
	return func(s *brokenSite) { change(&s.instance) }
}

func inState(name string) func(*brokenSite) {
	return onInstance(func(i *awsplay.Instance) { i.State = name })
}

// fails makes calls of AWS fail.
func fails(f awsplay.Fault, ops ...awsplay.Op) func(*brokenSite) {
	return func(s *brokenSite) {
		for _, op := range ops {
			s.Fail(op, f)
		}
	}
}

func denies(op awsplay.Op, code string) func(*brokenSite) {
	return fails(awsplay.Fault{
		Status: http.StatusForbidden, Code: code,
		Message: "User: arn:aws:sts::" + awsAccount + ":assumed-role/gateway/session is not authorized to perform: " + string(op),
	}, op)
}

// endpointOf is the id of the endpoint of a set-up alone: tunnels are counted for each endpoint.
func endpointOf(n int) string { return fmt.Sprintf("eice-%017x", n+1) }

// endpoint changes the VPC's endpoint.
func endpoint(e awsplay.Endpoint) func(*brokenSite) {
	return func(s *brokenSite) {
		e.ID = endpointOf(s.n)
		s.PutEndpoint(e)
	}
}

// answers leads the tunnel to a listener that does so with each connection.
func answers(with func(net.Conn)) func(*brokenSite) {
	return func(s *brokenSite) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		var conns sync.WaitGroup
		conns.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				conns.Go(func() {
					defer c.Close()
					defer context.AfterFunc(s.t.Context(), func() { _ = c.Close() })()
					with(c)
				})
			}
		})
		s.t.Cleanup(func() {
			_ = l.Close()
			conns.Wait()
		})
		s.instance.Target = l.Addr().String()
	}
}

// withCommand is an sshd of an instance on which a command is a script, or is not there.
func withCommand(name, script string) *testenv.SSHDConfig {
	return &testenv.SSHDConfig{Commands: map[string]string{name: script}}
}

// closedSocket is the address of an engine's socket that root alone may open.
func closedSocket(t *testing.T) string {
	file := filepath.Join(shortTempDir(t), "docker.sock")
	l, err := net.Listen("unix", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := errors.Join(os.Chmod(filepath.Dir(file), 0o755), os.Chmod(file, 0o600)); err != nil {
		t.Fatal(err)
	}
	return "unix://" + file
}

// bannerFile is what an sshd shows before a login.
func bannerFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "banner")
	if err := os.WriteFile(file, []byte("Host key verification failed.\nExceeded MaxStartups\nConnection timed out\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// keyFile makes a host key that is not Ed25519.
func keyFile(t *testing.T) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ecdsa")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// otherCA is a file of roots that nothing in the cloud is signed by.
func otherCA(t *testing.T) string {
	other, err := awsplay.New(awsplay.Config{Credentials: awsKeys})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "other.pem")
	if err := os.WriteFile(file, other.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const tcsh = "/bin/tcsh"

const anotherKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUwSLuvlcpyY4dF5UkAIjJQJqaf8pWcHHMvYGkY9qWp"

// html is what a captive portal, or a proxy that refuses, answers in AWS's place.
const html = `<!DOCTYPE html><html><head><title>Sign in to the network</title></head><body><p>Access denied.</p></body></html>`

func brokenSetUps(t *testing.T) []broken {
	allCalls := []awsplay.Op{awsplay.DescribeInstances, awsplay.DescribeEndpoints, awsplay.SendSSHPublicKey, awsplay.OpenTunnel}
	throttled := awsplay.Fault{Status: http.StatusServiceUnavailable, Code: "RequestLimitExceeded", Message: "Request limit exceeded."}
	return []broken{
		// The gateway and AWS.
		{
			what: "The gateway has no AWS credentials", set: variables("AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "AWS_SESSION_TOKEN="),
			step: "aws credentials", cause: "getting AWS credentials", fix: "give it a role, or check AWS_PROFILE",
		},
		{what: "Its credentials have expired", set: func(s *brokenSite) {
			expired := awsKeys
			expired.Expired = true
			s.SetCredentials(expired)
		}, step: "aws credentials_expired", cause: "RequestExpired", fix: "renew them"},
		{
			what: "AWS does not know its credentials", set: variables("AWS_ACCESS_KEY_ID=AKIAEXAMPLEEXAMPLE99"),
			step: "aws credentials", cause: "AWS was not able to validate the provided access credentials", fix: "check AWS_PROFILE, AWS_ACCESS_KEY_ID",
		},
		{
			what: "Its clock is ten minutes wrong", set: func(s *brokenSite) { s.ahead.Store(int64(10 * time.Minute)) },
			step: "aws clock", cause: "RequestExpired", fix: "set it right",
		},
		{what: "No region is configured", set: variables("AWS_REGION="), step: "aws region", cause: "no valid AWS region is configured", fix: "set its region or AWS_REGION"},
		{what: "The instance is in another region", aws: awsplay.Config{Region: "eu-west-1"}, set: func(s *brokenSite) {
			s.environ = append(s.environ, "AWS_REGION=eu-west-1")
			s.instance.ID = "i-0123456789abcdef0"
		}, step: "instance instance_unknown", cause: "InvalidInstanceID.NotFound", fix: "correct instance_id, region or role_arn in the workspace's row"},
		{what: "`AWS_CA_BUNDLE` lacks the root of AWS's certificate", set: func(s *brokenSite) {
			s.environ = append(s.environ, "AWS_CA_BUNDLE="+otherCA(s.t))
		}, step: "aws aws_unreachable", cause: "certificate signed by unknown authority", fix: "CA certificates"},
		{
			what: "`HTTPS_PROXY` leads nowhere", set: variables("HTTPS_PROXY=http://127.0.0.1:1"),
			step: "aws aws_unreachable", cause: "proxyconnect tcp: dial tcp 127.0.0.1:1: connect: connection refused", fix: "proxy",
		},
		{what: "The proxy wants a password (407)", set: func(s *brokenSite) {
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Proxy-Authenticate", "Basic")
				w.WriteHeader(http.StatusProxyAuthRequired)
			}))
			s.t.Cleanup(proxy.Close)
			s.environ = append(s.environ, "HTTPS_PROXY="+proxy.URL)
		}, step: "aws aws_unreachable", cause: "Proxy Authentication Required", fix: "proxy"},
		{what: "AWS does not answer", set: fails(awsplay.Fault{Hang: true}, allCalls...), step: "aws aws_unreachable", cause: "context deadline exceeded", fix: "check its network"},
		{
			what: "A proxy answers with a page of its own", set: fails(awsplay.Fault{Status: http.StatusOK, Body: html}, allCalls...),
			step: "aws aws_answer", cause: `the answer is "html"`, fix: "Check for a proxy that answers in AWS's place",
		},
		{
			what: "A proxy refuses the tunnel alone, with a page of its own", set: fails(awsplay.Fault{Status: http.StatusForbidden, Body: html}, awsplay.OpenTunnel),
			step: "tunnel aws_answer", cause: "OpenTunnel: status 403", fix: "Check for a proxy that answers in AWS's place",
		},
		{what: "AWS has a fault of its own (500)", set: fails(awsplay.Fault{Status: http.StatusInternalServerError, Code: "InternalError", Message: "An internal error has occurred"}, allCalls...), step: "aws aws_fault", cause: "InternalError", fix: "a fault of its own: try again in a minute"},
		{what: "The gateway may not assume the row's `role_arn`", set: columns("role_arn = '" + awsRole + "-of-nobody'"), step: "aws iam_assume_role", cause: "AssumeRole: status 403, AccessDenied", fix: "the role's trust policy"},
		{what: "The row's `role_arn` is no role's", set: columns("role_arn = 'termgw'"), step: "aws role_arn", cause: "the role's ARN is malformed", fix: "correct it in the workspace's row"},
		{what: "AWS throttles DescribeInstances", set: fails(throttled, awsplay.DescribeInstances), step: "aws throttled", cause: "RequestLimitExceeded", fix: "try again in a minute"},
		{what: "AWS throttles every call", set: fails(throttled, allCalls...), step: "aws throttled", cause: "RequestLimitExceeded", fix: "try again in a minute"},
		{
			what: "IAM denies `ec2:DescribeInstances`", set: denies(awsplay.DescribeInstances, "UnauthorizedOperation"),
			step: "instance iam_describe_instances", cause: "is not authorized to perform: DescribeInstances", fix: "allow ec2:DescribeInstances",
		},
		{
			what: "IAM denies `ec2:DescribeInstanceConnectEndpoints`", set: denies(awsplay.DescribeEndpoints, "UnauthorizedOperation"),
			step: "endpoint iam_describe_endpoints", cause: "is not authorized to perform: DescribeInstanceConnectEndpoints", fix: "allow ec2:DescribeInstanceConnectEndpoints",
		},
		{
			what: "IAM denies `ec2-instance-connect:SendSSHPublicKey`", set: denies(awsplay.SendSSHPublicKey, "AccessDeniedException"),
			step: "key iam_send_key", cause: "is not authorized to perform: SendSSHPublicKey", fix: "allow ec2-instance-connect:SendSSHPublicKey",
		},
		{
			what: "IAM denies `ec2-instance-connect:OpenTunnel`", set: denies(awsplay.OpenTunnel, "AccessDeniedException"),
			step: "tunnel iam_open_tunnel", cause: "is not authorized to perform: openTunnel", fix: "allow ec2-instance-connect:OpenTunnel",
		},

		{what: "`AWS_PROFILE` is not in the shared configuration", set: variables("AWS_PROFILE=nobody"), step: "place remote", cause: "failed to get shared config profile", fix: "Put right what the cause names"},
		{
			what: "The gateway has no `ssh`", set: variables("PATH=/nonexistent"),
			step: "place remote", cause: "remote workspaces need OpenSSH's client", fix: "Put right what the cause names",
		},

		// The instance, its endpoint and the network.
		{
			what: "The row's `instance_id` is malformed", set: columns("instance_id = 'i-none'"),
			step: "instance instance_id", cause: `"i-none" is no instance's id`, fix: "correct it in the workspace's row",
		},
		{
			what: "There is no such instance", set: onInstance(func(i *awsplay.Instance) { i.ID = "i-0123456789abcdef0" }),
			step: "instance instance_unknown", cause: "InvalidInstanceID.NotFound", fix: "correct instance_id, region or role_arn in the workspace's row",
		},
		{
			what: "The instance is starting (`pending`)", set: inState("pending"),
			step: "instance instance_pending", cause: "the instance is pending", fix: "try again in a minute",
		},
		{what: "The instance is being stopped", set: inState("stopping"), step: "instance instance_stopping", cause: "the instance is stopping", fix: "once it has stopped"},
		{what: "The instance is stopped", set: inState("stopped"), step: "instance instance_stopped", cause: "the instance is stopped", fix: "start it"},
		{what: "The instance was terminated", set: inState("terminated"), step: "instance instance_terminated", cause: "the instance is terminated", fix: "the workspace needs a new one"},
		{
			what: "The instance has an IPv6 address alone, the endpoint is for IPv4",
			set:  onInstance(func(i *awsplay.Instance) { i.PrivateIP, i.IPv6 = "", "2001:db8::5" }),
			step: "endpoint endpoint_address_type", cause: "the endpoint's address type is none of the instance's addresses", fix: "Make the endpoint's address type dualstack",
		},
		{what: "The VPC has no endpoint", set: onInstance(func(i *awsplay.Instance) { i.VPC = "vpc-none" }), step: "endpoint endpoint_none", cause: "no endpoint in the instance's VPC is ready", fix: "create one"},
		{
			what: "The endpoint is being created", set: endpoint(awsplay.Endpoint{State: "create-in-progress"}),
			step: "endpoint endpoint_creating", cause: "the endpoint is being created", fix: "try again in a few minutes",
		},
		{
			what: "`TERMGW_EICE_ENDPOINT_ID` is another region's", set: variables("TERMGW_EICE_ENDPOINT_ID=eice-0fedcba9876543210"),
			step: "endpoint endpoint_unknown", cause: "InvalidInstanceConnectEndpointId.NotFound", fix: "check endpoint_id in the workspace's row and TERMGW_EICE_ENDPOINT_ID",
		},
		{what: "20 tunnels are in use, by the gateways' own count", set: func(s *brokenSite) {
			s.p.exec(s.t, `INSERT INTO termgw.tunnels (id, endpoint, instance_id, replica, renewed_at)
				SELECT n::text, $2, 'i-1', 'another', now() + interval '1 hour' FROM generate_series(1, $1) n`, eice.MaxTunnels, endpointOf(s.n))
		}, step: "tunnel eice_tunnels", cause: "eice_tunnels, 20 in use", fix: "Close a terminal or try again later"},
		{
			what: "20 tunnels are in use, by AWS's count alone",
			set:  fails(awsplay.Fault{Status: http.StatusTooManyRequests, Code: "ServiceQuotaExceededException", Message: "The maximum number of tunnels is open."}, awsplay.OpenTunnel),
			step: "tunnel eice_tunnels", cause: "ServiceQuotaExceededException", fix: "Close a terminal or try again later",
		},
		{
			what: "No security group lets port 22 through", set: onInstance(func(i *awsplay.Instance) { i.Target = "" }),
			step: "tunnel security_group", cause: "Unable to connect to target", fix: "check both security groups",
		},
		{
			what: "sshd does not run", set: onInstance(func(i *awsplay.Instance) { i.Target = "127.0.0.1:1" }),
			step: "tunnel security_group", cause: "Unable to connect to target", fix: "network ACLs, sshd",
		},
		{
			what: "The tunnel is silent: nothing answers in it", slow: 20 * time.Second, set: answers(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }),
			step: "tunnel ssh_timeout", cause: "waiting for sshd's greeting", fix: "not overloaded, and that no firewall swallows",
		},
		{
			what: "sshd hangs up before its greeting", set: answers(func(net.Conn) {}),
			step: "tunnel ssh_closed", cause: "waiting for sshd's greeting: EOF", fix: "sshd's own log",
		},
		{
			what: "Something else listens on port 22", set: answers(func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }),
			step: "tunnel ssh_greeting", cause: "HTTP/1.1 400 Bad Request", fix: "Check what listens there",
		},
		{
			what: "sshd penalises the endpoint's address (OpenSSH 9.8 or later)", set: answers(func(c net.Conn) {
				_, _ = io.WriteString(c, "Not allowed at this time\r\n")
			}),
			step: "tunnel ssh_penalty", cause: "Not allowed at this time", fix: "PerSourcePenaltyExemptList",
		},
		{
			what: "`MaxStartups` is taken", sshd: withLines("MaxStartups 1:100:1"), set: takeStartups,
			step: "tunnel ssh_startups", cause: "Exceeded MaxStartups", fix: "Check MaxStartups",
		},

		// The login.
		{
			what: "The instance has no such user", set: columns("os_user = 'nobody-here'"),
			step: "login ssh_auth", cause: "Permission denied (publickey)", fix: "Check the OS user",
		},
		{
			what: "The account is locked", set: account("usermod", "--lock"),
			step: "login ssh_auth", cause: "Permission denied (publickey)", fix: "neither locked",
		},
		{
			what: "`AllowUsers` lacks the user", sshd: withLines("AllowUsers somebody-else"),
			step: "login ssh_auth", cause: "Permission denied (publickey)", fix: "AllowUsers",
		},
		{
			what: "The login comes 60 s after the key", set: func(s *brokenSite) { s.slow.Store(true) },
			step: "login ssh_auth", cause: "it is over 60 s old", fix: "The instance refused the gateway's key",
		},
		{
			what: "The account's login shell does not exist", sshd: &testenv.SSHDConfig{Shell: "/bin/no-such-shell"},
			step: "login ssh_auth", cause: "Permission denied (publickey)", fix: "that its login shell exists",
		},
		{
			what: "The account has expired, under PAM", sshd: withLines("UsePAM yes"), set: account("usermod", "--expiredate", "1"),
			step: "login ssh_denied", cause: "Your account has expired", fix: "sudo chage -E -1",
		},
		{
			what: "sshd wants a password after the key", sshd: withLines("AuthenticationMethods publickey,password"),
			step: "login ssh_auth", cause: "Permission denied (password)", fix: "AuthenticationMethods publickey",
		},
		{
			what: "sshd has old algorithms alone", sshd: withLines("KexAlgorithms diffie-hellman-group14-sha1"),
			step: "login ssh_handshake", cause: "no matching key exchange method found", fix: "update the older one",
		},
		{
			what: "The instance lacks ec2-instance-connect", sshd: withLines("AuthorizedKeysCommand none"),
			step: "login ssh_auth", cause: "Permission denied (publickey)", fix: "has ec2-instance-connect",
		},
		{
			what: "An sshd under FIPS takes no Ed25519 keys",
			sshd: withLines("HostKey "+keyFile(t), "HostKeyAlgorithms ecdsa-sha2-nistp256", "PubkeyAcceptedAlgorithms ecdsa-sha2-nistp256,rsa-sha2-256,rsa-sha2-512"),
		},
		{
			what: "The instance has no such user, and a `Banner` pretends another cause", sshd: withLines("Banner " + bannerFile(t)), set: columns("os_user = 'nobody-here'"),
			step: "login ssh_auth", cause: "Permission denied (publickey)", fix: "Check the OS user",
		},
		{
			what: "`host_key` is a fingerprint that is cut short", set: columns("host_key = 'SHA256:8mZ0Y5ZyT1vFq1'"),
			step: "instance ssh_hostkey", cause: "line 1 has a fingerprint that is not whole", fix: "host_key in the workspace's row is malformed",
		},
		{
			what: "`host_key` is another instance's", set: columns("host_key = '" + anotherKey + "'"),
			step: "login ssh_hostkey", cause: "the instance's host key is not the one that is known for it", fix: "correct host_key in the workspace's row",
		},
		{what: "The host key is not the one that was kept", set: func(s *brokenSite) {
			s.p.exec(s.t, "INSERT INTO termgw.host_keys (instance_id, line) VALUES ($1, $2)", s.instance.ID, anotherKey)
		}, step: "login ssh_hostkey", cause: "the instance's host key is not the one that is known for it", fix: "termgw hostkeys forget"},

		// The account.
		{
			what: "The login shell is `nologin`", sshd: &testenv.SSHDConfig{Shell: "/usr/sbin/nologin"},
			step: "account account", cause: "This account is currently not available", fix: "sudo usermod -s /bin/bash",
		},
		{
			what: "The password has expired, and PAM asks for another", sshd: withLines("UsePAM yes"), set: account("chage", "--lastday", "0"), slow: 20 * time.Second,
			step: "account account", cause: "Your password has expired", fix: "sudo chage",
		},
		{
			what: "`.bashrc` starts another shell (`exec zsh`)", set: home(".bashrc", "exec dash"), slow: 20 * time.Second,
			step: "account account", cause: "did not run the gateway's command", fix: "what its .bashrc and the like start",
		},
		{what: "The account may start no process (`ulimit -u`)", set: home(".bashrc", "ulimit -u 1"), step: "account account", cause: "Cannot fork", fix: "see what comes before a prompt"},
		{what: "`.bashrc` ends (`exit`)", set: home(".bashrc", "exit 0"), step: "account account", cause: "did not run the gateway's command", fix: "what its .bashrc and the like start"},
		{what: "The login shell is `rbash`", sshd: &testenv.SSHDConfig{Shell: "/bin/rbash"}, step: "account account", cause: "restricted", fix: "its login shell"},
		{
			what: "`ForceCommand internal-sftp`", sshd: withLines("ForceCommand internal-sftp"),
			step: "account account", cause: "This service allows sftp connections only", fix: "ForceCommand in sshd's configuration",
		},
		{
			what: "`ForceCommand` in sshd's configuration", sshd: withLines("ForceCommand /bin/bash"), slow: 20 * time.Second,
			step: "account account", cause: "did not run the gateway's command", fix: "ForceCommand in sshd's configuration",
		},
		{what: "The login shell is `tcsh`", sshd: &testenv.SSHDConfig{Shell: tcsh}},
		{
			what: "`PermitTTY no` in sshd's configuration, where no keeper can be", sshd: &testenv.SSHDConfig{Lines: []string{"PermitTTY no"}, Commands: noKeeper},
			step: "account account", cause: "sshd gives the account no terminal", fix: "PermitTTY yes",
		},
		{what: "`MaxSessions 0` in sshd's configuration", sshd: withLines("MaxSessions 0"), step: "account ssh_sessions", cause: "the instance's sshd opens no session", fix: "Check MaxSessions"},
		{what: "`MaxSessions 1` in sshd's configuration", sshd: withLines("MaxSessions 1")},
		{what: "The instance lacks `setsid`", sshd: withCommand("setsid", ""), says: "not there, and not needed: setsid"},
		{what: "The instance lacks `sha256sum`", sshd: &testenv.SSHDConfig{Commands: noKeeper}, says: "terminals end with AWS's hour, since nothing holds them on the instance: there is no sha256sum command"},
		{what: "The instance lacks `sha256sum` and `ss`", sshd: &testenv.SSHDConfig{Commands: map[string]string{"sha256sum": "", "ss": ""}}, says: "no ss: where a gateway dies and its tunnel stays open"},
		{what: "The instance lacks `timeout`", sshd: withCommand("timeout", ""), says: "not there, and not needed: timeout"},

		// Docker and the container.
		{what: "The instance lacks `docker`", sshd: withCommand("docker", ""), step: "docker docker", cause: "there is no docker command on the instance", fix: "Check that Docker is installed"},
		{
			what: "The user may not use Docker", sshd: withLines("SetEnv DOCKER_HOST=" + closedSocket(t)),
			step: "docker docker", cause: "permission denied while trying to connect to the Docker daemon socket", fix: "usermod -aG docker",
		},
		{
			what: "Docker's engine does not run", sshd: withLines("SetEnv DOCKER_HOST=unix:///run/no-docker.sock"),
			step: "docker docker", cause: "Cannot connect to the Docker daemon", fix: "Check that Docker is installed and runs",
		},
		{
			what: "`docker` hangs", sshd: withCommand("docker", "exec sleep 1000"), slow: 20 * time.Second,
			step: "docker docker", cause: "it does not answer", fix: "Check that Docker is installed and runs",
		},
		{what: "The container is stopped", set: columns("container = 'ws-stopped'"), step: "container", cause: "ws-stopped is stopped", fix: "Start the workspace"},
		{what: "The container is paused", set: columns("container = 'ws-paused'"), step: "container", cause: "ws-paused is paused", fix: "unpause it"},
		{what: "There is no such container", set: columns("container = 'ws-none'"), step: "container", cause: "looked for ws-none", fix: "correct container or name in its row"},
		{what: "A login shell on the instance itself, whose profile does not end", set: func(s *brokenSite) {
			columns("remote_target = 'host'")(s)
			home(".bash_profile", "exec sleep 1004")(s)
		}, step: "shell", cause: "it does not do what is typed", fix: "what its profile starts or waits for"},
		{what: "The container has none of `TERMGW_SHELLS`", set: variables("TERMGW_SHELLS=/bin/none"), step: "shell shell", cause: "none of /bin/none is in the container", fix: "one of TERMGW_SHELLS has to be there"},
	}
}

// takeStartups holds a connection that does not log in, once sshd has taken it.
func takeStartups(s *brokenSite) {
	eventually(s.t, "a connection that does not log in is held", func() bool {
		c, err := net.Dial("tcp", s.sshd.Addr)
		if err != nil {
			return false
		}
		if line, _ := bufio.NewReader(c).ReadString('\n'); !strings.HasPrefix(line, "SSH-") {
			_ = c.Close()
			return false
		}
		s.t.Cleanup(func() { _ = c.Close() })
		return true
	})
}

// TestDoctorTable runs the doctor in each set-up, and compares the page's table with what it said. -update rewrites the table.
func TestDoctorTable(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := newPlatform(t)
	p.remoteColumns(t)
	newBox(t, engine, "fine")
	paused := newBox(t, engine, "paused")
	if _, err := engine.Client(t).ContainerPause(t.Context(), paused.id, client.ContainerPauseOptions{}); err != nil {
		t.Fatal(err)
	}
	stopped := newBox(t, engine, "stopped")
	if _, err := engine.Client(t).ContainerStop(t.Context(), stopped.id, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	setUps := brokenSetUps(t)
	lines := make([]string, len(setUps)) // of the table; empty: the set-up could not be made here
	t.Run("set-ups", func(t *testing.T) {
		for _, n := range slowestFirst(setUps) {
			b := setUps[n]
			t.Run(b.what, func(t *testing.T) {
				t.Parallel()
				if b.sshd != nil && b.sshd.Shell == tcsh {
					needs(t, tcsh, "tcsh")
				}
				lines[n] = p.diagnoseBroken(t, engine, b, n)
			})
		}
	})
	if t.Failed() {
		return // the table would be of another doctor
	}
	compareTable(t, setUps, lines)
}

// slowestFirst returns the order in which the set-ups take the least time.
func slowestFirst(setUps []broken) []int {
	order := make([]int, len(setUps))
	for n := range order {
		order[n] = n
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(setUps[b].slow, setUps[a].slow) })
	return order
}

// diagnoseBroken breaks a set-up, runs the doctor, and returns the table's line.
func (p *platform) diagnoseBroken(t *testing.T, engine *testenv.Docker, b broken, n int) string {
	s := &brokenSite{cloud: newAWS(t, b.aws, endpointOf(n)), t: t, n: n, p: p, workspace: fmt.Sprintf("broken-%d", n)}
	cfg := testenv.SSHDConfig{Docker: engine}
	if b.sshd != nil {
		cfg = *b.sshd
		cfg.Docker = engine // the first SetEnv of a configuration counts
	}
	s.startSSHD(t, cfg)
	s.instance = awsplay.Instance{ID: fmt.Sprintf("i-%017x", n+1), PrivateIP: "10.0.0.5", Target: s.sshd.Addr}
	s.ids = []string{s.instance.ID}
	p.workspace(t, s.workspace, s.instance.ID)
	p.exec(t, "UPDATE workspaces SET container = 'ws-fine' WHERE id = $1", s.workspace)
	s.environ = s.cloud.environ(t)
	if b.set != nil {
		b.set(s)
	}
	s.PutInstance(s.instance)
	if b.slow != 0 {
		s.environ = append(s.environ, asProgram+"="+b.slow.String())
	}
	d := p.diagnose(t, s.workspace, s.environ...)
	cause, fix := d.told()
	if failed := strings.TrimSpace(strings.Join(d.failed, " ") + " " + d.detail); failed != b.step || !strings.Contains(cause, b.cause) || !strings.Contains(fix, b.fix) {
		t.Errorf("fails at %q; want %q with the cause %q and the fix %q:\n%s", failed, b.step, b.cause, b.fix, d.text)
	}
	if r := p.lastRow(t, s.workspace); (r.reason == "client_closed") != (b.step == "") && b.step != "shell" {
		t.Errorf("the audit trail says %+v", r)
	}
	eventually(t, "no tunnel and no process of the doctor is left", func() bool {
		return s.Tunnels() == 0 && len(running(t, s.instance.ID)) == 0
	})
	if !strings.Contains(d.text, b.says) {
		t.Errorf("nothing of %q:\n%s", b.says, d.text)
	}
	fix = strings.ReplaceAll(strings.TrimSuffix(fix, " See "+eice.Docs+"."), s.sshd.User, "ec2-user")
	step, detail, _ := strings.Cut(b.step, " ")
	cells := []string{b.what, step, code(detail), code(b.cause), fix}
	if step == "" {
		cells[1], cells[3], cells[4] = "none", code(b.says), "a terminal opens"
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

// told returns what the doctor says of the step that failed.
func (d diagnosis) told() (cause, fix string) {
	for line := range strings.Lines(d.text) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "cause: "); ok {
			cause += text + "\n"
		}
		if text, ok := strings.CutPrefix(line, "fix:   "); ok {
			fix += text
		}
	}
	return cause, fix
}

// code is a text as Markdown's code.
func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}

// needs skips a test on a machine without a file of a package.
func needs(t *testing.T, file, pack string) {
	t.Helper()
	if _, err := os.Stat(file); err == nil {
		return
	}
	if os.Getenv("TERMGW_TEST_REQUIRE") == "1" {
		t.Fatalf("needs %s: apt-get install %s", file, pack)
	}
	t.Skipf("needs %s: apt-get install %s", file, pack)
}

const (
	tableBegins = "<!-- made by go test ./cmd/termgw -run TestDoctorTable -update -->\n"
	tableEnds   = "<!-- end of what is made -->\n"
)

func compareTable(t *testing.T, setUps []broken, lines []string) {
	t.Helper()
	file := filepath.Join("../..", tablePage)
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(page), tableBegins)
	old, after, ends := strings.Cut(rest, tableEnds)
	if !begins || !ends {
		t.Fatalf("%s has no place for the table", tablePage)
	}
	for n, b := range setUps {
		if lines[n] != "" {
			continue
		}
		for line := range strings.Lines(old) { // what could not be made here is as it was
			if strings.HasPrefix(line, "| "+b.what+" | ") {
				lines[n] = strings.TrimSpace(line)
			}
		}
	}
	table := fmt.Sprintf("\n%d set-ups. The test fails where a step, a detail, a cause or a fix is another.\n\n", len(setUps)) + "| broken | step | detail | words of the cause | fix |\n|---|---|---|---|---|\n" + strings.Join(lines, "\n") + "\n\n"
	if table == old {
		return
	}
	if !*update {
		t.Fatalf("the table of %s is not what the doctor says; -update makes it:\n%s", tablePage, table)
	}
	if err := os.WriteFile(file, []byte(before+tableBegins+table+tableEnds+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
