package instance

import (
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// What ssh is given, to the letter: a change here changes what runs, and which of
// the machine's files count.
func TestSSHArguments(t *testing.T) {
	t.Parallel()
	common := []string{
		"-F", "none", "-S", "/d/1.ctl", "-e", "none", "-l", "ec2-user", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes",
		"-o", "ForwardAgent=no", "-o", "ForwardX11=no", "-o", "PermitLocalCommand=no", "-o", "HostKeyAlias=i-0123456789abcdef0",
	}
	master := func(strict string) []string {
		return slices.Concat(common, []string{
			"-M", "-N", "-T", "-o", "LogLevel=INFO", "-o", "ProxyCommand=-", "-o", "ControlPersist=no", "-o", "ConnectTimeout=15",
			"-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=19", "-o", "IdentityAgent=/d/1.key", "-o", "IdentityFile=none",
			"-o", "PreferredAuthentications=publickey", "-o", "UserKnownHostsFile=/d/1.known", "-o", "GlobalKnownHostsFile=none",
			"-o", "StrictHostKeyChecking=" + strict, "-o", "UpdateHostKeys=no", "-o", "HashKnownHosts=no", "-o", "CheckHostIP=no",
			"-o", "VerifyHostKeyDNS=no", "-o", "IgnoreUnknown=ObscureKeystrokeTiming", "-o", "ObscureKeystrokeTiming=no",
			"--", "i-0123456789abcdef0",
		})
	}
	session := slices.Concat(common, []string{
		"-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "LogLevel=ERROR", "-T", "--", "i-0123456789abcdef0", "exec 'x'",
	})
	const control, user, instance = "/d/1.ctl", "ec2-user", "i-0123456789abcdef0"
	for name, c := range map[string]struct{ got, want []string }{
		"the connection, a known key": {masterArgs(control, user, instance, "/d/1.key", "/d/1.known", true, runner.Timing{}.WithDefaults()), master("yes")},
		"the connection, no key":      {masterArgs(control, user, instance, "/d/1.key", "/d/1.known", false, runner.Timing{}.WithDefaults()), master("accept-new")},
		"a command":                   {sessionArgs(control, user, instance, "exec 'x'"), session},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", name, c.got, c.want)
		}
	}
}

// What ssh says becomes a step, which has a sentence of its own.
func TestLoginFault(t *testing.T) {
	t.Parallel()
	told := map[string]string{} // steps, by sentence
	for said, want := range map[string]string{
		"ec2-user@i-1: Permission denied (publickey).":                                                                  "ssh_auth",
		"Received disconnect from UNKNOWN port 65535:2: Too many authentication failures":                               "ssh_auth",
		"No ED25519 host key is known for i-1 and you have requested strict checking.\r\nHost key verification failed.": "ssh_hostkey",
		"Timeout, server i-1 not responding.":                                                                           "ssh_timeout",
		"Connection timed out during banner exchange":                                                                   "ssh_timeout",
		"": "ssh_closed",
		"Warning: Permanently added 'i-1' (ED25519) to the list of known hosts.\nConnection closed by UNKNOWN port 65535": "ssh_closed",
		"kex_exchange_identification: read: Connection reset by peer":                                                     "ssh_closed",
		"client_loop: send disconnect: Broken pipe":                                                                       "ssh_closed",
		"Bad configuration option: nonsense":                                                                              "ssh",
	} {
		err := loginFault(said)
		if want == "ssh_hostkey" && strings.Contains(err.Error(), "verification failed") {
			t.Errorf("ssh's own words: %v", err)
		}
		if err.Step != want || err.Sentence == "" {
			t.Errorf("%q becomes %v, want %s and a sentence", said, err, want)
			continue
		}
		if other := told[err.Sentence]; other != "" && other != want {
			t.Errorf("%s is told as %q", want, err.Sentence)
		}
		told[err.Sentence] = want
	}
}
