package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// termgw connect where its connection is lost.

// traveller is who uses termgw connect over a cable, with tickets of an endpoint.
type traveller struct {
	p         *platform
	g         *served
	container *box
	line      *cable
	endpoint  string                               // a file
	refusal   atomic.Pointer[string]               // what the endpoint answers instead of a ticket, 403
	change    atomic.Pointer[func(*ticket.Claims)] // of the tickets
}

func newTraveller(t *testing.T) *traveller {
	t.Helper()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	v := &traveller{p: p, container: newBox(t, env.Docker(t), "ws"), g: p.serve(t, "TERMGW_RESUME=1h")}
	v.line = newCable(t, v.g.address, 0)
	tickets := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if why := v.refusal.Load(); why != nil {
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(map[string]string{"detail": *why})
			return
		}
		change := waits
		if c := v.change.Load(); c != nil {
			change = *c
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"ticket": p.ticket(t, "ws", change)})
	}))
	t.Cleanup(tickets.Close)
	v.endpoint = filepath.Join(t.TempDir(), "tickets")
	if err := os.WriteFile(v.endpoint, []byte(tickets.URL+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *traveller) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return command(t, []string{"TERM=xterm"}, slices.Concat([]string{"connect", "--ticket-endpoint", v.endpoint}, args,
		[]string{"ws://" + v.line.Addr().String() + "/workspaces/ws/terminal"})...)
}

// script runs termgw connect with a pipe as input.
func (v *traveller) script(t *testing.T, cmd *exec.Cmd) (c *child, in io.Writer) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c = start(t, cmd)
	_, _ = io.WriteString(in, "secret=mine; echo A$((6*7))\n")
	eventually(t, "the shell answers", func() bool { return strings.Contains(c.out.String(), "A42") })
	return c, in
}

// sit has a person at termgw connect, in whose shell secret is set.
func (v *traveller) sit(t *testing.T) *person {
	t.Helper()
	person := sitAt(t, v.command(t), 80, 24)
	person.types(t, "secret=mine; echo A$((6*7))\r")
	person.sees(t, "A42")
	return person
}

// revoke ends the shell, wherever it waits.
func (v *traveller) revoke(t *testing.T) {
	t.Helper()
	v.p.exec(t, "INSERT INTO termgw.revocations (session_id) SELECT id FROM termgw.sessions WHERE ended_at IS NULL")
	v.container.empty(t)
}

// TestConnectComesBack: termgw connect goes on after a cut of any kind.
func TestConnectComesBack(t *testing.T) {
	t.Parallel()
	v := newTraveller(t)
	c, in := v.script(t, v.command(t))
	cuts := append(slices.Clone(everyCut), unheard)
	for _, how := range cuts {
		v.line.cut(how)
		_, _ = fmt.Fprintf(in, "echo B%d$secret\n", how)
		eventually(t, "the shell is there again", func() bool { return strings.Contains(c.out.String(), fmt.Sprintf("B%dmine\r\n", how)) })
	}
	_, _ = io.WriteString(in, "exit 3\n")
	if status := c.wait(t); status != 3 || !strings.Contains(c.log.String(), "your shell waits for ") ||
		strings.Count(c.log.String(), "here is your shell again") != len(cuts) || strings.Contains(c.log.String(), "failed to") {
		t.Errorf("exit status %d, %q", status, c.log.String())
	}
}

// TestConnectDoesNotComeBack: it ends at once where there is no other ticket, and says so.
func TestConnectDoesNotComeBack(t *testing.T) {
	t.Parallel()
	v := newTraveller(t)
	for want, cut := range map[string]func() *child{
		"no ticket to come back with: give --ticket-endpoint": func() *child {
			c, _ := v.script(t, command(t, []string{"TERMGW_TICKET=" + v.p.ticket(t, "ws", waits)}, "connect", "ws://"+v.line.Addr().String()+"/workspaces/ws/terminal"))
			return c
		},
		"403 Forbidden not today": func() *child {
			c, _ := v.script(t, v.command(t))
			why := "not today"
			v.refusal.Store(&why)
			return c
		},
	} {
		c := cut()
		v.line.cut(byReset)
		said := "the shell, which could not be told, waits for "
		if status := c.wait(t); status != 255 || !strings.Contains(c.log.String(), want) || !strings.Contains(c.log.String(), said) {
			t.Errorf("exit status %d, %q, want %q", status, c.log.String(), want)
		}
		v.refusal.Store(nil)
		v.revoke(t) // the shell waits
	}
}

// TestConnectWhoseShellIsGone: a person has a new shell, and is told so; the rest of a script is typed into no other shell.
func TestConnectWhoseShellIsGone(t *testing.T) {
	t.Parallel()
	v := newTraveller(t)
	person := v.sit(t)
	v.line.out(true)
	v.line.cut(byReset)
	person.sees(t, "your shell waits for ")
	v.revoke(t)
	person.types(t, strings.Repeat("touch /tmp/old\r", 10))
	v.line.out(false)
	eventually(t, "there is another shell", func() bool {
		person.types(t, "touch /tmp/old\r") // on and on, faster than a person pauses
		return strings.Contains(person.screen.String(), "the shell is gone: this is a new one")
	})
	person.types(t, "touch /tmp/old\r")
	time.Sleep(2 * typingPause) // the person's
	person.types(t, "echo \"B[$secret$(ls /tmp/old 2>/dev/null)]\"\r")
	person.sees(t, "B[]")

	// Who leaves while away is told what becomes of the shell.
	v.line.out(true)
	v.line.cut(byReset)
	eventually(t, "it is away again", func() bool { return strings.Count(person.screen.String(), "your shell waits") == 2 })
	person.types(t, "\r~.")
	person.left(t, 255)
	person.sees(t, "the shell, which could not be told, waits for ")
	v.line.out(false)
	v.revoke(t)

	c, in := v.script(t, v.command(t))
	v.line.out(true)
	v.line.cut(byReset)
	eventually(t, "it is away", func() bool { return strings.Contains(c.log.String(), "your shell waits") })
	_, _ = io.WriteString(in, "echo never; touch /tmp/never\n")
	v.revoke(t)
	v.line.out(false)
	if status := c.wait(t); status != 255 || !strings.Contains(c.log.String(), "termgw: the shell is gone") || strings.Contains(c.out.String(), "never") {
		t.Errorf("exit status %d, %q, %q", status, c.log.String(), c.out.String())
	}
	v.container.empty(t)
}

// TestConnectAfterTheWait: who was away for too long is told that the shell is gone.
func TestConnectAfterTheWait(t *testing.T) {
	t.Parallel()
	v := newTraveller(t)
	briefly := func(c *ticket.Claims) { c.Resume = 2 * time.Second }
	v.change.Store(&briefly)
	c, _ := v.script(t, v.command(t))
	v.line.out(true)
	v.line.cut(byReset)
	if status := c.wait(t); status != 255 || !strings.Contains(c.log.String(), "the shell is gone: it waited for 2s") {
		t.Errorf("exit status %d, %q", status, c.log.String())
	}
	v.container.empty(t)
}

// TestConnectWhereTheGatewayRestarts: the person goes on with a new shell where another gateway takes the address over.
func TestConnectWhereTheGatewayRestarts(t *testing.T) {
	t.Parallel()
	v := newTraveller(t)
	person := v.sit(t)
	next := v.p.serve(t, "TERMGW_RESUME=1h")
	v.line.lead(next.address)
	v.g.signal(t, syscall.SIGTERM)
	v.g.signal(t, syscall.SIGTERM) // it has a time to drain else
	person.sees(t, "your shell may be gone, and is asked for")
	person.sees(t, "the shell is gone: this is a new one")
	person.types(t, "echo \"B[$secret]\"\r")
	person.sees(t, "B[]")
	person.types(t, "exit 4\r")
	person.left(t, 4)
	v.container.empty(t)
}
