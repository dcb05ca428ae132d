package instance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// packet is one as an sshd sends it before it encrypts.
func packet(number byte, body []byte) []byte {
	const padding = 4
	p := binary.BigEndian.AppendUint32(nil, uint32(2+len(body)+padding))
	p = append(p, padding, number)
	return append(append(p, body...), make([]byte, padding)...)
}

func sshString(s []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func kexInit(hostKeys string) []byte {
	body := append(make([]byte, 16), sshString([]byte("curve25519-sha256"))...)
	return packet(msgKexInit, append(body, sshString([]byte(hostKeys))...))
}

// TestExchange: in whatever pieces it comes.
func TestExchange(t *testing.T) {
	t.Parallel()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(edKey))
	if err != nil {
		t.Fatal(err)
	}
	blob := sshString(key.Marshal())
	greeting := "SSH-2.0-OpenSSH_9.8 x\r\n"
	init, ignored := kexInit("ssh-ed25519,rsa-sha2-512"), packet(2, sshString([]byte("ignore this")))
	after := packet(msgNewKeys, nil)
	for name, c := range map[string]struct {
		sent          []string
		greets, shows bool
		step          string
	}{
		"a key":                {[]string{greeting, string(init), string(packet(msgKexReply, blob)), string(after)}, true, true, ""},
		"lines before":         {[]string{"hello\r\n\nSSH is here\n", greeting, string(init), string(ignored), string(packet(msgKexReply, blob))}, true, true, ""},
		"a group":              {[]string{greeting, string(init), string(packet(msgKexReply, sshString(bytes.Repeat([]byte{7}, 256)))), string(packet(msgKexGroupReply, blob))}, true, true, ""},
		"a penalty":            {[]string{"Not allowed at this time\r\n"}, false, false, "ssh_penalty"},
		"startups":             {[]string{"Exceeded MaxStartups\r\n"}, false, false, "ssh_startups"},
		"a mail server":        {[]string{"220 mail.example ESMTP\r\n"}, false, false, "ssh_greeting"},
		"a word in a sentence": {[]string{"x Not allowed at this time\r\n"}, false, false, "ssh_greeting"},
		"a penalty, cut short": {[]string{"Not allowed at this time"}, false, false, "ssh_penalty"},
		"a desktop":            {[]string{"\x03\x00\x00\x13\x0e\xd0"}, false, false, "ssh_greeting"},
		"a word, no line":      {[]string{"login: "}, false, false, "ssh_greeting"},
		"no lines":             {[]string{strings.Repeat("A", 200_000)}, false, false, "ssh_greeting"},
		"version 1":            {[]string{"SSH-1.5-old\r\n"}, false, false, "ssh_greeting"},
		"version 1.99":         {[]string{"SSH-1.99-OpenSSH_3.9\r\n"}, true, false, ""},
		"half a greeting":      {[]string{"SSH-2.0-Op"}, false, false, ""},
		"its first letters":    {[]string{"SS"}, false, false, ""},
		"nothing":              {nil, false, false, ""},
		"keys before it":       {[]string{greeting, string(after), string(packet(msgKexReply, blob))}, true, false, ""},
		"a huge packet":        {[]string{greeting, "\xff\xff\xff\xff", strings.Repeat("x", 1<<20), string(packet(msgKexReply, blob))}, true, false, ""},
		"a packet of padding":  {[]string{greeting, "\x00\x00\x00\x02\xff\xff", string(packet(msgKexReply, blob))}, true, false, ""},
		"a half key":           {[]string{greeting, string(packet(msgKexReply, blob[:20])), string(after)}, true, false, ""},
	} {
		for _, size := range []int{1, 7, 1 << 20} {
			var seen []string
			var shown ssh.PublicKey
			e := &exchange{
				algorithms: func(hostKeys []string) error { seen = hostKeys; return nil },
				hostKey:    func(key ssh.PublicKey) error { shown = key; return nil },
			}
			for rest := []byte(strings.Join(c.sent, "")); len(rest) > 0; {
				n := min(size, len(rest))
				if err := e.read(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if len(e.buf) > lineMost+packetMost+size {
				t.Errorf("%s: it keeps %d bytes", name, len(e.buf))
			}
			if (e.greets() != "") != c.greets || (shown != nil) != c.shows || (e.shown() != nil) != c.shows {
				t.Errorf("%s, by %d: greets %q, shows %v", name, size, e.greets(), shown)
			}
			if c.shows && (lineOf(shown) != edKey || len(seen) != 2 || seen[0] != "ssh-ed25519") {
				t.Errorf("%s, by %d: %s, %q", name, size, lineOf(shown), seen)
			}
			if err := e.refusal(); runner.StepOf(err) != c.step {
				t.Errorf("%s, by %d: %v", name, size, err)
			}
		}
	}
	bad := errors.New("another key")
	e := &exchange{hostKey: func(ssh.PublicKey) error { return bad }}
	if err := e.read(append([]byte(greeting), packet(msgKexReply, blob)...)); !errors.Is(err, bad) || !errors.Is(e.refusal(), bad) {
		t.Errorf("a key that is refused: %v, %v", err, e.refusal())
	}
}

// TestGreeting: what the doctor tells of it.
func TestGreeting(t *testing.T) {
	t.Parallel()
	for sent, want := range map[string]string{
		"SSH-2.0-x\x1b[2J y\r\nrest":          "SSH-2.0-x y",
		"motd\r\nSSH-2.0-OpenSSH_9.9\r\n":     "SSH-2.0-OpenSSH_9.9",
		"Not allowed at this time\r\n":        "ssh_penalty",
		"Exceeded MaxStartups\r\n":            "ssh_startups",
		"\x00\x00\x00\x00":                    "ssh_greeting",
		"SSH-1.5-old\r\n":                     "ssh_greeting",
		"HTTP/1.1 400 \x1b[2JBad Request\r\n": "ssh_greeting",
		strings.Repeat("x", 1<<20):            "ssh_greeting",
		strings.Repeat("y\n", 1<<20):          "ssh_greeting",
		"":                                    "ssh_closed",
	} {
		greeting, err := Greeting(strings.NewReader(sent))
		switch {
		case err == nil && greeting != want:
			t.Errorf("%.50q: %q", sent, greeting)
		case err != nil && (runner.StepOf(err) != want || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 600):
			t.Errorf("%.50q: %.700v", sent, err)
		}
		if sent == "" && !errors.Is(err, io.EOF) {
			t.Errorf("nothing: %v", err)
		}
	}
}

// FuzzExchange: whatever comes, in one piece and in bytes.
func FuzzExchange(f *testing.F) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(edKey))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("Not allowed at this time\r\n"))
	f.Add(append([]byte("x\nSSH-2.0-x\r\n"), append(kexInit("a,b"), packet(msgKexReply, sshString(key.Marshal()))...)...))
	f.Fuzz(func(t *testing.T, sent []byte) {
		whole, pieces := &exchange{}, &exchange{}
		_ = whole.read(sent)
		for n := range sent {
			_ = pieces.read(sent[n : n+1])
		}
		if whole.greeting != pieces.greeting || !bytes.Equal(whole.said, pieces.said) || (whole.key == nil) != (pieces.key == nil) || whole.over != pieces.over {
			t.Errorf("%q: %+v, in bytes %+v", sent, whole, pieces)
		}
		if len(whole.said) > textMost || len(whole.greeting) > textMost {
			t.Errorf("%d and %d bytes are kept", len(whole.said), len(whole.greeting))
		}
	})
}

// refuser is a server that says something and hangs up.
func refuser(tb testing.TB, says string) (addr string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, says)
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<16))
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

// TestRemoteGreeting: an sshd that takes nobody says so in place of its greeting. Both kinds of tunnel tell it.
func TestRemoteGreeting(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	for says, step := range map[string]string{
		"Not allowed at this time\r\n": "ssh_penalty",
		"Exceeded MaxStartups\r\n":     "ssh_startups",
		"220 mail \x1b[2J" + strings.Repeat("x", 5000) + "\r\nHost key verification failed.\r\n": "ssh_greeting",
	} {
		addr := refuser(t, says)
		host, port, _ := strings.Cut(addr, ":")
		for name, by := range map[string]*instance{
			"native":  {id: i.id, sshd: i.sshd, addr: addr},
			"command": {id: i.id, sshd: i.sshd, command: []string{"/bin/bash", "-c", "exec 3<>/dev/tcp/" + host + "/" + port + "; cat <&3 & cat >&3; wait"}},
		} {
			t.Run(fmt.Sprint(step, "/", name), func(t *testing.T) {
				t.Parallel()
				_, err := by.remote(t, Config{Timing: runner.Timing{Start: 30 * time.Second}}).Start(t.Context(), by.target(t, ""), shelltest.DefaultSize)
				shelltest.WantStep(t, err, step)
				var told *runner.Failure
				if !errors.As(err, &told) || told.Final != (step == "ssh_greeting") || told.Sentence == "" || !strings.Contains(err.Error(), "the instance says") {
					t.Errorf("%+v", err)
				}
				if strings.ContainsAny(err.Error(), "\x1b\r\n") || len(err.Error()) > 600 || strings.Contains(told.Sentence, "mail") {
					t.Errorf("%q is told as %q", err, told.Sentence)
				}
			})
		}
	}
}

// TestRemoteMaxStartups: a real sshd that is full.
func TestRemoteMaxStartups(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil, "MaxStartups 1:100:1")
	r := i.remote(t, Config{})
	var waits net.Conn
	shelltest.Eventually(t, "one connects, and does not log in", func() bool {
		var err error
		if waits, err = net.Dial("tcp", i.sshd.Addr); err != nil {
			t.Fatal(err)
		}
		if _, err := Greeting(waits); err != nil {
			_ = waits.Close()
			return false
		}
		return true
	})
	_, err := r.Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
	if step := runner.StepOf(err); step != "ssh_startups" && step != "ssh_penalty" { // since OpenSSH 9.8 there is one text for both
		t.Errorf("%v", err)
	}
	_ = waits.Close()
	shelltest.Eventually(t, "it opens when the other has gone", func() bool {
		term, err := r.Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
		return err == nil && term.Close() == nil
	})
}
