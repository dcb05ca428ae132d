package eice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

const (
	// A stalled tunnel is noticed within pingEvery + pongTime.
	pingEvery = 15 * time.Second
	pongTime  = 15 * time.Second
	// closeTime bounds the close handshake with an endpoint that does not answer.
	closeTime = 2 * time.Second
	// maxFrame is the size of the frames, in bytes, that a large write is split into, so that a ping gets in between.
	maxFrame = 32 << 10
	// endSlack is how long before its planned end AWS may end a tunnel.
	endSlack = 5 * time.Second
)

// wire is the TCP connection under a tunnel. It shows whether bytes arrive while a Read waits: while the tunnel's
// reader is busy elsewhere, the answer to a ping is not read, which is no stall.
type wire struct {
	net.Conn
	reads   atomic.Uint64 // Reads begun + Reads ended: odd while a Read waits
	written atomic.Uint64 // Writes ended
}

func (w *wire) Read(p []byte) (int, error) {
	w.reads.Add(1)
	defer w.reads.Add(1)
	return w.Conn.Read(p)
}

func (w *wire) Write(p []byte) (int, error) {
	defer w.written.Add(1)
	return w.Conn.Write(p)
}

// tunnel is a WebSocket as a net.Conn. Reads and Writes run in the caller's goroutine; another goroutine, joined by
// Close, watches for a stall.
//
// A deadline that passes ends the tunnel: half a frame cannot be taken back.
type tunnel struct {
	*wire
	ws     *websocket.Conn
	client *Client
	route  Route
	end    time.Time // of the longest life, less endSlack: an end after it is an expiry

	readMu sync.Mutex
	frame  io.Reader // the message being read

	writeMu sync.Mutex

	stop    chan struct{}
	stopped chan struct{}
	once    sync.Once
	closed  atomic.Bool
	stalled atomic.Bool
}

func (c *Client) newTunnel(ws *websocket.Conn, w *wire, route Route, end time.Time) *tunnel {
	ws.SetReadLimit(-1) // messages are read in pieces, never held whole
	t := &tunnel{
		wire: w, ws: ws, client: c, route: route, end: end,
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	go t.watch() // joined by Close
	return t
}

func (t *tunnel) Read(p []byte) (int, error) {
	t.readMu.Lock()
	defer t.readMu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if t.frame == nil {
			kind, frame, err := t.ws.Reader(context.Background())
			if err != nil {
				return 0, t.explain(err)
			}
			if kind != websocket.MessageBinary {
				_ = t.ws.CloseNow()
				return 0, fault(Answer, "the endpoint sent text through the tunnel")
			}
			t.frame = frame
		}
		n, err := t.frame.Read(p)
		if errors.Is(err, io.EOF) {
			t.frame, err = nil, nil
		}
		if err != nil {
			err = t.explain(err)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (t *tunnel) Write(p []byte) (int, error) {
	t.writeMu.Lock()
	defer t.writeMu.Unlock()
	written := 0
	for len(p) > 0 {
		part := p[:min(len(p), maxFrame)]
		if err := t.ws.Write(context.Background(), websocket.MessageBinary, part); err != nil {
			return written, t.explain(err)
		}
		written += len(part)
		p = p[len(part):]
	}
	return written, nil
}

// Close ends the tunnel, with a close handshake of at most closeTime. A Read or Write that waits returns net.ErrClosed.
func (t *tunnel) Close() error {
	t.once.Do(func() {
		t.closed.Store(true)
		close(t.stop)
		_ = t.SetDeadline(time.Now().Add(closeTime))
		_ = t.ws.Close(websocket.StatusNormalClosure, "") // an error if the endpoint left first, which is no fault
		<-t.stopped
	})
	return nil
}

// explain returns the error of Read and Write for an error of the WebSocket.
func (t *tunnel) explain(err error) error {
	if t.closed.Load() {
		return net.ErrClosed
	}
	if t.stalled.Load() {
		return fault(TunnelStalled, "the endpoint answers no ping")
	}
	closed, orderly := errors.AsType[websocket.CloseError](err)
	if orderly && strings.Contains(strings.ToLower(closed.Reason), "unable to connect to target") {
		t.client.Forget(t.route)
		return &Error{TargetUnreachable, scrub(fmt.Errorf("the endpoint closed the tunnel: %s", closed.Reason))}
	}
	if !t.client.now().Before(t.end) {
		return fault(TunnelExpired, "the tunnel's longest life is over")
	}
	switch {
	case orderly && (closed.Code == websocket.StatusNormalClosure || closed.Code == websocket.StatusGoingAway):
		return io.EOF
	case orderly:
		return &Error{TunnelCut, scrub(fmt.Errorf("the endpoint closed the tunnel: %d %s", closed.Code, closed.Reason))}
	}
	return &Error{TunnelCut, scrub(fmt.Errorf("the tunnel broke: %w", err))}
}

// watch pings the endpoint, and ends a silent tunnel.
func (t *tunnel) watch() {
	defer close(t.stopped)
	tick := time.NewTicker(t.client.pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
		}
		if t.silent() {
			t.stalled.Store(true)
			_ = t.ws.CloseNow()
			return
		}
	}
}

// silent sends a ping, and reports whether nothing at all arrived within pongTime while a Read waited.
func (t *tunnel) silent() bool {
	ctx, cancel := context.WithTimeout(context.Background(), t.client.pongTime)
	defer cancel()
	reads, written := t.reads.Load(), t.written.Load()
	if t.ws.Ping(ctx) == nil {
		return false
	}
	nothingCame := func() bool { return reads%2 == 1 && reads == t.reads.Load() }
	if ctx.Err() != nil {
		return nothingCame() // the ping was sent
	}
	// The ping was not sent: a large write is ahead of it, or stuck.
	select {
	case <-t.stop:
		return false
	case <-ctx.Done():
		return nothingCame() && written == t.written.Load()
	}
}
