package awsplay

import (
	"net"
	"sync"
)

// wireListener accepts connections that can be cut and stalled.
type wireListener struct{ net.Listener }

func (l wireListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wire{Conn: conn, stalled: make(chan struct{}), closed: make(chan struct{})}, nil
}

// wire is a client's TCP connection, below TLS.
type wire struct {
	net.Conn
	stalled, closed      chan struct{}
	stallOnce, closeOnce sync.Once
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if w.held() {
		return 0, net.ErrClosed
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	if w.held() {
		return 0, net.ErrClosed
	}
	return w.Conn.Write(p)
}

// held reports whether the connection is stalled, after it has waited for the end of a stalled one.
func (w *wire) held() bool {
	select {
	case <-w.stalled:
		<-w.closed
		return true
	default:
		return false
	}
}

func (w *wire) Close() error {
	w.closeOnce.Do(func() { close(w.closed) })
	return w.Conn.Close()
}

func (w *wire) stall() { w.stallOnce.Do(func() { close(w.stalled) }) }

// cut resets the connection, without a TLS or WebSocket close.
func (w *wire) cut() {
	if tcp, ok := w.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = w.Close()
}
