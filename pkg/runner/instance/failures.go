package instance

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// sentences tell the person at the terminal what to do, by the step of the way to
// an instance that failed, at the login or later. Tunnels has its own steps, with
// their sentences.
var sentences = map[string]string{
	"instance_id":    "The workspace's instance id is malformed: correct it in the workspace's row.",
	"os_user":        "The OS user configured for this workspace is not a valid user name: correct os_user in the workspace's row.",
	"remote_target":  "The workspace's remote_target is neither container nor host: correct it in the workspace's row.",
	"ssh":            "The gateway's own ssh failed or was ended: open the terminal again. The gateway's log has its last words.",
	"ssh_auth":       "The instance refused the gateway's key. Check the OS user (os_user in the workspace's row, TERMGW_EICE_OS_USER), that the account is neither locked, expired nor kept out by AllowUsers, that its login shell exists, that sshd takes Ed25519 or RSA keys of 2048 bits (PubkeyAcceptedAlgorithms, RequiredRSASize), and that the instance's image has ec2-instance-connect.",
	"ssh_hostkey":    "The instance's host key is not the one that is known for it. If the instance was made anew, correct host_key in the workspace's row, or run `termgw hostkeys forget INSTANCE_ID`. If not, find out who answers.",
	"ssh_handshake":  "The instance's sshd and the gateway's ssh have no algorithm in common: update the older one of the two.",
	"ssh_penalty":    "The instance's sshd takes no connections for now: it refuses the endpoint's address for some minutes after failed logins (PerSourcePenalties), or too many log in at once (MaxStartups). Try again in a few minutes.",
	"ssh_startups":   "The instance's sshd takes no connections for now, because too many log in at once (MaxStartups). Try again in a minute.",
	"ssh_greeting":   "What answers at the instance's port 22 does not greet as an SSH server does. Check what listens there.",
	"ssh_timeout":    "The instance's sshd does not answer. Check that sshd runs on the instance and is not overloaded, and that no firewall swallows the bytes.",
	"ssh_closed":     "The instance's sshd hung up, or the tunnel to it did: open the terminal again. If it goes on, check sshd's own log on the instance.",
	"keeper":         "The instance has no room for another terminal: close one, or let whoever runs the instance check its limits.",
	"tunnel_stalled": "The connection to the instance went silent: open the terminal again.",
	"ssh_denied":     "The instance's sshd ended the login, as it does where the OS user's account has expired or is kept out, or where sshd itself was ended. If it goes on, check the account (chage -l), /etc/nologin and PAM's rules on the instance; sshd's own log has the cause.",
	"ssh_sessions":   "The instance's sshd opens no session. Check MaxSessions in its configuration.",
	"docker_sudo":    "The workspace's docker_sudo is neither true nor false: correct it in the workspace's row.",
	"account":        "The account %s on the instance does not run what the gateway asks of it. Whoever runs the instance has to look at the account's login shell, its start files (.bashrc), the age of its password, and ForceCommand and PermitTTY in sshd's configuration.",
}

// fixes tell an operator what to do where there is no sentence.
var fixes = map[string]string{
	"shell":  runner.FixShell,
	"keeper": "Check on the instance how many ptys and processes there are (`sysctl kernel.pty`, `ulimit -u` as the OS user) and its free memory. An account has 200 terminals at most.",
	"pty":    "Check descriptors (ulimit -n) and ptys (kernel.pty.max) on the gateway's machine, and that ssh runs there.",

	"ssh_closed":   "Go by what the cause quotes of the server, and by sshd's own log on the instance (`journalctl -u ssh -u sshd`): an account that has expired, a login that is not allowed now, an sshd that ended.",
	"ssh_denied":   "Look into sshd's own log on the instance (`journalctl -u ssh -u sshd`). If PAM denies the account: `sudo chage -E -1 USER` for one that has expired, /etc/nologin, /etc/security/access.conf, `sudo faillock --user USER --reset`.",
	"ssh_sessions": "Check MaxSessions in sshd's configuration on the instance, and sshd's own log (`journalctl -u ssh -u sshd`).",
	"ssh_penalty":  "Let PerSourcePenaltyExemptList in sshd's configuration on the instance hold the endpoint's subnet, from which all terminals come. Correct os_user in the rows whose logins fail. Check MaxStartups and PerSourceMaxStartups.",
	"ssh_startups": "Check MaxStartups in sshd's configuration on the instance, and who keeps connections to it open without a login.",
	"account":      "Log in to the instance as USER and see what comes before a prompt: its login shell (`getent passwd USER`), what its .bashrc and the like start or wait for (exec, exit, read), ForceCommand in sshd's configuration, command= in authorized_keys.",
}

var (
	// final are the steps that fail again until somebody has mended the row, the instance or the gateway.
	final = []string{"ssh_auth", "ssh_greeting", "ssh_hostkey", "ssh_handshake"}
	// refusals are the steps after which a login is not tried again at once.
	refusals = append([]string{"ssh_denied"}, final...)
)

func failed(step string, err error) *runner.Failure {
	return &runner.Failure{Step: step, Sentence: sentences[step], Fix: fixes[step], Final: slices.Contains(final, step), Err: err}
}

// malformed is the failure of a value that no retry mends.
func malformed(step, format string, args ...any) *runner.Failure {
	f := failed(step, fmt.Errorf(format, args...))
	f.Final = true
	return f
}

// noDocker is the failure of the docker command on an instance.
func (r *request) noDocker(err error) *runner.Failure {
	f := failed("docker", err)
	words := err.Error()
	if f.Final = dockerFinal.MatchString(words); f.Final {
		f.Sentence = "The account " + r.to.user + " cannot use Docker on the instance. Whoever runs the instance has to install Docker there, and to let the account use it."
	}
	switch user := r.to.user; {
	case r.sudo:
		f.Fix = "Check that sudo and Docker are installed on the instance and that Docker runs, and let sudo run it without a password (in /etc/sudoers.d: `" + user + " ALL=(root) NOPASSWD: /usr/bin/docker`, and `Defaults:" + user + " !requiretty`): `sudo -n docker info` as that user."
	default:
		f.Fix = "Check that Docker is installed and runs on the instance, and that the OS user may use it (`sudo usermod -aG docker " + user + "`, then `docker info` as that user; or docker_sudo in the workspace's row)."
	}
	return f
}

// dockerFinal is what docker and sudo say that no retry mends.
var dockerFinal = regexp.MustCompile(`(?i)permission denied|command on the instance|password is required|not allowed to|may not run|must have a tty|not in the sudoers`)
