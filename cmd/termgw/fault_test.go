package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/bridge"
)

// Faults: what clients, programs, containers, engines and the machine do to a gateway that goes on.

const orphansLeft = `termgw_orphans_total{outcome="left"}`

// nothingLeft waits until all that was put off is done.
func (g *served) nothingLeft(t *testing.T, b *box, but ...string) {
	t.Helper()
	b.empty(t, but...)
	if n := g.metric(t, orphansLeft); n != 0 {
		t.Errorf("%v processes were left", n)
	}
}

// dialMute opens a terminal, types a line, and never reads.
func (g *served) dialMute(t *testing.T, workspace string, raw bool, line string) {
	t.Helper()
	protocols := []string{"termgw.ticket." + g.ticket(t, workspace)}
	if !raw {
		protocols = append(protocols, bridge.Subprotocol)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, g.terminal(workspace), &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: &http.Transport{}}, Subprotocols: protocols,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.CloseNow() })
	if err := ws.Write(ctx, websocket.MessageBinary, []byte(line+"\r")); err != nil {
		t.Fatal(err)
	}
}

// A client that reads nothing holds up its own program, and is found gone: by pings, or else by the session's limit.
func TestClientThatReadsNothing(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	const clients = 6
	for reason, environ := range map[string][]string{
		"client_lost":     {"TERMGW_PING_INTERVAL=" + (2 * shortPing).String()},
		"session_expired": {"TERMGW_PING_INTERVAL=1h", "TERMGW_MAX_SESSION=" + (4 * shortPing).String()},
	} {
		t.Run(reason, func(t *testing.T) {
			g := p.serve(t, environ...)
			g.open(t, "ws", dialing{}).close(t) // what a first session costs once
			container.empty(t)
			p.exec(t, "DELETE FROM termgw.sessions")
			before := g.memory(t, "VmRSS")
			for i := range clients {
				g.dialMute(t, "ws", i%2 == 0, "yes")
			}
			floods := map[int]bool{} // their pids: on a busy machine the first may be over when the last begins
			eventually(t, "all flood", func() bool {
				for _, p := range container.processes(t) {
					if p.command == "yes" {
						floods[p.pid] = true
					}
				}
				return len(floods) == clients
			})
			var most struct{ raw, v1 int64 }
			eventually(t, "all are over", func() bool {
				var over int
				err := p.db.QueryRowContext(t.Context(), "SELECT count(*), COALESCE(min(bytes_out), 0), COALESCE(max(bytes_out), 0) FROM termgw.sessions WHERE end_reason = $1", reason).
					Scan(&over, &most.v1, &most.raw)
				if err != nil {
					t.Fatal(err)
				}
				return over == clients
			})
			g.nothingLeft(t, container)
			t.Logf("%+v bytes went out; memory %d MiB before, %d at most", most, before>>20, g.memory(t, "VmHWM")>>20)
			// A window that nobody opens, or what the two sockets hold.
			if most.v1 > 1<<20 || most.raw > 32<<20 {
				t.Errorf("%d bytes were sent to a client that reads nothing, %d in raw mode", most.v1, most.raw)
			}
			if grown := g.memory(t, "VmHWM") - before; grown > 64<<20 {
				t.Errorf("%d clients that read nothing took %d MiB", clients, grown>>20)
			}
		})
	}
}

// memory reads the gateway's /proc/PID/status, in bytes.
func (g *served) memory(t *testing.T, field string) int64 {
	t.Helper()
	_, rest, _ := strings.Cut(procFile(t, g.cmd.Process.Pid, "status"), "\n"+field+":")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// An engine does not tell that a program has closed its terminal: the session goes on without it, and ends it.
func TestProgramClosesItsTerminal(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)
	c := g.open(t, "ws", dialing{})
	c.send(t, "exec sleep 1001 <&- >&- 2>&-\r")
	eventually(t, "it sleeps", func() bool { return strings.Join(container.commands(t), "\n") == "sleep 1001" })
	c.control(t, `{"type":"ping","id":1}`)
	c.message(t, "pong")
	c.reset(t)
	g.nothingLeft(t, container)
}

// A program that says nothing never meets a closed terminal, and one that ignores the hang-up does not end by it.
func TestSilentProgramThatIgnoresHangUp(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)
	c := g.open(t, "ws", dialing{})
	c.send(t, "trap '' HUP INT TERM; exec sleep 1001\r")
	eventually(t, "it sleeps", func() bool { return strings.Join(container.commands(t), "\n") == "sleep 1001" })
	left := time.Now()
	c.reset(t)
	container.empty(t)
	if took := time.Since(left); took < 2*time.Second {
		t.Errorf("killed after %s, which is less than the grace", took)
	}
	g.nothingLeft(t, container)
}

func TestContainerFaultsInAFlood(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	g := p.serve(t)
	engine := env.Docker(t)
	cli := engine.Client(t)
	flood := func(t *testing.T, workspace string) (*tty, *box) {
		t.Helper()
		p.workspace(t, workspace, "")
		container := newBox(t, engine, workspace)
		c := g.open(t, workspace, dialing{})
		c.send(t, "yes\r")
		c.flows(t)
		return c, container
	}

	t.Run("killed", func(t *testing.T) {
		c, container := flood(t, "killed")
		if _, err := cli.ContainerKill(t.Context(), container.id, client.ContainerKillOptions{}); err != nil {
			t.Fatal(err)
		}
		if code := c.closed(t); code != websocket.StatusNormalClosure {
			t.Errorf("closed with %d", code)
		}
		if m := c.message(t, "exit"); m.Code != 137.0 || m.Signal != "SIGKILL" {
			t.Errorf("told %+v", m)
		}
		g.nothingLeft(t, container)
	})

	t.Run("paused", func(t *testing.T) {
		c, container := flood(t, "paused")
		engine.Pause(t, container.id)
		c.control(t, `{"type":"ping","id":1}`)
		c.message(t, "pong")
		engine.Unpause(t, container.id)
		c.flows(t)
		c.send(t, "\x03")
		c.run(t, "true")

		// Nothing can be ended in a paused container: the end is put off.
		c.send(t, "yes\r")
		c.flows(t)
		engine.Pause(t, container.id)
		c.close(t)
		if r := p.lastRow(t, "paused"); r.reason != "client_closed" {
			t.Errorf("the row says %+v", r)
		}
		if container.shells(t) == 0 {
			t.Fatal("the shell of a paused container is gone: there is nothing to put off")
		}
		engine.Unpause(t, container.id)
		g.nothingLeft(t, container)
	})
}

// flows waits for a megabyte more.
func (c *tty) flows(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	from := len(c.output)
	c.mu.Unlock()
	c.wait(t, "flood", func() bool { return len(c.output) > from+1<<20 })
}

func TestEngineRestartsInAFlood(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	engine := testenv.StartDocker(t)
	container := newBox(t, engine, "ws")
	g := p.serve(t, "DOCKER_HOST="+engine.Host)
	c := g.open(t, "ws", dialing{})
	c.run(t, "nohup sleep 2001 >/dev/null 2>&1 & true")
	c.send(t, "yes\r")
	c.flows(t)

	engine.Stop(t)
	// An engine that ends kills the shell, and may or may not have the time to say so.
	if code, r := c.closed(t), p.lastRow(t, "ws"); code != websocket.StatusNormalClosure && code != 4502 || r.reason != "exit" && r.reason != "backend_failed" {
		t.Errorf("closed with %d, the row says %+v", code, r)
	}
	if left := container.commands(t); len(left) > 0 {
		t.Errorf("%q live without their engine", left)
	}
	refused := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	if code := refused.closed(t); code != 4502 {
		t.Errorf("without an engine: closed with %d", code)
	}

	engine.Start(t)
	if _, err := engine.Client(t).ContainerStart(t.Context(), container.id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	c = g.open(t, "ws", dialing{})
	if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("the shell says %q", got)
	}
	c.close(t)
	p.lastRow(t, "ws")
	if n := g.metric(t, orphansLeft); n != 0 {
		t.Errorf("%v processes were left", n)
	}
}

// A gateway that nohup or a script's background starts inherits ignored signals; its shells must not.
func TestStartedDeaf(t *testing.T) {
	t.Parallel()
	container := newBox(t, env.Docker(t), "deaf")
	for name, script := range map[string]string{
		"nohup":               `exec nohup "$0" "$@"`,
		"a script's children": `trap "" INT QUIT; exec "$0" "$@"`, // POSIX 2.11: what & starts there ignores both
	} {
		t.Run(name, func(t *testing.T) {
			demo := demoCommand(t, "DOCKER_HOST="+env.Docker(t).Host)
			demo.Args[len(demo.Args)-1] = "exec sh -i" // an interactive bash puts these signals right itself
			sh := exec.Command("/bin/sh", append([]string{"-c", script, demo.Path}, demo.Args[1:]...)...)
			sh.Env = demo.Env
			child, addresses := startDemo(t, sh)
			g := addresses.served(t)
			for _, workspace := range []string{"host", "ws-deaf"} {
				t.Run(workspace, func(t *testing.T) {
					got := request(t, http.MethodPost, addresses.Tickets, nil, strings.NewReader(`{"workspace":"`+workspace+`"}`))
					var body struct{ Ticket string }
					if err := json.Unmarshal([]byte(got.body), &body); err != nil {
						t.Fatal(err)
					}
					c := g.dial(t, workspace, body.Ticket, dialing{})
					id := c.message(t, "ready").Session
					c.run(t, "sleep 1001 & true")
					c.send(t, "echo up; sleep 1002\r")
					eventually(t, "both sleep", func() bool {
						live := marked(t, id)
						return strings.Contains(live, "sleep 1001") && strings.Contains(live, "sleep 1002")
					})
					c.send(t, "\x03")
					c.run(t, "true") // the prompt is back
					if left := marked(t, id); !strings.Contains(left, "sleep 1001") || strings.Contains(left, "sleep 1002") {
						t.Errorf("after Ctrl-C there live %q", left)
					}
					c.close(t)
					eventually(t, "all is gone", func() bool { return marked(t, id) == "" })
				})
			}
			container.empty(t)
			// It stays as deaf as it was started.
			child.signal(t, map[string]os.Signal{"nohup": unix.SIGHUP, "a script's children": unix.SIGINT}[name])
			c := g.dial(t, "host", addresses.ticket(t), dialing{})
			c.run(t, "true")
		})
	}
}

// On this machine a program that has closed its terminal is seen, and ended: nobody can reach it any more.
func TestHostProgramClosesItsTerminal(t *testing.T) {
	t.Parallel()
	_, addresses := startDemo(t, demoCommand(t))
	c := addresses.served(t).dial(t, "host", addresses.ticket(t), dialing{})
	id := c.message(t, "ready").Session
	c.send(t, "exec sleep 1001 <&- >&- 2>&-\r")
	if m := c.message(t, "exit"); m.Code != 129.0 || m.Signal != "SIGHUP" {
		t.Errorf("told %+v", m)
	}
	if code := c.closed(t); code != websocket.StatusNormalClosure {
		t.Errorf("closed with %d", code)
	}
	eventually(t, "it is gone", func() bool { return marked(t, id) == "" })
}

// marked lists the command lines of what carries a session's mark on this machine, in containers too.
func marked(t *testing.T, session string) string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, dir := range dirs {
		if environ, _ := os.ReadFile(dir + "/environ"); strings.Contains(string(environ), "TERMGW_SESSION="+session) {
			command, _ := os.ReadFile(dir + "/cmdline")
			commands = append(commands, strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return strings.Join(commands, "\n")
}

// Past what its descriptors hold, a gateway refuses before it spends a ticket.
func TestSessionsFitInTheDescriptors(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	const fit, base, each = 4, 64, 3 // sessions, and what sessionLimit keeps
	limit := base + fit*each
	g := p.serveBy(t, []string{"prlimit", fmt.Sprintf("--nofile=%d:%d", limit, limit)})
	var open []*tty
	for range fit {
		open = append(open, g.open(t, "ws", dialing{}))
	}
	raw := p.ticket(t, "ws")
	for range 2 * base {
		c := g.dial(t, "ws", raw, dialing{})
		if code := c.closed(t); code != websocket.StatusTryAgainLater {
			t.Fatalf("closed with %d", code)
		}
		if m := c.message(t, "error"); m.Code != "overloaded" || !m.Retryable {
			t.Fatalf("told %+v", m)
		}
	}
	if got := open[0].run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("an open session answers %q", got)
	}
	open[1].close(t)
	eventually(t, "there is room", func() bool { return g.metric(t, `termgw_sessions_active{target="local"}`) == fit-1 })
	c := g.dial(t, "ws", raw, dialing{}) // which was not spent
	c.message(t, "ready")
	for _, c := range append(open[2:], open[0], c) {
		c.close(t)
	}
	g.nothingLeft(t, container)
}

// A gateway that has no descriptor left still hears clients, tells them so, and recovers.
func TestDescriptorsExhausted(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)
	open, leaving := g.open(t, "ws", dialing{}), g.open(t, "ws", dialing{})
	var was unix.Rlimit
	if err := unix.Prlimit(g.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	// A descriptor's number must be below the limit: with the first free one as the limit, none is free.
	free := 0
	for ; ; free++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", g.cmd.Process.Pid, free)); err != nil {
			break
		}
	}
	if err := unix.Prlimit(g.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}

	for range 3 {
		c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
		if code := c.closed(t); code != websocket.StatusTryAgainLater {
			t.Errorf("closed with %d", code)
		}
		if m := c.message(t, "error"); m.Code != "overloaded" || !m.Retryable {
			t.Errorf("told %+v", m)
		}
	}
	if got := open.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("an open session answers %q", got)
	}
	leaving.close(t)

	if err := unix.Prlimit(g.cmd.Process.Pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
		t.Fatal(err)
	}
	again := g.open(t, "ws", dialing{})
	if got := again.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("a new session answers %q", got)
	}
	again.close(t)
	open.close(t)
	g.nothingLeft(t, container)
}
