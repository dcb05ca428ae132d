package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Between a program in a container and a slow client lie the buffers of the Docker engine and, for an instance, of ssh,
// 1 MB and more. Who types Ctrl-C does not have to see all of it before the prompt.
func TestInterruptOfAFlood(t *testing.T) {
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	p.workspace(t, "near", "")
	p.onInstance(t, aws, "far")
	g := p.serve(t, append(aws.environ(t), "DOCKER_HOST="+env.Docker(t).Host)...)
	for _, workspace := range []string{"near", "far"} {
		t.Run(workspace, func(t *testing.T) {
			container := newBox(t, env.Docker(t), workspace)
			const between, tries = 512 << 10, 10
			for try := range tries {
				more := g.interruptFlood(t, container, workspace, between)
				if more <= between/4 {
					break
				}
				// Where nothing comes for a while, as on a busy machine, nothing is skipped.
				if try == tries-1 {
					t.Errorf("%d bytes come before the prompt, %d times", more, tries)
				}
			}
		})
	}
}

// interruptFlood types Ctrl-C when the flood has filled all that lies between, and returns how many bytes come before the
// prompt.
func (g *served) interruptFlood(t *testing.T, container *box, workspace string, between int) (more int) {
	t.Helper()
	c := g.open(t, workspace, dialing{})
	c.run(t, "true")
	c.setDeaf(true)
	c.send(t, "yes\r")
	written, still := 0, 0
	eventually(t, "nobody takes more of the flood", func() bool {
		now := container.written(t, "yes")
		if still++; now != written {
			still = 0
		}
		written = now
		return written >= between && still == 10
	})
	c.send(t, "\x03")
	c.setDeaf(false)
	c.mu.Lock()
	had := len(c.output)
	c.mu.Unlock()
	c.control(t, fmt.Sprintf(`{"type":"ack","bytes":%d}`, had))
	c.expect(t, "^C")
	c.mu.Lock()
	more = c.passed - had
	c.mu.Unlock()
	t.Logf("%d bytes were written, the client had %d and got %d more", written, had, more)
	if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("the shell says %q", got)
	}
	c.close(t)
	container.empty(t)
	return more
}

// written is how many bytes a program in the container has written.
func (b *box) written(tb testing.TB, command string) (n int) {
	tb.Helper()
	for _, p := range b.processes(tb) {
		if p.command != command {
			continue
		}
		io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.pid))
		if err != nil {
			return 0
		}
		_, counted, _ := strings.Cut(string(io), "wchar: ")
		_, _ = fmt.Sscan(counted, &n)
	}
	return n
}
