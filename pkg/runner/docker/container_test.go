package docker

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

const uuid = "0d9f4c52-8a67-4be1-9c3d-5e2f7a1b6c80"

// row is a workspace's row, as far as it names a container.
type row struct{ WorkspaceID, Container, Name string }

func (r row) target() runner.Target {
	return runner.Target{WorkspaceID: r.WorkspaceID, Attributes: map[string]string{"container": r.Container, "name": r.Name}}
}

func TestCandidates(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 10<<10)
	cases := []struct {
		name   string
		target runner.Target
		want   []string
	}{
		{
			"order",
			row{Container: "mine", WorkspaceID: uuid, Name: "My Work Space"}.target(),
			[]string{"mine", "ws-0d9f4c52-8a6", "ws-" + uuid, "my-work-space"},
		},
		{"a short id", row{WorkspaceID: "abc"}.target(), []string{"ws-abc"}},
		{"nothing", runner.Target{}, nil},
		{"up the tree", row{Container: "../x", Name: "../../containers/x"}.target(), nil},
		{"a path and a query", row{Container: "a/b?c", Name: "a?b#c"}.target(), nil},
		{"quotes", row{Container: `a"b`, Name: "a'b`c"}.target(), nil},
		{"newlines", row{Container: "a\nb", Name: "b\r\nHost: x"}.target(), nil},
		{"a newline at the end", row{Container: "a\n", Name: "b\n"}.target(), nil},
		{"percent", row{Container: "%2e%2e%2fx", Name: "a%00"}.target(), nil},
		{"dots", row{Container: "..", Name: "."}.target(), nil},
		{"10 kB", row{Container: long, Name: long}.target(), nil},
		{"not ASCII", row{Container: "é", Name: "ſs"}.target(), nil},
		{"named like another's full id", row{Name: "ws-" + uuid}.target(), nil},
		{"named like another's short id", row{Name: "WS 0d9f4c52 8a6"}.target(), nil},
		{"named like another's id that is a word", row{WorkspaceID: "def", Name: "WS abc"}.target(), []string{"ws-def"}},
		{"named like another's id with a sign", row{WorkspaceID: "7", Name: "ws-_.x-Y"}.target(), []string{"ws-7"}},
		{"named by a letter that becomes one of these", row{Name: "W\u017f-abc"}.target(), nil},
		{"named like its own id", row{WorkspaceID: "abc", Name: "WS abc"}.target(), []string{"ws-abc"}},
		{"named like another's id in capitals", row{WorkspaceID: "abc", Name: "WS-ABC"}.target(), []string{"ws-abc"}},
		{"a name that only has the letters", row{Name: "News ws-x"}.target(), []string{"news-ws-x"}},
		{"a name without the sign", row{Name: "Wsx"}.target(), []string{"wsx"}},
		{"the row's container", row{Container: "ws-abc", WorkspaceID: "def"}.target(), []string{"ws-abc", "ws-def"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := c.target.ContainerNames()
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestHostileNamesNeverReachTheEngine looks at every request that an engine
// gets, which here has no container at all.
func TestHostileNamesNeverReachTheEngine(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []string
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "/_ping") {
			w.Header().Set("Api-Version", "1.41")
			return
		}
		http.Error(w, `{"message":"No such container"}`, http.StatusNotFound)
	}))
	defer engine.Close()
	cli, err := client.New(client.WithHost("tcp://" + engine.Listener.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	d := testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/sh"}})
	for _, name := range []string{"../x", "a/b?c", `"'`, "a\nb", "..", "", strings.Repeat("x", 10<<10)} {
		_, err := d.findContainer(t.Context(), row{Container: name, Name: name, WorkspaceID: "fine"}.target())
		if !errors.Is(err, runner.ErrNotRunning) {
			t.Errorf("%.20q: %v", name, err)
		}
		if len(err.Error()) > 200 {
			t.Errorf("%.20q: an error of %d bytes", name, len(err.Error()))
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, path := range asked {
		if !strings.HasSuffix(path, "/_ping") && path != "/v1.41/containers/ws-fine/json" {
			t.Errorf("the engine was asked for %q", path)
		}
	}
	if len(asked) == 0 {
		t.Error("the engine was asked for nothing")
	}
}

func TestFindContainer(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	cli := engine.Client(t)
	d := testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/sh"}})
	id := map[string]string{}
	for _, name := range []string{"row", "ws-0d9f4c52-8a6", "ws-" + uuid, "my-work-space", "stopped", "paused", "ws-11111111-222"} {
		id[name] = engine.RunContainer(t, name)
	}
	if _, err := cli.ContainerKill(t.Context(), id["stopped"], client.ContainerKillOptions{}); err != nil {
		t.Fatal(err)
	}
	engine.Pause(t, id["paused"])
	stop := func(t *testing.T, name string) {
		t.Helper()
		if _, err := cli.ContainerKill(t.Context(), id[name], client.ContainerKillOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	find := func(target runner.Target) func(*testing.T, string) {
		return func(t *testing.T, want string) {
			t.Helper()
			got, err := d.findContainer(t.Context(), target)
			if err != nil || got != id[want] {
				t.Errorf("found %q, %v; want %q, %s", got, err, id[want], want)
			}
		}
	}
	refuse := func(t *testing.T, target runner.Target, sentence string) {
		t.Helper()
		target.Session, target.Log = "none", shelltest.NewTarget(t, "").Log
		started := time.Now()
		_, err := d.Start(t.Context(), target, shelltest.DefaultSize)
		if !errors.Is(err, runner.ErrNotRunning) || !strings.Contains(err.Error(), sentence) {
			t.Errorf("%+v: %v, want %q", target, err, sentence)
		}
		if took := time.Since(started); took > d.cfg.Timing.Start {
			t.Errorf("%+v: refused after %s", target, took)
		}
	}

	find(row{Container: id["row"]}.target())(t, "row")
	find(row{Container: "stopped", Name: "My Work Space"}.target())(t, "my-work-space")
	find(row{Container: "paused", Name: "My Work Space"}.target())(t, "my-work-space")

	all := find(row{Container: "row", WorkspaceID: uuid, Name: "My Work Space"}.target())
	for _, name := range []string{"row", "ws-0d9f4c52-8a6", "ws-" + uuid, "my-work-space"} {
		all(t, name)
		stop(t, name)
	}
	refuse(t, row{Container: "row", WorkspaceID: uuid, Name: "My Work Space"}.target(),
		"row is stopped, ws-0d9f4c52-8a6 is stopped, ws-"+uuid+" is stopped, my-work-space is stopped")
	refuse(t, row{Container: "stopped"}.target(), "stopped is stopped")
	refuse(t, row{Container: "paused"}.target(), "paused is paused")
	refuse(t, row{WorkspaceID: "unknown"}.target(), "looked for ws-unknown")

	// The engine would take these for the container whose id starts so.
	other := id["ws-11111111-222"]
	refuse(t, row{Container: other[:12]}.target(), "looked for "+other[:12])
	refuse(t, row{Name: other[:12]}.target(), "looked for "+other[:12])
	refuse(t, row{Name: other}.target(), "looked for "+other)
	refuse(t, row{Name: "ws-11111111-222"}.target(), "looked for")
}

// TestNameOfAnothersContainer: a workspace that is named like what another's id makes, whatever the form of ids.
func TestNameOfAnothersContainer(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	k := testKind(engine.Client(t), Config{KeepDetached: true, Shells: []string{"/bin/sh"}})
	unique := fmt.Sprint(time.Now().UnixNano())
	for _, id := range []string{"abc" + unique, "42" + unique, "a_b." + unique, unique[:3]} {
		engine.RunContainer(t, "ws-"+id)
		target := shelltest.NewTarget(t, "")
		target.WorkspaceID, target.Attributes["name"] = "another", "WS "+id
		shelltest.WantNameRefused(t, k, target)
		// Who may write the row may say so.
		target = shelltest.NewTarget(t, "ws-"+id)
		target.WorkspaceID = "another"
		shelltest.Open(t, shelltest.By(k), target).End(t)
	}
}

func TestEngineDown(t *testing.T) {
	t.Parallel()
	cli, err := client.New(client.WithHost("unix://" + t.TempDir() + "/docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	d := testKind(cli, Config{KeepDetached: true, Shells: []string{"/bin/sh"}})
	_, err = d.Start(t.Context(), shelltest.NewTarget(t, "c1"), shelltest.DefaultSize)
	shelltest.WantStep(t, err, "docker")
	shelltest.WantStep(t, d.Ping(t.Context()), "docker")
}
