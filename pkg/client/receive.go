package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/coder/websocket"
)

// maxMessage bounds a control message of the gateway, in bytes. The longest control
// message is an error.
const maxMessage = 64 << 10

// receive reads the gateway's messages until there is an error, and then ends the connection.
func (c *Conn) receive() {
	// The library fills the buffer before it returns, which has to be soon on a slow line, too.
	buf := make([]byte, 4<<10)
	for {
		typ, r, err := c.ws.Reader(context.Background())
		switch {
		case err != nil:
		case typ == websocket.MessageText:
			err = c.receiveControl(r)
		default:
			err = c.receiveOutput(r, buf)
		}
		if err != nil {
			c.finish(c.endOf(err))
			return
		}
	}
}

// hear notes that the gateway has sent something.
func (c *Conn) hear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
}

func (c *Conn) receiveOutput(r io.Reader, buf []byte) error {
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := c.keep(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// keep waits for room, and holds the output for Read.
func (c *Conn) keep(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.opened:
	default:
		return breach("the gateway sent output before it told that there is a shell")
	}
	c.heard = time.Now()
	for c.output.Len() >= maxOutput && c.end == nil && !c.closing {
		c.changed.Wait()
	}
	if n := min(c.skipped-c.rendered, int64(len(p))); n > 0 && c.output.Len() == 0 {
		p = p[n:]
		c.leaveOut(int(n))
	}
	if !c.closing {
		c.output.Write(p)
		c.changed.Broadcast()
	}
	return nil
}

// receiveControl takes a control message, and ignores an unknown type. A field that is
// missing or has another JSON type counts as empty.
func (c *Conn) receiveControl(r io.Reader) error {
	p, err := io.ReadAll(io.LimitReader(r, maxMessage+1))
	switch {
	case err != nil:
		return err
	case len(p) > maxMessage:
		return breach(fmt.Sprintf("the gateway sent a control message of more than %d bytes", maxMessage))
	}
	c.hear()
	var m struct {
		Type   string `json:"type"`
		ID     int64  `json:"id"`
		Signal string `json:"signal"`

		Session     string `json:"session"`
		Workspace   string `json:"workspace"`
		Target      string `json:"target"`
		Mode        string `json:"mode"`
		IdleTimeout int64  `json:"idle_timeout"`
		MaxSession  int64  `json:"max_session"`
		Tunnel      int64  `json:"tunnel"`
		Resume      int64  `json:"resume"`
		Resumed     bool   `json:"resumed"`
		Output      int64  `json:"output"`
		Input       int64  `json:"input"`
		Seconds     int64  `json:"seconds"`

		Code      json.RawMessage `json:"code"` // a number in exit, a word elsewhere
		Message   string          `json:"message"`
		Detail    string          `json:"detail"`
		Docs      string          `json:"docs"`
		Retryable any             `json:"retryable"`
	}
	_ = json.Unmarshal(p, &m) // skips a field of another type, and decodes the rest
	var word string
	_ = json.Unmarshal(m.Code, &word)
	switch m.Type {
	case "ready":
		c.open(Ready{
			Session: m.Session, Workspace: m.Workspace, Target: m.Target, Mode: m.Mode,
			IdleTimeout: seconds(m.IdleTimeout), MaxSession: seconds(m.MaxSession), Tunnel: seconds(m.Tunnel),
			Resume: seconds(m.Resume), Resumed: m.Resumed, Output: max(m.Output, 0), Input: max(m.Input, 0),
		})
	case "pong":
		c.pong(m.ID)
		if c.given != nil {
			c.given(c, max(m.Input, 0))
		}
	case "notice":
		if c.notice != nil {
			c.notice(Notice{Code: word, Left: seconds(m.Seconds), Message: m.Message})
		}
	case "exit":
		status := -1
		if json.Unmarshal(m.Code, &status) != nil {
			status = -1
		}
		c.mu.Lock()
		if c.exit == nil && c.refused == nil { // the first end is the cause
			c.exit = &Exit{Code: status, Signal: m.Signal}
		}
		c.mu.Unlock()
	case "error":
		c.mu.Lock()
		if c.exit == nil && c.refused == nil {
			c.refused = &refusal{Error{Code: word, Message: m.Message, Detail: m.Detail, Docs: m.Docs}, m.Retryable}
		}
		c.mu.Unlock()
	}
	return nil
}

// refusal is an error message. The close code follows the message.
type refusal struct {
	Error
	retryable any // a bool, unless the message had no such field
}

// seconds returns n seconds, 0 for a negative n, and the longest Duration if n is too large.
func seconds(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(max(n, 0), most)) * time.Second
}

func (c *Conn) open(ready Ready) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.opened: // the first counts
	default:
		c.ready = ready
		c.rendered, c.acked = ready.Output, ready.Output
		close(c.opened)
	}
}

// pong takes the answer to a ping, which also answers all older pings: pongs come in order.
func (c *Conn) pong(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.awaited) > 0 && c.awaited[0].id <= id {
		p := c.awaited[0]
		c.awaited = c.awaited[1:]
		c.heardAt = p.at
		c.trip = time.Since(p.left)
		for _, answer := range p.asked {
			answer <- c.trip
		}
	}
	c.changed.Broadcast()
}

// endOf returns the error for Read: from the gateway's exit or error message if it has
// sent one, else from the error that ended receive.
func (c *Conn) endOf(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var frame websocket.CloseError
	closed := errors.As(err, &frame)
	var is breach
	switch {
	case c.exit != nil:
		return io.EOF
	case c.refused != nil:
		end := c.refused.Error
		end.CloseCode = int(frame.Code)
		var told bool
		if end.Retryable, told = c.refused.retryable.(bool); !told {
			end.Retryable = retryableClose[end.CloseCode]
		}
		return &end
	case c.closing:
		return net.ErrClosed
	case closed:
		// The close frame's reason is the error's code.
		return &Error{Code: frame.Reason, CloseCode: int(frame.Code), Retryable: retryableClose[int(frame.Code)]}
	case errors.As(err, &is):
		return err
	default:
		return lost(err)
	}
}

// breach is a breach of the protocol by the gateway.
type breach string

func (b breach) Error() string { return string(b) }

// lost returns the error of a lost connection. It does not wrap err, which may be
// io.EOF, because Read's io.EOF means that the shell ended.
func lost(err error) error {
	switch err = root(err); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return errors.New("the connection to the gateway is lost")
	default:
		return fmt.Errorf("the connection to the gateway is lost: %v", err) //nolint:errorlint // see above
	}
}

// root returns the error that others tell of: their words name parts of a library.
func root(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
