package testenv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// SSHDConfig holds the options of StartSSHD.
type SSHDConfig struct {
	// Docker is the engine in the DOCKER_HOST of sessions; nil: sessions have no DOCKER_HOST.
	Docker *Docker
	// Shell is the account's login shell; empty: bash.
	Shell string
	// Lines come first in the configuration: the first value of a keyword counts.
	Lines []string
	// Commands replaces commands of the machine in the server's sessions: each name's command is a script of sh, or
	// is not there if that is empty.
	Commands map[string]string
}

// SSHD is an OpenSSH server on loopback, with an account of its own, which logs in with the pushed keys.
type SSHD struct {
	Addr string // host:port
	User string // the account

	mu     sync.Mutex
	keys   []string
	server daemon
}

// accountPrefix begins the names of the accounts.
const accountPrefix = "tgwtest-"

// StartSSHD starts a server for this test. When the test ends, the server is stopped and its account removed.
func StartSSHD(tb testing.TB, cfg SSHDConfig) *SSHD {
	tb.Helper()
	s, err := newSSHD(cfg)
	check(tb, err)
	tb.Cleanup(func() {
		if err := s.remove(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Push allows logins with a key, a line of authorized_keys, until Forget.
func (s *SSHD) Push(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, line)
	return s.writeKeys()
}

// Forget allows no more logins with a key that was pushed.
func (s *SSHD) Forget(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = slices.DeleteFunc(s.keys, func(key string) bool { return key == line })
	return s.writeKeys()
}

func (s *SSHD) writeKeys() error {
	path := s.path("keys")
	err := os.WriteFile(path+".new", []byte(strings.Join(append(s.keys, ""), "\n")), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("writing keys: %w", err)
	}
	return nil
}

// HostKey returns the server's public key, as a line of authorized_keys.
func (s *SSHD) HostKey(tb testing.TB) string {
	tb.Helper()
	line, err := os.ReadFile(s.path("hostkey.pub"))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(line))
}

// Log returns what the server has logged so far.
func (s *SSHD) Log(tb testing.TB) string {
	tb.Helper()
	b, err := os.ReadFile(s.server.logPath())
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// ChangeHostKey restarts the server with a new host key. Sessions stay.
func (s *SSHD) ChangeHostKey(tb testing.TB) {
	tb.Helper()
	err := s.server.stop()
	if err == nil {
		err = s.makeHostKey()
	}
	if err == nil {
		err = s.server.start(s.greets)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func (s *SSHD) path(name string) string { return filepath.Join(s.server.dir.path, name) }

func newSSHD(cfg SSHDConfig) (_ *SSHD, err error) {
	program, err := lookPath("sshd")
	if err != nil {
		return nil, missingError("needs an SSH server: apt-get install openssh-server")
	}
	if err := unavailable("an SSH server with an account"); err != nil {
		return nil, err
	}
	dir, err := newDir()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.remove())
		}
	}()
	s := &SSHD{server: daemon{stopSignal: syscall.SIGTERM, dir: dir}}
	if err := s.makeHostKey(); err != nil {
		return nil, err
	}
	if err := s.writeKeys(); err != nil {
		return nil, err
	}
	if err := s.addAccount(cfg.Shell); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.removeAccount())
		}
	}()
	if cfg.Docker != nil {
		if err := cfg.Docker.letAnyoneIn(); err != nil {
			return nil, err
		}
	}
	// sshd drops its privileges in this directory (sshd(8)).
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { //nolint:gosec // as the package makes it
		return nil, fmt.Errorf("making sshd's empty directory: %w", err)
	}
	// Another process may take the free port before the server does: then another port is tried.
	for range 3 {
		if err = s.listen(program, cfg); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func (s *SSHD) listen(program string, cfg SSHDConfig) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	lines := append(slices.Clone(cfg.Lines),
		"Port "+strconv.Itoa(port),
		"ListenAddress 127.0.0.1",
		"HostKey "+s.path("hostkey"),
		"PidFile none",
		"UsePAM no",
		"UseDNS no",
		"StrictModes no",
		"AuthenticationMethods publickey",
		"AuthorizedKeysFile none",
		// sshd requires that only root can write to the directory of the command.
		"AuthorizedKeysCommand /bin/cat "+s.path("keys"),
		"AuthorizedKeysCommandUser root",
	)
	// Of these keywords the last value counts, or all do.
	for keyword, value := range map[string]string{"AllowUsers": s.User, "MaxStartups": "1000"} {
		if !slices.ContainsFunc(cfg.Lines, func(line string) bool { return strings.HasPrefix(line, keyword+" ") }) {
			lines = append(lines, keyword+" "+value)
		}
	}
	if cfg.Docker != nil {
		lines = append(lines, "SetEnv DOCKER_HOST="+cfg.Docker.Host)
	}
	config := s.path("sshd_config")
	if err := os.WriteFile(config, []byte(strings.Join(append(lines, ""), "\n")), 0o600); err != nil {
		return fmt.Errorf("writing sshd's configuration: %w", err)
	}
	s.server.argv = nil
	if len(cfg.Commands) > 0 {
		if s.server.argv, err = s.replacing(cfg.Commands); err != nil {
			return err
		}
	}
	s.server.argv = append(s.server.argv, program, "-D", "-e", "-f", config)
	s.server.env = []string{"PATH=" + sbin + ":/usr/local/bin:/usr/bin:/bin"}
	return s.server.start(s.greets)
}

// replacing returns the start of a command line that runs the rest with other commands in the place of the machine's.
func (s *SSHD) replacing(commands map[string]string) (argv []string, err error) {
	mounts := ""
	for n, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"} {
		upper, work := s.path(fmt.Sprintf("upper%d", n)), s.path(fmt.Sprintf("work%d", n))
		mounts += "mount -t overlay overlay -o lowerdir=" + dir + ",upperdir=" + upper + ",workdir=" + work + " " + dir + " && "
		err = errors.Join(err, os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)) //nolint:gosec // an account's commands
		for name, script := range commands {
			file := filepath.Join(upper, name)
			_ = os.Remove(file) // of a port that was taken
			if script == "" {
				err = errors.Join(err, unix.Mknod(file, unix.S_IFCHR, 0)) // overlayfs shows no file in its place
			} else {
				err = errors.Join(err, os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o755)) //nolint:gosec // likewise
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("replacing commands: %w", err)
	}
	return []string{"unshare", "--mount", "--", "/bin/sh", "-c", mounts + `exec "$@"`, "sh"}, nil
}

func (s *SSHD) greets(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return fmt.Errorf("connecting to sshd: %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "SSH-2.0-") {
		return fmt.Errorf("sshd greets with %q: %w", line, err)
	}
	return nil
}

func (s *SSHD) makeHostKey() error {
	for _, name := range []string{"hostkey", "hostkey.pub"} {
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("making a host key: %w", err)
		}
	}
	return run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", s.path("hostkey"))
}

// addAccount makes an account in the sandbox's own /etc, with its home in the part's directory.
func (s *SSHD) addAccount(shell string) error {
	if shell == "" {
		shell = "/bin/bash"
	}
	if err := os.Chmod(s.server.dir.path, 0o711); err != nil { //nolint:gosec // others pass through to the home
		return fmt.Errorf("opening the way to a home: %w", err)
	}
	s.User = accountPrefix + strings.TrimPrefix(filepath.Base(s.server.dir.path), dirPrefix)
	// An account without a password is locked; "*" is a password that nothing matches.
	return run("useradd", "--create-home", "--home-dir", s.path("home"), "--shell", shell, "--password", "*", s.User)
}

func (s *SSHD) removeAccount() error { return removeAccount(s.User) }

func removeAccount(name string) error {
	endProcesses(name)
	return run("userdel", "--force", name) // also while a process of the account is ending
}

// endProcesses kills an account's processes. With the engine gone, a remote terminal's part would stay for an hour.
func endProcesses(name string) {
	account, err := user.Lookup(name)
	if err != nil {
		return
	}
	for range 2 { // the second time for processes forked meanwhile
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			info, err := os.Stat(dir)
			if err != nil || strconv.FormatUint(uint64(info.Sys().(*syscall.Stat_t).Uid), 10) != account.Uid {
				continue
			}
			if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL) // the process may have ended
			}
		}
	}
}

func (s *SSHD) remove() error {
	return errors.Join(s.server.stop(), s.removeAccount(), s.server.dir.remove())
}

// letAnyoneIn opens the engine's socket to the accounts of SSH servers.
func (d *Docker) letAnyoneIn() error {
	socket := strings.TrimPrefix(d.Host, "unix://")
	err := errors.Join(os.Chmod(filepath.Dir(socket), 0o711), os.Chmod(socket, 0o666)) //nolint:gosec // an engine for tests
	if err != nil {
		return fmt.Errorf("opening the engine's socket: %w", err)
	}
	return nil
}

// run runs a command. It waits while another process holds the lock of the account database.
func run(argv ...string) error {
	var out []byte
	var err error
	for range 100 {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = []string{"PATH=" + sbin + ":/usr/local/bin:/usr/bin:/bin"}
		out, err = cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		if !bytes.Contains(out, []byte("try again later")) {
			break
		}
		time.Sleep(pollInterval)
	}
	return fmt.Errorf("running %s: %w\n%s", argv[0], err, bytes.TrimSpace(out))
}
