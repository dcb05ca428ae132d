package instance

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// TestAccountDoesSomethingElse: what an account does instead of the gateway's command is told as such, at once where ssh has
// ended, and what it printed is told to operators alone.
func TestAccountDoesSomethingElse(t *testing.T) {
	t.Parallel()
	const wait, ends = true, false
	for _, c := range []struct {
		name   string
		sshd   string // a line of its configuration
		shell  string
		bashrc string
		set    func(t *testing.T, i *instance)
		waits  bool   // until the time is over
		says   string // to operators
		fix    string
		final  bool
	}{
		{name: "nologin", shell: "/usr/sbin/nologin", waits: ends, says: "not available", fix: "usermod -s", final: true},
		{name: "a start file that exits", bashrc: "exit 3", waits: ends, says: "exit code 3, and printed nothing", fix: ".bashrc", final: true},
		{name: "a start file that exits as ssh does", bashrc: "echo no more; exit 255", waits: ends, says: "no more", fix: ".bashrc", final: true},
		{name: "a start file that becomes another shell", bashrc: "PS1='new prompt> ' exec bash --norc -i", waits: wait, says: "new prompt>", fix: ".bashrc", final: true},
		{name: "a start file that reads", bashrc: "printf 'Which project? '; read -r project", waits: wait, says: "Which project?", fix: ".bashrc", final: true},
		{name: "a start file that waits", bashrc: "sleep 1000", waits: wait, says: "printed nothing", fix: ".bashrc"},
		{name: "a start file that prints without end", bashrc: "exec yes 'it goes on'", waits: ends, says: "it goes on", fix: ".bashrc", final: true},
		{name: "a start file that prints control characters", bashrc: `printf '\033]0;title\007\033[31mred\033[0m\r\n\001\002 \033[2J end'; exit 1`, waits: ends, says: `"red end"`, fix: ".bashrc", final: true},
		{name: "a start file that prints much", bashrc: "echo your licence has expired; yes spam | head -c 40000; exit 5", waits: ends, says: "before, and printed \"your licence has expired", fix: ".bashrc", final: true},
		{name: "a start file that prints secrets", bashrc: "echo arn:aws:iam::123456789012:role/x token=hunter2 eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbm4ifQ.aaaa the reason; exit 1", waits: ends, says: `"… … … the reason"`, fix: ".bashrc", final: true},
		{name: "ForceCommand", sshd: "ForceCommand /bin/bash --norc -i", waits: wait, says: "bash-", fix: "ForceCommand", final: true},
		{name: "ForceCommand that ends", sshd: "ForceCommand echo 'sftp only'", waits: ends, says: "sftp only", fix: "ForceCommand", final: true},
		{name: "PermitTTY no", sshd: "PermitTTY no", waits: ends, says: "no terminal", fix: "PermitTTY", final: true},
		{name: "PermitTTY no, and a start file that ends", sshd: "PermitTTY no", bashrc: "exit 1", waits: ends, says: "no terminal", fix: "PermitTTY", final: true},
		{name: "an expired password", sshd: "UsePAM yes", set: func(t *testing.T, i *instance) {
			t.Helper()
			if out, err := exec.Command("chage", "-d", "0", i.sshd.User).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}, waits: wait, says: "urrent password:", fix: "chage", final: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var lines []string
			if c.sshd != "" {
				lines = append(lines, c.sshd)
			}
			i := &instance{id: nextInstanceID(), sshd: testenv.StartSSHD(t, testenv.SSHDConfig{Shell: c.shell, Lines: lines})}
			i.write(t, ".bashrc", c.bashrc+"\n")
			if c.set != nil {
				c.set(t, i)
			}
			r := i.remote(t, Config{Timing: runner.Timing{Start: shelltest.Patience}})
			ctx := t.Context()
			if c.waits {
				loggedIn(t, r, i.target(t, ""))
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
			}
			_, err := r.Start(ctx, i.target(t, ""), shelltest.DefaultSize)
			shelltest.WantStep(t, err, "account")
			var failed *runner.Failure
			if !errors.As(err, &failed) {
				t.Fatal(err)
			}
			if text := err.Error(); !strings.Contains(text, c.says) || len(text) > 800 || strings.ContainsAny(text, "\x1b\x07\x01\r") {
				t.Errorf("told operators %q, want %q", text, c.says)
			}
			if !strings.Contains(failed.Fix, c.fix) || strings.Contains(failed.Fix, "USER") {
				t.Errorf("the fix is %q, want %q", failed.Fix, c.fix)
			}
			if failed.Final != c.final {
				t.Errorf("final %t, want %t", failed.Final, c.final)
			}
			if !strings.Contains(failed.Sentence, i.sshd.User) || strings.Contains(failed.Sentence, c.says) {
				t.Errorf("the person is told %q", failed.Sentence)
			}
			if got := i.opened(); got != 1 {
				t.Errorf("%d tunnels", got)
			}
		})
	}
}

// TestAccountIsDenied: an account that sshd's own rules keep out is told as such, and its logins are paced.
func TestAccountIsDenied(t *testing.T) {
	t.Parallel()
	i := &instance{id: nextInstanceID(), sshd: testenv.StartSSHD(t, testenv.SSHDConfig{Lines: []string{"UsePAM yes"}})}
	if out, err := exec.Command("chage", "-E", "1", i.sshd.User).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := i.remote(t, Config{})
	for range 3 {
		_, err := r.Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
		shelltest.WantStep(t, err, "ssh_denied")
		var failed *runner.Failure
		if !errors.As(err, &failed) || !failed.Final || !strings.Contains(err.Error(), "Your account has expired") || !strings.Contains(failed.Sentence, "again in ") {
			t.Errorf("told %v, %+v", err, failed)
		}
	}
	if got := i.opened(); got != 1 {
		t.Errorf("%d logins", got)
	}
}

// TestDenial: an sshd that hangs up in the middle of a login; while the instance starts or shuts down, a later try can succeed.
func TestDenial(t *testing.T) {
	t.Parallel()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(edKey))
	if err != nil {
		t.Fatal(err)
	}
	shown, none := &exchange{key: key}, &exchange{}
	for _, c := range []struct {
		exchange *exchange
		log, pam string
		step     string
		final    bool
	}{
		{shown, "Connection closed by UNKNOWN port 65535", "", "ssh_denied", false},
		{shown, "Connection closed by UNKNOWN port 65535", "Authorised use only. In case of a fire shutdown the host.\r\nYour account has expired; please contact your system administrator.\r\n", "ssh_denied", true},
		{shown, "Connection closed by UNKNOWN port 65535", "Your account has expired; please contact your system administrator.", "ssh_denied", true},
		{shown, "Connection closed by UNKNOWN port 65535", "\"System is booting up. Unprivileged users are not permitted to log in yet.\"", "ssh_denied", false},
		{shown, "Connection closed by UNKNOWN port 65535", "The system is going down for maintenance", "ssh_denied", false},
		{shown, "x@y: Permission denied (publickey).", "", "ssh_auth", true},
		{none, "Connection closed by UNKNOWN port 65535", "", "ssh_closed", false},
	} {
		l := &login{exchange: c.exchange}
		var told *runner.Failure
		if err := l.denial(loginFault(c.log, c.pam), c.pam); !errors.As(err, &told) || told.Step != c.step || told.Final != c.final {
			t.Errorf("%q: %+v", c.pam, told)
		}
	}
}

// TestAccountWantsMore: an sshd that takes the key and asks for more is told as such, and gets no other key.
func TestAccountWantsMore(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil, "AuthenticationMethods publickey,password")
	_, err := i.remote(t, Config{}).Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
	shelltest.WantStep(t, err, "ssh_auth")
	var failed *runner.Failure
	if !errors.As(err, &failed) || !failed.Final || !strings.Contains(failed.Sentence, "asks this account for password") || strings.Contains(err.Error(), "refused the key") {
		t.Errorf("told %v, %+v", err, failed)
	}
	if got := i.opened(); got != 1 {
		t.Errorf("%d logins", got)
	}
}

// loggedIn waits for a connection, which later terminals share.
func loggedIn(tb testing.TB, k *Kind, target runner.Target) {
	tb.Helper()
	r, err := k.request(target)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := k.connect(tb.Context(), r.to, nil)
	if err != nil {
		tb.Fatal(err)
	}
	k.release(c)
}

// TestDockerThatHangs: a docker command that does not answer is not the account's fault, nor sshd's.
func TestDockerThatHangs(t *testing.T) {
	t.Parallel()
	for name, container := range map[string]string{"in a container by name": "box", "in one of several": "abc123"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newInstance(t, nil)
			i.write(t, "docker", "#!/bin/sh\nexec sleep 1000\n")
			i.write(t, ".bashrc", "PATH=$HOME:$PATH\n")
			r := i.remote(t, Config{Target: TargetContainer, Timing: runner.Timing{Start: shelltest.Patience}})
			loggedIn(t, r, i.target(t, container))
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second) // for what asks docker to run
			defer cancel()
			_, err := r.Start(ctx, i.target(t, container), shelltest.DefaultSize)
			shelltest.WantStep(t, err, "docker")
			r.stop() // the end of what may have begun hangs too
		})
	}
}

// TestSilenceIsNotTheAccounts: where the connection goes silent when the session is open, that is the cause.
func TestSilenceIsNotTheAccounts(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	account, err := user.Lookup(i.sshd.User)
	if err != nil {
		t.Fatal(err)
	}
	i.write(t, ".bashrc", "echo >$HOME/began; sleep 1000\n")
	r := i.remote(t, Config{Timing: runner.Timing{Start: 30 * time.Second, Alive: time.Second}})
	target := i.target(t, "")
	loggedIn(t, r, target)
	failed := make(chan error, 1)
	go func() {
		_, err := r.Start(t.Context(), target, shelltest.DefaultSize)
		failed <- err
	}()
	shelltest.Eventually(t, "the account has begun", func() bool {
		_, err := os.Stat(filepath.Join(account.HomeDir, "began"))
		return err == nil
	})
	i.tunnel(0).stall()
	shelltest.WantStep(t, <-failed, "ssh_timeout")
}

// TestAccountWords: the log holds what an account printed, on one line.
func TestAccountWords(t *testing.T) {
	t.Parallel()
	r := &request{to: destination{user: "ec2-user"}}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Error("no terminal", "err", r.accountFault("it ended", []byte(strings.Repeat("long ", 10000)+"\x1b[1mthe \xff reason\n\x00")))
	if text := log.String(); !strings.Contains(text, "the ? reason") || strings.Count(text, "\n") != 1 || len(text) > 1000 {
		t.Errorf("%q", text)
	}
}
