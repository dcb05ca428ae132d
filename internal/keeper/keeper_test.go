package keeper

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/keeper/wire"
)

const patience = time.Minute

// keeperFor is a keeper that serves for the test, and its socket.
func keeperFor(t *testing.T, idle time.Duration) (k *Keeper, socket string, ended <-chan struct{}) {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	k = New(idle)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := k.Serve(l, func() {}); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		k.mu.Lock()
		all := make([]*held, 0, len(k.terminals))
		for _, h := range k.terminals {
			all = append(all, h)
		}
		k.mu.Unlock()
		for _, h := range all {
			h.hangUp()
		}
		<-over
		_ = os.RemoveAll(dir)
	})
	return k, socket, over
}

// gateway is a client of a keeper.
type gateway struct {
	t *testing.T
	*net.UnixConn
	received []byte // output
	from     int64  // its offset
	accepted int64
	taken    int64
	exit     []byte
}

func dial(t *testing.T, socket string, first []byte) *gateway {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	g := &gateway{t: t, UnixConn: conn}
	g.say(first)
	return g
}

func (g *gateway) say(frame []byte) {
	g.t.Helper()
	if _, err := g.Write(frame); err != nil {
		g.t.Fatal(err)
	}
}

// answer reads the first frame; the words of a refusal.
func (g *gateway) answer() (refused string) {
	g.t.Helper()
	kind, body, err := wire.Read(g, wire.MaxBody)
	if err != nil {
		g.t.Fatal(err)
	}
	if kind == wire.Refused {
		return string(body)
	}
	n, err := wire.Offsets(body, 2)
	if kind != wire.Attached || err != nil {
		g.t.Fatalf("answered %c %q", kind, body)
	}
	g.from, g.accepted = n[0], n[1]
	return ""
}

// until reads frames until the output ends with a text, or with io.EOF as the text until the exit.
func (g *gateway) until(text string) {
	g.t.Helper()
	for !bytes.HasSuffix(g.received, []byte(text)) || text == "" {
		kind, body, err := wire.Read(g, wire.MaxBody)
		if err != nil {
			g.t.Fatalf("%v after %q", err, g.received)
		}
		switch kind {
		case wire.Output:
			g.received = append(g.received, body...)
		case wire.Taken:
			n, _ := wire.Offsets(body, 1)
			g.taken = n[0]
		case wire.Exit:
			g.exit = body
			if text != "" {
				g.t.Fatalf("it ended with %q", body)
			}
			return
		}
	}
}

// gone waits until the keeper has closed the connection.
func (g *gateway) gone() {
	g.t.Helper()
	if _, err := io.Copy(io.Discard, g); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		g.t.Errorf("the keeper has not closed: %v", err)
	}
}

func opening(name string, window int64, script string) []byte {
	o := wire.Opening{Session: name, Secret: "secret of " + name, Cols: 80, Rows: 24, Lease: patience, Window: window, Argv: []string{"/bin/sh", "-c", script}}
	return o.Append(nil)
}

func attaching(name, secret string, received, window int64) []byte {
	a := wire.Attachment{Session: name, Secret: secret, Received: received, Window: window}
	return a.Append(nil)
}

func grant(more, received int64) []byte { return wire.AppendOffsets(nil, wire.Grant, more, received) }

func TestTerminal(t *testing.T) {
	t.Parallel()
	_, socket, _ := keeperFor(t, patience)
	g := dial(t, socket, opening("a", 1<<20, "stty -echo; stty size; read x; echo got $x; read y; stty size; exit 7"))
	if refused := g.answer(); refused != "" {
		t.Fatal(refused)
	}
	g.until("24 80\r\n")
	g.say(wire.Append(nil, wire.Input, []byte("some\n")))
	g.until("got some\r\n")
	g.say(wire.AppendOffsets(nil, wire.Resize, 100, 30))
	g.say(wire.Append(nil, wire.Input, []byte("\n")))
	g.until("")
	if !bytes.HasSuffix(g.received, []byte("30 100\r\n")) || !bytes.Equal(g.exit, []byte{7}) || g.taken != 6 {
		t.Errorf("%q, exit %q, %d bytes taken", g.received, g.exit, g.taken)
	}
	// The end is told again to whoever has not heard it.
	again := dial(t, socket, attaching("a", "secret of a", 0, 1<<20))
	if refused := again.answer(); refused != "" {
		t.Fatal(refused)
	}
	again.until("")
	if !bytes.Equal(again.received, g.received) || !bytes.Equal(again.exit, g.exit) {
		t.Errorf("told again: %q, exit %q", again.received, again.exit)
	}
	g.gone()
	again.say(wire.Append(nil, wire.Close, nil))
	again.gone()
	if refused := dial(t, socket, attaching("a", "secret of a", 0, 1)).answer(); refused != wire.Unknown {
		t.Errorf("refused: %q", refused)
	}
}

// TestWindow: the keeper sends what the gateway has room for, and keeps what it has not.
func TestWindow(t *testing.T) {
	t.Parallel()
	_, socket, _ := keeperFor(t, patience)
	g := dial(t, socket, opening("a", 10, "stty raw -echo; printf 0123456789abcdefghij; read x; yes | head -c 1000000; echo end"))
	g.answer()
	g.until("0123456789")
	g.say(grant(5, 10))
	g.until("abcde")
	_ = g.Close()
	g = dial(t, socket, attaching("a", "secret of a", 12, 4)) // c, d and e were lost
	if g.answer(); g.from != 12 {
		t.Errorf("output begins at %d", g.from)
	}
	g.until("cdef")
	if refused := dial(t, socket, attaching("a", "secret of a", 11, 4)).answer(); refused == "" {
		t.Error("what was dropped can be had again")
	}
	g.say(wire.Append(nil, wire.Input, []byte("\n")))
	g.say(grant(1<<20, 16))
	var all []byte
	for len(all) <= mostKept-4<<10 { // it waits until its output is acknowledged
		kind, body, err := wire.Read(g, wire.MaxBody)
		if err != nil {
			t.Fatal(err)
		}
		if kind == wire.Output {
			all = append(all, body...)
		}
	}
	for acked := int64(16); g.exit == nil; {
		g.say(grant(0, acked+int64(len(all))))
		kind, body, err := wire.Read(g, wire.MaxBody)
		if err != nil {
			t.Fatal(err)
		}
		switch kind {
		case wire.Output:
			all = append(all, body...)
		case wire.Exit:
			g.exit = body
		}
	}
	if want := "ghij" + strings.Repeat("y\n", 500000) + "end\n"; string(all) != want {
		t.Errorf("%d bytes came, want %d", len(all), len(want))
	}
}

// TestInput: input that the program does not read is kept, and the gateway that attaches knows what came.
func TestInput(t *testing.T) {
	t.Parallel()
	_, socket, _ := keeperFor(t, patience)
	g := dial(t, socket, opening("a", 1<<20, "stty raw -echo; printf ready; sleep 1; cat"))
	g.answer()
	g.until("ready")
	var typed []byte
	for n := range wire.InputWindow / 4 {
		typed = append(typed, byte(n), byte(n>>8), 'x', 'y')
	}
	for at := 0; at < len(typed); at += 1000 {
		g.say(wire.Append(nil, wire.Input, typed[at:min(at+1000, len(typed))]))
	}
	g.until("xy")
	_ = g.Close()
	received := int64(len(g.received))
	next := dial(t, socket, attaching("a", "secret of a", received, 1<<20))
	next.answer()
	if next.accepted != int64(len(typed)) {
		t.Errorf("%d bytes were accepted of %d", next.accepted, len(typed))
	}
	next.received = g.received
	for int64(len(next.received)) < int64(len("ready")+len(typed)) {
		next.until("xy")
		if len(next.received) < len("ready")+len(typed) {
			kind, body, err := wire.Read(next, wire.MaxBody)
			if err != nil {
				t.Fatal(err)
			}
			if kind == wire.Output {
				next.received = append(next.received, body...)
			}
		}
	}
	if !bytes.Equal(next.received, append([]byte("ready"), typed...)) {
		t.Error("the input that came back is another")
	}
}

// TestHostile: nothing that a stranger says opens a terminal, and nothing that an owner says harms another.
func TestHostile(t *testing.T) {
	t.Parallel()
	_, socket, _ := keeperFor(t, patience)
	other := dial(t, socket, opening("other", 1<<20, "echo here; read x; echo there"))
	other.answer()
	other.until("here\r\n")
	for name, first := range map[string][]byte{
		"another's terminal": attaching("other", "guessed", 0, 1),
		"no secret":          attaching("other", "", 0, 1),
		"no such terminal":   attaching("none", "secret of other", 0, 1),
		"one that is there":  opening("other", 1, "true"),
		"more than came":     attaching("other", "secret of other", 1000, 1),
		"no program":         (&wire.Opening{Session: "b", Secret: "s", Cols: 1, Rows: 1, Lease: 1, Argv: []string{"/nonexistent"}}).Append(nil),
		"no size":            (&wire.Opening{Session: "b", Secret: "s", Lease: 1, Argv: []string{"/bin/true"}}).Append(nil),
		"another frame":      grant(1, 1),
		"an empty opening":   wire.Append(nil, wire.Open, nil),
	} {
		if refused := dial(t, socket, first).answer(); refused == "" {
			t.Errorf("%s: it was not refused", name)
		}
	}
	dial(t, socket, []byte("GET / HTTP/1.1\r\n\r\n")).gone()
	for name, frame := range map[string][]byte{
		"too much input":    bytes.Repeat(wire.Append(nil, wire.Input, make([]byte, 4<<10)), 20),
		"a long frame":      wire.Append(nil, wire.Input, make([]byte, 5<<10)),
		"more than sent":    grant(0, 1<<40),
		"a negative window": wire.Append(nil, wire.Grant, bytes.Repeat([]byte{255}, 16)),
		"a size":            wire.AppendOffsets(nil, wire.Resize, 1<<20, 1),
		"a frame of ours":   wire.Append(nil, wire.Output, []byte("x")),
		"probes":            bytes.Repeat(wire.Append(nil, wire.Probe, nil), 1<<20),
	} {
		g := dial(t, socket, opening("b "+name, 1<<20, "stty raw -echo; printf ready; sleep 600"))
		g.answer()
		g.until("ready")
		_, _ = g.Write(frame)
		g.gone()
		g = dial(t, socket, attaching("b "+name, "secret of b "+name, 0, 1<<20))
		if refused := g.answer(); refused != "" {
			t.Errorf("%s: then %q", name, refused)
			continue
		}
		g.say(wire.Append(nil, wire.Close, nil))
	}
	other.say(wire.Append(nil, wire.Input, []byte("\n")))
	other.until("there\r\n")
}

// TestLease: the keeper hangs up on a terminal whose gateway says nothing, and ends when it has none.
func TestLease(t *testing.T) {
	t.Parallel()
	_, socket, ended := keeperFor(t, 100*time.Millisecond)
	const lease = 3 * time.Second
	o := wire.Opening{Session: "a", Secret: "s", Cols: 80, Rows: 24, Lease: lease, Window: 1 << 20, Argv: []string{"/bin/sh", "-c", "echo pid $$; sleep 600"}}
	g := dial(t, socket, o.Append(nil))
	g.answer()
	g.until("\r\n")
	pid := strings.TrimSpace(strings.TrimPrefix(string(g.received), "pid "))
	for begin := time.Now(); time.Since(begin) < lease*4/3; time.Sleep(lease / 30) { // it lives while the gateway does
		g.say(wire.Append(nil, wire.Beat, nil))
	}
	g.gone()
	for deadline := time.Now().Add(patience); exec.Command("kill", "-0", pid).Run() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the program lives on")
		}
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the keeper does not end")
	}
}

// TestRemoveOwn: a keeper that ends leaves the socket of the next one.
func TestRemoveOwn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "socket")
	write := func() os.FileInfo {
		if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := write()
	second := write()
	if removeOwn(path, first); !exists(path) {
		t.Error("another's socket was removed")
	}
	if removeOwn(path, second); exists(path) {
		t.Error("the own one was not")
	}
}

// TestRemoveOld: files go that nobody uses, and those of another machine in a shared home stay.
func TestRemoveOld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	boot := bootID()
	files := map[string]bool{ // which stay
		"keeper-own": true, "keeper-own." + boot + ".sock": true, "keeper-own." + boot + ".sock.lock": true, "keeper-own.0ther000.sock": true,
		"keeper-old": false, "keeper-old." + boot + ".sock": false, "keeper-old." + boot + ".sock.lock": false, "keeper-old.0ther000.sock": true,
		"other": true, "keeper-old.ancient0.sock": false,
	}
	for name := range files {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ancient := time.Now().Add(-2 * oldAge)
	if err := os.Chtimes(filepath.Join(dir, "keeper-old.ancient0.sock"), ancient, ancient); err != nil {
		t.Fatal(err)
	}
	removeOld(dir, "keeper-own")
	for name, stays := range files {
		if exists(filepath.Join(dir, name)) != stays {
			t.Errorf("%s: stays is not %t", name, stays)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
