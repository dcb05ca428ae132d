package instance

import (
	"maps"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// traced opens a terminal and returns its trail, also of one that does not open.
func traced(tb testing.TB, k *Kind, t runner.Target) (terminal.Terminal, runner.Trail, error) {
	tb.Helper()
	t.Trail = runner.Trail{}
	term, err := k.Start(tb.Context(), t, shelltest.DefaultSize)
	if err == nil {
		tb.Cleanup(func() { _ = term.Close() })
	}
	return term, t.Trail, err
}

// A session's trail has the key as the instance's sshd logs it, and the tunnel, of the connection that carries the session.
func TestTrail(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	r := i.remote(t, Config{})
	_, first, err := traced(t, r, i.target(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	want := runner.Trail{
		"instance": i.id, "os_user": i.sshd.User, "tunnel": "lease-1", "key": first["key"], "host_key_accepted": fingerprint(i.sshd.HostKey(t)),
	}
	if !maps.Equal(first, want) {
		t.Errorf("got %v, want %v", first, want)
	}
	logged := func(word string, trail runner.Trail) bool {
		for line := range strings.Lines(i.sshd.Log(t)) {
			if strings.HasPrefix(line, word+" ") && strings.Contains(line, " "+trail["os_user"]+" ") && strings.HasSuffix(line, " "+trail["key"]+"\r\n") {
				return true
			}
		}
		return false
	}
	if first["key"] == "" || !logged("Accepted publickey for", first) {
		t.Errorf("sshd has logged:\n%s\nnothing of %v", i.sshd.Log(t), first)
	}
	_, shared, err := traced(t, r, i.target(t, ""))
	if err != nil || !maps.Equal(shared, first) {
		t.Errorf("over the same connection: %v, %v", shared, err)
	}

	again := i.remote(t, Config{}) // another gateway: the host key is known by now
	_, other, err := traced(t, again, i.target(t, ""))
	if err != nil || other["key"] == first["key"] || other["tunnel"] != "lease-2" || other["host_key_accepted"] != "" || !logged("Accepted publickey for", other) {
		t.Errorf("over a connection of its own: %v, %v", other, err)
	}
}

// A login that is refused is in sshd's log, too.
func TestTrailOfARefusedLogin(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	i.push = func(string) error { return nil } // the key does not reach the instance
	_, trail, err := traced(t, i.remote(t, Config{}), i.target(t, ""))
	shelltest.WantStep(t, err, "ssh_auth")
	if trail["key"] == "" || trail["key_refused"] == "" || trail["key_refused"] == trail["key"] || trail["tunnel"] != "lease-1" || trail["tunnel_2"] != "lease-2" || // with a key of the other type
		trail["os_user"] != i.sshd.User {
		t.Errorf("the trail is %v", trail)
	}
}
