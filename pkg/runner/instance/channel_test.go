package instance

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/molecule-ai/termgw/internal/shelltest"
)

// TestRemoteFloodUnread: of a flood that nobody reads no more is under way than a terminal's first window, and the
// neighbours on the connection answer.
func TestRemoteFloodUnread(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	r := i.remote(t, Config{})
	neighbour := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	term, err := r.Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := term.Close(); err != nil {
			t.Error(err)
		}
	}()
	heard := &term.(*sshTerminal).conn.pump.heard
	before := heard.Load()
	if _, err := term.Write([]byte("yes\n")); err != nil {
		t.Fatal(err)
	}
	shelltest.Eventually(t, "the flood has come", func() bool { return heard.Load()-before > firstWindow/2 })
	for range 20 {
		neighbour.Send(t, "echo t=$((6*7))\n")
		neighbour.Expect(t, "t=42")
	}
	if got := heard.Load() - before; got > 3*firstWindow {
		t.Errorf("%d bytes came", got)
	}
	neighbour.End(t)
}

// TestRemoteFloodClosed: terminals that are closed in mid-flood leave the connection to their neighbours.
func TestRemoteFloodClosed(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	r := i.remote(t, Config{})
	neighbour := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	for range 5 {
		s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
		s.Send(t, "yes\n")
		s.Expect(t, "y\r\ny\r\n")
		s.End(t)
		neighbour.Send(t, "echo t=$((6*7))\n")
		neighbour.Expect(t, "t=42")
	}
	neighbour.End(t)
	if got := i.opened(); got != 1 {
		t.Errorf("%d tunnels", got)
	}
}

// TestRemoteInput: input arrives whole and in order, however much waits for the program to read.
func TestRemoteInput(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	r := i.remote(t, Config{})
	s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	s.Send(t, "stty raw -echo; echo up=$((6*7)); sleep 1; head -c 5242880 | sha256sum; stty sane\n")
	s.Expect(t, "up=42")
	input := make([]byte, 5242880) // more than sshd's window
	for n := range input {
		input[n] = "0123456789abcdef\n"[n*n%17]
	}
	s.Send(t, string(input))
	sum := sha256.Sum256(input)
	s.Expect(t, hex.EncodeToString(sum[:]))
	s.End(t)
}
