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

// masterArgs returns the arguments of a connection's ssh, which speaks on its stdin
// and stdout (ProxyCommand=-): the tunnel costs no process, no
// port, and no socket that another program could connect to.
// Its own messages go to log: its stderr has what a server prints, too. User and
// instance are validated.
func masterArgs(control, user, instance, agent, knownHosts, log, hostKeyAlgorithms string, timing runner.Timing) []string {
	return []string{
		"-F", "none", "-S", control, "-e", "none", "-l", user,
		"-o", "BatchMode=yes",
		"-o", "ClearAllForwardings=yes",
		"-o", "ForwardAgent=no",
		"-o", "ForwardX11=no",
		"-o", "PermitLocalCommand=no",
		"-o", "HostKeyAlias=" + instance,
		"-M", "-N", "-T", "-E", log,
		"-o", "LogLevel=DEBUG1", // tells what keys of users the server takes (keysTaken)
		"-o", "ProxyCommand=-",
		"-o", "ControlPersist=no",
		"-o", "ConnectTimeout=" + runner.WholeSeconds(timing.Start),
		"-o", "ServerAliveInterval=" + runner.WholeSeconds(timing.Alive),
		"-o", fmt.Sprintf("ServerAliveCountMax=%d", aliveCount(timing)),
		"-o", "IdentityAgent=" + agent,
		"-o", "IdentityFile=none",
		"-o", "PreferredAuthentications=publickey",
		"-o", "UserKnownHostsFile=" + knownHosts,
		"-o", "GlobalKnownHostsFile=none",
		"-o", "HostKeyAlgorithms=" + hostKeyAlgorithms,
		"-o", "StrictHostKeyChecking=yes",
		"-o", "UpdateHostKeys=no",
		"-o", "HashKnownHosts=no",
		"-o", "CheckHostIP=no",
		"-o", "VerifyHostKeyDNS=no",
		// Inside a tunnel that is TLS already, it only holds keys back, by up to
		// 20 ms. Before OpenSSH 9.5 there is no such option.
		"-o", "IgnoreUnknown=ObscureKeystrokeTiming",
		"-o", "ObscureKeystrokeTiming=no",
		"--", instance,
	}
}

var errNoShell = errors.New("no such shell")

// Errors of a session that ssh could not open.
var (
	errRefused = errors.New("sshd opens no more sessions on this connection")
	errGone    = errors.New("the connection is gone")
)

// Causes of a failed login.
var (
	errAuth    = errors.New("the instance refused the key: it is over 60 s old, the OS user is wrong, or the instance lacks ec2-instance-connect")
	errMore    = errors.New("sshd asks the account for more than a key, or for something in its place")
	errHostKey = errors.New("the instance's host key is not the one that is known for it: if the instance was made anew, correct host_key in the workspace's row or forget the kept key (termgw hostkeys forget)")
	errNoMatch = errors.New("the instance's sshd and the gateway's ssh have no algorithm in common")
)

// loginForms are the messages of a connection's ssh, as whole lines, with their meaning. The server chooses the end of some: a
// line that it forges there comes after the line that decides.
var loginForms = []struct {
	form *regexp.Regexp
	step string
	err  error // nil: the message
}{
	{regexp.MustCompile(`^(\S+: )?Permission denied \([a-z0-9@.,-]*\)\.$`), "ssh_auth", errAuth},
	{regexp.MustCompile(`^Received disconnect from \S+ port \d+:2: Too many authentication failures`), "ssh_auth", errAuth},
	{regexp.MustCompile(`^Received disconnect from `), "ssh_closed", nil},
	{regexp.MustCompile(`^Unable to negotiate with \S+ port \d+: `), "ssh_handshake", errNoMatch},
	// The gateway knows the key by then (exchange): the server has not proved that it has it.
	{regexp.MustCompile(`^Host key verification failed\.$`), "ssh_hostkey", errHostKey},
	{regexp.MustCompile(`^ssh_dispatch_run_fatal: Connection to \S+ port \d+: incorrect signature$`), "ssh_hostkey", errHostKey},
	{regexp.MustCompile(`^(Connection timed out during banner exchange|Timeout, server \S+ not responding\.|Connection to \S+ port \d+ timed out|.*: (Connection|Operation) timed out)$`), "ssh_timeout", nil},
	{regexp.MustCompile(`^(Connection (closed|reset) by |Connection to \S+ closed|(kex|ssh)_exchange_identification: |banner exchange: |client_loop: |packet_write_\w+: |ssh_packet_\w+: |ssh_dispatch_run_fatal: .*: (Broken pipe|Connection (closed|reset).*)$|Read from remote host |Write failed: |write: Broken pipe$)`), "ssh_closed", nil},
}

// wantsMore has the ways to log in that a server still takes after the key.
var wantsMore = regexp.MustCompile(`Permission denied \(([a-z0-9@.,-]+)\)\.$`)

// keysTaken matches the line of ssh's log with the types of users' keys that an sshd takes (RFC 8308, section 3.1). An sshd
// since OpenSSH 9.6, and so one that has penalties, leaves out what PubkeyAcceptedAlgorithms does.
var keysTaken = regexp.MustCompile(`server-sig-algs=<([^>]*)>`)

// loginFault returns why a connection's ssh ended, by its messages and by what it and the server printed.
func loginFault(log, stderr string) *runner.Failure {
	said := fmt.Errorf("ssh says %q", shorten(log))
	if stderr != "" {
		said = fmt.Errorf("%w, and on its stderr, where a server's banner is too: %q", said, shorten(stderr))
	}
	for line := range strings.Lines(log) {
		line = strings.TrimRight(line, "\r\n")
		for _, known := range loginForms {
			if !known.form.MatchString(line) {
				continue
			}
			wants := wantsMore.FindStringSubmatch(line)
			switch {
			case wants != nil && !strings.Contains(wants[1], "publickey"):
				f := failed(known.step, fmt.Errorf("%w: %w", errMore, said))
				f.Sentence = "The instance's sshd asks this account for " + wants[1] + ", beside a key or in its place. Let it take a key alone: PubkeyAuthentication yes and AuthenticationMethods publickey in sshd's configuration on the instance."
				f.Fix = f.Sentence
				return f
			case known.step == "ssh_hostkey":
				return failed(known.step, known.err) // ssh's advice is about a file that the gateway has removed
			case known.err != nil:
				said = fmt.Errorf("%w: %w", known.err, said)
			case known.step == "ssh_timeout":
				said = fmt.Errorf("sshd does not answer: %w", said)
			default:
				said = fmt.Errorf("sshd, or the tunnel to it, closed the connection: %w", said)
			}
			return failed(known.step, said)
		}
	}
	if strings.TrimSpace(log) == "" {
		return failed("ssh_closed", fmt.Errorf("sshd, or the tunnel to it, closed the connection: %w", said))
	}
	return failed("ssh", said)
}

// shorten returns a program's output on one line, without secrets and control characters: all of it, or the beginning and
// the end.
func shorten(s string) string {
	const begin, end = 100, 200
	s = scrub(s)
	if len(s) <= begin+end {
		return s
	}
	return strings.ToValidUTF8(s[:begin], "") + " … " + strings.ToValidUTF8(s[len(s)-end:], "")
}
