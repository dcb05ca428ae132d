package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// person is `termgw connect` in a real terminal, and who sits at it.
type person struct {
	*child
	ptmx, tty *os.File
	before    unix.Termios // of the terminal, before it was started
	screen    lines
	shown     chan struct{} // closed when the terminal is
}

// sit starts termgw connect in a terminal of the size.
func sit(t *testing.T, g *served, raw, workspace string, cols, rows uint16) *person {
	t.Helper()
	return sitAt(t, command(t, []string{"TERMGW_TICKET=" + raw, "TERM=xterm"}, "connect", g.terminal(workspace)), cols, rows)
}

// sitAt starts a command in a terminal of the size.
func sitAt(t *testing.T, cmd *exec.Cmd, cols, rows uint16) *person {
	t.Helper()
	ptmx, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	p := &person{ptmx: ptmx, tty: tty, shown: make(chan struct{})}
	p.resize(t, cols, rows)
	p.before = p.termios(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	go func() {
		defer close(p.shown)
		buf := make([]byte, 4096)
		for {
			n, err := ptmx.Read(buf)
			_, _ = p.screen.Write(buf[:n])
			if err != nil {
				return // EIO: nobody holds the other side
			}
		}
	}()
	t.Cleanup(func() {
		_ = tty.Close()
		<-p.shown
		_ = ptmx.Close()
	})
	p.child = start(t, cmd)
	return p
}

func (p *person) resize(t *testing.T, cols, rows uint16) {
	t.Helper()
	if err := pty.Setsize(p.ptmx, &pty.Winsize{Cols: cols, Rows: rows}); err != nil {
		t.Fatal(err)
	}
}

func (p *person) termios(t *testing.T) unix.Termios {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *mode
}

func (p *person) types(t *testing.T, keys string) {
	t.Helper()
	if _, err := p.ptmx.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

func (p *person) sees(t *testing.T, text string) {
	t.Helper()
	eventually(t, "the screen shows "+text, func() bool { return strings.Contains(p.screen.String(), text) })
}

// left waits for the end, checks the exit status, and that the terminal is as it was.
func (p *person) left(t *testing.T, status int) {
	t.Helper()
	if got := p.wait(t); got != status {
		t.Errorf("exit status %d, want %d; the screen shows:\n%s", got, status, p.screen.String())
	}
	if after := p.termios(t); after != p.before {
		t.Errorf("the terminal is not as it was: %+v, was %+v", after, p.before)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)

	ready := func(t *testing.T) *person {
		t.Helper()
		c := sit(t, g, p.ticket(t, "ws"), "ws", 101, 31)
		c.sees(t, "# ")
		if c.termios(t).Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) != 0 {
			t.Error("the terminal is not in raw mode")
		}
		return c
	}
	for name, status := range map[string]int{"exit": 0, "exit 7": 7, "kill -9 $$": 137} {
		t.Run(name, func(t *testing.T) {
			c := ready(t)
			c.types(t, name+"\r")
			c.left(t, status)
		})
	}
	t.Run("size", func(t *testing.T) {
		c := ready(t)
		c.types(t, "stty size\r")
		c.sees(t, "31 101\r\n")
		c.resize(t, 90, 33)
		c.types(t, "until stty size | grep '33 90'; do sleep 0.05; done\r")
		c.sees(t, "33 90\r\n")
		c.types(t, "exit\r")
		c.left(t, 0)
	})
	t.Run("keys go to the shell, Ctrl-C too", func(t *testing.T) {
		c := ready(t)
		c.types(t, "sleep 1000\r")
		eventually(t, "it sleeps", func() bool {
			return strings.Contains(strings.Join(container.commands(t), "\n"), "sleep 1000")
		})
		c.types(t, "\x03")
		c.types(t, "echo $((6*7)); exit 3\r")
		c.sees(t, "42\r\n")
		c.left(t, 3)
	})
	t.Run("~.", func(t *testing.T) {
		c := ready(t)
		c.types(t, "echo $((6*7))~.\r") // not at the start of a line
		c.sees(t, "42~.\r\n")
		c.types(t, "~~$((1+1))\r") // a tilde
		c.sees(t, "~2: command not found")
		c.types(t, "~.")
		c.left(t, 255)
		container.empty(t)
	})
	t.Run("read-only", func(t *testing.T) {
		c := sit(t, g, p.ticket(t, "ws", func(c *ticket.Claims) { c.Mode = ticket.ReadOnly }), "ws", 80, 24)
		c.sees(t, "termgw: this terminal is read-only: what you type is not sent")
		c.sees(t, "# ")
		c.types(t, "exit\r~.")
		c.left(t, 255)
		if strings.Contains(c.screen.String(), "exit") {
			t.Errorf("the shell got what was typed:\n%s", c.screen.String())
		}
	})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			c := ready(t)
			c.signal(t, sig)
			c.left(t, 255)
			container.empty(t)
		})
	}
	t.Run("refused", func(t *testing.T) {
		raw := p.ticket(t, "ws")
		g.dial(t, "ws", raw, dialing{}).message(t, "ready")
		c := sit(t, g, raw, "ws", 80, 24)
		c.left(t, 255)
		c.sees(t, "was used before. Open the terminal again to get a fresh one. (ticket_used)")
		c = sit(t, g, "nonsense", "ws", 80, 24)
		c.left(t, 255)
		c.sees(t, "(ticket_invalid)")
		c = sit(t, g, p.ticket(t, "ws"), "%2f", 80, 24)
		c.left(t, 255)
		c.sees(t, "404 Not Found: There is nothing here.")
	})
	t.Run("the gateway is killed", func(t *testing.T) {
		other := p.serve(t)
		c := sit(t, other, p.ticket(t, "ws"), "ws", 80, 24)
		c.sees(t, "# ")
		other.signal(t, os.Kill)
		other.wait(t)
		c.left(t, 255)
		c.sees(t, "connection to the gateway is lost")
	})
	t.Run("the gateway ends", func(t *testing.T) {
		other := p.serve(t)
		c := sit(t, other, p.ticket(t, "ws"), "ws", 80, 24)
		c.sees(t, "# ")
		other.signal(t, syscall.SIGTERM)
		c.left(t, 255)
		c.sees(t, "(draining)")
		if status := other.wait(t); status != 0 {
			t.Errorf("termgw serve: exit status %d", status)
		}
	})
	t.Run("piped", func(t *testing.T) {
		cmd := command(t, []string{"TERMGW_TICKET=" + p.ticket(t, "ws")}, "connect", g.terminal("ws"))
		cmd.Stdin = strings.NewReader("echo $((6*7))\nstty size\n(exit 5)\n")
		c := start(t, cmd)
		if status := c.wait(t); status != 5 {
			t.Errorf("exit status %d", status)
		}
		if out := c.out.String(); !strings.Contains(out, "42\r\n") || !strings.Contains(out, "24 80\r\n") {
			t.Errorf("it printed %q", out)
		}
		if c.log.String() != "" {
			t.Errorf("it said %q", c.log.String())
		}
	})
}

// What cannot work is said in a sentence, never with the ticket.
func TestConnectSays(t *testing.T) {
	t.Parallel()
	const secret = "eyJub3QiOiJmb3IifQ.c2hvd2luZw.dGlja2V0"
	hostile := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"detail":"\u001b]0;title\u0007\u009b2J, sorry"}`)
	}))
	t.Cleanup(hostile.Close)
	for _, test := range []struct {
		name, want string
		cmd        *exec.Cmd
	}{
		{"no ticket", "no ticket", command(t, nil, "connect", "ws://127.0.0.1:1/workspaces/ws/terminal")},
		{"no address", "must be like wss://", command(t, nil, "connect", "https://h/workspaces/ws/terminal?ticket="+secret)},
		{"nobody there", "127.0.0.1:1", command(t, []string{"TERMGW_TICKET=" + secret}, "connect", "ws://127.0.0.1:1/workspaces/ws/terminal")},
		{"nobody there, ticket in the address", "127.0.0.1:1", command(t, nil, "connect", "ws://127.0.0.1:1/workspaces/ws/terminal?ticket="+secret)},
		{"an answer for the terminal", "403 Forbidden: ?]0;title??2J, sorry", command(t, []string{"TERMGW_TICKET=" + secret}, "connect", strings.Replace(hostile.URL, "http", "ws", 1)+"/workspaces/ws/terminal")},
		{"no such file", "--ticket-endpoint", command(t, nil, "connect", "--ticket-endpoint", "/nonexistent", "ws://127.0.0.1:1/workspaces/ws/terminal")},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t, test.cmd)
			if status := c.wait(t); status != 255 || !strings.Contains(c.log.String(), test.want) || strings.Contains(c.log.String(), secret) {
				t.Errorf("exit status %d, %q", status, c.log.String())
			}
		})
	}
}
