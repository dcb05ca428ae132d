package docker

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/shelltest"
)

// takes starts a program that takes n bytes as they are and says their sum.
func takes(tb testing.TB, s *shelltest.Session, n int) {
	tb.Helper()
	s.Send(tb, fmt.Sprintf("stty raw -echo; echo up=$((6*7)); head -c%d | md5sum; stty sane\n", n))
	s.Expect(tb, "up=42")
}

// TestInputPassesTheDetachKeys types beginnings of the engine's detach keys, and
// cuts them wherever a client may, so that the engine reads each part alone.
func TestInputPassesTheDetachKeys(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := dockerPlace("", "/bin/bash", engine.Client(t), engine.RunContainer(t, ""))
	s := shelltest.Open(t, p.kind(t, true), p.target(t))
	term := s.Terminal.(*execTerminal)
	keys := string(term.keys)
	var all strings.Builder
	for _, text := range []string{
		"\x00A", "\x00\x00A", "\x00\x1eA", "\x1e\x00A", "\x00\x00\x1eA", "\x00\x1e\x00A", "\x00\x1e\x00\x1eA",
		keys[:3] + "A", keys[:4] + keys[:4] + "A", keys[:5] + "\x00\x1e\x1e\x00A", keys[1:] + "A",
		"\x00\x1e\x00\x1f\x00\x1e\x00\x1f\x00\x1e\x00\x1f\x00\x1e\x00\x1f\x00\x1e\x00\x1f\x00\x1e\x00\x1fA", // what they were
	} {
		for at := range len(text) {
			all.Reset()
			takes(t, s, 2*len(text))
			for _, part := range []string{text[:at], text[at : at+1], text[at+1:], text} {
				s.Send(t, part)
				all.WriteString(part)
				if err := term.taken(); err != nil {
					t.Fatal(err)
				}
			}
			s.Expect(t, fmt.Sprintf("%x", md5.Sum([]byte(all.String()))))
		}
	}
}

// TestPasteOfBinary pastes what is rich in beginnings of the detach keys.
func TestPasteOfBinary(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := dockerPlace("", "/bin/bash", engine.Client(t), engine.RunContainer(t, ""))
	s := shelltest.Open(t, p.kind(t, true), p.target(t))
	keys := s.Terminal.(*execTerminal).keys
	for name, next := range map[string]func(r *rand.Rand) byte{
		"any byte":   func(r *rand.Rand) byte { return byte(r.Uint32()) },
		"two keys":   func(r *rand.Rand) byte { return keys[r.IntN(2)] },
		"three keys": func(r *rand.Rand) byte { return keys[r.IntN(3)] },
		"NUL":        func(*rand.Rand) byte { return 0 },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			paste := make([]byte, 5<<20)
			for i := range paste {
				paste[i] = next(r)
			}
			paste[len(paste)-1] = 'A' // a beginning of the keys would wait
			want := fmt.Sprintf("%x", md5.Sum(paste))
			takes(t, s, len(paste))
			for len(paste) > 0 {
				n := min(len(paste), 1+r.IntN(100_000)>>r.IntN(17))
				s.Send(t, string(paste[:n]))
				paste = paste[n:]
			}
			s.Expect(t, want)
		})
	}
}

// TestWriteEndsWithTheTerminal: what waits for the engine to read.
func TestWriteEndsWithTheTerminal(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	p := dockerPlace("", "/bin/bash", engine.Client(t), engine.RunContainer(t, ""))
	s := shelltest.Open(t, p.kind(t, true), p.target(t))
	s.Send(t, "stty raw -echo; echo up=$((6*7)); sleep 1000\n")
	s.Expect(t, "up=42")
	written := make(chan error)
	go func() {
		_, err := s.Write(bytes.Repeat([]byte("\x00A"), 4<<20))
		written <- err
	}()
	s.End(t)
	if err := <-written; err == nil {
		t.Error("8 MiB went where nobody has read")
	}
}

// TestSocketOfAWrappedConnection: the engine's answer and the shell's first words
// may come together.
func TestSocketOfAWrappedConnection(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nwords")
		_, _ = io.Copy(io.Discard, conn)
	}()
	cli, err := client.New(client.WithHost("unix://"+path), client.WithAPIVersion("1.41"))
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	stream, err := cli.ExecAttach(context.Background(), "any", client.ExecAttachOptions{TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, wrapped := stream.Conn.(*net.UnixConn); wrapped {
		t.Fatal("the client has not wrapped the connection")
	}
	term := &execTerminal{conn: stream.Conn}
	if err := term.taken(); err != nil {
		t.Error(err)
	}
	stream.Close()
	if err := term.taken(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("of a closed connection: %v", err)
	}
}
