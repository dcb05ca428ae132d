package bridge

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// harness is a session at work between a fake terminal and a WebSocket client.
type harness struct {
	*peer
	term    *fakeTerm
	bridge  *Bridge
	session *session.Session
	cancel  context.CancelCauseFunc
	backlog atomic.Int64
	lowest  atomic.Int64  // of backlog
	ended   chan struct{} // Run returned: sum may be read
	done    chan struct{} // Close returned
	sum     session.Summary
}

type setup struct {
	term  *fakeTerm // nil: a new one
	opt   Options
	shell session.Options // but for the times, which are opt's
	raw   bool
	deaf  bool // the client reads nothing until it is told to listen
	noAck bool // the client never acknowledges by itself
	mute  bool // the client answers no WebSocket ping
}

// peer is a client. Its reader notes everything that comes.
type peer struct {
	watched
	ws       *websocket.Conn
	conn     net.Conn
	frames   []frame
	out      []byte    // all terminal bytes
	sink     io.Writer // instead of out
	received int64
	acked    int64
	noAck    bool
	err      error // why the reader ended
	reading  sync.WaitGroup
}

type frame struct {
	typ  websocket.MessageType
	text string // of a text frame
	size int
	at   int64 // terminal bytes received before it
}

// verdict is the close code of a cause, as the router would choose it.
func verdict(cause error) (websocket.StatusCode, *Error) {
	for _, v := range []struct {
		err  error
		code websocket.StatusCode
		name string
	}{
		{ErrTooLarge, 1009, "too_large"},
		{ErrBadMessage, 4400, "bad_message"},
		{session.ErrIdle, 4408, "idle_timeout"},
		{session.ErrExpired, 4410, "session_expired"},
		{session.ErrTunnel, 4504, "tunnel_expired"},
		{session.ErrTerminal, 4502, "backend_failed"},
		{cause, 1012, "draining"},
	} {
		if cause != nil && errors.Is(cause, v.err) {
			return v.code, &Error{Code: v.name, Message: "The terminal ended."}
		}
	}
	return websocket.StatusNormalClosure, nil
}

// start opens a session over TCP on the loopback.
func start(t testing.TB, c setup) *harness {
	t.Helper()
	accepted := make(chan *Socket, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := Accept(w, r)
		if err != nil {
			t.Errorf("accepting: %v", err)
			close(accepted)
			return
		}
		accepted <- ws
	}))
	t.Cleanup(srv.Close)
	p := &peer{noAck: c.noAck}
	p.init()
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		p.conn = conn
		return conn, err
	}}
	p.dial(t, c, tr, srv.URL)
	return run(t, c, p, <-accepted)
}

// startInBubble opens a session over a pipe in memory, for testing/synctest.
func startInBubble(t testing.TB, c setup) *harness {
	t.Helper()
	h := &pipeTransport{accepted: make(chan *Socket, 1)}
	p := &peer{noAck: c.noAck}
	p.init()
	p.dial(t, c, h, "http://in.memory")
	p.conn = h.client
	return run(t, c, p, <-h.accepted)
}

func (p *peer) dial(t testing.TB, c setup, tr http.RoundTripper, url string) {
	t.Helper()
	opt := &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}}
	if c.mute {
		opt.OnPingReceived = func(context.Context, []byte) bool { return false }
	}
	if !c.raw {
		opt.Subprotocols = []string{Subprotocol}
	}
	ws, resp, err := websocket.Dial(t.Context(), url, opt)
	if err != nil {
		t.Fatalf("dialling: %v", err)
	}
	_ = resp.Body // the WebSocket's
	p.ws = ws
	ws.SetReadLimit(-1)
}

func run(t testing.TB, c setup, p *peer, ws *Socket) *harness {
	t.Helper()
	if ws == nil {
		t.FailNow()
	}
	s := &harness{peer: p, term: c.term, ended: make(chan struct{}), done: make(chan struct{})}
	if s.term == nil {
		s.term = newTerm()
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel = cancel
	c.opt.Backlog = func(d int) {
		n := s.backlog.Add(int64(d))
		for low := s.lowest.Load(); n < low && !s.lowest.CompareAndSwap(low, n); low = s.lowest.Load() {
		}
	}
	s.bridge, s.session = join(ws, s.term, c)
	go func() {
		defer close(s.done)
		s.sum = s.session.Run(ctx)
		close(s.ended)
		code, e := verdict(s.sum.Cause)
		s.bridge.Close(ctx, code, e)
		s.session.Join()
	}()
	if !c.deaf {
		p.listen()
	}
	t.Cleanup(func() {
		_ = p.ws.CloseNow()
		<-s.done
		p.reading.Wait()
		cancel(nil)
		s.check(t)
	})
	return s
}

// join joins a WebSocket and a terminal.
func join(ws *Socket, term terminal.Terminal, c setup) (*Bridge, *session.Session) {
	c.shell.IdleTimeout, c.shell.MaxSession = c.opt.Ready.IdleTimeout, c.opt.Ready.MaxSession
	shell := session.New(term, c.shell)
	return New(ws, shell, c.opt), shell
}

// check is what holds after every session.
func (s *harness) check(t testing.TB) {
	t.Helper()
	s.term.with(func() {
		if s.term.closes != 1 {
			t.Errorf("the terminal was closed %d times, want once", s.term.closes)
		}
		for _, m := range s.term.misuses {
			t.Errorf("the terminal was misused: %s", m)
		}
	})
	if n := s.backlog.Load(); n != 0 {
		t.Errorf("the backlog's gauge is left at %d", n)
	}
	if n := s.lowest.Load(); n < 0 {
		t.Errorf("the backlog's gauge fell to %d", n)
	}
}

func (p *peer) listen() {
	p.reading.Add(1)
	go p.read()
}

func (p *peer) read() {
	defer p.reading.Done()
	ctx := context.Background()
	for {
		typ, data, err := p.ws.Read(ctx)
		ack := int64(-1)
		p.with(func() {
			if err != nil {
				p.err = err
				return
			}
			f := frame{typ: typ, size: len(data), at: p.received}
			if typ == websocket.MessageText {
				f.text = string(data)
			} else {
				p.received += int64(len(data))
				if p.sink != nil {
					_, _ = p.sink.Write(data)
				} else {
					p.out = append(p.out, data...)
				}
				if !p.noAck && p.ws.Subprotocol() == Subprotocol {
					p.acked = p.received
					ack = p.acked
				}
			}
			p.frames = append(p.frames, f)
		})
		if err != nil {
			return
		}
		if ack >= 0 {
			_ = p.ws.Write(ctx, websocket.MessageText, encode(map[string]any{"type": "ack", "bytes": ack}))
		}
	}
}

// control sends a control message; a string goes as it is.
func (p *peer) control(t testing.TB, m string) {
	t.Helper()
	if err := p.ws.Write(t.Context(), websocket.MessageText, []byte(m)); err != nil {
		t.Fatalf("sending %.60s: %v", m, err)
	}
}

func (p *peer) input(t testing.TB, s string) {
	t.Helper()
	if err := p.ws.Write(t.Context(), websocket.MessageBinary, []byte(s)); err != nil {
		t.Fatalf("sending input: %v", err)
	}
}

func (p *peer) ack(t testing.TB, n int64) {
	t.Helper()
	p.control(t, string(encode(map[string]any{"type": "ack", "bytes": n})))
}

// ackAll acknowledges everything, from now on at once.
func (p *peer) ackAll(t testing.TB) {
	t.Helper()
	var n int64
	p.with(func() { p.noAck, n = false, p.received })
	p.ack(t, n)
}

// texts are the text frames so far.
func (p *peer) texts() (all []string) {
	p.with(func() {
		for _, f := range p.frames {
			if f.typ == websocket.MessageText {
				all = append(all, f.text)
			}
		}
	})
	return all
}

// messages are the control messages of a type so far.
func (p *peer) messages(t testing.TB, typ string) (all []map[string]any) {
	t.Helper()
	for _, s := range p.texts() {
		m := decode(t, s)
		if m["type"] == typ {
			all = append(all, m)
		}
	}
	return all
}

func decode(t testing.TB, s string) (m map[string]any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatalf("not JSON: %q: %v", s, err)
	}
	return m
}

// waitText waits for a message, or one that begins so.
func (p *peer) waitText(t testing.TB, want string) {
	t.Helper()
	p.until(t, "the message "+want, func() bool {
		return slices.ContainsFunc(p.frames, func(f frame) bool { return strings.HasPrefix(f.text, want) })
	})
}

func (p *peer) waitBytes(t testing.TB, n int64) {
	t.Helper()
	p.until(t, "output", func() bool { return p.received >= n })
}

// barrier returns when the server has handled everything sent before it.
func (p *peer) barrier(t testing.TB, id string) {
	t.Helper()
	p.control(t, `{"type":"ping","id":`+id+`}`)
	p.waitText(t, `{"type":"pong","id":`+id+`,`)
}

// closed waits for the close frame and returns its code and reason.
func (p *peer) closed(t testing.TB) (websocket.StatusCode, string) {
	t.Helper()
	p.until(t, "the close frame", func() bool { return p.err != nil })
	var ce websocket.CloseError
	if !errors.As(p.err, &ce) {
		t.Fatalf("the connection ended without a close frame: %v", p.err)
	}
	return ce.Code, ce.Reason
}

// wait returns what the session came to, once it is all over.
func (s *harness) wait(t testing.TB) session.Summary {
	t.Helper()
	<-s.done
	return s.sum
}

// pipeTransport answers a handshake over net.Pipe, without a listener.
type pipeTransport struct {
	client   net.Conn
	accepted chan *Socket
}

func (p *pipeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	client, server := net.Pipe()
	p.client = client
	w := &hijackable{httptest.NewRecorder(), server}
	ws, err := Accept(w, r)
	if err != nil {
		return nil, err
	}
	p.accepted <- ws
	resp := w.Result()
	resp.Body = client.(io.ReadCloser)
	return resp, nil
}

type hijackable struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// same tells whether two byte slices agree, and where they stop to if not.
func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Fatalf("%s: %d bytes, want %d; they differ from byte %d on", what, len(got), len(want), i)
}
