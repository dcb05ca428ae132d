//go:build image

package imagetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The files of a release: their checksums hold, an archive has the program of its architecture and the licences, and the same
// commit gives the same bytes.
func TestDist(t *testing.T) {
	need(t, "qemu-aarch64", "qemu-user")
	sums := ""
	for range 2 {
		out := filepath.Join(t.TempDir(), "dist")
		mk := exec.Command(root + "/scripts/dist")
		mk.Env = append(os.Environ(), "DIST="+out, "VERSION="+version, "COMMIT="+commit, "DATE="+date)
		said, err := mk.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
		check.Dir = out
		if said, err := check.CombinedOutput(); err != nil || strings.Count(string(said), ": OK\n") < 2 {
			t.Errorf("sha256sum: %v\n%s", err, said)
		}
		// npm's archive is npm's matter.
		var programs []string
		for line := range strings.Lines(string(said)) {
			if strings.Contains(line, "_linux_") {
				programs = append(programs, line)
			}
		}
		if got := strings.Join(programs, ""); sums != "" && got != sums {
			t.Errorf("the same commit gives\n%sand\n%s", sums, got)
		} else {
			sums = got
		}
		for arch, by := range map[string]string{"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"} {
			unpacked := t.TempDir()
			archive := filepath.Join(out, "termgw_"+version+"_linux_"+arch+".tar.gz")
			if said, err := exec.Command("tar", "-C", unpacked, "-xzf", archive).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			if said, err := exec.Command(by, filepath.Join(unpacked, "termgw"), "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(said), "termgw "+version+" (commit "+commit+", "+date) ||
				!strings.Contains(string(said), " linux/"+arch+")\n") {
				t.Errorf("%s: %v\n%s", arch, err, said)
			}
			for name, has := range map[string]string{"LICENSE": "MIT License", "third-party.txt": "github.com/coder/websocket "} {
				if text, err := os.ReadFile(filepath.Join(unpacked, name)); err != nil || !strings.Contains(string(text), has) {
					t.Errorf("%s: %s: %v", arch, name, err)
				}
			}
		}
	}
}
