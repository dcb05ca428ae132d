package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/internal/shellplace"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
)

// morePlaces are kinds of place that the gateway of these tests has besides its own.
var morePlaces = runner.Places{shellplace.Place}

// TestAnotherKindOfPlace: a package and its line in morePlaces are all that a kind of place takes to be routed by the
// workspace's row, told to the client, counted, audited, explained by the table of errors and the doctor, and reaped.
func TestAnotherKindOfPlace(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.exec(t, "ALTER TABLE workspaces ADD COLUMN shell_dir text")
	query := "TERMGW_WORKSPACE_QUERY=SELECT id::text AS id, instance_id, name, shell_dir FROM workspaces WHERE id = $1"
	docker := "DOCKER_HOST=" + env.Docker(t).Host
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for id, shellDir := range map[string]any{"shelly": dir, "dirless": filepath.Join(dir, "none"), "boxed": nil} {
		p.workspace(t, id, "")
		p.exec(t, "UPDATE workspaces SET shell_dir = $2 WHERE id = $1", id, shellDir)
	}
	newBox(t, env.Docker(t), "boxed")
	g := p.serve(t, query, docker)
	if got := g.metric(t, `termgw_sessions_active{target="shell"}`); got != 0 {
		t.Errorf("%v terminals are open from the start", got)
	}

	c := g.open(t, "shelly", dialing{})
	ready := c.message(t, "ready")
	if ready.Target != "shell" {
		t.Errorf("ready says %q", ready.Target)
	}
	if got := c.run(t, "ls"); got != "mine\r\n" {
		t.Errorf("the shell answers %q", got)
	}
	c.run(t, "sleep 3001 & true")
	c.send(t, "exit 7\n")
	if exit := c.message(t, "exit"); exit.Code != 7.0 {
		t.Errorf("ended with %+v", exit)
	}
	c.closed(t)
	eventually(t, "what it started has ended", func() bool { return len(withMarker(t, ready.Session)) == 0 })
	if r := p.lastRow(t, "shelly"); r.reason != "exit" {
		t.Errorf("the audit trail says %+v", r)
	}
	if status, out, said := p.operate(t, nil, "sessions", "list", "--all", "--json"); status != 0 || !strings.Contains(out, `"target":"shell"`) {
		t.Errorf("sessions list says %q %s", out, said)
	}
	if got := g.metric(t, `termgw_sessions_total{code="exit",target="shell"}`); got != 1 {
		t.Errorf("%v are counted", got)
	}

	lost := g.dial(t, "dirless", p.ticket(t, "dirless"), dialing{})
	m := lost.message(t, "error")
	if code := lost.closed(t); code != 4502 || m.Detail != "shell_dir" || m.Retryable || !strings.HasPrefix(m.Message, "The workspace's directory is gone") || !strings.Contains(m.Message, docsPage) {
		t.Errorf("without its directory: %d, %+v", code, m)
	}
	if got := g.metric(t, `termgw_sessions_total{code="backend_failed",target="shell"}`); got != 1 {
		t.Errorf("%v failures are counted", got)
	}
	local := g.open(t, "boxed", dialing{}) // the others are where they were
	if ready := local.message(t, "ready"); ready.Target != "local" {
		t.Errorf("ready says %q of a container", ready.Target)
	}
	local.close(t)

	p.diagnose(t, "shelly", query, docker).want(t, toTheRow+" directory shell", "", "shell, shell_dir "+`"`+dir)
	p.diagnose(t, "dirless", query, docker).want(t, toTheRow, "directory", "is no directory", "Make the directory")

	orphan := g.open(t, "shelly", dialing{})
	orphaned := orphan.message(t, "ready").Session
	orphan.run(t, "trap '' HUP; sleep 3002 & true")
	g.signal(t, os.Kill)
	g.wait(t)
	if got := withMarker(t, orphaned); len(got) == 0 {
		t.Fatal("nothing lives without its gateway: there is nothing to reap")
	}
	p.exec(t, "UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '5 minutes' WHERE ended_at IS NULL")
	reaper := p.serve(t, query, docker)
	eventually(t, "it is reaped", func() bool { return p.lastRow(t, "shelly").reason == store.ReasonLost })
	reaper.lineOf(t, "session ended", func(line map[string]any) bool {
		return line["session"] == orphaned && line["code"] == store.ReasonLost && line["workspace"] == "shelly" && line["target"] == "shell"
	})
	if got := withMarker(t, orphaned); len(got) > 0 {
		t.Errorf("these live on: %q", got)
	}
}

// withMarker lists the commands of this machine's processes that carry a session's marker.
func withMarker(tb testing.TB, session string) (commands []string) {
	tb.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	for _, dir := range dirs {
		environ, _ := os.ReadFile(filepath.Join(dir, "environ")) // another's, or gone
		if slices.Contains(strings.Split(string(environ), "\x00"), runner.Marker+"="+session) {
			cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			commands = append(commands, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return commands
}
