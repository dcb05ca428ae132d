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
	// A tunnel that only stalls is noticed within the two together.
	pingEvery = 15 * time.Second
	pongTime  = 15 * time.Second
	// closeTime bounds a goodbye to an endpoint that does not answer.
	closeTime = 2 * time.Second
	// maxFrame splits a large write, so that a ping gets in between.
	maxFrame = 32 << 10
	// endSlack is how much before its time a tunnel's end may come.
	endSlack = 5 * time.Second
)

// wire is the TCP connection under a tunnel. It tells whether something
// arrives while someone listens: an answer to a ping is not seen while the
// tunnel's reader is busy elsewhere, which is no stall.
type wire struct {
	net.Conn
	reads   atomic.Uint64 // begun and ended, so odd while one waits
	written atomic.Uint64
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

// tunnel is a WebSocket as a net.Conn. Reads and writes go without a goroutine;
// one more watches for a stall and ends in Close.
//
// A deadline that passes ends the tunnel: half a frame cannot be taken back.
type tunnel struct {
	*wire
	ws     *websocket.Conn
	client *Client
	route  Route
	end    time.Time // of the tunnel's longest life, almost

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
	ws.SetReadLimit(-1) // read in pieces, never kept whole
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

// Close says goodbye, for a bounded time, and ends the tunnel. Whoever reads or
// writes is woken.
func (t *tunnel) Close() error {
	t.once.Do(func() {
		t.closed.Store(true)
		close(t.stop)
		_ = t.SetDeadline(time.Now().Add(closeTime))
		_ = t.ws.Close(websocket.StatusNormalClosure, "") // fails when the endpoint left first, which is no fault
		<-t.stopped
	})
	return nil
}

// explain is what the end of the WebSocket means.
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

// watch pings the endpoint, and ends a tunnel through which nothing comes.
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

// silent sends a ping, and tells whether nothing at all came for as long as an
// answer may take, although somebody read.
func (t *tunnel) silent() bool {
	ctx, cancel := context.WithTimeout(context.Background(), t.client.pongTime)
	defer cancel()
	reads, written := t.reads.Load(), t.written.Load()
	if t.ws.Ping(ctx) == nil {
		return false
	}
	nothingCame := func() bool { return reads%2 == 1 && reads == t.reads.Load() }
	if ctx.Err() != nil {
		return nothingCame() // the ping went out
	}
	// It did not: a large write goes before it, or is stuck.
	select {
	case <-t.stop:
		return false
	case <-ctx.Done():
		return nothingCame() && written == t.written.Load()
	}
}
