package instance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// exchange reads what an sshd sends before it encrypts, on its way to ssh: lines of text, the greeting (RFC 4253, section
// 4.2), and the packets of the key exchange up to the host key (sections 6, 7.1 and 8; RFC 4419, section 3). The host key is
// checked before ssh has all of it, so a server with another key learns nothing, not even the user's name. ssh itself
// verifies that the server has the key's private half.
//
// All of it is the server's word, and bounded.
type exchange struct {
	// algorithms and hostKey are called by the goroutine that reads: with the types of host keys that the server has, and, once,
	// with the key that it shows. Their errors end the tunnel. May be nil.
	algorithms func(hostKeys []string) error
	hostKey    func(ssh.PublicKey) error

	buf  []byte // of a line or packet that is not whole yet
	over bool   // nothing more is read

	mu       sync.Mutex
	said     []byte // the first lines before the greeting
	begun    []byte // of the line after them
	greeting string
	key      ssh.PublicKey
	err      error // of a call
}

const (
	// textMost bounds the text before the greeting that is kept, lineMost a line, as OpenSSH's client does; in bytes.
	textMost = 300
	lineMost = 8 << 10
	// packetMost is the size, in bytes, of the packets that every implementation has to take (RFC 4253, section 6.1).
	packetMost = 35000
)

// Message numbers (RFC 4253, section 12; RFC 5656, section 4; RFC 4419, section 5). 31 is the key exchange's answer with the
// host key, or with group exchange the group, which is followed by 33.
const (
	msgKexInit       = 20
	msgNewKeys       = 21
	msgKexReply      = 31
	msgKexGroupReply = 33
)

// read reads the server's next bytes. Its error is that of a call.
func (e *exchange) read(b []byte) error {
	for len(b) > 0 && !e.over {
		var missing int
		if e.greets() != "" {
			if missing = e.missing(); missing < 0 {
				e.end()
				return nil
			}
		} else if end := bytes.IndexByte(b, '\n'); end >= 0 {
			missing = end + 1
		} else {
			missing = len(b)
		}
		n := min(missing, len(b))
		e.buf = append(e.buf, b[:n]...)
		b = b[n:]
		if err := e.whole(); err != nil {
			e.mu.Lock()
			e.err = err
			e.mu.Unlock()
			e.end()
			return err
		}
	}
	return nil
}

func (e *exchange) end() { e.over, e.buf = true, nil }

// greets returns the server's greeting on one line; "" before it has come.
func (e *exchange) greets() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.greeting
}

// missing returns how many bytes the packet in buf lacks at least; -1: it is none.
func (e *exchange) missing() int {
	if len(e.buf) < 4 {
		return 4 - len(e.buf)
	}
	size := binary.BigEndian.Uint32(e.buf)
	if size < 2 || size > packetMost {
		return -1
	}
	return 4 + int(size) - len(e.buf)
}

// whole takes the line or the packet in buf if it is whole.
func (e *exchange) whole() error {
	if e.greets() == "" {
		return e.line()
	}
	if e.missing() != 0 {
		return nil
	}
	packet := e.buf[4:]
	padding := int(packet[0])
	if 1+padding >= len(packet) {
		e.end()
		return nil
	}
	payload := packet[1 : len(packet)-padding]
	e.buf = e.buf[:0]
	return e.message(payload[0], payload[1:])
}

func (e *exchange) line() error {
	whole, long := bytes.HasSuffix(e.buf, []byte("\n")), len(e.buf) > lineMost
	e.mu.Lock()
	defer e.mu.Unlock()
	e.begun = append(e.begun[:0], e.buf[:min(len(e.buf), textMost)]...)
	switch {
	case whole && takenGreeting.Match(e.buf):
		e.greeting = shorten(string(e.buf))
	case whole, long:
		e.said = append(e.said, e.buf[:min(len(e.buf), textMost-len(e.said))]...)
	default:
		return nil
	}
	e.buf, e.begun = e.buf[:0], e.begun[:0]
	if long {
		e.end()
	}
	return nil
}

// takenGreeting matches the greeting of an SSH server of version 2 (RFC 4253, sections 4.2 and 5.1).
var takenGreeting = regexp.MustCompile(`^SSH-(2\.0|1\.99)-`)

// mayGreet reports whether a line that was cut short could have become a greeting.
func mayGreet(begun []byte) bool {
	const first = "SSH-"
	return strings.HasPrefix(first, string(begun[:min(len(begun), len(first))]))
}

// message reads a message of the key exchange.
func (e *exchange) message(number byte, body []byte) error {
	switch {
	case number == msgKexInit:
		if e.algorithms == nil {
			return nil
		}
		const cookie = 16
		if len(body) < cookie {
			return nil
		}
		_, rest, ok := cutString(body[cookie:]) // kex_algorithms
		hostKeys, _, ok2 := cutString(rest)
		if ok && ok2 {
			return e.algorithms(strings.Split(string(hostKeys), ","))
		}
	case number == msgKexReply, number == msgKexGroupReply:
		blob, _, ok := cutString(body)
		key, err := ssh.ParsePublicKey(blob)
		if !ok || err != nil {
			return nil // a group, say
		}
		e.end()
		e.mu.Lock()
		e.key = key
		e.mu.Unlock()
		if e.hostKey != nil {
			return e.hostKey(key)
		}
	case number >= msgNewKeys:
		e.end()
	}
	return nil
}

// cutString returns the string at the start of b (RFC 4251, section 5), and what is after it.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// shown returns the host key, or nil before the server has shown one.
func (e *exchange) shown() ssh.PublicKey {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.key
}

// refusal returns the error of a call, or why the server does not greet, if it said so; else nil.
func (e *exchange) refusal() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.err != nil:
		return e.err
	case e.greeting == "" && len(e.said) > 0:
		return notGreeted(string(e.said) + string(e.begun))
	case e.greeting == "" && !mayGreet(e.begun):
		return notGreeted(string(e.begun))
	}
	return nil
}

// Texts of an sshd in place of its greeting. Since OpenSSH 9.8 there is one text for PerSourcePenalties and for MaxStartups.
const (
	saysNotNow   = "Not allowed at this time"
	saysStartups = "Exceeded MaxStartups"
)

// notGreeted returns the failure of a server that says something else in place of its greeting.
func notGreeted(said string) error {
	step := "ssh_greeting"
	switch lines := strings.Split(strings.ReplaceAll(said, "\r\n", "\n"), "\n"); {
	case slices.Contains(lines, saysNotNow):
		step = "ssh_penalty"
	case slices.Contains(lines, saysStartups):
		step = "ssh_startups"
	}
	text := shorten(said)
	if text == "" {
		text = said[:min(len(said), 20)] // control characters, which are quoted
	}
	return failed(step, fmt.Errorf("in place of a greeting the instance says %q", text))
}

// Greeting reads an sshd's greeting, on one line. It returns a *runner.Failure if the server says something else and ends, as
// an sshd does that takes nobody for now, if it ends without a word, and after r's deadline.
func Greeting(r io.Reader) (string, error) {
	e := &exchange{}
	buf := make([]byte, 512)
	for most := 0; most < 8*lineMost && !e.over; {
		n, err := r.Read(buf)
		most += n
		_ = e.read(buf[:n]) // nothing is called
		if greeting := e.greets(); greeting != "" {
			return greeting, nil
		}
		if err != nil {
			if refused := e.refusal(); refused != nil {
				return "", refused
			}
			err = fmt.Errorf("waiting for sshd's greeting: %w", err)
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				err = failed("ssh_timeout", err)
			case errors.Is(err, io.EOF):
				err = failed("ssh_closed", err)
			}
			return "", err
		}
	}
	if refused := e.refusal(); refused != nil {
		return "", refused
	}
	return "", failed("ssh_greeting", errors.New("the instance sends no greeting"))
}
