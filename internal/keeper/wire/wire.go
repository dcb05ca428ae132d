// Package wire is the protocol between a gateway and a keeper: the program on an instance that holds terminals.
//
// A connection carries one terminal. The gateway speaks first, by Open or Attach, and the keeper answers with Attached
// or Refused. All that follows is a stream of frames each way: a type, the length of the body in three bytes, the body.
//
// Output and input have absolute offsets: the number of bytes of the terminal before. The keeper keeps output until the
// gateway has acknowledged it, and the gateway keeps input until the keeper has. So whoever attaches goes on where the
// last connection was cut.
//
// Both sides have the same version: the keeper's file is named by its hash.
package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// Type is the type of a frame.
type Type byte

// Frames of the gateway.
const (
	Open   Type = 'O' // first: start a terminal; Opening
	Attach Type = 'A' // first: take over a terminal; Attachment
	Input  Type = 'I' // bytes for the program
	Grant  Type = 'G' // how many more bytes of output the keeper may send, and the offset up to which the gateway has output
	Resize Type = 'R' // columns and rows
	Probe  Type = 'P' // answered by Echo in turn with output
	Beat   Type = 'B' // the gateway lives
	Close  Type = 'C' // hang up, forget the terminal and close the connection
)

// Frames of the keeper.
const (
	Attached Type = 'a' // first: the offsets at which output begins, and input is expected
	Refused  Type = 'x' // first: why not, in words
	Output   Type = 'o' // bytes that the program printed
	Taken    Type = 't' // the offset up to which the program's terminal has input
	Echo     Type = 'p'
	Exit     Type = 'e' // after the last output: exit code, and the signal's name
)

// Unknown is the body of Refused where the keeper has no such terminal: it has ended, or is another's.
const Unknown = "no such terminal"

const (
	// Head is the length of a frame before its body, in bytes.
	Head = 4
	// MaxBody bounds the body of a frame, in bytes. Scripts are the longest.
	MaxBody = 128 << 10
	// MaxOutput bounds the body of a frame of output, in bytes.
	MaxOutput = 16 << 10
	// InputWindow bounds the input that is under way, or waits for the program, in bytes.
	InputWindow = 64 << 10
	// MinLease is the shortest lease.
	MinLease = time.Second
	// MaxSecret bounds a secret, in bytes.
	MaxSecret = 64
)

// ErrMalformed is the error of a frame that cannot be.
var ErrMalformed = errors.New("malformed frame")

// AppendHead appends a frame's head.
func AppendHead(b []byte, t Type, body int) []byte {
	return append(b, byte(t), byte(body>>16), byte(body>>8), byte(body)) //nolint:gosec // the length in bytes
}

// Append appends a frame.
func Append(b []byte, t Type, body []byte) []byte {
	return append(AppendHead(b, t, len(body)), body...)
}

// AppendOffsets appends a frame whose body is numbers.
func AppendOffsets(b []byte, t Type, offsets ...int64) []byte {
	b = AppendHead(b, t, 8*len(offsets))
	for _, n := range offsets {
		b = binary.BigEndian.AppendUint64(b, uint64(n)) //nolint:gosec // read back by Offsets
	}
	return b
}

// ParseHead reads the head of a frame. The body may be longer than MaxBody.
func ParseHead(head []byte) (t Type, body int) {
	return Type(head[0]), int(head[1])<<16 | int(head[2])<<8 | int(head[3])
}

// Offsets reads numbers of a body. None is negative.
func Offsets(body []byte, n int) ([]int64, error) {
	if len(body) != 8*n {
		return nil, ErrMalformed
	}
	offsets := make([]int64, n)
	for i := range offsets {
		if offsets[i] = int64(binary.BigEndian.Uint64(body[8*i:])); offsets[i] < 0 { //nolint:gosec // checked here
			return nil, ErrMalformed
		}
	}
	return offsets, nil
}

// Read reads a whole frame.
func Read(r io.Reader, most int) (Type, []byte, error) {
	var head [Head]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	t, n := ParseHead(head[:])
	if n > most {
		return 0, nil, ErrMalformed
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return t, body, err
}

// Opening starts a terminal.
type Opening struct {
	Session    string // names the terminal
	Secret     string // of whoever may attach
	Cols, Rows uint16
	// Lease is how long the keeper waits for a gateway that is silent before it hangs up.
	Lease  time.Duration
	Window int64 // bytes of output that the keeper may send
	Argv   []string
	Env    []string // beside the keeper's own environment
}

// Attachment takes over a terminal.
type Attachment struct {
	Session, Secret string
	Received        int64 // the offset up to which the gateway has output
	Window          int64
}

// Append appends the frame.
func (o *Opening) Append(b []byte) []byte {
	body := appendStrings(nil, o.Session, o.Secret)
	for _, n := range []int64{int64(o.Cols), int64(o.Rows), int64(o.Lease), o.Window, int64(len(o.Argv))} {
		body = binary.BigEndian.AppendUint64(body, uint64(n)) //nolint:gosec // none is negative
	}
	return Append(b, Open, appendStrings(appendStrings(body, o.Argv...), o.Env...))
}

// ParseOpening reads the body of an opening.
func ParseOpening(body []byte) (o Opening, err error) {
	p := parser{body: body}
	o.Session, o.Secret = p.string(), p.string()
	o.Cols, o.Rows = uint16(p.number(1000)), uint16(p.number(1000)) //nolint:gosec // bounded
	o.Lease, o.Window = time.Duration(p.number(int64(24*time.Hour))), p.number(1<<40)
	for n := p.number(1000); n > 0 && !p.bad; n-- {
		o.Argv = append(o.Argv, p.string())
	}
	for len(p.body) > 0 && !p.bad {
		o.Env = append(o.Env, p.string())
	}
	if p.bad || o.Session == "" || o.Secret == "" || len(o.Secret) > MaxSecret || o.Cols == 0 || o.Rows == 0 || o.Lease < MinLease || len(o.Argv) == 0 {
		return o, ErrMalformed
	}
	return o, nil
}

// Append appends the frame.
func (a *Attachment) Append(b []byte) []byte {
	body := appendStrings(nil, a.Session, a.Secret)
	body = binary.BigEndian.AppendUint64(body, uint64(a.Received))                  //nolint:gosec // not negative
	return Append(b, Attach, binary.BigEndian.AppendUint64(body, uint64(a.Window))) //nolint:gosec // not negative
}

// ParseAttachment reads the body of an attachment.
func ParseAttachment(body []byte) (a Attachment, err error) {
	p := parser{body: body}
	a = Attachment{p.string(), p.string(), p.number(1 << 62), p.number(1 << 40)}
	if p.bad || len(p.body) > 0 {
		return a, ErrMalformed
	}
	return a, nil
}

func appendStrings(b []byte, all ...string) []byte {
	for _, s := range all {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) //nolint:gosec // shorter than a frame
	}
	return b
}

type parser struct {
	body []byte
	bad  bool
}

func (p *parser) take(n int) []byte {
	if p.bad = p.bad || n > len(p.body); p.bad {
		return nil
	}
	taken := p.body[:n]
	p.body = p.body[n:]
	return taken
}

func (p *parser) string() string {
	length := p.take(4)
	if p.bad {
		return ""
	}
	return string(p.take(int(binary.BigEndian.Uint32(length))))
}

func (p *parser) number(most int64) int64 {
	b := p.take(8)
	if p.bad {
		return 0
	}
	n := int64(binary.BigEndian.Uint64(b)) //nolint:gosec // checked here
	if p.bad = n < 0 || n > most; p.bad {
		return 0
	}
	return n
}
