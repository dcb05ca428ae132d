package bridge

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// Socket is a client's WebSocket. The library shakes hands, reads, and closes; the
// bridge sends on the wire directly.
type Socket struct {
	// Lingers is called when the client was told the end and only the answer is
	// waited for. Drop ends the wait; over is called after it. May be nil; to be set
	// before Refuse, or before the Bridge is closed.
	Lingers func(drop func()) (over func())

	ws   *websocket.Conn
	wire *wire
	pong func(payload []byte) // set before the first read
}

// Accept upgrades a request, whose Origin the caller has checked. After an error the
// request was answered.
func Accept(w http.ResponseWriter, r *http.Request) (*Socket, error) {
	s := &Socket{pong: func([]byte) {}}
	h := &hijack{ResponseWriter: w}
	ws, err := websocket.Accept(h, offering(r), &websocket.AcceptOptions{
		Subprotocols:       []string{Subprotocol},
		InsecureSkipVerify: true, // the caller checks the Origin
		OnPongReceived:     func(_ context.Context, payload []byte) { s.pong(payload) },
	})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(-1) // the bridge has limits of its own, and tells them by an error message
	s.ws, s.wire = ws, h.wire
	if !s.V1() {
		s.wire.limitUnsent()
	}
	return s, nil
}

// offering returns a request that offers Subprotocol, in this spelling, or none. The
// library ignores case and answers in the client's spelling; for a client case matters
// (RFC 6455, 4.1), and the two would speak different protocols.
func offering(r *http.Request) *http.Request {
	const name = "Sec-WebSocket-Protocol"
	var ours []string
	for _, line := range r.Header[http.CanonicalHeaderKey(name)] {
		for offered := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(offered) == Subprotocol {
				ours = []string{Subprotocol}
			}
		}
	}
	only := *r
	only.Header = maps.Clone(r.Header)
	only.Header[http.CanonicalHeaderKey(name)] = ours
	return &only
}

// hijack puts the wire under the library, with smaller buffers than the 4 KiB each of
// net/http.
type hijack struct {
	http.ResponseWriter
	wire *wire
}

// Sizes of the library's buffers, in bytes. A keystroke or an acknowledgement fits the
// first, and larger reads bypass it; only control frames are written (RFC 6455, 5.5:
// 125 bytes, and a header).
const (
	readBuffer  = 256
	writeBuffer = 136
)

func (h *hijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if h.wire, err = newWire(conn); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	early, _ := rw.Peek(rw.Reader.Buffered()) // sent before the answer: the library takes buffered bytes
	reader := bufio.NewReaderSize(bytes.NewReader(bytes.Clone(early)), max(readBuffer, len(early)))
	_, _ = reader.Peek(len(early))
	return h.wire, bufio.NewReadWriter(reader, bufio.NewWriterSize(h.wire, writeBuffer)), nil
}

// closeTime bounds the whole goodbye to a client that is refused or cut. The library
// waits 5 s for a client's close frame, but without a limit for the rest of a frame
// that the client announced and does not send.
const closeTime = 8 * time.Second

// Refuse tells a client why there is no session, and closes the WebSocket.
func (s *Socket) Refuse(code websocket.StatusCode, e Error) { s.farewell(code, e) }

// CloseNow closes the connection without a close frame.
func (s *Socket) CloseNow() { _ = s.ws.CloseNow() }

func (s *Socket) farewell(code websocket.StatusCode, e Error) {
	now := time.Now()
	_ = s.wire.SetWriteDeadline(now.Add(flushTime))
	err := s.wire.send(opText, framed(e.Encode(s.V1())))
	if err == nil {
		err = s.wire.send(opClose, framed(closing(code, e.Code)))
	}
	if err != nil {
		s.CloseNow()
		return
	}
	defer s.lingers()()
	_ = s.wire.SetDeadline(now.Add(closeTime))
	_ = s.ws.Close(code, e.Code) // waits for the answer; an error says that the client left first
}

// lingers calls Lingers, if it is set.
func (s *Socket) lingers() (over func()) {
	if s.Lingers == nil {
		return func() {}
	}
	return s.Lingers(func() { _ = s.wire.Close() })
}

// closing returns the payload of a close frame.
func closing(code websocket.StatusCode, reason string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...) //nolint:gosec // RFC 6455, 7.4: 16 bits
}

// Left reports whether the client is known to have left, before the first read: its request
// came late, say, and it has long tried another.
func (s *Socket) Left() bool { return s.wire.left() }

// V1 reports whether the client speaks termgw.v1, or else raw mode.
func (s *Socket) V1() bool { return s.ws.Subprotocol() == Subprotocol }
