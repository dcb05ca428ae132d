package runner

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
)

const uuid = "0d9f4c52-8a67-4be1-9c3d-5e2f7a1b6c80"

func TestCandidates(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 10<<10)
	cases := []struct {
		name   string
		target Target
		want   []string
	}{
		{
			"order",
			Target{Container: "mine", WorkspaceID: uuid, Name: "My Work Space"},
			[]string{"mine", "ws-0d9f4c52-8a6", "ws-" + uuid, "my-work-space"},
		},
		{"a short id", Target{WorkspaceID: "abc"}, []string{"ws-abc"}},
		{"nothing", Target{}, nil},
		{"up the tree", Target{Container: "../x", Name: "../../containers/x"}, nil},
		{"a path and a query", Target{Container: "a/b?c", Name: "a?b#c"}, nil},
		{"quotes", Target{Container: `a"b`, Name: "a'b`c"}, nil},
		{"newlines", Target{Container: "a\nb", Name: "b\r\nHost: x"}, nil},
		{"a newline at the end", Target{Container: "a\n", Name: "b\n"}, nil},
		{"percent", Target{Container: "%2e%2e%2fx", Name: "a%00"}, nil},
		{"dots", Target{Container: "..", Name: "."}, nil},
		{"10 kB", Target{Container: long, Name: long}, nil},
		{"not ASCII", Target{Container: "é", Name: "ſs"}, nil},
		{"named like another's full id", Target{Name: "ws-" + uuid}, nil},
		{"named like another's short id", Target{Name: "WS 0d9f4c52 8a6"}, nil},
		{"named like another's id that is a word", Target{WorkspaceID: "def", Name: "WS abc"}, []string{"ws-def"}},
		{"named like another's id with a sign", Target{WorkspaceID: "7", Name: "ws-_.x-Y"}, []string{"ws-7"}},
		{"named by a letter that becomes one of these", Target{Name: "W\u017f-abc"}, nil},
		{"named like its own id", Target{WorkspaceID: "abc", Name: "WS abc"}, []string{"ws-abc"}},
		{"named like another's id in capitals", Target{WorkspaceID: "abc", Name: "WS-ABC"}, []string{"ws-abc"}},
		{"a name that only has the letters", Target{Name: "News ws-x"}, []string{"news-ws-x"}},
		{"a name without the sign", Target{Name: "Wsx"}, []string{"wsx"}},
		{"the row's container", Target{Container: "ws-abc", WorkspaceID: "def"}, []string{"ws-abc", "ws-def"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := candidates(c.target)
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
	d := testDocker(cli, DockerConfig{Shells: []string{"/bin/sh"}})
	for _, name := range []string{"../x", "a/b?c", `"'`, "a\nb", "..", "", strings.Repeat("x", 10<<10)} {
		_, err := d.findContainer(t.Context(), Target{Container: name, Name: name, WorkspaceID: "fine"})
		if !errors.Is(err, ErrNotRunning) {
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
	d := testDocker(cli, DockerConfig{Shells: []string{"/bin/sh"}})
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
	find := func(target Target) func(*testing.T, string) {
		return func(t *testing.T, want string) {
			t.Helper()
			got, err := d.findContainer(t.Context(), target)
			if err != nil || got != id[want] {
				t.Errorf("found %q, %v; want %q, %s", got, err, id[want], want)
			}
		}
	}
	refuse := func(t *testing.T, target Target, sentence string) {
		t.Helper()
		target.Session, target.Log = "none", newTarget(t, "").Log
		started := time.Now()
		_, err := d.Start(t.Context(), target, defaultSize)
		if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), sentence) {
			t.Errorf("%+v: %v, want %q", target, err, sentence)
		}
		if took := time.Since(started); took > d.cfg.Timing.Start {
			t.Errorf("%+v: refused after %s", target, took)
		}
	}

	find(Target{Container: id["row"]})(t, "row")
	find(Target{Container: "stopped", Name: "My Work Space"})(t, "my-work-space")
	find(Target{Container: "paused", Name: "My Work Space"})(t, "my-work-space")

	all := find(Target{Container: "row", WorkspaceID: uuid, Name: "My Work Space"})
	for _, name := range []string{"row", "ws-0d9f4c52-8a6", "ws-" + uuid, "my-work-space"} {
		all(t, name)
		stop(t, name)
	}
	refuse(t, Target{Container: "row", WorkspaceID: uuid, Name: "My Work Space"},
		"row is stopped, ws-0d9f4c52-8a6 is stopped, ws-"+uuid+" is stopped, my-work-space is stopped")
	refuse(t, Target{Container: "stopped"}, "stopped is stopped")
	refuse(t, Target{Container: "paused"}, "paused is paused")
	refuse(t, Target{WorkspaceID: "unknown"}, "looked for ws-unknown")

	// The engine would take these for the container whose id starts so.
	other := id["ws-11111111-222"]
	refuse(t, Target{Container: other[:12]}, "looked for "+other[:12])
	refuse(t, Target{Name: other[:12]}, "looked for "+other[:12])
	refuse(t, Target{Name: other}, "looked for "+other)
	refuse(t, Target{Name: "ws-11111111-222"}, "looked for")
}

// TestNameOfAnothersContainer: a workspace that is named like what another's id makes, whatever the form of ids.
func TestNameOfAnothersContainer(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	i := newInstance(t, engine)
	remote := i.remote(t, RemoteConfig{Target: TargetContainer})
	local := testDocker(engine.Client(t), DockerConfig{Shells: []string{"/bin/sh"}})
	unique := fmt.Sprint(time.Now().UnixNano())
	for _, id := range []string{"abc" + unique, "42" + unique, "a_b." + unique, unique[:3]} {
		engine.RunContainer(t, "ws-"+id)
		for _, runner := range []Starter{local, remote} {
			target := i.target(t, "")
			target.WorkspaceID, target.Name = "another", "WS "+id
			term, err := runner.Start(t.Context(), target, defaultSize)
			if err == nil {
				t.Errorf("%T: a workspace named %q opens the container of workspace %s", runner, target.Name, id)
				_ = term.Close()
				continue
			}
			var told interface{ Sentence() string }
			if !errors.Is(err, ErrNotRunning) || !errors.As(err, &told) || !strings.Contains(told.Sentence(), "let the workspace query return container") {
				t.Errorf("%T: %v", runner, err)
			}
			// Who may write the row may say so.
			target = i.target(t, "ws-"+id)
			target.WorkspaceID = "another"
			open(t, by(runner), target).end(t)
		}
	}
}

func TestEngineDown(t *testing.T) {
	t.Parallel()
	cli, err := client.New(client.WithHost("unix://" + t.TempDir() + "/docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	d := testDocker(cli, DockerConfig{Shells: []string{"/bin/sh"}})
	_, err = d.Start(t.Context(), newTarget(t, "c1"), defaultSize)
	wantStep(t, err, "docker")
	wantStep(t, d.Ping(t.Context()), "docker")
}

func wantStep(tb testing.TB, err error, step string) {
	tb.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Step != step {
		tb.Errorf("got %v, want a failure of step %q", err, step)
	}
}
