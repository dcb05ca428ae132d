//go:build image

package imagetest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const deploy = root + "/deploy"

func TestComposeFile(t *testing.T) {
	compose := func(env ...string) (string, error) {
		argv := []string{"docker-compose"}
		if _, err := exec.LookPath(argv[0]); err != nil && exec.Command("docker", "compose", "version").Run() == nil {
			argv = []string{"docker", "compose"} // the newer one is a plugin
		} else {
			need(t, argv[0], "docker-compose")
		}
		argv = append(argv, "--file", filepath.Join(deploy, "compose.yaml"), "config", "--services")
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	said, err := compose("DOCKER_GID=1000")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	services := strings.Fields(said)
	slices.Sort(services)
	if want := []string{"migrate", "nginx", "postgres", "termgw", "workspace"}; !slices.Equal(services, want) {
		t.Errorf("services: %q", services)
	}
	if said, err := compose("DOCKER_GID="); err == nil || !strings.Contains(said, "the group of the socket") {
		t.Errorf("without the socket's group: %v, %s", err, said)
	}
}

// maxExposure is what `systemd-analyze security` may find, times ten. A network, the engine's socket and other users'
// groups cost 1.5.
const maxExposure = "20"

func TestSystemdUnit(t *testing.T) {
	need(t, "systemd-analyze", "systemd")
	unit, err := os.ReadFile(filepath.Join(deploy, "systemd/termgw.service"))
	if err != nil {
		t.Fatal(err)
	}
	// The program is not installed on this machine.
	copied := filepath.Join(t.TempDir(), "termgw.service")
	write(t, copied, bytes.ReplaceAll(unit, []byte("/usr/local/bin/termgw"), []byte("/bin/true")))
	if out, err := exec.Command("systemd-analyze", "verify", copied).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold="+maxExposure, copied).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])

	// The account that the unit wants.
	etc := t.TempDir()
	account, err := os.ReadFile(filepath.Join(deploy, "systemd/termgw.sysusers.conf"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(etc, "usr/lib/sysusers.d/termgw.conf"), account)
	write(t, filepath.Join(etc, "etc/passwd"), nil)
	if out, err := exec.Command("systemd-sysusers", "--root="+etc).CombinedOutput(); err != nil {
		t.Fatalf("systemd-sysusers: %v\n%s", err, out)
	}
	if passwd, err := os.ReadFile(filepath.Join(etc, "etc/passwd")); err != nil || !strings.Contains(string(passwd), "termgw:x:") {
		t.Errorf("no account: %v\n%s", err, passwd)
	}
}
