package testenv

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestSSHDLetsPushedKeysIn(t *testing.T) {
	docker := env.Docker(t)
	s := StartSSHD(t, SSHDConfig{Docker: docker})
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key); err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(public))
	known := filepath.Join(dir, "known")
	login := func() (string, error) {
		host, port, _ := strings.Cut(s.Addr, ":")
		if err := os.WriteFile(known, []byte("["+host+"]:"+port+" "+s.HostKey(t)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("ssh", "-F", "none", "-i", key, "-l", s.User, "-p", port,
			"-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile="+known,
			host, "id -un; docker version --format {{.Server.Os}}")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}

	if out, err := login(); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("without a key: %q, %v", out, err)
	}
	if err := s.Push(line); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if out, err := login(); err != nil || out != s.User+"\nlinux\n" {
			t.Errorf("with a key: %q, %v", out, err)
		}
		s.ChangeHostKey(t)
	}
	if err := s.Forget(line); err != nil {
		t.Fatal(err)
	}
	if out, err := login(); err == nil {
		t.Errorf("with a forgotten key: %q", out)
	}
}

// TestSSHDRemovesAccounts of its own, with what they run.
func TestSSHDRemovesAccounts(t *testing.T) {
	var name string
	var stays *exec.Cmd
	t.Run("owner", func(t *testing.T) {
		name = StartSSHD(t, SSHDConfig{}).User
		account, err := user.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.ParseUint(account.Uid, 10, 32)
		stays = exec.Command("sleep", "1000")
		stays.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid)}, Pdeathsig: syscall.SIGTERM}
		if err := stays.Start(); err != nil {
			t.Fatal(err)
		}
	})
	if stays == nil {
		return // skipped, with its reason, or failed
	}
	if err := stays.Wait(); err == nil || stays.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("what an account ran ended with %v", err)
	}
	if _, err := user.Lookup(name); err == nil {
		t.Errorf("%s is still there", name)
	}
}
