package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/pkg/client"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// A platform's own tests drive a gateway by pkg/client.
func TestClientLibrary(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t)
	dial := func(t *testing.T, raw string) (*client.Conn, error) {
		t.Helper()
		c, err := client.Dial(t.Context(), client.Config{URL: g.terminal("ws"), Ticket: raw, Cols: 101, Rows: 31})
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c, err
	}
	open := func(t *testing.T, change ...func(*ticket.Claims)) *client.Conn {
		t.Helper()
		c, err := dial(t, p.ticket(t, "ws", change...))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	types := func(t *testing.T, c *client.Conn, line string) {
		t.Helper()
		if _, err := io.WriteString(c, line+"\r"); err != nil {
			t.Error(err)
		}
	}
	until := func(t *testing.T, c *client.Conn, text string) {
		t.Helper()
		var seen bytes.Buffer
		buf := make([]byte, 1<<10)
		for !strings.Contains(seen.String(), text) {
			n, err := c.Read(buf)
			if seen.Write(buf[:n]); err != nil {
				t.Fatalf("%v, after %q", err, seen.String())
			}
		}
	}

	t.Run("a session", func(t *testing.T) {
		c := open(t)
		if r := c.Ready(); r.Workspace != "ws" || r.Target != "local" || r.ReadOnly() || r.Session == "" || r.MaxSession == 0 {
			t.Errorf("ready: %+v", r)
		}
		types(t, c, "stty size")
		until(t, c, "31 101\r\n")
		c.Resize(90, 33)
		types(t, c, "until stty size | grep '33 90'; do sleep 0.05; done; echo re''sized")
		until(t, c, "resized\r\n")
		if roundTrip, err := c.Ping(t.Context()); err != nil || roundTrip <= 0 {
			t.Errorf("ping: %s, %v", roundTrip, err)
		}
		// More than is ever sent unacknowledged, both ways at once.
		types(t, c, "stty raw -echo; echo re''ady; exec sh -c 'head -c 3000000; exit 7'")
		until(t, c, "ready\n")
		input := bytes.Repeat([]byte("0123456789\n"), 3_000_000/11+1)[:3_000_000]
		go func() { _, _ = c.Write(input) }()
		output, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(output, input) || c.Exit() != (client.Exit{Code: 7}) {
			t.Errorf("%d bytes came back of %d, %v, %+v", len(output), len(input), err, c.Exit())
		}
	})
	t.Run("refused", func(t *testing.T) {
		raw := p.ticket(t, "ws")
		if _, err := dial(t, raw); err != nil {
			t.Fatal(err)
		}
		_, err := dial(t, raw)
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Code != "ticket_used" || refused.CloseCode != 4409 || !refused.Retryable || !isSentence(refused.Message) {
			t.Errorf("%+v", err)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		c := open(t, func(c *ticket.Claims) { c.Mode = ticket.ReadOnly })
		if n, err := io.WriteString(c, "exit\r"); n != 0 || !errors.Is(err, client.ErrReadOnly) || !c.Ready().ReadOnly() {
			t.Errorf("wrote %d, %v", n, err)
		}
		until(t, c, "# ")
	})
	t.Run("closed", func(t *testing.T) {
		c := open(t)
		types(t, c, "echo $((40+2)); sleep 1000")
		until(t, c, "42\r\n")
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		container.empty(t)
	})
}
