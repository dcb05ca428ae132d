package main

import (
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Somebody whose terminals end, or whose tickets are refused, and who answers no close frame, has a bounded number of
// connections beside a limit of one terminal.
func TestLingeringConnections(t *testing.T) {
	t.Parallel()
	const tries = 40
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "TERMGW_MAX_SESSIONS_PER_SUBJECT=1", "TERMGW_PING_INTERVAL=1h", "TERMGW_LOG_LEVEL=info")
	for _, test := range []struct {
		name string
		most int
		come func() *attacker
	}{
		{"a shell that ends", 8, func() *attacker {
			a := g.attack(t, "ws", p.ticket(t, "ws"))
			a.output(t, 1)
			if err := a.frame(wsFinal|wsBinary, []byte("exit\r")); err != nil {
				t.Fatal(err)
			}
			return a
		}},
		{"a bad ticket", 32, func() *attacker { return g.attack(t, "ws", "x.y.z") }},
	} {
		var open atomic.Int64
		for range tries {
			a := test.come()
			told := make(chan struct{})
			open.Add(1)
			go func() {
				defer open.Add(-1)
				for {
					_ = a.SetReadDeadline(time.Now().Add(patience))
					first, _, err := a.next()
					if first == wsFinal|wsClose && err == nil {
						close(told)
						_, _ = io.Copy(io.Discard, a.r) // until the gateway goes
						return
					}
					if err != nil {
						t.Errorf("%s: no close frame: %v", test.name, err)
						close(told)
						return
					}
				}
			}()
			<-told
		}
		eventually(t, test.name+": most connections are gone", func() bool { return open.Load() <= int64(test.most) })
	}
}

// Frames that no library sends: compressed, in a thousand pieces, empty without end, or of a size that nobody has.
func TestHostileFrames(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "TERMGW_LOG_LEVEL=info")
	open := func() *attacker {
		a := g.attack(t, "ws", p.ticket(t, "ws"), "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
		a.output(t, 1)
		return a
	}
	send := func(a *attacker, first byte, payload string) {
		t.Helper()
		if err := a.frame(first, []byte(payload)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("compressed", func(t *testing.T) {
		a := open()
		send(a, wsFinal|wsCompressed|wsBinary, "\x4a\x4c\x04\x00")
		if code := a.closed(t); code != 1002 {
			t.Errorf("closed with %d", code)
		}
	})
	t.Run("input in tiny frames", func(t *testing.T) {
		a := open()
		line := "printf '%s-' " + strings.Repeat("x", 1000) + " | wc -c; exit 7\r"
		send(a, wsBinary, "")
		for _, c := range []byte(line) {
			send(a, wsContinue, string(c))
			send(a, wsContinue, "")
		}
		send(a, wsFinal|wsContinue, "")
		if code := a.closed(t); code != 1000 {
			t.Errorf("closed with %d", code)
		}
	})
	t.Run("a control message in tiny frames, without end", func(t *testing.T) {
		a := open()
		send(a, wsText, "{")
		go func() {
			for a.frame(wsContinue, []byte(" ")) == nil {
			}
		}()
		if code := a.closed(t); code != 1009 {
			t.Errorf("closed with %d", code)
		}
	})
	t.Run("input without end", func(t *testing.T) {
		a := open()
		send(a, wsBinary, "")
		go func() {
			for a.frame(wsContinue, make([]byte, 100_000)) == nil {
			}
		}()
		if code := a.closed(t); code != 1009 {
			t.Errorf("closed with %d", code)
		}
	})
}
