package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/moby/client"
)

// What a session is: how the ticket is handed over, what the audit trail says of it, what goes on inside the container
// when the client is gone, and what the client gets when the shell is.

func TestWaysToHandTheTicketOver(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	g := p.serve(t)
	for _, test := range []struct {
		name string
		open func(raw string) (inProtocol string, how dialing)
	}{
		{"subprotocol", func(raw string) (string, dialing) { return raw, dialing{} }},
		{"subprotocol, raw mode", func(raw string) (string, dialing) { return raw, dialing{raw: true} }},
		{"query", func(raw string) (string, dialing) { return "", dialing{query: "ticket=" + raw} }},
		{"query, raw mode", func(raw string) (string, dialing) { return "", dialing{raw: true, query: "ticket=" + raw} }},
		{"Authorization", func(raw string) (string, dialing) {
			return "", dialing{header: http.Header{"Authorization": {"bearer " + raw}}}
		}},
		{"the same one in each", func(raw string) (string, dialing) {
			return raw, dialing{query: "ticket=" + raw, header: http.Header{"Authorization": {"Bearer " + raw}}}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			inProtocol, how := test.open(p.ticket(t, "ws"))
			c, response, err := g.tryDial(t, "ws", inProtocol, how)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]string{true: "", false: "termgw.v1"}[how.raw]; c.protocol != want {
				t.Errorf("the gateway chose the subprotocol %q, want %q", c.protocol, want)
			}
			p.checkSecrets(t, "the answer to the handshake", fmt.Sprint(response.Header))
			if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
				t.Errorf("the shell says %q", got)
			}
			c.close(t)
		})
	}
}

func TestAuditTrail(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	forwarded := http.Header{"X-Forwarded-For": {"203.0.113.9, 192.0.2.1"}}

	for _, test := range []struct{ name, trusted, client string }{
		{"X-Forwarded-For of a stranger", "", "127.0.0.1"},
		{"X-Forwarded-For of a trusted proxy: the nearest that is none", "TERMGW_TRUSTED_PROXIES=127.0.0.0/8", "192.0.2.1"},
		{"X-Forwarded-For of two trusted proxies", "TERMGW_TRUSTED_PROXIES=127.0.0.1,192.0.2.0/24", "203.0.113.9"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := p.serve(t, test.trusted)
			c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{header: forwarded})
			id := c.message(t, "ready").Session
			var workspace, subject, mode, replica string
			var ended bool
			err := p.db.QueryRowContext(t.Context(), `SELECT workspace_id, subject, mode, replica, ended_at IS NOT NULL
				FROM termgw.sessions WHERE id = $1`, id).Scan(&workspace, &subject, &mode, &replica, &ended)
			if err != nil || workspace != "ws" || subject != "ann" || mode != "rw" || replica == "" || ended {
				t.Errorf("while it is open: %v, %q %q %q %q, ended %v", err, workspace, subject, mode, replica, ended)
			}
			const typed = "exit 7\r"
			c.wait(t, "a prompt", func() bool { return len(c.output) > 0 })
			c.send(t, typed)
			if m := c.message(t, "exit"); m.Code != 7.0 {
				t.Errorf("told %+v", m)
			}
			c.closed(t)
			r := p.lastRow(t, "ws")
			if r.id != id || r.reason != "exit" || r.exitCode.Int64 != 7 || !r.exitCode.Valid || r.client != test.client {
				t.Errorf("the row says %+v, want exit 7 and the client %s", r, test.client)
			}
			if r.in != int64(len(typed)) || r.out != int64(len(c.output)) {
				t.Errorf("the row says %d bytes in, %d out; they were %d and %d", r.in, r.out, len(typed), len(c.output))
			}
		})
	}

	// Each limit is a gateway's own: a busy machine would meet those that a test does not wait for.
	unlimited, idling, expiring := p.serve(t), p.serve(t, "TERMGW_IDLE_TIMEOUT=1s"), p.serve(t, "TERMGW_MAX_SESSION=2s")
	for _, test := range []struct {
		reason  string
		gateway *served
		close   websocket.StatusCode // 0: nobody is there to be told
		end     func(*tty)
	}{
		{"client_closed", unlimited, 0, func(c *tty) { c.close(t) }},
		{"client_lost", unlimited, 0, func(c *tty) { c.reset(t) }},
		{"bad_message", unlimited, 4400, func(c *tty) { c.control(t, "{") }},
		{"idle_timeout", idling, 4408, func(*tty) {}},
		{"session_expired", expiring, 4410, func(c *tty) {
			for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
				if c.trySend(websocket.MessageBinary, " ") != nil {
					tick.Stop()
					return
				}
			}
		}},
	} {
		t.Run(test.reason, func(t *testing.T) {
			c := test.gateway.dial(t, "ws", p.ticket(t, "ws"), dialing{})
			id := c.message(t, "ready").Session
			test.end(c)
			if test.close != 0 {
				if code := c.closed(t); code != test.close {
					t.Errorf("closed with %d, want %d", code, test.close)
				}
				if m := c.message(t, "error"); m.Code != test.reason || !isSentence(m.Message) {
					t.Errorf("told %+v", m)
				}
			}
			if r := p.lastRow(t, "ws"); r.id != id || r.reason != test.reason {
				t.Errorf("the row says %+v", r)
			}
			container.empty(t)
		})
	}
}

// The environment of a shell is short: nothing of the gateway's own is in it.
func TestShellSeesNoSecret(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "AWS_SECRET_ACCESS_KEY=not-for-shells", "SOME_TOKEN=not-for-shells")
	c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{query: "cols=1000&rows=40"})
	seen := c.run(t, "env; cat /proc/*/cmdline /proc/*/environ | tr '\\0' '\\n'; stty size")
	p.checkSecrets(t, "the shell", seen)
	for _, wrong := range []string{"not-for-shells", "DATABASE", "JWKS", "DOCKER_HOST", "AWS_"} {
		if strings.Contains(seen, wrong) {
			t.Errorf("the shell sees %s:\n%s", wrong, seen)
		}
	}
	for _, right := range []string{"TERM=xterm-256color", "TERMGW_SESSION=", "\r\n40 1000\r\n"} {
		if !strings.Contains(seen, right) {
			t.Errorf("the shell does not see %q:\n%s", right, seen)
		}
	}
	// What the engine was asked to run can be read in the machine's process list.
	for _, process := range container.processes(t) {
		p.checkSecrets(t, "a command line", process.command)
		p.checkSecrets(t, "an environment", process.environ)
	}
	if n := g.metric(t, `termgw_sessions_active{target="local"}`); n != 1 {
		t.Errorf("%v sessions are active", n)
	}
}

// jobs are what a person leaves running: an obedient background job, one that catches the hang-up, one that lost the
// session's mark; and two that were told to stay.
const jobs = `sleep 1001 & bash -c 'trap : HUP; while :; do sleep 0.1; done' catcher & env -i sleep 1002 & ` +
	`nohup sleep 2001 >/dev/null 2>&1 & setsid sleep 2002 & true`

// started waits until all of them are what they are to be: nohup ignores the hang-up before it becomes the program.
func (b *box) started(t *testing.T) {
	t.Helper()
	eventually(t, "the jobs run", func() bool {
		commands := "\n" + strings.Join(b.commands(t), "\n") + "\n"
		for _, job := range append([]string{"sleep 1001", "sleep 1002"}, stay...) {
			if !strings.Contains(commands, "\n"+job+"\n") {
				return false
			}
		}
		return true
	})
}

var stay = []string{"sleep 2001", "sleep 2002"}

// However the client goes, what belongs to its terminal goes too, and what was told to stay, stays.
func TestGoneClientLeavesNothing(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	g := p.serve(t, "TERMGW_PING_INTERVAL="+shortPing.String())
	for _, test := range []struct {
		name, reason string
		leave        func(t *testing.T, workspace string, container *box)
	}{
		{"the client closes", "client_closed", func(t *testing.T, workspace string, container *box) {
			c := g.dial(t, workspace, p.ticket(t, workspace), dialing{})
			c.run(t, jobs)
			container.started(t)
			c.close(t)
		}},
		{"the client closes in raw mode", "client_closed", func(t *testing.T, workspace string, container *box) {
			c := g.dial(t, workspace, p.ticket(t, workspace), dialing{raw: true})
			c.run(t, jobs)
			container.started(t)
			c.close(t)
		}},
		{"TCP reset", "client_lost", func(t *testing.T, workspace string, container *box) {
			c := g.dial(t, workspace, p.ticket(t, workspace), dialing{})
			c.run(t, jobs)
			container.started(t)
			c.reset(t)
		}},
		{"kill -9 of the client", "client_lost", func(t *testing.T, workspace string, container *box) {
			cmd := command(t, []string{"TERMGW_TICKET=" + p.ticket(t, workspace)}, "connect", g.terminal(workspace))
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			c := start(t, cmd)
			if _, err := io.WriteString(in, jobs+"\n"); err != nil {
				t.Fatal(err)
			}
			container.started(t)
			p.checkSecrets(t, "the command line of termgw connect", procFile(t, c.cmd.Process.Pid, "cmdline"))
			c.signal(t, os.Kill)
			c.wait(t)
		}},
		{"silence past two pings", "client_lost", func(t *testing.T, workspace string, container *box) {
			c := g.dial(t, workspace, p.ticket(t, workspace), dialing{})
			c.run(t, jobs)
			container.started(t)
			close(c.conn.deaf)
		}},
		{"the foreground program is deaf to all but KILL", "client_closed", func(t *testing.T, workspace string, container *box) {
			c := g.dial(t, workspace, p.ticket(t, workspace), dialing{})
			c.run(t, jobs)
			container.started(t)
			c.send(t, "bash -c 'trap : HUP INT TERM; while :; do sleep 0.1; done' deaf\r")
			c.expect(t, "deaf")
			c.close(t)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			workspace := strings.NewReplacer(" ", "-", ",", "").Replace(t.Name()[strings.Index(t.Name(), "/")+1:])
			p.workspace(t, workspace, "")
			container := newBox(t, env.Docker(t), workspace)
			test.leave(t, workspace, container)
			container.empty(t, stay...)
			if r := p.lastRow(t, workspace); r.reason != test.reason {
				t.Errorf("the row says %+v, want %s", r, test.reason)
			}
		})
	}
	if left := g.metric(t, `termgw_orphans_total{outcome="left"}`); left != 0 {
		t.Errorf("%v processes were left", left)
	}
}

func (g *served) terminal(workspace string) string {
	return "ws://" + g.address + "/workspaces/" + workspace + "/terminal"
}

// The shell's end: all of its output, then exit, then 1000.
func TestShellEnds(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	g := p.serve(t)

	// 5 MB, each line another.
	var want strings.Builder
	for i := range 700_000 {
		fmt.Fprintf(&want, "%d\r\n", i+1)
	}
	for _, raw := range []bool{false, true} {
		t.Run(map[bool]string{false: "termgw.v1", true: "raw mode"}[raw], func(t *testing.T) {
			c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{raw: raw})
			c.send(t, `exec sh -c 'printf "\001"; seq 700000; exit 7'`+"\r")
			c.expect(t, "\x01")
			if code := c.closed(t); code != websocket.StatusNormalClosure {
				t.Errorf("closed with %d", code)
			}
			if got := c.output[c.passed:]; sha256.Sum256(got) != sha256.Sum256([]byte(want.String())) {
				t.Errorf("got %d bytes, ending in %q; want %d", len(got), got[max(0, len(got)-50):], want.Len())
			}
			if order := strings.Join(c.order, " "); raw && order != "output" || !raw && order != "ready output exit" {
				t.Errorf("the order was %s", order)
			}
			if !raw && c.message(t, "exit").Code != 7.0 {
				t.Errorf("told %+v", c.messages)
			}
		})
	}

	for name, end := range map[string]func(*client.Client, string) error{
		"its container is stopped": func(cli *client.Client, id string) error {
			_, err := cli.ContainerStop(t.Context(), id, client.ContainerStopOptions{})
			return err
		},
		"its container is killed": func(cli *client.Client, id string) error {
			_, err := cli.ContainerKill(t.Context(), id, client.ContainerKillOptions{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			workspace := strings.ReplaceAll(name, " ", "-")
			p.workspace(t, workspace, "")
			container := newBox(t, env.Docker(t), workspace)
			c := g.dial(t, workspace, p.ticket(t, workspace), dialing{})
			c.run(t, "sleep 1001 & true")
			if err := end(env.Docker(t).Client(t), container.id); err != nil {
				t.Fatal(err)
			}
			if code := c.closed(t); code != websocket.StatusNormalClosure {
				t.Errorf("closed with %d", code)
			}
			if m := c.message(t, "exit"); m.Code != 137.0 || m.Signal != "SIGKILL" {
				t.Errorf("told %+v", m)
			}
			if r := p.lastRow(t, workspace); r.reason != "exit" || r.exitCode.Int64 != 137 {
				t.Errorf("the row says %+v", r)
			}
		})
	}

	t.Run("a signal ends it", func(t *testing.T) {
		c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
		c.wait(t, "a prompt", func() bool { return len(c.output) > 0 })
		c.send(t, "kill -TERM $$; kill -KILL $$\r")
		if m := c.message(t, "exit"); m.Code != 137.0 || m.Signal != "SIGKILL" {
			t.Errorf("told %+v", m)
		}
	})
}

func TestTerminated(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)
	c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	c.run(t, "sleep 1001 & true")
	g.signal(t, syscall.SIGTERM)
	if code, m := c.closed(t), c.message(t, "error"); code != 1012 || m.Code != "draining" || !m.Retryable || !isSentence(m.Message) {
		t.Errorf("closed with %d, told %+v", code, m)
	}
	if status := g.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, g.log.String())
	}
	container.empty(t)
	if r := p.lastRow(t, "ws"); r.reason != "draining" {
		t.Errorf("the row says %+v", r)
	}
}
