package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// An input that is longer than the gateway may hold passes through a program that prints as much as it reads.
func TestConnectLongInput(t *testing.T) {
	t.Parallel()
	input := bytes.Repeat([]byte("0123456789abcde\n"), 24<<20/16)
	demo := demoCommand(t, "GOMEMLIMIT=64MiB") // of which terminals hold 8
	demo.Args[len(demo.Args)-1] = "stty raw -echo; echo begins; exec head -c 25165824"
	_, addresses := startDemo(t, demo)
	cmd := command(t, []string{"TERMGW_TICKET=" + addresses.ticket(t)}, "connect", addresses.Terminal)
	r, w := io.Pipe()
	cmd.Stdin = r
	c := start(t, cmd)
	eventually(t, "the program reads", func() bool { return strings.HasPrefix(c.out.String(), "begins\n") })
	_, _ = w.Write(input) // fails when it ends early, which shows below
	eventually(t, "all is shown", func() bool {
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
		return c.out.buf.Len() >= len("begins\n")+len(input)
	})
	_ = w.Close()
	if status := c.wait(t); status != 0 {
		t.Errorf("exit status %d: %s", status, c.log.String())
	}
	if got := strings.TrimPrefix(c.out.String(), "begins\n"); got != string(input) {
		t.Errorf("%d bytes came back of %d, or others", len(got), len(input))
	}
}
