package client_test

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/client"
)

// line is the client's side of a connection in memory whose kernels hold 256 KiB of what it sends.
type line struct {
	net.Conn
	mu      sync.Mutex
	changed *sync.Cond
	held    []byte
	closed  bool
}

func newLine(conn net.Conn) *line {
	l := &line{Conn: conn}
	l.changed = sync.NewCond(&l.mu)
	go func() {
		for {
			l.mu.Lock()
			for len(l.held) == 0 && !l.closed {
				l.changed.Wait()
			}
			p := l.held[:min(len(l.held), 4096)]
			l.held = l.held[len(p):]
			l.changed.Broadcast()
			l.mu.Unlock()
			if _, err := l.Conn.Write(p); err != nil || len(p) == 0 {
				return
			}
		}
	}()
	return l
}

func (l *line) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.held)+len(p) > 256<<10 && !l.closed {
		l.changed.Wait()
	}
	if l.closed {
		return 0, net.ErrClosed
	}
	l.held = append(l.held, p...)
	l.changed.Broadcast()
	return len(p), nil
}

func (l *line) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed.Broadcast()
	return l.Conn.Close()
}

// far is a gateway at the other end of a line.
type far struct {
	net.Conn
	r *bufio.Reader
}

// frame sends a frame of less than 126 bytes (RFC 6455, 5.2).
func (f far) frame(op byte, payload string) {
	_, _ = f.Write(append([]byte{0x80 | op, byte(len(payload))}, payload...))
}

const (
	opText   = 1
	opBinary = 2
	opPing   = 9
)

// read takes the client's next frame.
func (f far) read() (op byte, payload []byte, err error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(f.r, head); err != nil {
		return 0, nil, err
	}
	size := uint64(head[1] & 0x7f)
	if long := map[uint64]int{126: 2, 127: 8}[size]; long > 0 {
		b := make([]byte, 8)
		if _, err := io.ReadFull(f.r, b[8-long:]); err != nil {
			return 0, nil, err
		}
		size = binary.BigEndian.Uint64(b)
	}
	masked := make([]byte, 4+size)
	if _, err := io.ReadFull(f.r, masked); err != nil {
		return 0, nil, err
	}
	for i := range masked[4:] {
		masked[4+i] ^= masked[i%4]
	}
	return head[0] & 0xf, masked[4:], nil
}

// answer reads all, and answers pings until it is over.
func (f far) answer() {
	for {
		op, p, err := f.read()
		if err != nil {
			return
		}
		var id int
		if _, err := fmt.Sscanf(string(p), `{"type":"ping","id":%d}`, &id); op == opText && err == nil {
			f.frame(opText, fmt.Sprintf(`{"type":"pong","id":%d}`, id))
		}
	}
}

// upgrade answers a handshake, once held has returned, and returns its query.
func upgrade(conn net.Conn, held func()) (far, url.Values) {
	r := bufio.NewReader(conn)
	request, err := http.ReadRequest(r)
	if err != nil { // it was given up
		return far{conn, r}, nil
	}
	held()
	sum := sha1.Sum([]byte(request.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Protocol: termgw.v1\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	if err != nil { // given up since
		return far{conn, r}, nil
	}
	return far{conn, r}, request.URL.Query()
}

// meet opens a terminal at a gateway that plays, in a bubble of time.
func meet(t *testing.T, play func(far)) *client.Conn {
	t.Helper()
	return meetReady(t, `{"type":"ready","session":"S","mode":"rw"}`, play)
}

// meetReady is meet with a ready message.
func meetReady(t *testing.T, ready string, play func(far)) *client.Conn {
	t.Helper()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		near, end := net.Pipe()
		go func() {
			f, _ := upgrade(end, func() {})
			f.frame(opText, ready)
			play(f)
			_ = end.Close()
		}()
		return newLine(near), nil
	}}
	c, err := client.Dial(t.Context(), client.Config{URL: "ws://gateway.test/", Ticket: ticket, HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A gateway that says nothing at all is gone after 30 s, during which it was asked again and again.
func TestSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var pings atomic.Int32
		c := meet(t, func(f far) {
			for {
				if _, _, err := f.read(); err != nil {
					return
				}
				pings.Add(1)
			}
		})
		began := time.Now()
		_, err := c.Read(make([]byte, 1))
		if err == nil || err.Error() != "the gateway has not answered for 30s" || time.Since(began) > 35*time.Second || pings.Load() != 6 {
			t.Errorf("after %s and %d pings: %v", time.Since(began), pings.Load(), err)
		}
		_ = c.Close()
	})
}

// Where the shell waits a line that went silent is given up soon, and sooner when somebody types.
func TestSilenceWhereTheShellWaits(t *testing.T) {
	t.Parallel()
	for _, types := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := meetReady(t, `{"type":"ready","session":"S","mode":"rw","resume":60}`, func(f far) {
				for range 2 { // pings
					if _, _, err := f.read(); err != nil {
						t.Error(err)
					}
					f.frame(opText, `{"type":"pong","id":1}`)
					f.frame(opText, `{"type":"pong","id":2}`)
				}
				_, _ = io.Copy(io.Discard, f.r)
			})
			time.Sleep(7 * time.Second) // after the second ping
			began := time.Now()
			most := 8 * time.Second
			if types {
				most = 4 * time.Second
				if _, err := c.Write([]byte("x")); err != nil {
					t.Error(err)
				}
			}
			_, err := c.Read(make([]byte, 1))
			if took := time.Since(began); err == nil || err.Error() != "the gateway has not answered for 3s" || took > most || took < 2*time.Second {
				t.Errorf("typed %v: after %s: %v", types, took, err)
			}
			_ = c.Close()
		})
	}
}

// A gateway that is heard of by anything stays.
func TestNoSilence(t *testing.T) {
	t.Parallel()
	every := func(pause time.Duration, op byte, payload string) func(far) {
		return func(f far) {
			go func() { _, _ = io.Copy(io.Discard, f.r) }()
			for range time.Hour / pause {
				time.Sleep(pause)
				f.frame(op, payload)
			}
		}
	}
	for name, play := range map[string]func(far){
		"pongs":             func(f far) { go func() { time.Sleep(time.Hour); _ = f.Close() }(); f.answer() },
		"pings":             every(25*time.Second, opPing, "p"),
		"output":            every(25*time.Second, opBinary, "x"),
		"what is not known": every(25*time.Second, opText, `{"type":"tomorrow"}`),
		"a message in pieces": func(f far) { // never done
			go func() { _, _ = io.Copy(io.Discard, f.r) }()
			_, _ = f.Write(binary.BigEndian.AppendUint64([]byte{opBinary, 127}, 1<<40))
			for range time.Hour / (25 * time.Second) {
				time.Sleep(25 * time.Second)
				_, _ = f.Write(make([]byte, 4096))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := meet(t, play)
				began := time.Now()
				_, err := io.Copy(io.Discard, c)
				if time.Since(began) < time.Hour {
					t.Errorf("ended after %s: %v", time.Since(began), err)
				}
				_ = c.Close()
			})
		})
	}
}

// While the program takes no input, the gateway reads nothing, and so answers nothing: its own pings are answered all the same, and it
// is not taken for gone.
func TestSilenceOfProgram(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	synctest.Test(t, func(t *testing.T) {
		c := meet(t, func(f far) {
			for range 100 {
				time.Sleep(time.Minute) // between two pings of its own
				f.frame(opPing, "p")
			}
			pongs, input := 0, 0
			for input < size {
				switch op, p, err := f.read(); {
				case err != nil:
					t.Errorf("after %d bytes of input: %v", input, err)
					return
				case op == opBinary:
					input += len(p)
				case op == 0xa:
					pongs++
				case strings.Contains(string(p), "ping"):
					f.frame(opText, fmt.Sprintf(`{"type":"pong"%s`, strings.TrimPrefix(string(p), `{"type":"ping"`)))
				}
			}
			if pongs != 100 {
				t.Errorf("%d pings were answered", pongs)
			}
			f.frame(opText, `{"type":"exit","code":3}`)
			f.frame(8, "\x03\xe8")
		})
		ended := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, c)
			ended <- err
		}()
		if n, err := c.Write(make([]byte, size)); n != size || err != nil {
			t.Errorf("%d bytes were written: %v", n, err)
		}
		if err := <-ended; err != nil || c.Exit().Code != 3 {
			t.Errorf("%v, %+v", err, c.Exit())
		}
		_ = c.Close()
	})
}

// long sends a binary frame of any size.
func (f far) long(p []byte) error {
	if _, err := f.Write(binary.BigEndian.AppendUint64([]byte{0x80 | opBinary, 127}, uint64(len(p)))); err != nil {
		return err
	}
	_, err := f.Write(p)
	return err
}

// While nobody reads, nothing can be heard.
func TestSilenceOfReader(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	synctest.Test(t, func(t *testing.T) {
		c := meet(t, func(f far) {
			_ = f.long(make([]byte, size))
			f.frame(opText, `{"type":"exit","code":3}`)
			f.frame(8, "\x03\xe8")
		})
		time.Sleep(time.Hour)
		if n, err := io.Copy(io.Discard, c); n != size || err != nil || c.Exit().Code != 3 {
			t.Errorf("%d bytes, %v, %+v", n, err, c.Exit())
		}
		_ = c.Close()
	})
}

// Output that nobody reads is held up to a bound, and dropped by Close.
func TestUnreadOutput(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const piece = 64 << 10
		var sent atomic.Int64
		var isOver atomic.Bool
		c := meet(t, func(f far) {
			for !isOver.Load() && f.long(make([]byte, piece)) == nil {
				sent.Add(piece)
			}
		})
		synctest.Wait()
		if n := sent.Load(); n < 1<<20-piece || n > 1<<20+piece {
			t.Errorf("%d bytes were taken of a gateway that heard no ack", n)
		}
		isOver.Store(true)
		_ = c.Close() // the gateway has not answered
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %d, %v", n, err)
		}
	})
}
