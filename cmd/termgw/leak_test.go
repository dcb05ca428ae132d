package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// way is how one session goes, from its ticket to its end.
type way struct {
	name string
	run  func(t *testing.T, g *served, workspace string)
}

// ways are all of them: half have a shell, half are refused.
var ways = []way{
	{"the shell exits", func(t *testing.T, g *served, workspace string) {
		c := g.open(t, workspace, dialing{})
		c.send(t, "exit\r")
		c.closed(t)
	}},
	{"expired", func(t *testing.T, g *served, workspace string) {
		now := time.Now()
		g.refused(t, workspace, g.ticket(t, workspace, func(c *ticket.Claims) {
			c.IssuedAt, c.Expires = now.Add(-time.Minute), now.Add(-30*time.Second)
		}), 4401)
	}},
	{"the shell exits, raw mode", func(t *testing.T, g *served, workspace string) {
		c := g.open(t, workspace, dialing{raw: true})
		c.send(t, "exit\r")
		c.closed(t)
	}},
	{"another workspace's", func(t *testing.T, g *served, workspace string) {
		g.refused(t, workspace, g.ticket(t, "another"), 4403)
	}},
	{"the shell is killed", func(t *testing.T, g *served, workspace string) {
		c := g.open(t, workspace, dialing{})
		c.send(t, "kill -9 $$\r")
		c.closed(t)
	}},
	{"an unknown workspace", func(t *testing.T, g *served, _ string) {
		g.refused(t, "unknown", g.ticket(t, "unknown"), 4404)
	}},
	{"the client closes", func(t *testing.T, g *served, workspace string) {
		c := g.open(t, workspace, dialing{})
		c.send(t, "sleep 1000 &\r")
		c.close(t)
	}},
	{"an instance", func(t *testing.T, g *served, _ string) {
		g.refused(t, "far", g.ticket(t, "far"), 4502)
	}},
	{"the client closes, raw mode", func(t *testing.T, g *served, workspace string) {
		g.open(t, workspace, dialing{raw: true}).close(t)
	}},
	{"a stopped container", func(t *testing.T, g *served, _ string) {
		g.refused(t, "stopped", g.ticket(t, "stopped"), 4404)
	}},
	{"TCP reset", func(t *testing.T, g *served, workspace string) {
		c := g.open(t, workspace, dialing{})
		c.send(t, "sleep 1000\r")
		c.reset(t)
	}},
	{"a foreign origin", func(t *testing.T, g *served, workspace string) {
		response := handshake(t, g.address, workspace+"/terminal", "Origin: http://evil.example")
		defer response.Body.Close()
		if response.StatusCode != http.StatusForbidden {
			t.Errorf("status %d", response.StatusCode)
		}
	}},
	{"silence", func(t *testing.T, g *served, workspace string) {
		c := g.open(t, workspace, dialing{raw: true})
		close(c.conn.deaf)
		t.Cleanup(c.drop)
	}},
	{"an impossible size", func(t *testing.T, g *served, workspace string) {
		c := g.dial(t, workspace, g.ticket(t, workspace), dialing{query: "cols=0"})
		if code := c.closed(t); code != 4400 {
			t.Errorf("closed with %d", code)
		}
	}},
	{"a bad message", func(t *testing.T, g *served, workspace string) {
		c := g.open(t, workspace, dialing{})
		c.control(t, "{")
		c.closed(t)
	}},
	{"no ticket", func(t *testing.T, g *served, workspace string) {
		g.refused(t, workspace, "", 4401)
	}},
	{"a message over the limit", func(t *testing.T, g *served, workspace string) {
		c := g.open(t, workspace, dialing{})
		_ = c.trySend(websocket.MessageText, strings.Repeat("x", 5<<10))
		c.closed(t)
	}},
	{"a replay, and kill -9 of termgw connect", func(t *testing.T, g *served, workspace string) {
		raw := g.ticket(t, workspace)
		cmd := command(t, []string{"TERMGW_TICKET=" + raw}, "connect", g.terminal(workspace))
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		c := start(t, cmd)
		eventually(t, "a prompt", func() bool { return c.out.String() != "" })
		g.refused(t, workspace, raw, 4409)
		c.signal(t, os.Kill)
		c.wait(t)
	}},
	{"gone before the shell is there", func(t *testing.T, g *served, workspace string) {
		g.dial(t, workspace, g.ticket(t, workspace), dialing{}).reset(t)
	}},
}

// open waits until a shell is there.
func (g *served) open(t *testing.T, workspace string, how dialing) *tty {
	t.Helper()
	c := g.dial(t, workspace, g.ticket(t, workspace), how)
	c.wait(t, "a prompt", func() bool { return len(c.output) > 0 })
	return c
}

func (g *served) refused(t *testing.T, workspace, raw string, want websocket.StatusCode) {
	t.Helper()
	if code := g.dial(t, workspace, raw, dialing{}).closed(t); code != want {
		t.Errorf("closed with %d, want %d", code, want)
	}
}

// resources is what a gateway holds.
type resources struct{ goroutines, descriptors, children, active int }

func (g *served) resources(t *testing.T) (r resources) {
	t.Helper()
	first, _, _ := strings.Cut(g.get(t, g.said("serving profiles"), "/debug/pprof/goroutine?debug=1").body, "\n")
	total := strings.TrimPrefix(first, "goroutine profile: total ")
	var err error
	if r.goroutines, err = strconv.Atoi(total); err != nil {
		t.Fatal(err)
	}
	pid := g.cmd.Process.Pid
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, thread.Name()))
		r.children += len(strings.Fields(string(children)))
	}
	r.descriptors = len(files)
	r.active = int(g.metric(t, `termgw_sessions_active{target="local"}`) + g.metric(t, `termgw_sessions_active{target="remote"}`))
	return r
}

// TestNothingIsLeft opens and tears down sessions in every way there is, which is more often than slack hides; about half of
// them have a shell.
func TestNothingIsLeft(t *testing.T) {
	const atOnce, containers = 16, 4
	sessions := 13 * len(ways)
	engine := env.Docker(t)
	p := newPlatform(t)
	boxes := make([]*box, containers)
	for i := range boxes {
		workspace := fmt.Sprintf("ws%d", i)
		p.workspace(t, workspace, "")
		boxes[i] = newBox(t, engine, workspace)
	}
	p.workspace(t, "far", "i-0123456789abcdef0")
	p.workspace(t, "stopped", "")
	stopped := newBox(t, engine, "stopped")
	if _, err := engine.Client(t).ContainerStop(t.Context(), stopped.id, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	g := p.serve(t, "TERMGW_PING_INTERVAL="+shortPing.String(), "TERMGW_LOG_LEVEL=info", "TERMGW_SHELLS=/bin/sh")

	all := func(name string, count int) {
		var next atomic.Int64
		var workers sync.WaitGroup
		for worker := range atOnce {
			workers.Go(func() {
				t.Run(fmt.Sprintf("%s, client %d", name, worker), func(t *testing.T) {
					for i := int(next.Add(1)) - 1; i < count && !t.Failed(); i = int(next.Add(1)) - 1 {
						ways[i%len(ways)].run(t, g, fmt.Sprintf("ws%d", i/len(ways)%containers))
					}
				})
			})
		}
		workers.Wait()
	}
	quiet := func(r resources) bool { return r.active == 0 && r.children == 0 }

	// Pools of connections, to the database and the engine, are filled first.
	all("first", 2*len(ways))
	eventually(t, "the first are over", func() bool { return quiet(g.resources(t)) })
	before := g.resources(t)

	all("then", sessions)
	// A pooled connection or two more, with their goroutines.
	const slack = 8
	var after resources
	eventually(t, "all are over", func() bool {
		after = g.resources(t)
		return quiet(after) && after.goroutines <= before.goroutines+slack && after.descriptors <= before.descriptors+slack
	})
	t.Logf("before %+v, after %+v", before, after)
	for _, b := range boxes {
		b.empty(t)
	}
	if left := g.metric(t, `termgw_orphans_total{outcome="left"}`); left != 0 {
		t.Errorf("%v processes were left", left)
	}
	var open, total int
	err := p.db.QueryRowContext(t.Context(), `SELECT count(*) FILTER (WHERE ended_at IS NULL OR end_reason IS NULL), count(*) FROM termgw.sessions`).Scan(&open, &total)
	if err != nil || open != 0 || total < sessions/2 {
		t.Errorf("%v: of %d rows, %d have no end", err, total, open)
	}
}
