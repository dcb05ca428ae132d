package instance

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// This file has ssh's arguments and the meaning of its messages. ssh reads no other
// configuration, and no file of the gateway's user.

// sshEnv is the whole environment of ssh and its children.
var sshEnv = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "TERM=xterm-256color"}

// aliveCount is the number of unanswered probes, Timing.Alive apart, after which ssh gives a connection up. The gateway
// does so sooner (Timing.Patience).
func aliveCount(t runner.Timing) int { return int(t.Lease/t.Alive) + 1 }

// sshCommon returns the arguments of every ssh. User and instance are validated.
func sshCommon(control, user, instance string) []string {
	return []string{
		"-F", "none", "-S", control, "-e", "none", "-l", user,
		"-o", "BatchMode=yes",
		"-o", "ClearAllForwardings=yes",
		"-o", "ForwardAgent=no",
		"-o", "ForwardX11=no",
		"-o", "PermitLocalCommand=no",
		"-o", "HostKeyAlias=" + instance,
	}
}

// masterArgs returns the arguments of a connection's ssh, which speaks on its stdin
// and stdout (ProxyCommand=-, since OpenSSH 6.6): the tunnel costs no process, no
// port, and no socket that another program could connect to.
func masterArgs(control, user, instance, agent, knownHosts string, known bool, timing runner.Timing) []string {
	strict := "accept-new"
	if known {
		strict = "yes"
	}
	return append(sshCommon(control, user, instance),
		"-M", "-N", "-T",
		"-o", "LogLevel=INFO", // the level of the message that a server does not answer
		"-o", "ProxyCommand=-",
		"-o", "ControlPersist=no",
		"-o", "ConnectTimeout="+runner.WholeSeconds(timing.Start),
		"-o", "ServerAliveInterval="+runner.WholeSeconds(timing.Alive),
		"-o", fmt.Sprintf("ServerAliveCountMax=%d", aliveCount(timing)),
		"-o", "IdentityAgent="+agent,
		"-o", "IdentityFile=none",
		"-o", "PreferredAuthentications=publickey",
		"-o", "UserKnownHostsFile="+knownHosts,
		"-o", "GlobalKnownHostsFile=none",
		"-o", "StrictHostKeyChecking="+strict,
		"-o", "UpdateHostKeys=no",
		"-o", "HashKnownHosts=no",
		"-o", "CheckHostIP=no",
		"-o", "VerifyHostKeyDNS=no",
		// Inside a tunnel that is TLS already, it only holds keys back, by up to
		// 20 ms. Before OpenSSH 9.5 there is no such option.
		"-o", "IgnoreUnknown=ObscureKeystrokeTiming",
		"-o", "ObscureKeystrokeTiming=no",
		"--", instance,
	)
}

// sessionArgs returns the arguments of an ssh that runs a command over an existing
// connection. If the connection is gone, ssh opens its own, to a program that ends at
// once.
func sessionArgs(control, user, instance, command string) []string {
	args := append(sshCommon(control, user, instance), "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "LogLevel=ERROR", "-T")
	return append(args, "--", instance, command)
}

// quote returns a command line of arguments for a POSIX shell, the account's login
// shell. No other code quotes.
func quote(argv ...string) string {
	quoted := make([]string, len(argv))
	for i, arg := range argv {
		quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

var errNoShell = errors.New("no such shell")

// Errors of a session that ssh could not open.
var (
	errRefused = errors.New("sshd opens no more sessions on this connection")
	errGone    = errors.New("the connection is gone")
)

// sessionFault returns why ssh could not open a session; nil if it could.
func sessionFault(stderr string) error {
	switch {
	case strings.Contains(stderr, "open refused by peer"), strings.Contains(stderr, "open failed"):
		return errRefused
	case strings.Contains(stderr, "kex_exchange_identification"), strings.Contains(stderr, "Connection closed"), // of the program that ends at once
		strings.Contains(stderr, "Control socket"), strings.Contains(stderr, "mux_client"), strings.Contains(stderr, "master"):
		return errGone
	}
	return nil
}

// Causes of a failed login.
var (
	errAuth    = errors.New("the instance refused the key: it is over 60 s old, the OS user is wrong, or the instance lacks ec2-instance-connect")
	errHostKey = errors.New("the instance's host key is not the one that is known for it: if the instance was made anew, correct host_key in the workspace's row or forget the kept key (termgw hostkeys forget)")
)

// keyAdded matches a message that is no fault.
var keyAdded = regexp.MustCompile(`(?m)^Warning: Permanently added .*$`)

// loginFault returns why a connection's ssh ended before it was logged in.
func loginFault(stderr string) *runner.Failure {
	stderr = keyAdded.ReplaceAllString(stderr, "")
	said := errors.New(shorten(stderr))
	switch {
	case strings.Contains(stderr, "Permission denied"), strings.Contains(stderr, "Too many authentication failures"):
		return failed("ssh_auth", fmt.Errorf("%w: %w", errAuth, said))
	case strings.Contains(stderr, "Host key verification failed"), strings.Contains(stderr, "host key"):
		return failed("ssh_hostkey", errHostKey) // ssh's advice is about a file that the gateway has removed
	case strings.Contains(stderr, "timed out"), strings.Contains(stderr, "Timeout"):
		return failed("ssh_timeout", fmt.Errorf("sshd does not answer: %w", said))
	case strings.TrimSpace(stderr) == "", strings.Contains(stderr, "Connection closed"), strings.Contains(stderr, "Connection reset"), strings.Contains(stderr, "Broken pipe"):
		return failed("ssh_closed", fmt.Errorf("sshd, or the tunnel to it, closed the connection: %w", said))
	}
	return failed("ssh", fmt.Errorf("ssh: %w", said))
}

// shorten returns the end of a program's output, where the reason is, on one line.
func shorten(s string) string {
	s = runner.OneLine(strings.ToValidUTF8(s, "?"))
	return s[max(0, len(s)-300):]
}
