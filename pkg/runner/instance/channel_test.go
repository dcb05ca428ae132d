package instance

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/terminal"
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
	heard := &connOf(term).pump.heard
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

// TestRemoteManyClose: terminals that are closed together, with the sweeps of their ends, leave the connection to a neighbour.
func TestRemoteManyClose(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil, "MaxSessions 30")
	r := i.remote(t, Config{})
	neighbour := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
	for range 4 {
		var closing sync.WaitGroup
		for range sessionLimit - 1 {
			s := shelltest.Open(t, shelltest.By(r), i.target(t, ""))
			closing.Go(func() { s.End(t) })
		}
		closing.Wait()
		neighbour.Send(t, "echo t=$((6*7))\n")
		neighbour.Expect(t, "t=42")
	}
	neighbour.End(t)
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

// playedSSH opens a channel by the control socket of an ssh that the test plays: what it says is what a hostile sshd
// would.
func playedSSH(t *testing.T) (c *channel, ssh net.Conn) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "ctl")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var played sync.WaitGroup
	t.Cleanup(played.Wait)
	t.Cleanup(func() { _ = listener.Close() })
	played.Go(func() {
		if ssh, err = listener.Accept(); err != nil {
			return
		}
		var hello []byte
		for _, word := range []uint32{8, muxHello, muxVersion, 8, muxIsProxy, 0} {
			hello = binary.BigEndian.AppendUint32(hello, word)
		}
		_, _ = ssh.Write(append(hello, packets(
			[]byte{msgChannelConfirmation, 0, 0, 0, 0, 0, 0, 0, 7, 0, 16, 0, 0, 0, 0, 128, 0}, // takes 1 MiB, 32 KiB at a time
			[]byte{msgChannelSuccess, 0, 0, 0, 0}, []byte{msgChannelSuccess, 0, 0, 0, 0},
		)...))
	})
	conn := &connection{kind: &Kind{}, control: socket}
	if c, err = conn.openChannel(t.Context(), &shelltest.DefaultSize, "true"); err != nil {
		t.Fatal(err)
	}
	played.Wait()
	t.Cleanup(conn.kind.wg.Wait)
	t.Cleanup(func() { conn.close(c) })
	t.Cleanup(func() { _ = ssh.Close() })
	return c, ssh
}

// packets returns messages as they go through a control socket.
func packets(messages ...[]byte) (whole []byte) {
	for _, m := range messages {
		whole = binary.BigEndian.AppendUint32(whole, uint32(1+len(m)))
		whole = append(append(whole, 0), m...)
	}
	return whole
}

func outputOf(n int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{msgChannelData, 0, 0, 0, 0}, uint32(n)), make([]byte, n)...)
}

// TestChannelOutputThatCannotBe: an sshd that sends more than it may, or what is no message, is not read on.
func TestChannelOutputThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, messages := range map[string][][]byte{
		"beyond the window": {outputOf(firstWindow + 1)},
		"after some":        {outputOf(100), outputOf(mostWindow + 1)},
		"of two lengths":    {binary.BigEndian.AppendUint32([]byte{msgChannelData, 0, 0, 0, 0}, 1<<32-1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var said sync.WaitGroup
			t.Cleanup(said.Wait) // after the socket is closed, which nobody reads any more
			c, ssh := playedSSH(t)
			said.Go(func() { _, _ = ssh.Write(packets(messages...)) })
			buf := make([]byte, 4<<10)
			for total := 0; ; {
				n, err := c.Read(buf)
				if total += n; errors.Is(err, errGone) {
					break
				}
				if err != nil || total > mostWindow {
					t.Fatalf("%d bytes were read, and then %v", total, err)
				}
			}
		})
	}
}

// TestChannelExit: what an instance says of its shell's end is an exit that a process can have.
func TestChannelExit(t *testing.T) {
	t.Parallel()
	request := func(kind string, rest []byte) []byte {
		return append([]byte{msgChannelRequest, 0, 0, 0, 0}, ssh.Marshal(struct {
			Kind  string
			Reply bool
			Rest  []byte `ssh:"rest"`
		}{kind, false, rest})...)
	}
	signal := func(name string) []byte {
		return request("exit-signal", ssh.Marshal(struct {
			Name              string
			Core              bool
			Message, Language string
		}{name, false, "", ""}))
	}
	for _, c := range []struct {
		says []byte
		want terminal.Exit
	}{
		{request("exit-status", []byte{0, 0, 0, 7}), terminal.Exit{Code: 7}},
		{request("exit-status", []byte{0xff, 0xff, 0xff, 0xff}), terminal.Exit{Code: 255}},
		{request("exit-status", []byte{0, 0, 1, 44}), terminal.Exit{Code: 255}},
		{signal("TERM"), terminal.Exit{Code: 143, Signal: "SIGTERM"}},
		{signal("SIGKILL"), terminal.Exit{Code: 137, Signal: "SIGKILL"}},
		{signal("\x1b]0;x\a\n<script>"), terminal.Exit{Code: 255}},
		{signal(""), terminal.Exit{Code: 255}},
		{signal(strings.Repeat("A", 10_000)), terminal.Exit{Code: 255}},
	} {
		ch, peer := playedSSH(t)
		if _, err := peer.Write(packets(c.says, []byte{msgChannelClose, 0, 0, 0, 0})); err != nil {
			t.Fatal(err)
		}
		if _, err := ch.Read(make([]byte, 10)); !errors.Is(err, io.EOF) {
			t.Errorf("Read returns %v", err)
		}
		if got := ch.exit.Load(); got == nil || *got != c.want {
			t.Errorf("%.60q becomes %+v, want %+v", c.says, got, c.want)
		}
	}
}

// TestChannelAnswersAreBounded: requests of an sshd that reads no answer cost no memory.
func TestChannelAnswersAreBounded(t *testing.T) {
	t.Parallel()
	var said sync.WaitGroup
	t.Cleanup(said.Wait)
	c, peer := playedSSH(t)
	asks := ssh.Marshal(struct {
		Type  byte
		Peer  uint32
		Kind  string
		Reply bool
	}{msgChannelRequest, 0, "x@example.com", true})
	said.Go(func() {
		_, _ = peer.Write(append(packets(slices.Repeat([][]byte{asks}, 100_000)...), packets(outputOf(1))...))
	})
	if n, err := c.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("%d bytes were read, %v", n, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) > mostQueued+100 {
		t.Errorf("%d bytes wait", len(c.out))
	}
}
