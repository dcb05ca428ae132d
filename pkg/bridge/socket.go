package bridge

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// Socket is a client's WebSocket. The library shakes hands, reads, and closes;
// what the session sends goes to the wire directly.
type Socket struct {
	ws   *websocket.Conn
	wire *wire
	pong func(payload []byte) // set before the first read
}

// Accept upgrades a request. It does not look at the Origin, which is the
// caller's to check. After an error the request was answered. Without turns
// floods write as they like.
func Accept(w http.ResponseWriter, r *http.Request, turns Turns) (*Socket, error) {
	s := &Socket{pong: func([]byte) {}}
	h := &hijack{ResponseWriter: w, turns: turns}
	ws, err := websocket.Accept(h, r, &websocket.AcceptOptions{
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

// hijack puts the wire under the library, and gives it smaller buffers than
// net/http's 4 KiB each.
type hijack struct {
	http.ResponseWriter
	turns Turns
	wire  *wire
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
	if h.wire, err = newWire(conn, h.turns); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	early, _ := rw.Peek(rw.Reader.Buffered()) // sent before the answer: the library takes what is buffered
	reader := bufio.NewReaderSize(bytes.NewReader(bytes.Clone(early)), max(readBuffer, len(early)))
	_, _ = reader.Peek(len(early))
	return h.wire, bufio.NewReadWriter(reader, bufio.NewWriterSize(h.wire, writeBuffer)), nil
}

// closeTime bounds the whole of a goodbye. The library waits 5 s for a client's
// close frame, but for good for the rest of a frame that a client announced and
// does not send.
const closeTime = 8 * time.Second

// Refuse tells a client that gets no session why, and closes the WebSocket.
func (s *Socket) Refuse(code websocket.StatusCode, e Error) { s.farewell(code, &e) }

// CloseNow closes the connection without a word. It may be closed already.
func (s *Socket) CloseNow() { _ = s.ws.CloseNow() }

func (s *Socket) farewell(code websocket.StatusCode, e *Error) {
	now := time.Now()
	reason := "exit"
	if e != nil {
		reason = e.Code // short: past 123 bytes the library loses the code too
		_ = s.wire.SetWriteDeadline(now.Add(flushTime))
		if err := s.wire.send(opText, framed(e.Encode(s.v1()))); err != nil {
			s.CloseNow() // nobody takes it
			return
		}
	}
	_ = s.wire.SetDeadline(now.Add(closeTime))
	_ = s.ws.Close(code, reason) // fails when the client left first, which is no fault
}

func (s *Socket) v1() bool { return s.ws.Subprotocol() == Subprotocol }
