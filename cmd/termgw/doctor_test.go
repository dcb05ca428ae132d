package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/eice"
)

// diagnosis is what the doctor said: the steps that went well, and those that did not.
type diagnosis struct {
	ok, failed []string
	detail     string // of the last step that failed
	text       string
}

var saidStep = regexp.MustCompile(`(?m)^(ok|FAILED) +(\w+) +[0-9.]+(?:µs|ms|s)(?:  (.*))?$`)

// diagnose runs the doctor with a gateway's environment. A step that failed must have a cause, and a fix that names the
// page; the exit status must say the same as the steps.
func (p *platform) diagnose(tb testing.TB, workspace string, environ ...string) (d diagnosis) {
	tb.Helper()
	status, out, said := p.operate(tb, append([]string{"TERMGW_TICKET_JWKS=" + p.jwks}, environ...), "doctor", "--workspace="+workspace)
	d.text = out + said
	tb.Log("\n" + d.text)
	for _, m := range saidStep.FindAllStringSubmatch(out, -1) {
		if m[1] == "ok" {
			d.ok = append(d.ok, m[2])
		} else {
			d.failed = append(d.failed, m[2])
			d.detail = m[3]
		}
	}
	if want := min(1, len(d.failed)); status != want || said != "" {
		tb.Errorf("exit status %d, want %d:\n%s", status, want, d.text)
	}
	if len(d.failed) > strings.Count(out, "cause: ") || strings.Count(out, "fix:   ") != len(d.failed) || strings.Count(out, eice.Docs) < len(d.failed) {
		tb.Errorf("a failure without its cause, fix or page:\n%s", d.text)
	}
	return d
}

// want checks which steps went well and which failed, and what was said of them.
func (d diagnosis) want(tb testing.TB, ok, failed string, says ...string) {
	tb.Helper()
	if strings.Join(d.ok, " ") != ok || strings.Join(d.failed, " ") != failed {
		tb.Errorf("ok %q, failed %q; want %q, %q:\n%s", d.ok, d.failed, ok, failed, d.text)
	}
	for _, text := range says {
		if !strings.Contains(d.text, text) {
			tb.Errorf("nothing of %q:\n%s", text, d.text)
		}
	}
}

const toTheRow = "configuration keys database schema workspace"

func TestDoctorLocal(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := newPlatform(t)
	for _, id := range []string{"ws", "stopped", "missing", "shell-less", "deaf"} {
		p.workspace(t, id, "")
	}
	container := newBox(t, engine, "ws")
	stopped := newBox(t, engine, "stopped")
	if _, err := engine.Client(t).ContainerStop(t.Context(), stopped.id, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	newBox(t, engine, "shell-less")
	deaf := newBox(t, engine, "deaf")
	engine.Exec(t, deaf.id, "/bin/sh", "-c", "echo exec sleep 1004 >/root/.bashrc")
	docker := "DOCKER_HOST=" + engine.Host
	empty := filepath.Join(t.TempDir(), "empty.json")
	if err := os.WriteFile(empty, []byte(`{"keys":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}

	p.diagnose(t, "ws", docker).want(t, toTheRow+" docker container shell", "", container.id, p.key.KeyID)
	container.empty(t)
	var subject string
	err := p.db.QueryRowContext(t.Context(), "SELECT subject FROM termgw.sessions WHERE end_reason = 'client_closed'").Scan(&subject)
	if want := "termgw doctor " + operator(); err != nil || subject != want {
		t.Errorf("%v: the shell's row says it was %q, want %q", err, subject, want)
	}

	for _, test := range []struct {
		name, workspace string
		environ         []string
		ok, failed      string
		says            []string
	}{
		{"a stopped container", "stopped", []string{docker}, toTheRow + " docker", "container", []string{"ws-stopped is stopped", "running on this engine: ", "ws-ws"}},
		{"no container", "missing", []string{docker}, toTheRow + " docker", "container", []string{"looked for ws-missing\n"}},
		{"no shell", "shell-less", []string{docker, "TERMGW_SHELLS=/bin/none,/bin/neither"}, toTheRow + " docker container", "shell", []string{"/bin/none, /bin/neither"}},
		{"a profile that does not end", "deaf", []string{docker}, toTheRow + " docker container", "shell", []string{"profile"}},
		{"Docker down", "ws", []string{"DOCKER_HOST=unix://" + filepath.Join(t.TempDir(), "none.sock")}, toTheRow, "docker", []string{"none.sock"}},
		{"no row", "unknown", []string{docker}, "configuration keys database schema", "workspace", []string{"workspace not found"}},
		{"a query that does not fit", "ws", []string{docker, "TERMGW_WORKSPACE_QUERY=SELECT instance_id, title AS name FROM workspaces WHERE id = $1"}, "configuration keys database", "schema", []string{"title"}},
		{"a query without a column", "ws", []string{docker, "TERMGW_WORKSPACE_QUERY=SELECT instance_id FROM workspaces WHERE id = $1"}, "configuration keys database", "schema", []string{"instance_id and name"}},
		{"a database that takes no writes", "ws", []string{docker, "TERMGW_DATABASE_URL=" + p.url + "&default_transaction_read_only=on"}, "configuration keys", "database", []string{"takes no writes"}},
		{"keys that are not there", "ws", []string{docker, "TERMGW_TICKET_JWKS=/none/jwks.json"}, "", "configuration", []string{"TERMGW_TICKET_JWKS", "/none/jwks.json"}},
		{"a key server that does not answer", "ws", []string{docker, "TERMGW_TICKET_JWKS=http://127.0.0.1:1/jwks.json?token=hunter2"}, "configuration", "keys", []string{"connection refused"}},
		{"a set of no keys", "ws", []string{docker, "TERMGW_TICKET_JWKS=" + empty}, "configuration", "keys", []string{"the key set is empty"}},
		{"a database that is not there", "ws", []string{docker, "TERMGW_DATABASE_URL=" + strings.Replace(p.url, "/test_", "/none_", 1)}, "configuration keys", "database", []string{"none_"}},
		{"a wrong password", "ws", []string{docker, "TERMGW_DATABASE_URL=" + strings.Replace(p.url, "//postgres:", "//postgres:wrong", 1)}, "configuration keys", "database", []string{"authentication"}},
		{"missing variables", "ws", []string{docker, "TERMGW_TICKET_JWKS=", "TERMGW_DATABASE_URL=", "TERMGW_SHELLS=sh"}, "", "configuration", []string{"TERMGW_TICKET_JWKS", "TERMGW_DATABASE_URL", "TERMGW_SHELLS"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.diagnose(t, test.workspace, test.environ...).want(t, test.ok, test.failed, test.says...)
		})
	}
	p.exec(t, "ALTER SCHEMA termgw RENAME TO elsewhere")
	p.diagnose(t, "ws", docker).want(t, "configuration keys database", "schema", "the schema is missing or old, run `termgw migrate`")
	p.exec(t, "ALTER SCHEMA elsewhere RENAME TO termgw")
	container.empty(t)
	deaf.empty(t)
	var open int
	if err := p.db.QueryRowContext(t.Context(), "SELECT count(*) FROM termgw.sessions WHERE ended_at IS NULL").Scan(&open); err != nil || open > 0 {
		t.Errorf("%v: %d rows have no end", err, open)
	}
}

func TestDoctorDatabaseDown(t *testing.T) {
	t.Parallel()
	p := &platform{}
	p.makeKey(t)
	database := testenv.StartPostgres(t)
	p.useDatabase(t, database.NewDatabase(t))
	database.Stop(t)
	p.diagnose(t, "ws", "DOCKER_HOST=unix:///none.sock").want(t, "configuration keys", "database", "connection refused")
}

func TestDoctorWithoutDatabase(t *testing.T) {
	t.Parallel()
	p := &platform{}
	p.makeKey(t)
	container := newBox(t, env.Docker(t), "alone")
	file := filepath.Join(t.TempDir(), "workspaces.json")
	if err := writeNew(file, []byte(`[{"id":"alone","name":"Team A"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"TERMGW_DATABASE_URL=", "TERMGW_WORKSPACES_FILE=" + file, "DOCKER_HOST=" + env.Docker(t).Host}
	p.diagnose(t, "alone", environ...).want(t, toTheRow+" docker container shell", "", `name "Team A"`)
	p.diagnose(t, "other", environ...).want(t, "configuration keys database schema", "workspace")
	container.empty(t)
}

// Where nothing is broken: TestDoctorTable has what is.
func TestDoctorRemote(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	container := newBox(t, env.Docker(t), "shared")
	const toTheLogin = toTheRow + " aws instance endpoint key tunnel login"
	for _, test := range []struct {
		name, row, ok string
		says          []string
	}{
		{"a container", "container = 'ws-shared'", toTheLogin + " account tools docker container shell", []string{"SSH-2.0-OpenSSH", ", by OpenSSH_", "eice-0123456789abcdef0", "container ws-shared"}},
		{"the instance itself", "remote_target = 'host'", toTheLogin + " account tools shell", []string{`remote_target "host"`, "and ended\n"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			workspace, instance := p.onChangedInstance(t, aws, "ws-shared", test.row, nil)
			p.diagnose(t, workspace, aws.environ(t)...).want(t, test.ok, "", test.says...)
			if r := p.lastRow(t, workspace); r.reason != "client_closed" {
				t.Errorf("the audit trail says %+v", r)
			}
			eventually(t, "no tunnel, place, process or shell is left", func() bool {
				return aws.Tunnels() == 0 && p.places(t) == 0 && len(running(t, instance)) == 0 && container.shells(t) == 0
			})
		})
	}
}

// An ssh that does not take the options is told with its version, before anything is asked of AWS.
func TestDoctorOldSSH(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "i-0123456789abcdef0")
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte("#!/bin/sh\necho OpenSSH_7.3p1, OpenSSL 1.0.2k-fips >&2\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.diagnose(t, "ws", "PATH="+bin+":"+os.Getenv("PATH")).want(t, toTheRow, "place", "OpenSSH_7.3p1, which is too old", "7.4 or later")
}

// An OS user that may not use Docker, or has none, is helped there and not in the
// workspace's row.
func TestDoctorNoDockerOnInstance(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, nil)
	workspace, _ := p.onChangedInstance(t, aws, "ws-any", "", nil)
	p.diagnose(t, workspace, aws.environ(t)...).want(t, toTheRow+" aws instance endpoint key tunnel login account tools", "docker", "fix:   Check that Docker", "usermod -aG docker "+aws.sshd.User)
}
