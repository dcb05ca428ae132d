package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/client"
	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// The client against the real bridge, over connections in memory that are cut at each byte.

// The two directions of a connection.
const (
	toGateway = iota
	toClient
)

// link is a connection in memory, with the kernels' buffers of both ends.
type link struct {
	mu      sync.Mutex
	changed sync.Cond
	held    [2][]byte // on its way, by direction
	carried [2]int    // bytes, by direction
	cutAt   [2]int    // the connection is cut when so many were carried; negative: never
	silent  bool      // a cut tells nobody
	dead    bool      // cut
	closed  [2]bool   // the end that writes in a direction was closed
	read    [2]time.Time
}

func newLink(cutAt [2]int, silent bool) *link {
	l := &link{cutAt: cutAt, silent: silent}
	l.changed.L = &l.mu
	return l
}

// end is one end of a link, which writes in one direction.
type end struct {
	*link
	writes int
}

func (e end) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	from := 1 - e.writes
	for {
		deadline := e.read[e.writes]
		switch {
		case e.closed[e.writes]:
			return 0, net.ErrClosed
		case !deadline.IsZero() && !time.Now().Before(deadline):
			return 0, os.ErrDeadlineExceeded
		case len(e.held[from]) > 0:
			n := copy(p, e.held[from])
			e.held[from] = e.held[from][n:]
			return n, nil
		case e.dead && !e.silent:
			return 0, errors.New("connection reset")
		case e.closed[from] && !e.dead:
			return 0, io.EOF
		}
		e.changed.Wait()
	}
}

func (e end) Write(p []byte) (n int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.changed.Broadcast()
	switch {
	case e.closed[e.writes]:
		return 0, net.ErrClosed
	case !e.dead:
		n = len(p)
		if left := e.cutAt[e.writes] - e.carried[e.writes]; e.cutAt[e.writes] >= 0 && left <= n {
			n, e.dead = left, true
		}
		e.held[e.writes] = append(e.held[e.writes], p[:n]...)
		e.carried[e.writes] += n
	}
	if e.dead && !e.silent && n < len(p) {
		return n, errors.New("broken pipe")
	}
	return len(p), nil // what is written to a silent line is lost
}

func (e end) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed[e.writes] = true
	e.changed.Broadcast()
	return nil
}

func (e end) SetReadDeadline(at time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.read[e.writes] = at
	e.changed.Broadcast()
	if !at.IsZero() {
		time.AfterFunc(max(time.Until(at), 0), func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.changed.Broadcast()
		})
	}
	return nil
}

func (e end) SetDeadline(at time.Time) error { return e.SetReadDeadline(at) }
func (end) SetWriteDeadline(time.Time) error { return nil } // a write never waits
func (end) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (end) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (l *link) bytes(direction int) (bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.carried[direction]
}

// network is where the connections of a test begin. Each is cut as cuts says, the n-th from 0.
type network struct {
	cuts  func(n int) (cutAt [2]int, silent bool)
	conns chan net.Conn
	over  sync.Once // closes conns

	mu    sync.Mutex
	links []*link
}

func (n *network) dial(context.Context, string, string) (net.Conn, error) {
	n.mu.Lock()
	l := newLink(n.cuts(len(n.links)))
	n.links = append(n.links, l)
	n.mu.Unlock()
	n.conns <- end{l, toClient}
	return end{l, toGateway}, nil
}

func (n *network) Accept() (net.Conn, error) {
	conn, ok := <-n.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (n *network) Close() error { n.over.Do(func() { close(n.conns) }); return nil }
func (*network) Addr() net.Addr { return &net.TCPAddr{} }

// echoing is a program that prints greeting bytes, and then so many for each byte of input; it ends after all of the input.
type echoing struct {
	mu      sync.Mutex
	changed sync.Cond
	input   []byte
	printed int
	closed  bool
}

const (
	greeting = 200
	perByte  = 3
)

// script is what the person types, message by message; one has a length of two bytes in its frame.
var script = [][]byte{[]byte("a"), []byte("bc"), bytes.Repeat([]byte("d"), 130), []byte("e")}

var (
	wantInput  = bytes.Join(script, nil)
	wantOutput = shows(0, greeting+perByte*len(wantInput))
)

// shows returns output from an offset on: each byte tells where it belongs.
func shows(from, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte((from + i) * 131 >> 3)
	}
	return p
}

func (e *echoing) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		n := min(greeting+perByte*len(e.input)-e.printed, len(p))
		switch {
		case e.closed, n == 0 && len(e.input) == len(wantInput):
			return 0, io.EOF
		case n > 0:
			copy(p, shows(e.printed, n))
			e.printed += n
			return n, nil
		}
		e.changed.Wait()
	}
}

func (e *echoing) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.input = append(e.input, p...)
	e.changed.Broadcast()
	return len(p), nil
}

func (e *echoing) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.changed.Broadcast()
	return nil
}

func (e *echoing) TryRead([]byte, bool) (int, error) { return 0, nil }
func (e *echoing) TryWrite(p []byte) (int, error)    { return e.Write(p) }
func (e *echoing) Resize(terminal.Size) error        { return nil }
func (e *echoing) Wait() (terminal.Exit, error)      { return terminal.Exit{Code: 3}, nil }

// waitingGateway is the gateway of a test: sessions and bridges, and no tickets.
type waitingGateway struct {
	t       *testing.T
	wg      sync.WaitGroup
	leaving sync.WaitGroup // calls of Gone

	mu       sync.Mutex
	sessions []*session.Session // by number, which is their id
	programs []*echoing
}

func (g *waitingGateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ws, err := bridge.Accept(w, r)
	if err != nil {
		return // it was cut
	}
	g.wg.Go(func() {
		asked, err := strconv.Atoi(r.URL.Query().Get("resume"))
		if err != nil {
			g.open(ws)
			return
		}
		g.mu.Lock()
		s := g.sessions[asked]
		g.mu.Unlock()
		output, err := strconv.ParseInt(r.URL.Query().Get("output"), 10, 64)
		if err == nil {
			err = bridge.Resume(ws, s, g.options(asked), terminal.Size{}, output)
		}
		if err != nil {
			g.t.Errorf("resuming with output %d: %v", output, err)
			ws.CloseNow()
		}
	})
}

func (g *waitingGateway) options(id int) bridge.Options {
	return bridge.Options{
		Ready:        bridge.Ready{Session: strconv.Itoa(id), Mode: "rw", Resume: time.Hour},
		PingInterval: 25 * time.Second, ExitClose: 1000,
		Gone: func(b *bridge.Bridge, cause error) {
			g.leaving.Add(1)
			defer g.leaving.Done()
			if errors.Is(cause, bridge.ErrTakenOver) {
				b.Close(context.Background(), 4412, &bridge.Error{Code: "taken_over"})
				return
			}
			b.Drop()
			b.Close(context.Background(), 0, nil)
		},
	}
}

func (g *waitingGateway) open(ws *bridge.Socket) {
	program := &echoing{}
	program.changed.L = &program.mu
	s := session.New(program, session.Options{Resume: time.Hour})
	g.mu.Lock()
	id := len(g.sessions)
	g.sessions, g.programs = append(g.sessions, s), append(g.programs, program)
	g.mu.Unlock()
	bridge.New(ws, s, g.options(id))
	sum := s.Run(context.Background())
	if b, ok := sum.Owner.(*bridge.Bridge); ok {
		b.Close(context.Background(), 1000, nil)
	}
	s.Join()
}

// types types the script, each message once the output of the one before has come.
func types(s *client.Session, has func(n int)) error {
	typed := 0
	for _, message := range script {
		has(greeting + perByte*typed)
		s.Resize(80+typed, 24)
		if _, err := s.Write(message); err != nil {
			return err
		}
		typed += len(message)
	}
	return nil
}

// play runs a session over connections that are cut, in a bubble, and returns the bytes that the first connection carried. Its
// reader pauses before each read.
func play(t *testing.T, cuts func(n int) (cutAt [2]int, silent bool), pauses ...func()) (carried [2]int, connections int) {
	t.Helper()
	n := &network{cuts: cuts, conns: make(chan net.Conn, 100)}
	g := &waitingGateway{t: t}
	server := &http.Server{Handler: g, ReadHeaderTimeout: 10 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(n) })
	transport := &http.Transport{DialContext: n.dial, DisableKeepAlives: true}
	config := client.Config{URL: "ws://gateway.test/", HTTPClient: &http.Client{Transport: transport}}

	var s *client.Session
	err := errors.New("not opened")
	for try := 0; err != nil && try < 100; try++ { // a shell that was cut off before the client heard of it waits for nobody
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		s, err = client.Open(ctx, config, func(context.Context) (string, error) { return ticket, nil }, func(status client.Status) {
			if status.New {
				t.Error("a new shell")
			}
		})
		cancel()
	}
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu     sync.Mutex
		output []byte
		failed error
		more   = sync.NewCond(&mu)
		typist sync.WaitGroup
	)
	typist.Go(func() {
		err := types(s, func(n int) {
			mu.Lock()
			defer mu.Unlock()
			for len(output) < n && failed == nil {
				more.Wait()
			}
		})
		if err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	buf := make([]byte, 100)
	for failed == nil {
		for _, pause := range pauses {
			pause()
		}
		m, err := s.Read(buf)
		mu.Lock()
		output, failed = append(output, buf[:m]...), err
		more.Broadcast()
		mu.Unlock()
	}
	typist.Wait()
	if !errors.Is(failed, io.EOF) || s.Exit().Code != 3 || !bytes.Equal(output, wantOutput) {
		t.Errorf("%v, exit %+v, %d bytes of output, want %d", failed, s.Exit(), len(output), len(wantOutput))
	}
	id, _ := strconv.Atoi(s.Ready().Session)
	_ = s.Close()
	g.mu.Lock()
	if got := g.programs[id].input; !bytes.Equal(got, wantInput) {
		t.Errorf("the program has read %d bytes, want %d", len(got), len(wantInput))
	}
	g.mu.Unlock()
	_ = server.Close()
	serving.Wait()
	synctest.Wait()
	g.wg.Wait() // for the time of a shell that nobody knows of, too
	synctest.Wait()
	g.leaving.Wait()
	transport.CloseIdleConnections()
	return [2]int{n.links[0].bytes(toGateway), n.links[0].bytes(toClient)}, len(n.links)
}

// TestCutAtEachByte: wherever a connection is cut, in a handshake or in a frame of any kind, in either direction, by a reset or
// in silence, no byte of output or input is lost or comes twice.
func TestCutAtEachByte(t *testing.T) {
	t.Parallel()
	var whole [2]int
	synctest.Test(t, func(t *testing.T) {
		whole, _ = play(t, func(int) ([2]int, bool) { return [2]int{-1, -1}, false })
	})
	for direction, name := range []string{"to the gateway", "to the client"} {
		for _, silent := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, silent %v", name, silent), func(t *testing.T) {
				t.Parallel()
				cuts := 0
				for at := range whole[direction] {
					synctest.Test(t, func(t *testing.T) {
						_, connections := play(t, func(n int) ([2]int, bool) {
							cutAt := [2]int{-1, -1}
							if n == 0 {
								cutAt[direction] = at
							}
							return cutAt, silent
						})
						if connections > 1 { // else there were fewer acknowledgements this time
							cuts++
						}
					})
					if t.Failed() {
						t.Fatalf("cut after %d bytes", at)
					}
				}
				if cuts < whole[direction]*3/4 {
					t.Errorf("%d cuts in %d bytes", cuts, whole[direction])
				}
			})
		}
	}
}

// TestCutAgainAndAgain: the same where each connection is cut somewhere.
func TestCutAgainAndAgain(t *testing.T) {
	t.Parallel()
	for seed := range uint64(1000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		synctest.Test(t, func(t *testing.T) {
			play(t, func(n int) ([2]int, bool) {
				cutAt := [2]int{-1, -1}
				if n < 20 {
					cutAt[rnd.IntN(2)] = rnd.IntN(1500)
				}
				return cutAt, rnd.IntN(2) == 0
			}, func() {
				if slowly := rand.New(rand.NewPCG(seed, 2)); slowly.IntN(2) == 0 {
					time.Sleep(time.Duration(slowly.IntN(5000)) * time.Millisecond)
				}
			})
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestUnheardShell: a shell whose first client was never heard, and may not know of it, does not wait as long as others.
func TestUnheardShell(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			play(t, func(n int) ([2]int, bool) {
				if n == 0 {
					return [2]int{-1, 0}, silent // the request comes, and no answer
				}
				return [2]int{-1, -1}, silent
			})
			if lasted := time.Since(began); lasted > 5*time.Minute {
				t.Errorf("the last shell ended after %s", lasted)
			}
		})
	}
}
