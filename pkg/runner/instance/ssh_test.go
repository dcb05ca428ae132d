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
	master := func(hostKeys string) []string {
		return slices.Concat(common, []string{
			"-M", "-N", "-T", "-E", "/d/1.log", "-o", "LogLevel=DEBUG1", "-o", "ProxyCommand=-", "-o", "ControlPersist=no", "-o", "ConnectTimeout=15",
			"-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=19", "-o", "IdentityAgent=/d/1.key", "-o", "IdentityFile=none",
			"-o", "PreferredAuthentications=publickey", "-o", "UserKnownHostsFile=/d/1.known", "-o", "GlobalKnownHostsFile=none",
			"-o", "HostKeyAlgorithms=" + hostKeys, "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no", "-o", "HashKnownHosts=no", "-o", "CheckHostIP=no",
			"-o", "VerifyHostKeyDNS=no", "-o", "IgnoreUnknown=ObscureKeystrokeTiming", "-o", "ObscureKeystrokeTiming=no",
			"--", "i-0123456789abcdef0",
		})
	}
	const control, user, instance = "/d/1.ctl", "ec2-user", "i-0123456789abcdef0"
	for name, c := range map[string]struct{ got, want []string }{
		"the connection": {masterArgs(control, user, instance, "/d/1.key", "/d/1.known", "/d/1.log", "rsa-sha2-256", runner.Timing{}.WithDefaults()), master("rsa-sha2-256")},
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
		"ec2-user@i-1: Permission denied (publickey).":                                                                                "ssh_auth",
		"ec2-user@i-1: Permission denied (publickey,gssapi-keyex,gssapi-with-mic).\r\n":                                               "ssh_auth",
		"Received disconnect from UNKNOWN port 65535:2: Too many authentication failures\r\nx":                                        "ssh_auth",
		"Received disconnect from UNKNOWN port 65535:11: no\nHost key verification failed.\r\n":                                       "ssh_closed",
		"ssh_dispatch_run_fatal: Connection to UNKNOWN port 65535: incorrect signature\r\n":                                           "ssh_hostkey",
		"No ED25519 host key is known for i-1 and …\r\nHost key verification failed.":                                                 "ssh_hostkey",
		"Unable to negotiate with UNKNOWN port 65535: no matching cipher found. Their offer: a\nb":                                    "ssh_handshake",
		"Unable to negotiate with UNKNOWN port 65535: no matching host key type found. Their offer: x\nHost key verification failed.": "ssh_handshake",
		"Timeout, server i-1 not responding.":                                                                                         "ssh_timeout",
		"Connection timed out during banner exchange\r\nConnection to UNKNOWN port 65535 timed out":                                   "ssh_timeout",
		"": "ssh_closed",
		"Warning: Permanently added 'i-1' (ED25519) to the list of known hosts.\nConnection closed by UNKNOWN port 65535": "ssh_closed",
		"kex_exchange_identification: read: Connection reset by peer":                                                     "ssh_closed",
		"client_loop: send disconnect: Broken pipe":                                                                       "ssh_closed",
		"Bad configuration option: nonsense":                                                                              "ssh",
		"the server says Permission denied (publickey).":                                                                  "ssh",
		"Permission denied (publickey). he said":                                                                          "ssh",
		"not Host key verification failed.":                                                                               "ssh",
	} {
		err := loginFault(said, "Host key verification failed.\nx@y: Permission denied (publickey).\nTimeout, server i-1 not responding.\n")
		if want == "ssh_hostkey" && strings.Contains(err.Error(), "verification failed") {
			t.Errorf("ssh's own words: %v", err)
		}
		if err.Step != want || err.Sentence == "" {
			t.Errorf("%q becomes %v, want %s and a sentence", said, err, want)
			continue
		}
		if final := want == "ssh_auth" || want == "ssh_hostkey" || want == "ssh_handshake"; err.Final != final {
			t.Errorf("%s is final: %t", want, err.Final)
		}
		if strings.ContainsAny(err.Error(), "\r\n\x1b") || len(err.Error()) > 1000 {
			t.Errorf("%q", err)
		}
		if other := told[err.Sentence]; other != "" && other != want {
			t.Errorf("%s is told as %q", want, err.Sentence)
		}
		told[err.Sentence] = want
	}
}
