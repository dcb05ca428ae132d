package store

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between a store and its server, counts what the client asks, and can be the network that fails.
type proxy struct {
	t        *testing.T
	listener net.Listener
	wg       sync.WaitGroup

	syncs    atomic.Int64 // Sync messages: each asks for an answer, so each is a round trip
	messages atomic.Int64
	silent   atomic.Bool  // what the server says is lost
	cuts     atomic.Int64 // how many of the next answers end the connection instead

	mu     sync.Mutex
	target string // empty: nobody answers
	conns  []net.Conn
}

// startProxy returns a proxy and the URL that leads through it.
func startProxy(t *testing.T, dsn string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listener: l, target: u.Host}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.closeAll()
		p.wg.Wait()
	})
	u.Host = l.Addr().String()
	return p, u.String()
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target := p.target
		p.mu.Unlock()
		server, err := net.Dial("tcp", target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.wg.Go(func() { p.requests(server, client); _ = server.Close() })
		p.wg.Go(func() { p.answers(client, server); _ = client.Close() })
	}
}

// lead has new connections lead to the server of a URL, or nowhere, and cuts the others.
func (p *proxy) lead(dsn string) {
	p.t.Helper()
	p.leadNew(dsn)
	p.closeAll()
}

// leadNew is lead for new connections alone.
func (p *proxy) leadNew(dsn string) {
	p.t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = u.Host
}

func (p *proxy) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

// requests copies message by message: the first has no type, all have a length (PostgreSQL manual, 55.7).
func (p *proxy) requests(server, client net.Conn) {
	for first := true; ; first = false {
		head := make([]byte, 5)
		if first {
			head = head[:4]
		}
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[len(head)-4:])-4)
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		if !first {
			p.messages.Add(1)
			if head[0] == 'S' || head[0] == 'Q' {
				p.syncs.Add(1)
			}
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return
		}
	}
}

func (p *proxy) answers(client, server net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				p.t.Logf("proxy: %v", err)
			}
			return
		}
		if p.silent.Load() {
			continue
		}
		if p.cuts.Load() > 0 && p.cuts.Add(-1) >= 0 {
			// With a reset, as a firewall does that has forgotten the connection; TestRestart sees an orderly end.
			if err := client.(*net.TCPConn).SetLinger(0); err != nil {
				p.t.Error(err)
			}
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}
