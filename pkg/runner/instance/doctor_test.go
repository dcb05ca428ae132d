package instance

import (
	"cmp"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/keeper/program"
	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// walked runs the doctor's steps, and returns those that went well and the one that failed.
func walked(tb testing.TB, k *Kind, target runner.Target, start time.Duration) (well []string, found map[string]string, failed string, err error) {
	tb.Helper()
	var term terminal.Terminal
	var openErr error
	open := func(ctx context.Context) error {
		if term == nil && openErr == nil {
			ctx, cancel := context.WithTimeout(ctx, start)
			defer cancel()
			term, openErr = k.Start(ctx, target, shelltest.DefaultSize)
			if openErr == nil {
				tb.Cleanup(func() { _ = term.Close() })
			}
		}
		return openErr
	}
	found = map[string]string{}
	for _, step := range k.Steps(target, open) {
		said, err := step.Run(tb.Context())
		if err != nil {
			return well, found, step.Name, err
		}
		well = append(well, step.Name)
		found[step.Name] = said
	}
	return well, found, "", nil
}

// TestStepsSayWhatTheyHaveSeen: no step goes well that nothing was seen of.
func TestStepsSayWhatTheyHaveSeen(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	name := containerNameOf(t, engine, engine.RunContainer(t, ""))
	for _, c := range []struct {
		name         string
		sshd         testenv.SSHDConfig
		container    string
		row          map[string]string
		keepers      func() (program.Programs, error)
		start        time.Duration // after the login
		well, failed string
		says         string
	}{
		{name: "all is well", container: name, well: "login account tools docker container", says: "every end of a terminal works"},
		{name: "an instance's own shell", row: map[string]string{"remote_target": TargetHost}, well: "login account tools"},
		{name: "no login shell, and no name to look for", sshd: testenv.SSHDConfig{Shell: "/usr/sbin/nologin"}, well: "login", failed: "account", says: "not available"},
		{name: "no name to look for", well: "login account tools docker", failed: "container", says: "no name"},
		{name: "hardly any tools", container: name, sshd: testenv.SSHDConfig{Commands: lacking("setsid", "timeout", "head", "ss")}, well: "login account tools docker container", says: "not needed: setsid, timeout, head"},
		{name: "a keeper, and no ss", keepers: keepers, container: name, sshd: testenv.SSHDConfig{Commands: lacking("ss")}, well: "login account tools docker container", says: "terminals outlive AWS's hour. every end of a terminal works"},
		{name: "no keeper", keepers: keepers, container: name, sshd: testenv.SSHDConfig{Commands: lacking("sha256sum")}, well: "login account tools docker container", says: "terminals end with AWS's hour, since nothing holds them on the instance: there is no sha256sum command. every end"},
		{name: "no ss", container: name, sshd: testenv.SSHDConfig{Commands: lacking("ss")}, well: "login account tools docker container", says: "ClientAliveInterval"},
		{
			name: "a docker of root's that hangs", container: name, sshd: testenv.SSHDConfig{Commands: map[string]string{"docker": "exec sleep 30"}},
			row: map[string]string{"docker_sudo": "true"}, start: 3 * time.Second, well: "login account tools", failed: "docker", says: "does not answer",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.sshd.Docker = engine
			i := &instance{id: nextInstanceID(), sshd: testenv.StartSSHD(t, c.sshd)}
			k := i.remote(t, Config{Target: TargetContainer, Keepers: c.keepers})
			target := i.target(t, c.container)
			for column, value := range c.row {
				target.Attributes[column] = value
			}
			if c.row["docker_sudo"] != "" {
				i.sudoers(t, "ALL")
			}
			if c.start != 0 {
				loggedIn(t, k, target)
			}
			well, found, failed, err := walked(t, k, target, cmp.Or(c.start, shelltest.Patience))
			if strings.Join(well, " ") != c.well || failed != c.failed {
				t.Errorf("%q went well, %q failed: %v; want %q, %q", well, failed, err, c.well, c.failed)
			}
			text := found["tools"]
			if err != nil {
				text = err.Error()
			}
			if !strings.Contains(text, c.says) {
				t.Errorf("says %q, want %q", text, c.says)
			}
		})
	}
}

// TestStepsSayThatSystemdKills is not parallel: it changes the machine that the other tests have.
func TestStepsSayThatSystemdKills(t *testing.T) {
	const dir, lingering = "/etc/systemd/logind.conf.d", "/var/lib/systemd/linger"
	i := newInstance(t, nil)
	for _, d := range []string{dir, lingering} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{dir + "/tgwtest.conf", lingering + "/" + i.sshd.User} {
		t.Cleanup(func() { _ = os.Remove(path) })
	}
	says := func(conf string) string {
		if err := os.WriteFile(dir+"/tgwtest.conf", []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
		_, found, _, err := walked(t, i.kept(t, runner.Timing{}), i.target(t, ""), shelltest.Patience)
		if err != nil {
			t.Fatal(err)
		}
		return found["tools"]
	}
	if said := says("[Login]\nKillUserProcesses=yes\n"); !strings.Contains(said, "loginctl enable-linger "+i.sshd.User) {
		t.Errorf("says %q", said)
	}
	if err := os.WriteFile(lingering+"/"+i.sshd.User, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if said := says("[Login]\nKillUserProcesses = yes\n"); !strings.Contains(said, "terminals outlive") {
		t.Errorf("of an account that lingers it says %q", said)
	}
}
