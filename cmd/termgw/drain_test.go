package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The end of a replica, as its clients see it.

func TestDrain(t *testing.T) {
	t.Parallel()
	const grace = time.Second
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "TERMGW_DRAIN_TIMEOUT="+grace.String())
	c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	c.run(t, "sleep 1001 & true")
	raw := g.dial(t, "ws", p.ticket(t, "ws"), dialing{raw: true})
	raw.run(t, "true")

	told := time.Now()
	g.signal(t, syscall.SIGTERM)
	if code, m := c.closed(t), c.message(t, "error"); code != 1012 || m.Code != "draining" || !m.Retryable || !isSentence(m.Message) {
		t.Errorf("closed with %d, told %+v", code, m)
	}
	if took := time.Since(told); took < grace {
		t.Errorf("cut after %s, before the time that its notice told", took)
	}
	if m := c.message(t, "notice"); m.Code != "draining" || !isSentence(m.Message) || !strings.Contains(m.Message, " in 1 second.") {
		t.Errorf("told %+v", m)
	}
	if notice, end := slices.Index(c.order, "notice"), slices.Index(c.order, "error"); notice > end {
		t.Errorf("the order was %s", c.order)
	}
	if code := raw.closed(t); code != 1012 || len(raw.messages) != 1 || !isSentence(strings.TrimSpace(raw.messages[0].Message)) {
		t.Errorf("in raw mode: closed with %d, told %+v", code, raw.messages)
	}
	if status := g.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, g.log.String())
	}
	container.empty(t)
	wantReasons(t, p, map[string]int{"draining": 2})
}

// While there is time sessions go on, and end as they like; a second signal cuts what is left.
func TestDrainHurried(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "TERMGW_DRAIN_TIMEOUT=1h")
	var clients []*tty
	for range 10 {
		c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
		c.message(t, "ready")
		clients = append(clients, c)
	}
	g.signal(t, syscall.SIGTERM)
	for _, c := range clients {
		if m := c.message(t, "notice"); m.Code != "draining" || !strings.Contains(m.Message, " in 3600 seconds.") {
			t.Errorf("told %+v", m)
		}
	}
	if a := g.get(t, g.address, "/readyz"); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, `"draining":true`) {
		t.Errorf("/readyz answers %d %s", a.StatusCode, a.body)
	}
	late := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	if code, m := late.closed(t), late.message(t, "error"); code != 1012 || m.Code != "draining" || !m.Retryable {
		t.Errorf("a new session: closed with %d, told %+v", code, m)
	}
	leaves, stay := clients[0], clients[1:]
	if out := leaves.run(t, "echo $((6*7))"); !strings.Contains(out, "42") {
		t.Errorf("after the notice the shell says %q", out)
	}
	leaves.send(t, "exit 3\r")
	if code, m := leaves.closed(t), leaves.message(t, "exit"); code != 1000 || m.Code != 3.0 {
		t.Errorf("a shell that ended by itself: closed with %d, told %+v", code, m)
	}

	g.signal(t, syscall.SIGTERM)
	for _, c := range stay {
		if code, m := c.closed(t), c.message(t, "error"); code != 1012 || m.Code != "draining" {
			t.Errorf("closed with %d, told %+v", code, m)
		}
	}
	if status := g.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, g.log.String())
	}
	container.empty(t)
	wantReasons(t, p, map[string]int{"draining": len(stay), "exit": 1})
}

// Nobody is waited for when nobody is there.
func TestDrainOfNothing(t *testing.T) {
	t.Parallel()
	g := newPlatform(t).serve(t, "TERMGW_DRAIN_TIMEOUT=1h")
	g.signal(t, syscall.SIGINT)
	if status := g.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, g.log.String())
	}
}

// wantReasons checks why the sessions of a platform ended.
func wantReasons(t *testing.T, p *platform, want map[string]int) {
	t.Helper()
	rows, err := p.db.QueryContext(t.Context(), "SELECT COALESCE(end_reason, 'none') FROM termgw.sessions")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	got := map[string]int{}
	for rows.Next() {
		var reason string
		if err := rows.Scan(&reason); err != nil {
			t.Fatal(err)
		}
		got[reason]++
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("sessions ended by %v, want %v", got, want)
	}
}
