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
			c := g.open(t, workspace, dialing{})
			c.run(t, "true")
			c.deaf.Store(true)
			c.send(t, "yes\r")
			const between = 512 << 10
			var written, before int
			eventually(t, "nobody takes more of the flood", func() bool {
				before, written = written, container.written(t, "yes")
				return written >= between && written == before
			})
			c.send(t, "\x03")
			c.deaf.Store(false)
			c.mu.Lock()
			had := len(c.output)
			c.mu.Unlock()
			c.control(t, fmt.Sprintf(`{"type":"ack","bytes":%d}`, had))
			c.expect(t, "^C")
			c.mu.Lock()
			more := c.passed - had
			c.mu.Unlock()
			t.Logf("%d bytes were written, the client had %d and got %d more", written, had, more)
			if more > between/4 {
				t.Errorf("%d bytes come before the prompt", more)
			}
			if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
				t.Errorf("the shell says %q", got)
			}
			c.close(t)
		})
	}
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
