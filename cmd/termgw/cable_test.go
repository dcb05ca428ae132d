package main

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// cable is a TCP relay to a gateway. All that it carries can be cut, in several ways.
type cable struct {
	net.Listener
	to    string
	delay time.Duration // each way

	mu    sync.Mutex
	pairs []*pair    // that carry
	left  []net.Conn // ends that a cut has left open
	isOut bool       // nobody gets through
}

// pair is a client's connection and the connection to the gateway that goes with it.
type pair struct {
	client, gateway *net.TCPConn

	mu   sync.Mutex
	left cut // halfOpen, silent or unheard: how the ends were left open
}

// cut is a way in which connections end.
type cut int

const (
	byReset  cut = iota + 1
	byFIN        // without a close frame
	halfOpen     // for the client it is over; the gateway's machine goes on acknowledging what is sent
	silent       // for the client it is over; what the gateway sends is taken by nobody
	unheard      // nobody hears of it; what either sends is lost
)

// everyCut holds each way of which the client hears at once.
var everyCut = []cut{byReset, byFIN, halfOpen, silent}

func newCable(tb testing.TB, to string, delay time.Duration) *cable {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	line := &cable{Listener: l, to: to, delay: delay}
	var relays sync.WaitGroup
	relays.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			relays.Go(func() { line.relay(&relays, client.(*net.TCPConn)) })
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		line.cut(byFIN)
		line.cut(byFIN) // what the last cut has left
		relays.Wait()
	})
	return line
}

func (l *cable) relay(relays *sync.WaitGroup, client *net.TCPConn) {
	l.mu.Lock()
	to := l.to
	l.mu.Unlock()
	gateway, err := net.Dial("tcp", to)
	if err != nil {
		_ = client.Close()
		return
	}
	p := &pair{client: client, gateway: gateway.(*net.TCPConn)}
	l.mu.Lock()
	l.pairs = append(l.pairs, p)
	isOut := l.isOut
	l.mu.Unlock()
	if isOut {
		l.cut(byReset)
	}
	relays.Go(func() {
		l.copy(relays, p.client, p.gateway)
		if p.isLeft() != unheard {
			_ = p.client.Close()
		}
		if p.isLeft() == halfOpen || p.isLeft() == unheard {
			lose(p.gateway)
		}
	})
	l.copy(relays, p.gateway, p.client)
	switch p.isLeft() {
	case 0:
		_ = p.gateway.Close()
	case unheard:
		lose(p.client)
	}
}

// lose reads what a connection that is out of use sends, until it is closed.
func lose(conn *net.TCPConn) {
	_ = conn.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, conn)
}

// lead has new connections go to another gateway.
func (l *cable) lead(to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = to
}

// out has nobody get through, or somebody again.
func (l *cable) out(isOut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isOut = isOut
}

func (p *pair) isLeft() cut {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left
}

// copy copies until an end, each piece after the cable's delay.
func (l *cable) copy(relays *sync.WaitGroup, to, from *net.TCPConn) {
	if l.delay == 0 {
		_, _ = io.Copy(to, from)
		return
	}
	type piece struct {
		bytes []byte
		at    time.Time
	}
	pieces := make(chan piece, 1000)
	relays.Go(func() {
		defer close(pieces)
		for {
			p := make([]byte, 16<<10)
			n, err := from.Read(p)
			if err != nil {
				return
			}
			pieces <- piece{p[:n], time.Now().Add(l.delay)}
		}
	})
	for p := range pieces {
		time.Sleep(time.Until(p.at))
		_, _ = to.Write(p.bytes) // after an error the rest is dropped
	}
}

// cut ends all that is carried.
func (l *cable) cut(how cut) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.left {
		_ = c.Close()
	}
	l.left = nil
	for _, p := range l.pairs {
		if how >= halfOpen {
			p.mu.Lock()
			p.left = how
			p.mu.Unlock()
			l.left = append(l.left, p.gateway)
		} else {
			if how == byReset {
				_ = p.gateway.SetLinger(0)
			}
			_ = p.gateway.Close()
		}
		if how == unheard {
			l.left = append(l.left, p.client)
			_ = p.client.SetReadDeadline(time.Now())
			_ = p.gateway.SetReadDeadline(time.Now())
			continue
		}
		if how != byFIN {
			_ = p.client.SetLinger(0)
		}
		_ = p.client.Close()
	}
	l.pairs = nil
}
