package main

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// A program that asks the terminal for its cursor keeps its session open no longer than a quiet one.
func TestAnswersKeepNoSessionOpen(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	g := p.serve(t, "TERMGW_IDLE_TIMEOUT=10s")
	const (
		program = `while sleep .2; do printf '\033[6n'; done` + "\r"
		asks    = "\x1b[6n"
		answer  = "\x1b[5;1R"
	)

	t.Run("rw, by a client by hand", func(t *testing.T) {
		t.Parallel()
		a := g.attack(t, "ws", p.ticket(t, "ws"))
		if err := a.frame(wsFinal|wsBinary, []byte(program)); err != nil {
			t.Fatal(err)
		}
		_ = a.SetReadDeadline(time.Now().Add(patience))
		var output []byte
		for answers := 0; ; {
			first, payload, err := a.next()
			switch {
			case err != nil:
				t.Fatalf("no close frame after %d answers: %v", answers, err)
			case first == wsFinal|wsBinary:
				output = append(output, payload...)
			case first == wsFinal|wsClose:
				if code := binary.BigEndian.Uint16(payload); code != 4408 || answers == 0 {
					t.Errorf("closed with %d after %d answers", code, answers)
				}
				return
			}
			for asked := bytes.Count(output, []byte(asks)); answers < asked; answers++ {
				_ = a.frame(wsFinal|wsBinary, []byte(answer)) // the session may be over
			}
		}
	})
	t.Run("raw", func(t *testing.T) {
		t.Parallel()
		c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{raw: true})
		c.send(t, program)
		answers := 0
		for open := true; open; {
			select {
			case <-c.changed:
			case <-c.done:
				open = false
			}
			c.mu.Lock()
			asked := bytes.Count(c.output, []byte(asks))
			c.mu.Unlock()
			for ; answers < asked; answers++ {
				_ = c.trySend(websocket.MessageBinary, answer) // the session may be over
			}
		}
		if code := c.closed(t); code != 4408 || answers == 0 {
			t.Errorf("closed with %d after %d answers", code, answers)
		}
	})
	t.Cleanup(func() { container.empty(t) })
}
