package main

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode"
)

// hostile is a server that `termgw connect` should not have trusted. It speaks bytes, by no library.
type hostile struct {
	address string

	mu       sync.Mutex
	requests []string // with their headers
}

// serveHostile answers each connection's first request.
func serveHostile(t *testing.T, answer func(w io.Writer, r *http.Request)) *hostile {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{address: l.Addr().String()}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				var head bytes.Buffer
				_ = r.Write(&head)
				h.mu.Lock()
				h.requests = append(h.requests, head.String())
				h.mu.Unlock()
				answer(conn, r)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return h
}

func (h *hostile) heard() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requests
}

// upgrade answers a handshake (RFC 6455, 4.2.2).
func upgrade(w io.Writer, r *http.Request) {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: termgw.v1\r\n"+
		"Sec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
}

// welcome answers a handshake and says that a shell is there.
func welcome(w io.Writer, r *http.Request) {
	upgrade(w, r)
	_ = frame(w, 1, true, []byte(`{"type":"ready","session":"S","mode":"rw"}`))
}

// frame writes one frame of a message (RFC 6455, 5.2): op 0 goes on with the one before.
func frame(w io.Writer, op byte, last bool, payload []byte) error {
	if last {
		op |= 0x80
	}
	head := binary.BigEndian.AppendUint64([]byte{op, 127}, uint64(len(payload)))
	_, err := w.Write(append(head, payload...))
	return err
}

// memory is the most that a process had, in bytes.
func memory(t *testing.T, pid int) int {
	t.Helper()
	_, rest, _ := strings.Cut(procFile(t, pid, "status"), "VmHWM:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// A ticket goes to the address that it is for, and so does the secret that tickets are got with.
func TestConnectFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	const secret = "eyJub3QiOiJmb3IifQ.c2hvd2luZw.dGlja2V0"
	elsewhere := serveHostile(t, upgrade)
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, to := range []string{"http://" + elsewhere.address + "/x", "ws://" + elsewhere.address + "/x", "//" + elsewhere.address, "/workspaces/other/terminal"} {
			redirecting := serveHostile(t, func(w io.Writer, _ *http.Request) {
				fmt.Fprintf(w, "HTTP/1.1 %d Elsewhere\x1b[2J\r\nLocation: %s?\u009b2J\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, to)
			})
			c := start(t, command(t, []string{"TERMGW_TICKET=" + secret}, "connect", "ws://"+redirecting.address+"/workspaces/ws/terminal"))
			if code := c.wait(t); code != 255 || !strings.Contains(c.log.String(), "redirects to") || strings.ContainsAny(c.log.String(), "\x1b\u009b") {
				t.Errorf("%d to %s: exit status %d, %q", status, to, code, c.log.String())
			}
			endpoint := filepath.Join(t.TempDir(), "endpoint")
			if err := os.WriteFile(endpoint, []byte("http://"+redirecting.address+"/tickets?secret="+secret), 0o600); err != nil {
				t.Fatal(err)
			}
			c = start(t, command(t, nil, "connect", "--ticket-endpoint", endpoint, "ws://127.0.0.1:1/workspaces/ws/terminal"))
			if code := c.wait(t); code != 255 || !strings.Contains(c.log.String(), "redirects") || strings.Contains(c.log.String(), secret) {
				t.Errorf("a ticket endpoint, %d to %s: exit status %d, %q", status, to, code, c.log.String())
			}
			if n := len(redirecting.heard()); n != 2 {
				t.Errorf("%d to %s: it was asked %d times", status, to, n)
			}
		}
	}
	if heard := elsewhere.heard(); len(heard) > 0 {
		t.Errorf("a redirect was followed:\n%s", heard)
	}
}

// What a server sends without end costs its client no memory.
func TestConnectIsBounded(t *testing.T) {
	t.Parallel()
	const much = 192 << 20
	for _, test := range []struct {
		name  string
		send  func(w io.Writer, r *http.Request) // until an error
		shown bool                               // all of it
		says  string
	}{
		{"one frame without end", func(w io.Writer, r *http.Request) {
			welcome(w, r)
			if _, err := w.Write(binary.BigEndian.AppendUint64([]byte{0x02, 127}, 1<<62)); err != nil {
				return
			}
			flood(w, much)
		}, true, ""},
		{"one message without end", func(w io.Writer, r *http.Request) {
			welcome(w, r)
			for op, n := byte(2), 0; n < much; op, n = 0, n+64<<10 {
				if frame(w, op, false, make([]byte, 64<<10)) != nil {
					return
				}
			}
		}, true, ""},
		{"one control message without end", func(w io.Writer, r *http.Request) {
			welcome(w, r)
			if frame(w, 1, false, []byte(`{"type":"notice","message":"`)) == nil {
				for frame(w, 0, false, bytes.Repeat([]byte("x"), 64<<10)) == nil {
				}
			}
		}, false, "control message of more than 65536 bytes"},
		{"a header without end", func(w io.Writer, r *http.Request) {
			if _, err := io.WriteString(w, "HTTP/1.1 403 Forbidden\r\nX: "); err == nil {
				flood(w, 1<<40)
			}
		}, false, "termgw: connecting to"},
		{"a body without end", func(w io.Writer, r *http.Request) {
			if _, err := io.WriteString(w, "HTTP/1.1 403 Forbidden\r\n\r\n{\"detail\":\""); err == nil {
				flood(w, 1<<40)
			}
		}, false, "403 Forbidden"},
		{"a message for the person", func(w io.Writer, r *http.Request) {
			upgrade(w, r)
			_ = frame(w, 1, true, []byte(`{"type":"error","code":"x\u001b[2J","message":"\u009b2J\u202e`+strings.Repeat("x", 30<<10)+`"}`))
		}, false, "termgw: ?2J?xxx"},
	} {
		t.Run(test.name, func(t *testing.T) {
			done := make(chan struct{})
			server := serveHostile(t, func(w io.Writer, r *http.Request) {
				test.send(w, r)
				if test.shown {
					<-done
				}
			})
			cmd := command(t, []string{"TERMGW_TICKET=x"}, "connect", "ws://"+server.address+"/workspaces/ws/terminal")
			shown := &counted{}
			cmd.Stdout = shown
			stdin, keyboard, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			defer keyboard.Close()
			cmd.Stdin = stdin
			c := start(t, cmd)
			if test.shown {
				eventually(t, "all is shown", func() bool { return shown.count() >= much })
				// A program that keeps what it was sent has all of it, and the race detector's copy.
				if n := memory(t, cmd.Process.Pid); n >= much {
					t.Errorf("it took %d MiB", n>>20)
				}
				close(done)
			}
			if code := c.wait(t); code != 255 || !strings.Contains(c.log.String(), test.says) {
				t.Errorf("exit status %d, %.300q", code, c.log.String())
			}
			if said := c.log.String(); len(said) > 2<<10 || strings.ContainsFunc(said, func(r rune) bool { return r != '\r' && r != '\n' && !unicode.IsPrint(r) }) {
				t.Errorf("it said %d bytes, %.300q", len(said), said)
			}
			if test.says != "" && shown.count() > 0 {
				t.Errorf("it showed %d bytes", shown.count())
			}
		})
	}
}

// flood writes so many bytes, or until an error.
func flood(w io.Writer, n int) {
	for piece := make([]byte, 64<<10); n > 0; n -= len(piece) {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// counted counts what is written.
type counted struct {
	mu sync.Mutex
	n  int
}

func (c *counted) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += len(p)
	return len(p), nil
}

func (c *counted) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// An exit status that no process can have is not passed on, which would cut it to a byte.
func TestConnectPassesNoImpossibleStatus(t *testing.T) {
	t.Parallel()
	for told, want := range map[string]int{"7": 7, "0": 0, "255": 255, "256": 255, "-1": 255, "4294967296": 255, "1e400": 255, `"0"`: 255} {
		lying := serveHostile(t, func(w io.Writer, r *http.Request) {
			welcome(w, r)
			_ = frame(w, 1, true, []byte(`{"type":"exit","signal":"KILL","code":`+told+`}`))
			_ = frame(w, 8, true, []byte{0x03, 0xe8})
		})
		c := start(t, command(t, []string{"TERMGW_TICKET=" + "x.y.z"}, "connect", "ws://"+lying.address+"/workspaces/ws/terminal"))
		if code := c.wait(t); code != want {
			t.Errorf("%s: exit status %d, want %d: %q", told, code, want, c.log.String())
		}
	}
}

// A gateway that starts no shell can be left.
func TestConnectIsInterruptedBeforeTheShell(t *testing.T) {
	t.Parallel()
	asked, left := make(chan struct{}), make(chan error, 1)
	silent := serveHostile(t, func(w io.Writer, r *http.Request) {
		upgrade(w, r)
		close(asked)
		_, err := io.Copy(io.Discard, w.(io.Reader))
		if errors.Is(err, syscall.ECONNRESET) { // of a client that has gone while it was told something
			err = nil
		}
		left <- err
	})
	c := start(t, command(t, []string{"TERMGW_TICKET=x.y.z"}, "connect", "ws://"+silent.address+"/workspaces/ws/terminal"))
	<-asked
	c.signal(t, os.Interrupt)
	if code := c.wait(t); code != 255 || !strings.Contains(c.log.String(), "interrupt signal received") {
		t.Errorf("exit status %d, %q", code, c.log.String())
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
}
