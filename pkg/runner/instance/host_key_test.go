package instance

import (
	"errors"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

const (
	edKey     = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUwSLuvlcpyY4dF5UkAIjJQJqaf8pWcHHMvYGkY9qWp"
	somePrint = "SHA256:3uVR1hY9oDPVmTHlEdrl9tMTxrNpFWGXLV9UzQ0OQcU"
	ecKey     = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBNuuKo4LXDiqYPz2AqQvqPYRst32671g2qC4D1Js+wQrPS47lAlHACe/qJu/12TYpLmKzYkEf3M29qxn8GASxzE="
)

func TestReadHostKeys(t *testing.T) {
	t.Parallel()
	const instance = "i-0123456789abcdef0"
	for _, text := range []string{
		edKey, edKey + " root@ip-10-0-0-5", edKey + " " + fingerprint(edKey), "\ufeff" + edKey, "\t" + edKey + "  \r\n\r\n", strings.Replace(edKey, " ", "\t", 1),
		instance + " " + edKey, "10.0.0.5 " + edKey, "fd00::5 " + edKey, "[10.0.0.5]:2222 " + edKey, "localhost " + edKey,
		"# 10.0.0.5:22 SSH-2.0-OpenSSH_9.6\n" + edKey, edKey + "\n" + edKey,
		edKey + "\n@revoked * " + ecKey, "@revoked " + ecKey + "\n" + edKey, edKey + "\n" + ecKey + "\n@revoked\t10.0.0.9,other.example  " + ecKey + " lost",
	} {
		if keys, err := readHostKeys(text, instance); err != nil || !slices.Equal(keys, []string{edKey}) {
			t.Errorf("%q: %q, %v", text, keys, err)
		}
	}
	for _, text := range []string{
		edKey + "\n" + ecKey, instance + " " + edKey + "\n10.0.0.5 " + ecKey + "\n",
		"# 10.0.0.5:22 SSH-2.0-OpenSSH_9.6\n10.0.0.5 " + edKey + "\n# 10.0.0.5:22 SSH-2.0-OpenSSH_9.6\n10.0.0.5 " + ecKey + "\n",
		"-----BEGIN SSH HOST KEY KEYS-----\n" + edKey + " root@ip-10-0-0-5\n" + ecKey + " root@ip-10-0-0-5\n-----END SSH HOST KEY KEYS-----\n",
	} {
		if keys, err := readHostKeys(text, instance); err != nil || !slices.Equal(keys, []string{edKey, ecKey}) {
			t.Errorf("%q: %q, %v", text, keys, err)
		}
	}
	const console = "<14>Nov 30 11:00:00 "
	for text, want := range map[string]hostKeys{
		somePrint: {somePrint}, " " + somePrint + "=\r\n": {somePrint}, "256 " + somePrint + " no comment (ED25519)": {somePrint + " ED25519"},
		"256 " + somePrint + " root@ip-10-0-0-5 (a) host (ECDSA)": {somePrint + " ECDSA"}, somePrint + " (RSA)": {somePrint + " RSA"},
		edKey + "\n3072 " + somePrint + " (RSA)": {edKey, somePrint + " RSA"},
		console + "ec2: \n" + console + "ec2: ####\n" + console + "ec2: -----BEGIN SSH HOST KEY FINGERPRINTS-----\n" +
			console + "ec2: 1024 " + somePrint + " root@x (DSA)\n" + console + "ec2: 256 " + somePrint + " root@x (ECDSA)\n" +
			console + "ec2: -----END SSH HOST KEY FINGERPRINTS-----\n": {somePrint + " ECDSA"},
		"[   13.1] cloud-init[2089]: 256 " + somePrint + " root@x (ED25519)\nNov 30 10:00:00 ip-10-0-0-5 ec2: " + edKey: {somePrint + " ED25519", edKey},
		"[   21.098765] cloud-init: 256 " + somePrint + " root@x (ED25519)\nec2: " + edKey:                              {somePrint + " ED25519", edKey},
	} {
		if keys, err := readHostKeys(text, instance); err != nil || !slices.Equal(keys, want) || !slices.Equal(parsedHostKeys(keys.String()), want) {
			t.Errorf("%q: %q, %v; want %q", text, keys, err, want)
		}
	}
	other := strings.TrimPrefix(edKey, "ssh-ed25519 ")
	for text, says := range map[string]string{
		"# " + edKey: "no key", "#" + edKey: "no key", " \n": "no key", "-----BEGIN SSH HOST KEY KEYS-----\n-----END SSH HOST KEY KEYS-----": "no key",
		"revoked " + edKey: "does not begin", "cert-authority " + edKey: "does not begin", "restrict " + edKey: "does not begin",
		`from="10.0.0.5" ` + edKey: "does not begin", "* " + edKey: "does not begin", "!10.0.0.5 " + edKey: "does not begin",
		"10.0.0.*,10.0.0.5 " + edKey: "does not begin", "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= " + edKey: "does not begin",
		"github.com " + edKey: "does not begin", "i-0aaaaaaaaaaaaaaaa " + edKey: "does not begin", "@ " + edKey: "marker",
		"10.0.0.5 " + edKey + "\n10.0.0.6 " + edKey:          "line 2 names another host",
		"@revoked * " + edKey:                                "not revoked",
		edKey + "\n@revoked " + edKey:                        "not revoked",
		"@revoked 10.0.0.9 " + edKey + "\n10.0.0.5 " + edKey: "not revoked",
		edKey + "\n@revoked":                                 "marker",
		edKey + "\n@revoked *":                               "neither a public key",
		edKey + " root@x\\n" + ecKey:                         "more than one key", edKey + " " + ecKey: "more than one key", edKey + "\r" + ecKey: "more than one key",
		somePrint + " " + somePrint: "more than one key", "256 " + somePrint + " x (ED25519); 256 " + somePrint + " x (ECDSA)": "more than one key",
		somePrint + ".": "something right behind it", somePrint + "\\n": "something right behind it",
		" \n\n":                                "it holds no key; put",
		edKey + "\n@revoked a b " + ecKey:      "neither a public key",
		edKey + "\n@revokedx * " + ecKey:       "marker",
		edKey + "\n@revoked @revoked " + ecKey: "marker",
		"@cert-authority * " + edKey:           "marker",
		"256 SHA256:3uVR1hY9oDPVmTHlEdrl9tMTxrNpFWGXLV9 root@x (ED25519)": "not whole",
		"SHA256:": "neither a public key", "SHA256:x": "not whole", somePrint + "x": "not whole", somePrint + "\nSHA256:3u": "line 2 has a fingerprint",
		"MD5:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99":                                "by MD5",
		"256 MD5:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99 root@x (ED25519)":           "by MD5",
		"2048 aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99 root@x (RSA)":                  "by MD5",
		"aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99":                                    "by MD5",
		"SHA512:3uVR1hY9oDPVmTHlEdrl9tMTxrNpFWGXLV9UzQ0OQcU":                                 "by SHA512",
		"256 " + somePrint + " root@x (ED25519-SK)":                                          "no sshd shows",
		"1024 " + somePrint + " root@x (DSA)":                                                "no key",
		"localhost " + somePrint:                                                             "neither a public key",
		"@revoked " + somePrint:                                                              "neither a public key",
		"@cert-authority " + somePrint:                                                       "marker",
		"-----BEGIN SSH HOST KEY FINGERPRINTS-----\n-----END SSH HOST KEY FINGERPRINTS-----": "no key",
		fingerprint(edKey) + "\n@revoked * " + edKey:                                         "not revoked",
		"-----BEGIN OPENSSH PRIVATE KEY-----":                                                "neither a public key",
		"ssh-ed25519":                                                                        "no key", "10.0.0.5 ssh-ed25519": "no key", "x": "neither a public key", "10.0.0.5 10.0.0.5 " + edKey: "neither a public key",
		"ssh-ed25519 AAAA": "not whole", edKey + "A": "not whole", "ssh-rsa " + other: "another type", edKey + "==": "not whole",
		"ssh-dss AAAAB3NzaC1kc3MAAACB": "neither a public key", "ssh-ed25519-cert-v01@openssh.com " + other: "neither a public key",
		strings.Repeat("\n", hostKeyBytes) + edKey: "more than",
	} {
		keys, err := readHostKeys(text, instance)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.200q: %q, %v; want an error that has %q", text, keys, err, says)
		} else if strings.Contains(err.Error(), other) || len(err.Error()) > 300 {
			t.Errorf("%.200q: the error repeats it: %v", text, err)
		}
	}
}

// TestRemoteHostKeyThatIsNone: the key of the instance's own sshd, in lines that do not say that it is to be trusted. No
// tunnel is opened, and the first use is not trusted either.
func TestRemoteHostKeyThatIsNone(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	key := i.sshd.HostKey(t)
	for _, row := range []string{
		"# " + key, "#" + key, "revoked " + key, "cert-authority " + key, `command="x" ` + key, "@revoked * " + key, "other.example " + key,
		"10.0.0.5 " + key + "\n10.0.0.6 " + edKey, "MD5:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99", " \n",
	} {
		target := i.target(t, "")
		target.Attributes["host_key"] = row
		r := i.remote(t, Config{})
		term, err := r.Start(t.Context(), target, shelltest.DefaultSize)
		if err == nil {
			t.Errorf("%q opens a terminal", row)
			_ = term.Close()
			continue
		}
		var told *runner.Failure
		if !errors.As(err, &told) || !told.Final || !strings.Contains(told.Sentence, "host_key in the workspace's row is malformed") {
			t.Errorf("%q: %v", row, err)
		}
		shelltest.WantStep(t, err, "ssh_hostkey")
	}
	if n := len(i.asked()); n > 0 || len(i.keys.keys) > 0 {
		t.Errorf("asked for %d tunnels, kept %q", n, i.keys.keys)
	}
}

// TestRemoteHostKeyOfKeyscan: what people have at hand.
func TestRemoteHostKeyOfKeyscan(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	host, port, err := net.SplitHostPort(i.sshd.Addr)
	if err != nil {
		t.Fatal(err)
	}
	scanned, err := exec.Command("ssh-keyscan", "-p", port, host).CombinedOutput() // the comments are its stderr
	if err != nil || !strings.Contains(string(scanned), "# ") {
		t.Fatalf("%q, %v", scanned, err)
	}
	console := "-----BEGIN SSH HOST KEY KEYS-----\n" + ecKey + " root@ip\n" + i.sshd.HostKey(t) + " root@ip\n-----END SSH HOST KEY KEYS-----\n"
	for _, row := range []string{string(scanned), console} {
		target := i.target(t, "")
		target.Attributes["host_key"] = row
		shelltest.Open(t, shelltest.By(i.remote(t, Config{})), target).End(t)
	}
	if len(i.keys.keys) > 0 {
		t.Errorf("kept %q", i.keys.keys)
	}
}

// TestHostKeyAlgorithms: a server with several keys shows a known one.
func TestHostKeyAlgorithms(t *testing.T) {
	t.Parallel()
	const ed, ec, rsa = "ssh-ed25519", "ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521", "rsa-sha2-512,rsa-sha2-256"
	for _, c := range []struct {
		keys    hostKeys
		without []string
		want    string
	}{
		{nil, nil, ed + "," + ec + "," + rsa},
		{hostKeys{ecKey}, nil, "ecdsa-sha2-nistp256,ssh-ed25519,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521," + rsa},
		{hostKeys{somePrint + " RSA"}, nil, rsa + "," + ed + "," + ec},
		{hostKeys{somePrint + " RSA", edKey}, nil, ed + "," + rsa + "," + ec},
		{hostKeys{somePrint}, []string{"ssh-ed25519"}, ec + "," + rsa},
	} {
		if got := c.keys.algorithms(c.without); got != c.want {
			t.Errorf("%q without %q: %s, want %s", c.keys, c.without, got, c.want)
		}
	}
}

// FuzzReadHostKeys: what is read is what is known, and an error is one that a person may read.
func FuzzReadHostKeys(f *testing.F) {
	const instance = "i-0123456789abcdef0"
	for _, seed := range []string{edKey, "10.0.0.5 " + ecKey + "\n@revoked " + edKey, "256 " + somePrint + " root@x (ECDSA)", "ec2: MD5:aa", "revoked " + edKey} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := readHostKeys(text, instance)
		if (err == nil) != (len(keys) > 0) {
			t.Fatalf("%q, %v", keys, err)
		}
		if err != nil {
			if len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\r\n\x1b") {
				t.Errorf("%q", err)
			}
			return
		}
		if !slices.Equal(parsedHostKeys(keys.String()), keys) || keys.algorithms(nil) == "" {
			t.Errorf("%q is read as %q", keys, parsedHostKeys(keys.String()))
		}
	})
}
