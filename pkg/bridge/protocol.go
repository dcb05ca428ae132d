package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Subprotocol is the WebSocket subprotocol that carries control messages in
// text frames. A connection without it is in raw mode: terminal bytes only.
const Subprotocol = "termgw.v1"

// Limits of what a client may send, in bytes. A message over its limit ends
// the session with ErrTooLarge, however many frames it is split into.
const (
	MaxInput   = 1 << 20 // one binary message (or text, in raw mode)
	MaxControl = 4 << 10 // one termgw.v1 control message
)

// Ready is the first message of a session.
type Ready struct {
	Session     string
	Workspace   string
	Target      string // "local" or "remote"
	Mode        string // "rw" or "ro"
	IdleTimeout time.Duration
	MaxSession  time.Duration
	Resume      time.Duration // how long the shell waits for its person; 0: it does not
	Tunnel      time.Time     // when AWS cuts the terminal's tunnel, and the terminal with it; zero: the terminal outlives it
	resumed     bool
}

// Error is the message that tells a client why it is refused or cut. It is
// followed by the close frame.
type Error struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	Retryable bool   `json:"retryable"`
	Detail    string `json:"detail,omitempty"`
	Docs      string `json:"docs,omitempty"`
}

// Encode gives the frame that carries the error: the control message in
// termgw.v1, else the sentence alone, as a person at a raw terminal reads it.
func (e Error) Encode(v1 bool) []byte {
	if !v1 {
		return []byte(e.Message + "\r\n")
	}
	return encode(struct {
		Type string `json:"type"`
		Error
	}{"error", e})
}

func encodeReady(r Ready, at session.Resumed) []byte {
	type resume struct {
		Resume  int64 `json:"resume"`
		Resumed bool  `json:"resumed"`
		Output  int64 `json:"output"`
		Input   int64 `json:"input"`
	}
	var comes *resume
	if r.Resume > 0 || r.resumed {
		comes = &resume{int64(r.Resume / time.Second), r.resumed, at.Output, at.Input}
	}
	var tunnel int64
	if !r.Tunnel.IsZero() {
		tunnel = max(int64(time.Until(r.Tunnel)/time.Second), 1)
	}
	return encode(struct {
		Type        string `json:"type"`
		Session     string `json:"session"`
		Workspace   string `json:"workspace"`
		Target      string `json:"target"`
		Mode        string `json:"mode"`
		Window      int    `json:"window"`
		IdleTimeout int64  `json:"idle_timeout"`
		MaxSession  int64  `json:"max_session"`
		Tunnel      int64  `json:"tunnel,omitempty"` // seconds until AWS cuts it
		*resume
	}{
		"ready", r.Session, r.Workspace, r.Target, r.Mode, initialWindow,
		int64(r.IdleTimeout / time.Second), int64(r.MaxSession / time.Second), tunnel, comes,
	})
}

func encodeExit(e terminal.Exit) []byte {
	return encode(struct {
		Type   string `json:"type"`
		Signal string `json:"signal,omitempty"`
		Code   int    `json:"code"`
	}{"exit", e.Signal, e.Code})
}

func encodeNotice(n session.Notice) []byte {
	return encode(struct {
		Type    string `json:"type"`
		Code    string `json:"code"`
		Seconds int64  `json:"seconds"`
		Message string `json:"message"`
	}{"notice", n.Code, n.Seconds(), n.Message})
}

func encodePong(id json.Number, input int64) []byte {
	return encode(struct {
		Type  string      `json:"type"`
		ID    json.Number `json:"id"`
		Input int64       `json:"input"`
	}{"pong", id, input})
}

// encode marshals a message of this file's own types, none of which can fail.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("bridge: encoding %T: %v", v, err))
	}
	return b
}

// control is a message from a client. Type is empty for a message of a type
// that this version does not know, which is ignored.
type control struct {
	Type   string
	Size   terminal.Size // resize
	Bytes  int64         // ack
	ID     json.Number   // ping
	Hidden bool          // hidden
}

var errNotObject = errors.New("not a JSON object")

// parseControl reads one text frame. Unknown types and fields are ignored; a
// known type with a missing, mistyped or impossible field is an error, which
// never quotes what the client sent.
func parseControl(p []byte) (control, error) {
	if n, ok := parseAck(p); ok {
		return control{Type: "ack", Bytes: n}, nil
	}
	return parseAnyControl(p)
}

// parseAck reads an ack as JSON.stringify writes it. Thousands a second come of
// a flood, and the general way costs each ten times as much.
func parseAck(p []byte) (n int64, ok bool) {
	p, ok = bytes.CutPrefix(p, []byte(`{"type":"ack","bytes":`))
	if !ok {
		return 0, false
	}
	p, ok = bytes.CutSuffix(p, []byte("}"))
	if !ok || len(p) == 0 || len(p) > 18 || p[0] == '0' && len(p) > 1 {
		return 0, false
	}
	for _, c := range p {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, true
}

func parseAnyControl(p []byte) (control, error) {
	if t := bytes.TrimLeft(p, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return control{}, errNotObject
	}
	var m map[string]json.RawMessage // not a struct, whose fields take names in any case
	var typ string
	if json.Unmarshal(p, &m) != nil || m["type"] != nil && json.Unmarshal(m["type"], &typ) != nil {
		return control{}, errors.New("not a JSON object with a type")
	}
	switch typ {
	case "":
		return control{}, errors.New("no type")
	case "resize":
		var cols, rows int
		if json.Unmarshal(m["cols"], &cols) != nil || json.Unmarshal(m["rows"], &rows) != nil ||
			cols < 1 || cols > terminal.MaxDimension || rows < 1 || rows > terminal.MaxDimension {
			return control{}, fmt.Errorf("resize: cols and rows must be whole numbers from 1 to %d", terminal.MaxDimension)
		}
		return control{Type: typ, Size: terminal.Size{Cols: uint16(cols), Rows: uint16(rows)}}, nil
	case "ack":
		var n *int64
		if json.Unmarshal(m["bytes"], &n) != nil || n == nil || *n < 0 {
			return control{}, errors.New("ack: bytes must be a whole number, 0 or more")
		}
		return control{Type: typ, Bytes: *n}, nil
	case "ping":
		// A number goes back as it was written: no rounding of large ids.
		var id *json.Number
		raw := m["id"]
		if len(raw) == 0 || raw[0] == '"' || json.Unmarshal(raw, &id) != nil || id == nil || len(*id) > 32 {
			return control{}, errors.New("ping: id must be a number")
		}
		return control{Type: typ, ID: *id}, nil
	case "hidden":
		var hidden *bool
		if json.Unmarshal(m["hidden"], &hidden) != nil || hidden == nil {
			return control{}, errors.New("hidden: hidden must be true or false")
		}
		return control{Type: typ, Hidden: *hidden}, nil
	case "end":
		return control{Type: typ}, nil
	default:
		return control{}, nil
	}
}
