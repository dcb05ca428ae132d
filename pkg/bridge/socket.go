package bridge

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// Socket is a client's WebSocket, with the connection under it.
type Socket struct {
	*websocket.Conn
	net net.Conn
}

// Accept upgrades a request. It does not look at the Origin, which is the
// caller's to check. After an error the request was answered.
func Accept(w http.ResponseWriter, r *http.Request) (*Socket, error) {
	h := &hijack{ResponseWriter: w}
	ws, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		Subprotocols:       []string{Subprotocol},
		InsecureSkipVerify: true, // said above
	})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(-1) // ours are told with a message before the close
	return &Socket{ws, h.conn}, nil
}

// hijack keeps the connection that goes to the library.
type hijack struct {
	http.ResponseWriter
	conn net.Conn
}

func (h *hijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn = conn
	return conn, rw, err
}

// closeTime bounds the whole of a goodbye. The library waits 5 s for a client's
// close frame, but for good for the rest of a frame that a client announced and
// does not send.
const closeTime = 8 * time.Second

// Refuse tells a client that gets no session why, and closes the WebSocket.
func (s *Socket) Refuse(code websocket.StatusCode, e Error) { s.farewell(code, &e) }

func (s *Socket) farewell(code websocket.StatusCode, e *Error) {
	_ = s.net.SetDeadline(time.Now().Add(closeTime))
	reason := "exit"
	if e != nil {
		reason = e.Code // short: past 123 bytes the library loses the code too
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		defer cancel()
		if err := s.Write(ctx, websocket.MessageText, e.Encode(s.v1())); err != nil {
			_ = s.CloseNow() // nobody takes it
			return
		}
	}
	_ = s.Close(code, reason) // fails when the client left first, which is no fault
}

func (s *Socket) v1() bool { return s.Subprotocol() == Subprotocol }
