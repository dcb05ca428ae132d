package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// hostKeyOf makes another host key, and returns its file.
func hostKeyOf(tb testing.TB, keyType string) (path, public string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", keyType, "-N", "", "-C", "root@ip-10-0-0-5", "-f", path).CombinedOutput(); err != nil {
		tb.Fatalf("%s, %v", out, err)
	}
	b, err := os.ReadFile(path + ".pub")
	if err != nil {
		tb.Fatal(err)
	}
	return path, strings.TrimSpace(string(b))
}

// typesOf are the types of the keys that were pushed.
func typesOf(lines []string) (types []string) {
	for _, line := range lines {
		keyType, _, _ := strings.Cut(line, " ")
		types = append(types, keyType)
	}
	return types
}

// Algorithms of a Red Hat Enterprise Linux 9 in FIPS mode.
const (
	fipsKeys = "ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-256,rsa-sha2-512"
	fipsKex  = "ecdh-sha2-nistp256,ecdh-sha2-nistp384,diffie-hellman-group-exchange-sha256,diffie-hellman-group14-sha256"
)

// TestRemoteFIPS: an sshd without Ed25519 gets an RSA key, and no failed login: its own list says so before. The instance's
// next login has that key at once.
func TestRemoteFIPS(t *testing.T) {
	t.Parallel()
	for _, hostKey := range []string{"ecdsa", "rsa"} {
		for _, kex := range strings.Split(fipsKex, ",") {
			t.Run(hostKey+"/"+kex, func(t *testing.T) {
				t.Parallel()
				file, _ := hostKeyOf(t, hostKey)
				i := newInstance(t, nil, "HostKey "+file, "PubkeyAcceptedAlgorithms "+fipsKeys, "HostKeyAlgorithms "+fipsKeys, "KexAlgorithms "+kex)
				r := i.remote(t, Config{})
				shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
				if got, want := typesOf(i.asked()), []string{"ssh-ed25519", "ssh-rsa"}; !slices.Equal(got, want) {
					t.Errorf("pushed %q, want %q", got, want)
				}
				other := i.target(t, "")
				other.Attributes["region"] = "eu-west-1" // a connection of its own
				shelltest.Open(t, shelltest.By(r), other).End(t)
				if got, want := typesOf(i.asked()), []string{"ssh-ed25519", "ssh-rsa", "ssh-rsa"}; !slices.Equal(got, want) {
					t.Errorf("pushed %q, want %q", got, want)
				}
				if log := i.sshd.Log(t); strings.Contains(log, "not in PubkeyAcceptedAlgorithms") || strings.Contains(log, "Failed publickey") {
					t.Errorf("a login failed:\n%s", log)
				}
			})
		}
	}
}

// TestRemoteOtherUserKeys: an sshd that has Ed25519, and takes no such key of a user, refuses it as it refuses a wrong user. The
// next login there has the other key at once.
func TestRemoteOtherUserKeys(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil, "PubkeyAcceptedAlgorithms "+fipsKeys)
	r := i.remote(t, Config{})
	shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
	other := i.target(t, "")
	other.Attributes["region"] = "eu-west-1"
	shelltest.Open(t, shelltest.By(r), other).End(t)
	if got, want := typesOf(i.asked()), []string{"ssh-ed25519", "ssh-rsa", "ssh-rsa"}; !slices.Equal(got, want) {
		t.Errorf("pushed %q, want %q", got, want)
	}
}

// keygenL is what `ssh-keygen -l` prints of a public key.
func keygenL(tb testing.TB, public string) string {
	tb.Helper()
	cmd := exec.Command("ssh-keygen", "-lf", "-")
	cmd.Stdin = strings.NewReader(public + "\n")
	out, err := cmd.Output()
	if err != nil {
		tb.Fatal(err)
	}
	return string(out)
}

// TestRemoteFingerprints: a row has a fingerprint of the host key, in any of the forms that people have at hand.
func TestRemoteFingerprints(t *testing.T) {
	t.Parallel()
	file, ecdsa := hostKeyOf(t, "ecdsa")
	i := newInstance(t, nil, "HostKey "+file)
	ed := i.sshd.HostKey(t)
	_, foreign := hostKeyOf(t, "ed25519")
	_, foreignRSA := hostKeyOf(t, "rsa")
	for name, c := range map[string]struct {
		row     string
		opens   bool
		tunnels int
	}{
		"one word":                   {fingerprint(ed), true, 1},
		"ssh-keygen":                 {keygenL(t, ed), true, 1},
		"the other key":              {keygenL(t, ecdsa), true, 1},
		"the other key, one word":    {fingerprint(ecdsa), true, 2},
		"the console":                {"ec2: -----BEGIN SSH HOST KEY FINGERPRINTS-----\nec2: " + keygenL(t, ecdsa) + "ec2: " + keygenL(t, ed) + "ec2: -----END SSH HOST KEY FINGERPRINTS-----\n", true, 1},
		"with another, one word":     {fingerprint(foreign) + "\n" + fingerprint(ecdsa), true, 2},
		"with another of its type":   {keygenL(t, foreign) + keygenL(t, ecdsa), false, 1},
		"another":                    {keygenL(t, foreign), false, 1},
		"another, one word":          {fingerprint(foreign), false, 3},
		"another, of a type not had": {keygenL(t, foreignRSA), false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := &instance{id: i.id, sshd: i.sshd} // tunnels of its own
			target := i.target(t, "")
			target.Attributes["host_key"] = c.row
			if !c.opens {
				target.Attributes["os_user"] = "nobody_" + strings.ToLower(strings.NewReplacer(" ", "_", ",", "").Replace(name))
			}
			term, err := i.remote(t, Config{}).Start(t.Context(), target, shelltest.DefaultSize)
			if (err == nil) != c.opens {
				t.Fatalf("%v", err)
			}
			if got := i.opened(); got != c.tunnels {
				t.Errorf("%d tunnels, want %d", got, c.tunnels)
			}
			if len(i.keys.keys) > 0 {
				t.Errorf("kept %q", i.keys.keys)
			}
			if err == nil {
				_ = term.Close()
				return
			}
			shelltest.WantStep(t, err, "ssh_hostkey")
			var told *runner.Failure
			if !errors.As(err, &told) || !told.Final || !strings.Contains(err.Error(), "SHA256:") {
				t.Errorf("%v", err)
			}
			if log := i.sshd.Log(t); strings.Contains(log, target.Attributes["os_user"]) {
				t.Errorf("the server has learnt the user's name:\n%s", log)
			}
		})
	}
}

// TestRemoteBanner: what a server prints before the login decides nothing.
func TestRemoteBanner(t *testing.T) {
	t.Parallel()
	banner := filepath.Join(t.TempDir(), "banner")
	says := "Host key verification failed.\r\nTimeout, server x not responding.\r\nUnable to negotiate with x port 1: y\r\n" +
		"x@y: Permission denied (publickey).\r\nConnection timed out during banner exchange\r\n\x1b[2J"
	if err := os.WriteFile(banner, []byte(says), 0o600); err != nil {
		t.Fatal(err)
	}
	i := newInstance(t, nil, "Banner "+banner)
	r := i.remote(t, Config{})
	s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	wrong := i.target(t, "")
	wrong.Attributes["os_user"] = "another"
	_, err := r.Start(t.Context(), wrong, shelltest.DefaultSize)
	shelltest.WantStep(t, err, "ssh_auth")
	if !errors.Is(err, errAuth) || !strings.Contains(err.Error(), "Host key verification") || strings.ContainsAny(err.Error(), "\x1b\r\n") {
		t.Errorf("an operator is told %q", err)
	}
	var told *runner.Failure
	if !errors.As(err, &told) || strings.Contains(told.Sentence, "verification") {
		t.Errorf("a person is told %q", told.Sentence)
	}
	killOne(t, r.sockets.dir+"/1.key")
	broken(t, s)
	shelltest.WantStep(t, s.ReadErr, "ssh")
	s.Closed = true
	_ = s.Close() // which may put the end off
}

// TestRemoteNoCommonAlgorithm: no retry mends it.
func TestRemoteNoCommonAlgorithm(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil, "Ciphers 3des-cbc")
	_, err := i.remote(t, Config{}).Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
	shelltest.WantStep(t, err, "ssh_handshake")
	var told *runner.Failure
	if !errors.As(err, &told) || !told.Final || !strings.Contains(err.Error(), "3des-cbc") {
		t.Errorf("%v", err)
	}
}

// brokenKeys is a store of host keys that cannot be asked, or not be told, or holds nonsense.
type brokenKeys struct {
	kept          string
	asking, keeps error
}

func (k brokenKeys) HostKey(context.Context, string) (string, error) { return k.kept, k.asking }

func (k brokenKeys) KeepHostKey(_ context.Context, _, key string) (string, error) {
	return key, k.keeps
}

// TestRemoteKeptKeyFaults: neither a store that fails nor a malformed row of it is an attack.
func TestRemoteKeptKeyFaults(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	down := errors.New("the store is down")
	for _, keys := range []brokenKeys{{asking: down}, {keeps: down}} {
		r := i.remote(t, Config{})
		r.cfg.HostKeys = keys
		if _, err := r.Start(t.Context(), i.target(t, ""), shelltest.DefaultSize); !errors.Is(err, down) || runner.StepOf(err) != "" {
			t.Errorf("%+v: %v", keys, err)
		}
	}
	r := i.remote(t, Config{})
	r.cfg.HostKeys = brokenKeys{kept: "nonsense"}
	_, err := r.Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
	shelltest.WantStep(t, err, "ssh_hostkey")
	var told *runner.Failure
	if !errors.As(err, &told) || !told.Final || !strings.Contains(told.Sentence, "malformed") || strings.Contains(told.Sentence, "find out who") {
		t.Errorf("%+v", told)
	}
}

// TestRemoteKeptKeyForgotten: the pause after a host key that is not the kept one is over when somebody has the kept one
// forgotten.
func TestRemoteKeptKeyForgotten(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	i.keys.keys = map[string]string{i.id: edKey}
	r := i.remote(t, Config{Now: newClock().Now})
	for range 3 {
		_, err := r.Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
		shelltest.WantStep(t, err, "ssh_hostkey")
	}
	if n := i.opened(); n != 1 {
		t.Errorf("%d tunnels", n)
	}
	i.keys.mu.Lock()
	delete(i.keys.keys, i.id)
	i.keys.mu.Unlock()
	shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
	if kept, _ := i.keys.HostKey(t.Context(), i.id); kept != i.sshd.HostKey(t) {
		t.Errorf("kept %q", kept)
	}
}

// TestLoginKeys: what EC2 Instance Connect takes. On the instance it drops lines that do not begin with "ssh".
func TestLoginKeys(t *testing.T) {
	t.Parallel()
	for _, keyType := range []keyType{keyEd25519, keyRSA} {
		k, err := newLoginKey(filepath.Join(t.TempDir(), "key"), keyType)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(k.public)); err != nil || len(rest) > 0 || !strings.HasPrefix(k.public, "ssh-") {
			t.Errorf("%s: %v", k.public, err)
		}
		k.close()
	}
	if fmt.Sprint(keyEd25519.other(), keyRSA.other()) != fmt.Sprint(keyRSA, keyEd25519) {
		t.Error("there are two types")
	}
}
