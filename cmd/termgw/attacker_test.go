package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// attacker is a WebSocket client by hand (RFC 6455): it does what no library lets it do, and shares no code with one.
type attacker struct {
	net.Conn
	r    *bufio.Reader
	sent atomic.Int64 // bytes of frames that the gateway's machine has taken
}

// Opcodes, RFC 6455, 5.2; final is the bit of a message's last frame, and compressed RSV1, which permessage-deflate sets.
const (
	wsContinue   = 0x0
	wsText       = 0x1
	wsBinary     = 0x2
	wsClose      = 0x8
	wsFinal      = 0x80
	wsCompressed = 0x40
)

// attack shakes hands for a terminal.
func (g *served) attack(tb testing.TB, workspace, raw string, header ...string) *attacker {
	tb.Helper()
	a, err := g.tryAttack(tb, workspace, raw, header...)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func (g *served) tryAttack(tb testing.TB, workspace, raw string, header ...string) (*attacker, error) {
	tb.Helper()
	conn, err := net.Dial("tcp", g.address)
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { _ = conn.Close() })
	a := &attacker{Conn: conn, r: bufio.NewReader(conn)}
	lines := append([]string{fmt.Sprintf("GET /workspaces/%s/terminal HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: termgw.v1, termgw.ticket.%s", workspace, g.address, raw)}, header...)
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(a.r, nil)
	if err != nil {
		return nil, err
	}
	if extensions := response.Header.Get("Sec-WebSocket-Extensions"); response.StatusCode != http.StatusSwitchingProtocols || extensions != "" {
		return nil, fmt.Errorf("status %d, extensions %q", response.StatusCode, extensions)
	}
	return a, nil
}

// frame sends a frame, whose first byte is given. The mask is zero, and so the payload as it is.
func (a *attacker) frame(first byte, payload []byte) error {
	head := []byte{first, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint64(head[2:], uint64(len(payload)))
	for _, p := range [][]byte{head, payload} {
		n, err := a.Write(p)
		a.sent.Add(int64(n))
		if err != nil {
			return err
		}
	}
	return nil
}

// next reads a frame of the gateway's.
func (a *attacker) next() (first byte, payload []byte, err error) {
	var head [10]byte
	if _, err := io.ReadFull(a.r, head[:2]); err != nil {
		return 0, nil, err
	}
	size, more := uint64(head[1]), 0
	switch size {
	case 126:
		more = 2
	case 127:
		more = 8
	}
	if _, err := io.ReadFull(a.r, head[2:2+more]); err != nil {
		return 0, nil, err
	}
	switch more {
	case 2:
		size = uint64(binary.BigEndian.Uint16(head[2:]))
	case 8:
		size = binary.BigEndian.Uint64(head[2:])
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(a.r, payload)
	return head[0], payload, err
}

// output reads so many bytes of the terminal's output, and acknowledges none.
func (a *attacker) output(tb testing.TB, size int) {
	tb.Helper()
	_ = a.SetReadDeadline(time.Now().Add(patience))
	for size > 0 {
		first, payload, err := a.next()
		if err != nil {
			tb.Fatal(err)
		}
		switch first {
		case wsFinal | wsBinary:
			size -= len(payload)
		case wsFinal | wsClose:
			tb.Fatalf("closed: %q", payload)
		}
	}
}

// closed waits for the close frame, and returns its code.
func (a *attacker) closed(tb testing.TB) int {
	tb.Helper()
	_ = a.SetReadDeadline(time.Now().Add(patience))
	for {
		first, payload, err := a.next()
		if err != nil {
			tb.Fatalf("no close frame: %v", err)
		}
		if first == wsFinal|wsClose && len(payload) >= 2 {
			return int(binary.BigEndian.Uint16(payload))
		}
	}
}

func bySubject(subject string) func(*ticket.Claims) {
	return func(c *ticket.Claims) { c.Subject = subject }
}
