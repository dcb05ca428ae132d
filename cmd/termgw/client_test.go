package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/bridge"
)

// dialing says how a client comes. The zero value is termgw.v1 with the ticket of the function's argument as a
// subprotocol, as a browser hands it over.
type dialing struct {
	raw       bool // raw mode: no termgw.v1
	query     string
	header    http.Header
	protocols []string
}

// tty is a client with a terminal. All that it gets is read and, in termgw.v1, acknowledged.
type tty struct {
	ws       *websocket.Conn
	conn     *wire
	protocol string // the subprotocol that the gateway chose
	v1       bool

	acks sync.Mutex // held while one is sent
	deaf bool       // acknowledges nothing

	mu       sync.Mutex
	output   []byte // from the offset base on
	base     int
	passed   int // how much of output expect has passed
	messages []message
	order    []string // the types of messages, and "output" for a run of it
	changed  chan struct{}
	ended    error         // of the read that failed
	done     chan struct{} // closed then
}

// message is a control message of the gateway, or in raw mode one text frame as Message.
type message struct {
	Type, Message, Session, Workspace, Target, Mode, Signal, Detail string
	Code                                                            any
	Retryable                                                       bool
	Tunnel                                                          int64
	Cols, Rows                                                      int
	Resumed                                                         bool
	Output, Input                                                   int
}

// wire is a client's connection, which can go deaf: what arrives is taken and never seen, so no ping is answered.
type wire struct {
	*net.TCPConn
	deaf chan struct{}
}

func (w *wire) Read(p []byte) (int, error) {
	for {
		n, err := w.TCPConn.Read(p)
		select {
		case <-w.deaf:
			if err == nil {
				continue
			}
		default:
		}
		return n, err
	}
}

// dial opens the terminal of a workspace with a ticket ("" for none).
func (g *served) dial(tb testing.TB, workspace, raw string, how dialing) *tty {
	tb.Helper()
	c, response, err := g.tryDial(tb, workspace, raw, how)
	if err != nil {
		tb.Fatalf("the handshake was refused: %v, %v", err, response)
	}
	return c
}

func (g *served) tryDial(tb testing.TB, workspace, raw string, how dialing) (*tty, *http.Response, error) {
	tb.Helper()
	c := &tty{changed: make(chan struct{}, 1), done: make(chan struct{})}
	if !how.raw {
		how.protocols = append(how.protocols, bridge.Subprotocol)
	}
	if raw != "" {
		how.protocols = append(how.protocols, "termgw.ticket."+raw)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c.conn = &wire{conn.(*net.TCPConn), make(chan struct{})}
		return c.conn, nil
	}}
	target := "ws://" + g.address + "/workspaces/" + workspace + "/terminal"
	if how.query != "" {
		target += "?" + how.query
	}
	ws, response, err := websocket.Dial(ctx, target, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, HTTPHeader: how.header, Subprotocols: how.protocols,
	})
	if err != nil {
		transport.CloseIdleConnections()
		return nil, response, err
	}
	ws.SetReadLimit(-1)
	c.ws, c.protocol = ws, response.Header.Get("Sec-WebSocket-Protocol")
	c.v1 = c.protocol == bridge.Subprotocol
	go c.read()
	tb.Cleanup(c.drop)
	return c, response, nil
}

// drop goes away without a word.
func (c *tty) drop() {
	_ = c.ws.CloseNow()
	<-c.done
}

func (c *tty) read() {
	defer close(c.done)
	for {
		typ, p, err := c.ws.Read(context.Background())
		ack := -1
		c.mu.Lock()
		switch {
		case err != nil:
			c.ended = err
		case typ == websocket.MessageBinary:
			c.output = append(c.output, p...)
			ack = c.base + len(c.output)
			c.note("output")
		case c.v1:
			var m message
			if json.Unmarshal(p, &m) != nil {
				m.Type = "not JSON: " + string(p)
			}
			if m.Type == "ready" {
				c.base = m.Output
			}
			c.messages = append(c.messages, m)
			c.note(m.Type)
		default:
			c.messages = append(c.messages, message{Type: "text", Message: string(p)})
			c.note("text")
		}
		c.mu.Unlock()
		select {
		case c.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
		if c.v1 && ack >= 0 {
			c.acknowledge(ack)
		}
	}
}

func (c *tty) acknowledge(bytes int) {
	c.acks.Lock()
	defer c.acks.Unlock()
	if !c.deaf {
		_ = c.trySend(websocket.MessageText, fmt.Sprintf(`{"type":"ack","bytes":%d}`, bytes)) // may be over
	}
}

// setDeaf says whether nothing is acknowledged from now on. It waits for an acknowledgement that is under way.
func (c *tty) setDeaf(deaf bool) {
	c.acks.Lock()
	defer c.acks.Unlock()
	c.deaf = deaf
}

func (c *tty) note(what string) {
	if len(c.order) == 0 || c.order[len(c.order)-1] != what {
		c.order = append(c.order, what)
	}
}

func (c *tty) trySend(typ websocket.MessageType, text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.ws.Write(ctx, typ, []byte(text))
}

// send types.
func (c *tty) send(tb testing.TB, input string) {
	tb.Helper()
	if err := c.trySend(websocket.MessageBinary, input); err != nil {
		tb.Fatal(err)
	}
}

// control sends a text frame.
func (c *tty) control(tb testing.TB, text string) {
	tb.Helper()
	if err := c.trySend(websocket.MessageText, text); err != nil {
		tb.Fatal(err)
	}
}

// wait waits until ok, which is asked with the lock held each time that something came.
func (c *tty) wait(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	timeout := time.After(patience)
	for {
		c.mu.Lock()
		is, ended, state := ok(), c.ended, fmt.Sprintf("%q and %+v", c.output[max(c.passed, len(c.output)-1000):], c.messages)
		c.mu.Unlock()
		if is {
			return
		}
		if ended != nil {
			tb.Fatalf("no %s before %v; got %s", what, ended, state)
		}
		select {
		case <-c.changed:
		case <-timeout:
			tb.Fatalf("no %s; got %s", what, state)
		}
	}
}

// expect waits for text in the output, and passes it.
func (c *tty) expect(tb testing.TB, text string) {
	tb.Helper()
	c.wait(tb, fmt.Sprintf("%q", text), func() bool {
		at := bytes.Index(c.output[c.passed:], []byte(text))
		if at >= 0 {
			c.passed += at + len(text)
		}
		return at >= 0
	})
}

// runs counts the calls of run.
var runs atomic.Int64

// run types a command line and waits until it was done; it returns what it printed. The bytes around that are not in the
// echo of the line itself, and not in what an earlier line printed, which the gateway may repeat.
func (c *tty) run(tb testing.TB, line string) string {
	tb.Helper()
	mark := fmt.Sprintf("%d:", runs.Add(1))
	c.send(tb, `printf '\001`+mark+`'; `+line+`; printf '\002`+mark+"'\r")
	c.expect(tb, "\x01"+mark)
	c.mu.Lock()
	from := c.passed
	c.mu.Unlock()
	c.expect(tb, "\x02"+mark)
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.output[from : c.passed-len("\x02"+mark)])
}

// message waits for the control message of a type.
func (c *tty) message(tb testing.TB, typ string) (m message) {
	tb.Helper()
	c.wait(tb, typ, func() bool {
		for _, m = range c.messages {
			if m.Type == typ {
				return true
			}
		}
		return false
	})
	return m
}

// closed waits for the end and returns the close code.
func (c *tty) closed(tb testing.TB) websocket.StatusCode {
	tb.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		tb.Fatal("the gateway does not close")
	}
	code := websocket.CloseStatus(c.ended)
	if code == -1 {
		tb.Fatalf("no close frame: %v", c.ended)
	}
	return code
}

// close says goodbye as a browser does, with 1000.
func (c *tty) close(tb testing.TB) {
	tb.Helper()
	if err := c.ws.Close(websocket.StatusNormalClosure, ""); err != nil && websocket.CloseStatus(err) == -1 {
		tb.Errorf("closing: %v", err)
	}
	<-c.done
}

// reset ends the connection by a TCP reset.
func (c *tty) reset(tb testing.TB) {
	tb.Helper()
	if err := c.conn.SetLinger(0); err != nil {
		tb.Fatal(err)
	}
	if err := c.conn.Close(); err != nil {
		tb.Fatal(err)
	}
	<-c.done
}
