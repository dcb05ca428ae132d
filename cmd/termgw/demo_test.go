package main

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// demoAddresses is the first line of `termgw demo --json`.
type demoAddresses struct{ Page, Terminal, Tickets string }

// startDemo starts a demo whose shell reads no profile.
func startDemo(t *testing.T, cmd *exec.Cmd) (*child, demoAddresses) {
	t.Helper()
	c := start(t, cmd)
	var a demoAddresses
	eventually(t, "the demo prints its addresses", func() bool {
		select {
		case <-c.exited:
			t.Fatalf("termgw demo ended: %v\n%s", c.err, c.log.String())
		default:
		}
		line, _, whole := strings.Cut(c.out.String(), "\n")
		return whole && json.Unmarshal([]byte(line), &a) == nil
	})
	return c, a
}

func demoCommand(t *testing.T, environ ...string) *exec.Cmd {
	t.Helper()
	return command(t, append([]string{"DOCKER_HOST=unix:///nonexistent.sock"}, environ...),
		"demo", "--listen", "127.0.0.1:0", "--json", "--shell", "exec bash --norc --noprofile")
}

// client makes a gateway of the demo, for its terminal.
func (a demoAddresses) served(t *testing.T) *served {
	t.Helper()
	u, err := url.Parse(a.Terminal)
	if err != nil || u.Path != "/workspaces/host/terminal" || u.Scheme != "ws" {
		t.Fatalf("the terminal is at %q", a.Terminal)
	}
	return &served{address: u.Host, platform: &platform{}}
}

// ticket asks the tickets' address, as a program does.
func (a demoAddresses) ticket(t *testing.T) string {
	t.Helper()
	got := request(t, http.MethodPost, a.Tickets, nil, strings.NewReader(`{"workspace":"host"}`))
	var body struct{ Ticket string }
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.StatusCode != http.StatusOK || strings.Count(body.Ticket, ".") != 2 {
		t.Fatalf("tickets: %d %s", got.StatusCode, got.body)
	}
	return body.Ticket
}

func TestDemo(t *testing.T) {
	t.Parallel()
	cmd := demoCommand(t, "TERMGW_DATABASE_URL=postgres://u:not-for-shells@h/d", "AWS_SECRET_ACCESS_KEY=not-for-shells")
	c, addresses := startDemo(t, cmd)
	g := addresses.served(t)
	base := "http://" + g.address
	_, once, _ := strings.Cut(addresses.Page, "#key=")
	_, secret, _ := strings.Cut(addresses.Tickets, "?key=")
	if !strings.HasPrefix(addresses.Page, base+"/") || once == "" || secret == "" || once == secret {
		t.Fatalf("the addresses are %+v", addresses)
	}
	bearer := func(s string) http.Header { return http.Header{"Authorization": {"Bearer " + s}} }
	body := func() *strings.Reader { return strings.NewReader(`{"workspace":"host"}`) }

	t.Run("no endpoint without the secret", func(t *testing.T) {
		for _, endpoint := range []string{"POST /demo/session", "GET /demo/workspaces", "POST /demo/tickets"} {
			method, path, _ := strings.Cut(endpoint, " ")
			for name, a := range map[string]*answer{
				"none":           request(t, method, base+path, nil, body()),
				"a wrong one":    request(t, method, base+path, bearer("WRONG"), body()),
				"a wrong key":    request(t, method, base+path+"?key=WRONG", nil, body()),
				"an empty one":   request(t, method, base+path+"?key=", bearer(""), body()),
				"the ticket's o": request(t, method, base+path, bearer(secret[:len(secret)-1]), body()),
			} {
				if a.StatusCode != http.StatusUnauthorized || !strings.Contains(a.body, `"detail"`) || strings.Contains(a.body, "ticket\":") {
					t.Errorf("%s with %s: %d %s", endpoint, name, a.StatusCode, a.body)
				}
			}
		}
	})
	t.Run("a wrong Host is refused, also with the secret", func(t *testing.T) {
		for _, host := range []string{"evil.example", "evil.example:" + strings.Split(g.address, ":")[1], "127.0.0.1", ""} {
			header := bearer(secret)
			header.Set("Host", host)
			if host == "" {
				header.Set("Host", "localhost") // without the port
			}
			if a := request(t, http.MethodPost, base+"/demo/tickets", header, body()); a.StatusCode != http.StatusMisdirectedRequest {
				t.Errorf("Host %q: %d %s", host, a.StatusCode, a.body)
			}
		}
		r := handshake(t, g.address, "host/terminal", "Host: evil.example\nOrigin: http://evil.example")
		defer r.Body.Close()
		if r.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("the terminal of a wrong Host: %d", r.StatusCode)
		}
	})
	t.Run("a foreign page opens no terminal", func(t *testing.T) {
		r := handshake(t, g.address, "host/terminal?ticket="+addresses.ticket(t), "Origin: http://evil.example")
		defer r.Body.Close()
		if r.StatusCode != http.StatusForbidden {
			t.Errorf("status %d", r.StatusCode)
		}
	})
	t.Run("the page's secret works once", func(t *testing.T) {
		first := request(t, http.MethodPost, base+"/demo/session", bearer(once), nil)
		var session struct{ Token string }
		if err := json.Unmarshal([]byte(first.body), &session); err != nil || first.StatusCode != http.StatusOK || session.Token == "" {
			t.Fatalf("%d %s", first.StatusCode, first.body)
		}
		if again := request(t, http.MethodPost, base+"/demo/session", bearer(once), nil); again.StatusCode != http.StatusUnauthorized {
			t.Errorf("a second time: %d", again.StatusCode)
		}
		list := request(t, http.MethodGet, base+"/demo/workspaces", bearer(session.Token), nil)
		if list.StatusCode != http.StatusOK || !strings.Contains(list.body, `"id":"host"`) {
			t.Errorf("the list: %d %s", list.StatusCode, list.body)
		}
		if a := request(t, http.MethodPost, base+"/demo/tickets", bearer(session.Token), body()); a.StatusCode != http.StatusOK {
			t.Errorf("a ticket for the page: %d %s", a.StatusCode, a.body)
		}
		if a := request(t, http.MethodPost, base+"/demo/tickets", bearer(session.Token), strings.NewReader(`{"workspace":"../x"}`)); a.StatusCode != http.StatusBadRequest {
			t.Errorf("a ticket for a path: %d %s", a.StatusCode, a.body)
		}
	})

	file := filepath.Join(temporary(cmd), "termgw-demo-*", "tickets")
	found, err := filepath.Glob(file)
	if err != nil || len(found) != 1 {
		t.Fatalf("the file of the tickets' address: %v %v", found, err)
	}
	if info, err := os.Stat(found[0]); err != nil || info.Mode() != 0o600 {
		t.Errorf("%s: %v %v", found[0], info.Mode(), err)
	}
	if dir, err := os.Stat(filepath.Dir(found[0])); err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("its folder: %v %v", dir.Mode(), err)
	}

	t.Run("the shell of this machine", func(t *testing.T) {
		tty := g.dial(t, "host", addresses.ticket(t), dialing{query: "cols=1000"})
		if got := tty.run(t, "echo $((6*7))"); got != "42\r\n" {
			t.Errorf("the shell says %q", got)
		}
		if seen := tty.run(t, "env"); strings.Contains(seen, "not-for-shells") || strings.Contains(seen, "TERMGW_DATABASE") {
			t.Errorf("the shell sees the gateway's environment:\n%s", seen)
		}
		tty.close(t)
	})

	last := g.dial(t, "host", addresses.ticket(t), dialing{})
	pid := strings.TrimSpace(last.run(t, "sleep 1001 & echo $$"))
	command := procFile(t, c.cmd.Process.Pid, "cmdline")
	c.signal(t, syscall.SIGTERM)
	if code := last.closed(t); code != 1012 {
		t.Errorf("closed with %d", code)
	}
	if status := c.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, c.log.String())
	}
	if _, err := os.Stat("/proc/" + pid); !os.IsNotExist(err) {
		t.Errorf("the shell %s is left: %v", pid, err)
	}
	if _, err := os.Stat(filepath.Dir(found[0])); !os.IsNotExist(err) {
		t.Errorf("the secret's file is left: %v", err)
	}
	for what, text := range map[string]string{"log": c.log.String(), "command line": command} {
		if strings.Contains(text, secret) || strings.Contains(text, once) || strings.Contains(text, "eyJ") {
			t.Errorf("the %s shows a secret:\n%s", what, text)
		}
	}
	if strings.Count(c.out.String(), "\n") != 1 {
		t.Errorf("more than one line for programs:\n%s", c.out.String())
	}
}

// temporary is a command's folder for temporary files.
func temporary(cmd *exec.Cmd) string {
	for _, v := range cmd.Env {
		if dir, ok := strings.CutPrefix(v, "TMPDIR="); ok {
			return dir
		}
	}
	return ""
}

func TestDemoListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:8022", "example.com:8022", "nonsense"} {
		c := start(t, command(t, nil, "demo", "--listen", address))
		if status := c.wait(t); status != 1 || !strings.Contains(c.log.String(), "--listen") || c.out.String() != "" {
			t.Errorf("%s: exit status %d, %q %q", address, status, c.out.String(), c.log.String())
		}
	}
}

func TestDemoForPeople(t *testing.T) {
	t.Parallel()
	cmd := command(t, []string{"DOCKER_HOST=unix:///nonexistent.sock"}, "demo", "--listen", "127.0.0.1:0", "--shell", "exec sh")
	c := start(t, cmd)
	eventually(t, "the demo greets", func() bool { return strings.Contains(c.out.String(), "Ctrl-C ends") })
	_, line, _ := strings.Cut(c.out.String(), "\n  termgw ")
	line, _, _ = strings.Cut(line, "\n")

	// The line that it prints, as it stands.
	connect := command(t, nil, strings.Fields(line)...)
	connect.Stdin = strings.NewReader("echo $((6*7)); exit 7\n")
	client := start(t, connect)
	if status := client.wait(t); status != 7 || !strings.Contains(client.out.String(), "42\r\n") {
		t.Errorf("termgw %s: exit status %d, %q %q", line, status, client.out.String(), client.log.String())
	}
	c.signal(t, os.Interrupt)
	if status := c.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, c.log.String())
	}
	if left, err := fs.Glob(os.DirFS(temporary(cmd)), "termgw-demo-*"); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// A gateway that a script starts in its background inherits a deaf SIGINT, and nohup a deaf SIGHUP; its shells must not.
func TestDemoStartedDeaf(t *testing.T) {
	t.Parallel()
	cmd := demoCommand(t)
	// A plain program, because an interactive bash puts some signals right itself.
	// But for the signals from 32 on, which C libraries keep to themselves.
	cmd.Args[len(cmd.Args)-1] = `echo ignored $((0x$(sed -n 's/^SigIgn:.//p' /proc/self/status) & 0x7fffffff)); exec bash --norc --noprofile`
	sh := exec.Command("/bin/sh", append([]string{"-c", `trap "" INT HUP QUIT TSTP; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)...)
	sh.Env = cmd.Env
	_, addresses := startDemo(t, sh)
	c := addresses.served(t).dial(t, "host", addresses.ticket(t), dialing{})
	c.expect(t, "ignored 0\r\n")
	shell := strings.TrimSpace(c.run(t, "echo $$"))
	c.send(t, "sleep 1003\r")
	eventually(t, "it sleeps", func() bool {
		children, _ := os.ReadFile("/proc/" + shell + "/task/" + shell + "/children")
		command, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(children)) + "/cmdline")
		return strings.HasPrefix(string(command), "sleep\x001003")
	})
	c.send(t, "\x03")
	c.run(t, "true") // the prompt is back
}
