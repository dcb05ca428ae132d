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
	left  []net.Conn // ends at the gateway that a cut has left open
}

// pair is a client's connection and the connection to the gateway that goes with it.
type pair struct {
	client, gateway *net.TCPConn

	mu   sync.Mutex
	left cut // halfOpen or silent: how the gateway's end was left open
}

// cut is a way in which connections end.
type cut int

const (
	byReset  cut = iota + 1
	byFIN        // without a close frame
	halfOpen     // for the client it is over; the gateway's machine goes on acknowledging what is sent
	silent       // for the client it is over; what the gateway sends is taken by nobody
)

// everyCut holds each way.
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
	gateway, err := net.Dial("tcp", l.to)
	if err != nil {
		_ = client.Close()
		return
	}
	p := &pair{client: client, gateway: gateway.(*net.TCPConn)}
	l.mu.Lock()
	l.pairs = append(l.pairs, p)
	l.mu.Unlock()
	relays.Go(func() {
		l.copy(relays, p.client, p.gateway)
		_ = p.client.Close()
		if p.isLeft() == halfOpen {
			_, _ = io.Copy(io.Discard, p.gateway)
		}
	})
	l.copy(relays, p.gateway, p.client)
	if p.isLeft() == 0 {
		_ = p.gateway.Close()
	}
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
		if how == halfOpen || how == silent {
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
		if how != byFIN {
			_ = p.client.SetLinger(0)
		}
		_ = p.client.Close()
	}
	l.pairs = nil
}
