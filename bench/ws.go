package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 6455 section 4.2.2 asks for it
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// WebSocket opcodes (RFC 6455 section 11.8).
const (
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
	opPong   = 10
)

// wsConn is a WebSocket client of the benchmark's own (RFC 6455): it starts no
// goroutine, so that nothing but the socket stands between a byte's arrival and
// the clock, and it shares no code with what is measured.
type wsConn struct {
	net.Conn
	br   *bufio.Reader
	op   byte  // of the message being read
	fin  bool  // the frame being read is its message's last
	left int64 // bytes of the frame not yet read

	mu  sync.Mutex // output, acks and pongs are written by different goroutines
	buf []byte
}

// dialWS opens a WebSocket. protocols are offered as they are.
func dialWS(ctx context.Context, address string, protocols ...string) (*wsConn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	c := newWS(conn)
	if err := c.handshake(u, protocols); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

func newWS(conn net.Conn) *wsConn { return &wsConn{Conn: conn, br: bufio.NewReaderSize(conn, 4<<10)} }

func (c *wsConn) handshake(u *url.URL, protocols []string) error {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never fails
	key := base64.StdEncoding.EncodeToString(nonce[:])
	request := "GET " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host +
		"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key +
		"\r\nSec-WebSocket-Protocol: " + strings.Join(protocols, ", ") + "\r\n\r\n"
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c.Conn, request); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.br, nil) //nolint:bodyclose // what follows a 101 is the WebSocket
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // see the import
	if response.StatusCode != http.StatusSwitchingProtocols ||
		response.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
		return fmt.Errorf("handshake: answered %s", response.Status)
	}
	return c.SetDeadline(time.Time{})
}

// next goes to the next frame of data, whose opcode it sets. It answers pings.
// The end is io.EOF for close code 1000, and an error that tells any other.
func (c *wsConn) next() error {
	for {
		h, err := c.br.Peek(2)
		if err != nil {
			return err
		}
		op, size := h[0]&15, int64(h[1]&127)
		fin := h[0]&128 != 0
		head := 2
		if size >= 126 {
			head = 4
			if size == 127 {
				head = 10
			}
			if h, err = c.br.Peek(head); err != nil {
				return err
			}
			if head == 4 {
				size = int64(binary.BigEndian.Uint16(h[2:]))
			} else {
				size = int64(binary.BigEndian.Uint64(h[2:])) //nolint:gosec // a peer on this machine
			}
		}
		if _, err := c.br.Discard(head); err != nil {
			return err
		}
		if op < opClose {
			if op != 0 {
				c.op = op
			}
			c.fin, c.left = fin, size
			return nil
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(c.br, payload); err != nil {
			return err
		}
		switch op {
		case opPing:
			if err := c.send(opPong, payload); err != nil {
				return err
			}
		case opClose:
			_ = c.send(opClose, payload[:min(2, len(payload))]) // the peer may be gone
			return closed(payload)
		}
	}
}

func closed(payload []byte) error {
	if len(payload) < 2 {
		return io.EOF
	}
	if code := binary.BigEndian.Uint16(payload); code != 1000 {
		return fmt.Errorf("closed with %d %s", code, payload[2:])
	}
	return io.EOF
}

// read reads from the frame that next went to.
func (c *wsConn) read(p []byte) (int, error) {
	n, err := c.br.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// rest reads what is left of a message.
func (c *wsConn) rest() ([]byte, error) {
	var all []byte
	for {
		p := make([]byte, c.left)
		if _, err := io.ReadFull(c.br, p); err != nil {
			return nil, err
		}
		c.left = 0
		all = append(all, p...)
		if c.fin {
			return all, nil
		}
		if err := c.next(); err != nil {
			return nil, err
		}
	}
}

// send writes one masked frame in one write. The parts are its payload.
func (c *wsConn) send(op byte, parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	c.buf = append(c.buf[:0], 0x80|op)
	b := c.buf
	switch {
	case size < 126:
		b = append(b, 0x80|byte(size))
	case size < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(size))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(size))
	}
	mask := len(b)
	b = binary.LittleEndian.AppendUint32(b, mrand.Uint32()) //nolint:gosec // no proxy is here to be fooled
	start := len(b)
	for _, p := range parts {
		b = append(b, p...)
	}
	for i := range b[start:] {
		b[start+i] ^= b[mask+i%4]
	}
	c.buf = b
	_, err := c.Write(b)
	return err
}

// pending tells whether bytes of a frame are at hand.
func (c *wsConn) pending() bool { return c.left > 0 || c.br.Buffered() > 0 }
