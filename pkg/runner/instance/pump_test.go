package instance

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pumped is a pump between an ssh and a tunnel whose other ends are the test's.
func pumped() (p *pump, ssh, tunnel net.Conn) {
	ssh, near := net.Pipe()
	far, tunnel := net.Pipe()
	return newPump(near, far, func([]byte) error { return nil }), ssh, tunnel
}

// TestPumpKnocks: the first byte that ssh says after its login goes ahead, and
// the rest when something comes, or a while later.
func TestPumpKnocks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		login   string // what the tunnel says, by which ssh is let in
		answers bool
		first   string // what comes of ssh's words at first
		after   time.Duration
	}{
		{"the rest of what sshd says comes", "let in", true, "o", 0},
		{"nothing comes", "let in", false, "o", knockTime},
		{"sshd has said it all", string(make([]byte, lettingIn)), false, "open a session", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, ssh, tunnel := pumped()
				defer p.close()
				say := func(from, to net.Conn, words string) {
					t.Helper()
					var said sync.WaitGroup
					said.Go(func() { _, _ = io.WriteString(from, words) })
					got := make([]byte, len(words))
					if _, err := io.ReadFull(to, got); err != nil || string(got) != words {
						t.Fatalf("%q comes as %q, %v", words, got, err)
					}
					said.Wait()
				}
				say(ssh, tunnel, "let me in")
				say(tunnel, ssh, c.login)
				p.hasLoggedIn()
				begin := time.Now()
				var said sync.WaitGroup
				said.Go(func() { _, _ = io.WriteString(ssh, "open a session") })
				buf := make([]byte, 100)
				n, err := tunnel.Read(buf)
				if err != nil || string(buf[:n]) != c.first {
					t.Fatalf("first comes %q, %v", buf[:n], err)
				}
				if c.answers {
					say(tunnel, ssh, "host keys")
				}
				rest := make([]byte, len("open a session")-n)
				if _, err := io.ReadFull(tunnel, rest); err != nil || string(buf[:n])+string(rest) != "open a session" {
					t.Fatalf("then comes %q, %v", rest, err)
				}
				said.Wait()
				if took := time.Since(begin); took != c.after {
					t.Errorf("the rest comes after %s, want %s", took, c.after)
				}
				say(ssh, tunnel, "once only")
			})
		})
	}
}

// TestPumpCarriesBytes: whatever comes when, in whatever pieces, nothing is lost
// or changed, and an end at any time ends it.
func TestPumpCarriesBytes(t *testing.T) {
	t.Parallel()
	send := func(to net.Conn, words []byte) {
		for len(words) > 0 {
			n := min(len(words), rand.IntN(100)+1)
			if rand.IntN(10) == 0 {
				n = min(len(words), 70<<10)
			}
			if _, err := to.Write(words[:n]); err != nil {
				return
			}
			words = words[n:]
		}
	}
	for range 50 {
		p, ssh, tunnel := pumped()
		p.hasLoggedIn()
		out, in := make([]byte, 1+rand.IntN(200<<10)), make([]byte, 1+rand.IntN(200<<10))
		for _, words := range [][]byte{out, in} {
			for i := range words {
				words[i] = byte(rand.IntN(256))
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { send(ssh, out) })
		wg.Go(func() { send(tunnel, in) })
		gotOut, gotIn := make([]byte, len(out)), make([]byte, len(in))
		wg.Go(func() { _, _ = io.ReadFull(tunnel, gotOut) })
		wg.Go(func() { _, _ = io.ReadFull(ssh, gotIn) })
		wg.Wait()
		if !bytes.Equal(out, gotOut) || !bytes.Equal(in, gotIn) {
			t.Fatal("bytes differ")
		}
		if got := p.heard.Load(); got != int64(len(in)) {
			t.Errorf("heard %d of %d bytes", got, len(in))
		}
		p.close()
	}
	for n := range 50 {
		synctest.Test(t, func(*testing.T) {
			p, ssh, tunnel := pumped()
			p.hasLoggedIn()
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = io.WriteString(ssh, "open a session") })
			wg.Go(func() { _, _ = tunnel.Read(make([]byte, 1)) })
			time.Sleep(time.Duration(n) * time.Millisecond) // by the bubble's clock
			[]func(){func() { _ = ssh.Close() }, func() { _ = tunnel.Close() }, func() {}}[n%3]()
			p.close()
			wg.Wait()
		})
	}
}
