package instance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An ssh that does not take the options is found at the start, and not by each terminal.
func TestSSHVersion(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ prints, version, fault string }{
		{"OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17 1 Jul 2025", "OpenSSH_9.2p1", ""},
		{"OpenSSH_10.0p2, OpenSSL 3.5.1", "OpenSSH_10.0p2", ""},
		{"OpenSSH_7.4p1, without OpenSSL", "OpenSSH_7.4p1", ""},
		{"OpenSSH_7.3p1, OpenSSL 1.0.2k-fips", "", "is OpenSSH_7.3p1, which is too old"},
		{"OpenSSH_6.6.1p1, OpenSSL 1.0.1e-fips", "", "is OpenSSH_6.6.1p1, which is too old"},
		{"Dropbear v2024.86", "", `not OpenSSH's client, of which 7.4 or later is needed: ` + "`ssh -V` says \"Dropbear v2024.86\""},
		{"No user exists for uid 12345", "", "/etc/passwd"},
		{"", "", "not OpenSSH's client"},
	} {
		program := filepath.Join(t.TempDir(), "ssh")
		if err := os.WriteFile(program, []byte("#!/bin/sh\necho '"+test.prints+"' >&2\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		version, err := sshVersion(program)
		if version != test.version || (err == nil) != (test.fault == "") || err != nil && !strings.Contains(err.Error(), test.fault) {
			t.Errorf("%q: %q, %v", test.prints, version, err)
		}
	}
	if _, err := sshVersion("/missing/ssh"); err == nil {
		t.Error("a program that is not there has a version")
	}
}
