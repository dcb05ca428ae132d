package gateway

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/molecule-ai/termgw/pkg/router"
)

const (
	// proxyFixed is the size of a PROXY header's fixed part, whose last two bytes have the size of the rest.
	proxyFixed = 16
	// proxyRest bounds the rest, in bytes. The addresses take 36 of them, and what proxies add takes few hundred.
	proxyRest = 2 << 10
)

// introduce reads the PROXY header of a proxy's connection, byte for byte: what follows is read from the descriptor, so
// no reader may have taken more.
func (g *guest) introduce() {
	if !g.proxied {
		return
	}
	_ = g.SetReadDeadline(time.Now().Add(headerTimeout))
	g.client, g.unknown = readProxyHeader(g.stream, addrOf(g.stream.RemoteAddr()))
	_ = g.SetReadDeadline(time.Time{})                    // the server sets its own
	if g.unknown == nil || errors.Is(g.unknown, io.EOF) { // a connection without a byte is a probe of the port
		return
	}
	g.lobby.refused(g.stream.RemoteAddr(), g.unknown)
}

var errNoProxyHeader = errors.New("no PROXY header of version 2")

// readProxyHeader reads a PROXY header, and no byte more, and returns the client's address that it has; nil: the client is the proxy itself, or
// has no address that could be a client's. The error of a connection without a byte is io.EOF.
func readProxyHeader(conn io.Reader, proxy netip.Addr) (net.Addr, error) {
	header := make([]byte, proxyFixed, proxyFixed+64)
	if _, err := io.ReadFull(conn, header); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(header, proxyproto.SIGV2) {
		return nil, errNoProxyHeader
	}
	rest := int(binary.BigEndian.Uint16(header[proxyFixed-2:]))
	if rest > proxyRest {
		return nil, fmt.Errorf("a PROXY header of %d bytes, of %d at most", proxyFixed+rest, proxyFixed+proxyRest)
	}
	header = append(header, make([]byte, rest)...)
	if _, err := io.ReadFull(conn, header[proxyFixed:]); err != nil {
		return nil, fmt.Errorf("reading a PROXY header: %w", noEOF(err))
	}
	parsed, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(header)))
	if err != nil {
		return nil, fmt.Errorf("reading a PROXY header: %w", noEOF(err))
	}
	client, ok := parsed.SourceAddr.(*net.TCPAddr)
	if parsed.Command == proxyproto.LOCAL || !ok || !router.IsClientOf(proxy, addrOf(client)) {
		return nil, nil
	}
	return client, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// addrOf returns the IP address of a TCP connection's end, and of any other an invalid one.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
