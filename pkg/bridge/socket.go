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

// Socket is a client's WebSocket. The library shakes hands, reads, and closes;
// what the session sends goes to the wire directly.
type Socket struct {
	// Lingers is called once the client was told the end, and only its answer is
	// waited for; what it returns is called when that is over. Drop ends the waiting.
	// May be nil; set it before Refuse, or before the Bridge is closed.
	Lingers func(drop func()) (over func())

	ws   *websocket.Conn
	wire *wire
	pong func(payload []byte) // set before the first read
}

// Accept upgrades a request. It does not look at the Origin, which is the
// caller's to check. After an error the request was answered.
func Accept(w http.ResponseWriter, r *http.Request) (*Socket, error) {
	s := &Socket{pong: func([]byte) {}}
	h := &hijack{ResponseWriter: w}
	ws, err := websocket.Accept(h, offering(r), &websocket.AcceptOptions{
		Subprotocols:       []string{Subprotocol},
		InsecureSkipVerify: true, // said above
		OnPongReceived:     func(_ context.Context, payload []byte) { s.pong(payload) },
	})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(-1) // ours are told with a message before the close
	s.ws, s.wire = ws, h.wire
	if !s.v1() {
		s.wire.limitUnsent()
	}
	return s, nil
}

// offering is a request that offers our subprotocol, exactly, or none. The
// library takes any case and answers in the client's; a client, for which case
// matters (RFC 6455, 4.1), would speak another than we do.
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

// hijack puts the wire under the library, and gives it smaller buffers than
// net/http's 4 KiB each.
type hijack struct {
	http.ResponseWriter
	wire *wire
}

// Sizes of the library's buffers, in bytes: a keystroke or an acknowledgement is
// read at once, and what is larger is read past the buffer; all that is written
// are control frames (RFC 6455, 5.5: 125 bytes, and a header).
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
	early, _ := rw.Peek(rw.Reader.Buffered()) // sent before the answer: the library takes what is buffered
	reader := bufio.NewReaderSize(bytes.NewReader(bytes.Clone(early)), max(readBuffer, len(early)))
	_, _ = reader.Peek(len(early))
	return h.wire, bufio.NewReadWriter(reader, bufio.NewWriterSize(h.wire, writeBuffer)), nil
}

// closeTime bounds the whole of a goodbye to a client that is refused or cut.
// The library waits 5 s for a client's close frame, but for good for the rest of
// a frame that a client announced and does not send.
const closeTime = 8 * time.Second

// Refuse tells a client that gets no session why, and closes the WebSocket.
func (s *Socket) Refuse(code websocket.StatusCode, e Error) { s.farewell(code, e) }

// CloseNow closes the connection without a word. It may be closed already.
func (s *Socket) CloseNow() { _ = s.ws.CloseNow() }

func (s *Socket) farewell(code websocket.StatusCode, e Error) {
	now := time.Now()
	_ = s.wire.SetWriteDeadline(now.Add(flushTime))
	err := s.wire.send(opText, framed(e.Encode(s.v1())))
	if err == nil {
		err = s.wire.send(opClose, framed(closing(code, e.Code)))
	}
	if err != nil {
		s.CloseNow() // nobody takes it
		return
	}
	defer s.lingers()()
	_ = s.wire.SetDeadline(now.Add(closeTime))
	_ = s.ws.Close(code, e.Code) // waits; fails when the client left first, which is no fault
}

// lingers tells that the client is waited for; it returns what tells the end of that.
func (s *Socket) lingers() (over func()) {
	if s.Lingers == nil {
		return func() {}
	}
	return s.Lingers(func() { _ = s.wire.Close() })
}

// closing is the payload of a close frame.
func closing(code websocket.StatusCode, reason string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...) //nolint:gosec // RFC 6455, 7.4: 16 bits
}

func (s *Socket) v1() bool { return s.ws.Subprotocol() == Subprotocol }
