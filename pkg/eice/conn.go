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
	// closeTime bounds the close handshake with an endpoint that does not answer.
	closeTime = 2 * time.Second
	// maxFrame is the size of the frames, in bytes, that a large write is split into.
	maxFrame = 32 << 10
	// endSlack is how long before its planned end AWS may end a tunnel.
	endSlack = 5 * time.Second
)

// tunnel is a WebSocket as a net.Conn. Reads and Writes run in the caller's goroutine. Whoever carries bytes
// through it notices a silence.
//
// A deadline that passes ends the tunnel: half a frame cannot be taken back.
type tunnel struct {
	net.Conn // under the WebSocket
	ws       *websocket.Conn
	client   *Client
	route    Route
	end      time.Time // of the longest life, less endSlack: an end after it is an expiry

	readMu sync.Mutex
	frame  io.Reader // the message being read

	writeMu sync.Mutex

	once   sync.Once
	closed atomic.Bool
}

func (c *Client) newTunnel(ws *websocket.Conn, under net.Conn, route Route, end time.Time) *tunnel {
	ws.SetReadLimit(-1) // messages are read in pieces, never held whole
	return &tunnel{Conn: under, ws: ws, client: c, route: route, end: end}
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
		_ = t.SetDeadline(time.Now().Add(closeTime))
		_ = t.ws.Close(websocket.StatusNormalClosure, "") // an error if the endpoint left first, which is no fault
	})
	return nil
}

// explain returns the error of Read and Write for an error of the WebSocket.
func (t *tunnel) explain(err error) error {
	if t.closed.Load() {
		return net.ErrClosed
	}
	closed, orderly := errors.AsType[websocket.CloseError](err)
	if orderly && strings.Contains(strings.ToLower(closed.Reason), "unable to connect to target") {
		t.client.Forget(t.route)
		return &Error{Detail: TargetUnreachable, Err: scrub(fmt.Errorf("the endpoint closed the tunnel: %s", closed.Reason))}
	}
	if !t.client.now().Before(t.end) {
		return fault(TunnelExpired, "the tunnel's longest life is over")
	}
	switch {
	case orderly && (closed.Code == websocket.StatusNormalClosure || closed.Code == websocket.StatusGoingAway):
		return io.EOF
	case orderly:
		return &Error{Detail: TunnelCut, Err: scrub(fmt.Errorf("the endpoint closed the tunnel: %d %s", closed.Code, closed.Reason))}
	}
	return &Error{Detail: TunnelCut, Err: scrub(fmt.Errorf("the tunnel broke: %w", err))}
}
