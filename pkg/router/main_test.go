package router

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen. It is never waited
// out unless the test fails.
const patience = 3 * time.Minute

// signingKey is the platform's, the same in all tests.
var signingKey = sync.OnceValues(func() (jose.JSONWebKey, error) { return ticket.GenerateKey("") })

// gateway is a router on a real listener, with a real verifier and store and
// shells that are played.
type gateway struct {
	*Router
	t       testing.TB
	addr    string
	store   *spyStore
	local   *fakeStarter
	remote  *fakeStarter
	reg     *prometheus.Registry
	logs    *logged
	minter  *ticket.Minter
	handler sync.WaitGroup // requests that are being served
	held    int            // sessions that stay until the test ends
}

// open starts a gateway that has workspaces "ws-1" and "ws-2", local, and
// "far", remote. Its session's time limits are off.
func open(t testing.TB, edits ...func(*Config)) *gateway {
	t.Helper()
	key, err := signingKey()
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{
		t: t, reg: prometheus.NewRegistry(), logs: &logged{},
		local: newStarter(), remote: newStarter(),
		store: &spyStore{ends: map[string]store.End{}},
	}
	if g.minter, err = ticket.NewMinter(key); err != nil {
		t.Fatal(err)
	}
	g.store.Memory = store.NewMemory(store.MemoryConfig{Lookup: func(_ context.Context, id string) (store.Workspace, error) {
		switch id {
		case "ws-1", "ws-2":
			return store.Workspace{Attributes: map[string]string{"name": "One", "container": "c-1"}}, nil
		case "far":
			return store.Workspace{Attributes: map[string]string{"instance_id": "i-1"}}, nil
		}
		return store.Workspace{}, store.ErrNotFound
	}})
	cfg := Config{
		Verifier: ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(key)}),
		Store:    g.store, Places: runner.Places{{Name: "remote", Column: "instance_id", Kind: g.remote}, {Name: "local", Kind: g.local}}, Replica: "replica-1",
		Log:     slog.New(slog.NewJSONHandler(g.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: NewMetrics(g.reg),
	}
	for _, edit := range edits {
		edit(&cfg)
	}
	g.Router = New(cfg)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.handler.Add(1)
		defer g.handler.Done()
		g.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(g.logs, "", 0)
	srv.Start()
	g.addr = srv.Listener.Addr().String()
	t.Cleanup(func() {
		if err := g.Drain(context.Background(), 0); err != nil {
			t.Errorf("sessions are left: %v", err)
		}
		srv.Close()
		g.over(t)
	})
	return g
}

// taken is how many sessions are not gone yet, with those that have no place any
// more and are still told why.
func (g *gateway) taken() int {
	g.live.mu.Lock()
	defer g.live.mu.Unlock()
	return len(g.live.live)
}

// over waits until every request was served and every session is gone.
func (g *gateway) over(t testing.TB) {
	t.Helper()
	g.handler.Wait()
	for end := time.Now().Add(patience); g.taken() > g.held; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d sessions are left", g.taken())
		}
	}
}

// ticket mints one for a workspace.
func (g *gateway) ticket(workspace string, edits ...func(*ticket.Claims)) string {
	g.t.Helper()
	c := ticket.Claims{Subject: "ann", WorkspaceID: workspace}
	for _, edit := range edits {
		edit(&c)
	}
	raw, err := g.minter.Mint(c)
	if err != nil {
		g.t.Fatal(err)
	}
	return raw
}

// metric gives the value of a counter or gauge, or the count of a histogram;
// labels are "name=value". What was never counted is 0.
func (g *gateway) metric(name string, labels ...string) float64 {
	g.t.Helper()
	value, _ := g.series(name, labels...)
	return value
}

func (g *gateway) series(name string, labels ...string) (value float64, found bool) {
	g.t.Helper()
	families, err := g.reg.Gather()
	if err != nil {
		g.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
			if strings.Join(have, " ") == strings.Join(labels, " ") {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount()), true
			}
		}
	}
	return 0, false
}

func (g *gateway) wantMetric(want float64, name string, labels ...string) {
	g.t.Helper()
	for end := time.Now().Add(patience); g.metric(name, labels...) < want && time.Now().Before(end); { // counted after the answer
		time.Sleep(time.Millisecond)
	}
	if got := g.metric(name, labels...); got != want {
		g.t.Errorf("%s%v is %v, want %v", name, labels, got, want)
	}
}

// ask is a request, written out as it stands.
type ask struct {
	method, target, proto, host string
	header                      http.Header
	leaves                      func() // called once it has closed its side after the request; nil: it does not
}

// requestFor is a faultless request for a workspace's terminal.
func requestFor(workspace, rawTicket string, edits ...func(*ask)) *ask {
	a := &ask{
		method: http.MethodGet, target: "/workspaces/" + workspace + "/terminal", proto: "HTTP/1.1", host: "gateway.test",
		header: http.Header{
			"Connection":            {"keep-alive, Upgrade"},
			"Upgrade":               {"websocket"},
			"Sec-Websocket-Version": {"13"},
			"Sec-Websocket-Key":     {"dGhlIHNhbXBsZSBub25jZQ=="},
		},
	}
	if rawTicket != "" {
		a.header.Set("Authorization", "Bearer "+rawTicket)
	}
	for _, edit := range edits {
		edit(a)
	}
	return a
}

func with(name string, values ...string) func(*ask) {
	return func(a *ask) { a.header[http.CanonicalHeaderKey(name)] = values }
}

func query(q string) func(*ask) { return func(a *ask) { a.target += "?" + q } }

// v1 offers termgw.v1.
func v1(a *ask) { a.header.Add("Sec-WebSocket-Protocol", bridge.Subprotocol) }

// peer is the client's end of a connection: it sends no pong and no close
// frame but the answer to one, and shows each frame as it comes.
type peer struct {
	t      testing.TB
	conn   net.Conn
	r      *bufio.Reader
	status int
	header http.Header
	body   []byte // unless upgraded
}

func (g *gateway) ask(t testing.TB, a *ask) *peer {
	t.Helper()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s %s\r\nHost: %s\r\n", a.method, a.target, a.proto, a.host)
	_ = a.header.Write(&head)
	head.WriteString("\r\n")
	if _, err := conn.Write(head.Bytes()); err != nil {
		t.Fatal(err)
	}
	if a.leaves != nil {
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		a.leaves()
	}
	p := &peer{t: t, conn: conn, r: bufio.NewReader(conn)}
	resp, err := http.ReadResponse(p.r, &http.Request{Method: a.method})
	if err != nil {
		t.Fatal(err)
	}
	p.status, p.header = resp.StatusCode, resp.Header
	if p.status != http.StatusSwitchingProtocols {
		if p.body, err = io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		_ = conn.Close()
	}
	return p
}

// RFC 6455, section 5.2.
const (
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
)

// next reads one whole frame from the server, which sends none over 64 KiB
// here; io.EOF when the connection is gone.
func (p *peer) next() (op byte, payload []byte, err error) {
	head := make([]byte, 2)
	if _, err = io.ReadFull(p.r, head); err != nil {
		return 0, nil, err
	}
	size := int(head[1])
	if size == 126 {
		long := make([]byte, 2)
		if _, err = io.ReadFull(p.r, long); err != nil {
			return 0, nil, err
		}
		size = int(binary.BigEndian.Uint16(long))
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(p.r, payload)
	return head[0] & 0x0f, payload, err
}

// send writes one short frame, under a mask of zeros.
func (p *peer) send(op byte, payload string) {
	p.t.Helper()
	if len(payload) > 125 {
		p.t.Fatal("a long frame")
	}
	frame := append([]byte{0x80 | op, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
	if _, err := p.conn.Write(frame); err != nil {
		p.t.Fatal(err)
	}
}

// farewell is what the server says until it closes.
type farewell struct {
	text, binary []string
	code         int // 0: no close frame came
	reason       string
}

func (p *peer) rest() (f farewell) {
	p.t.Helper()
	for {
		op, payload, err := p.next()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				p.t.Fatalf("waited %s for the end, after %+v", patience, f)
			}
			return f
		}
		switch op {
		case opText:
			f.text = append(f.text, string(payload))
		case opBinary:
			f.binary = append(f.binary, string(payload))
		case opClose:
			if len(payload) >= 2 {
				f.code, f.reason = int(binary.BigEndian.Uint16(payload)), string(payload[2:])
			}
			p.send(opClose, string(payload))
		}
	}
}

// message reads a control message of a type, pings left out.
func (p *peer) message(typ string) map[string]any {
	p.t.Helper()
	op, payload, err := p.next()
	for op == opPing {
		op, payload, err = p.next()
	}
	var m map[string]any
	if err != nil || op != opText || json.Unmarshal(payload, &m) != nil || m["type"] != typ {
		p.t.Fatalf("want message %q, got opcode %d %q, %v", typ, op, payload, err)
	}
	return m
}

// outcome is the code of how a request ended, wherever it was told, with the
// HTTP status or the close code.
func (p *peer) outcome() (string, int) {
	p.t.Helper()
	if p.status != http.StatusSwitchingProtocols {
		return p.problem().Code, p.status
	}
	f := p.rest()
	return f.reason, f.code
}

type problemBody struct {
	Title, Code, Detail string
	Status              int
}

func (p *peer) problem() (b problemBody) {
	p.t.Helper()
	if got := p.header.Get("Content-Type"); got != "application/problem+json" {
		p.t.Errorf("content type of a problem is %q", got)
	}
	if err := json.Unmarshal(p.body, &b); err != nil {
		p.t.Fatalf("problem %q: %v", p.body, err)
	}
	if b.Status != p.status || b.Title != http.StatusText(p.status) {
		p.t.Errorf("status %d is told as %+v", p.status, b)
	}
	return b
}

// spyStore is the real in-process store, watched.
type spyStore struct {
	*store.Memory
	during  func(context.Context) error // in Redeem, before the store; may be nil
	atEnd   func()                      // in Finish, before the store; may be nil
	pingErr error

	traceErr error        // of Trace
	holder   store.Holder // of a session on another replica; zero: none

	mu       sync.Mutex
	sessions []store.Session
	traces   map[string]map[string]string
	ends     map[string]store.End
	taken    map[string]int64 // the bytes of Settle
	lost     []string         // the sessions of Unreached
}

func (s *spyStore) Redeem(ctx context.Context, c ticket.Claims, session store.Session) (store.Workspace, error) {
	s.mu.Lock()
	s.sessions = append(s.sessions, session)
	s.mu.Unlock()
	if s.during != nil {
		if err := s.during(ctx); err != nil {
			return store.Workspace{}, err
		}
	}
	return s.Memory.Redeem(ctx, c, session)
}

func (s *spyStore) Trace(_ context.Context, id string, trail map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.traceErr == nil {
		if s.traces == nil {
			s.traces = map[string]map[string]string{}
		}
		s.traces[id] = trail
	}
	return s.traceErr
}

func (s *spyStore) Finish(ctx context.Context, id string, end store.End) error {
	if s.atEnd != nil {
		s.atEnd()
	}
	s.mu.Lock()
	s.ends[id] = end
	s.mu.Unlock()
	return s.Memory.Finish(ctx, id, end)
}

func (s *spyStore) Settle(ctx context.Context, id string, bytesOut int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == nil {
		s.taken = map[string]int64{}
	}
	s.taken[id] = bytesOut
	return s.Memory.Settle(ctx, id, bytesOut)
}

func (s *spyStore) settled(id string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken[id]
}

func (s *spyStore) Unreached(_ context.Context, _ ticket.Claims, id, replica string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = append(s.lost, id+"@"+replica)
	return nil
}

func (s *spyStore) HolderOf(context.Context, ticket.Claims, string, string) (store.Holder, error) {
	if s.holder.URL == "" {
		return store.Holder{}, store.ErrGone
	}
	return s.holder, nil
}

func (s *spyStore) Ping(context.Context) error { return s.pingErr }

func (s *spyStore) end(id string) store.End {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ends[id]
}

// fakeStarter starts shells that the test plays.
type fakeStarter struct {
	runner.Kind
	before func(context.Context) error // may be nil
	edit   func(*fakeTerm)             // may be nil

	trail    runner.Trail // of each start
	startErr error        // of each start; may be nil

	asked chan start // each start
}

type start struct {
	runner.Target
	terminal.Size
	*fakeTerm
}

func newStarter() *fakeStarter { return &fakeStarter{asked: make(chan start, 100)} }

func (f *fakeStarter) Start(ctx context.Context, target runner.Target, size terminal.Size) (terminal.Terminal, error) {
	if f.before != nil {
		if err := f.before(ctx); err != nil {
			return nil, err
		}
	}
	target.Trail.Add(f.trail)
	if f.startErr != nil {
		return nil, f.startErr
	}
	term := &fakeTerm{out: make(chan string), typed: make(chan string, 16), over: make(chan struct{})}
	if f.edit != nil {
		f.edit(term)
	}
	f.asked <- start{target, size, term}
	return term, nil
}

// fakeTerm is a shell that prints what the test says and takes all input.
type fakeTerm struct {
	out     chan string
	typed   chan string
	over    chan struct{}
	once    sync.Once
	exit    terminal.Exit
	onClose func()
	onWait  func()
}

func (f *fakeTerm) Read(p []byte) (int, error) {
	select {
	case s := <-f.out:
		return copy(p, s), nil
	case <-f.over:
		return 0, io.EOF
	}
}

func (f *fakeTerm) Write(p []byte) (int, error) {
	f.typed <- string(p)
	return len(p), nil
}

func (f *fakeTerm) TryRead([]byte, bool) (int, error) { return 0, nil }
func (f *fakeTerm) TryWrite([]byte) (int, error)      { return 0, nil }
func (f *fakeTerm) Resize(terminal.Size) error        { return nil }
func (f *fakeTerm) quit()                             { f.once.Do(func() { close(f.over) }) }

func (f *fakeTerm) Close() error {
	if f.onClose != nil {
		f.onClose()
	}
	f.quit()
	return nil
}

func (f *fakeTerm) Wait() (terminal.Exit, error) {
	if f.onWait != nil {
		f.onWait()
	}
	return f.exit, nil
}

// logged is a log that may be read while it is written.
type logged struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}
