package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pires/go-proxyproto"
)

func tcpAddr(s string) *net.TCPAddr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// proxyHeader returns a header as the library writes it.
func proxyHeader(tb testing.TB, version byte, from, to net.Addr, change ...func(*proxyproto.Header)) []byte {
	tb.Helper()
	h := proxyproto.HeaderProxyFromAddrs(version, from, to)
	for _, f := range change {
		f(h)
	}
	b, err := h.Format()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestProxyHeader(t *testing.T) {
	v4, v6 := tcpAddr("198.51.100.7:4711"), tcpAddr("[2001:db8::7]:4711")
	to4, to6 := tcpAddr("10.0.0.1:443"), tcpAddr("[2001:db8::1]:443")
	good := proxyHeader(t, 2, v4, to4)
	with := func(at int, b byte) []byte {
		h := bytes.Clone(good)
		h[at] = b
		return h
	}
	tlvs := func(size int) func(*proxyproto.Header) {
		return func(h *proxyproto.Header) {
			if err := h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_NOOP, Value: make([]byte, size)}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	local := func(h *proxyproto.Header) { h.Command = proxyproto.LOCAL }
	for _, test := range []struct {
		name   string
		header []byte
		want   string // "" for the proxy's own address
		fails  string
	}{
		{"IPv4", good, "198.51.100.7:4711", ""},
		{"IPv6", proxyHeader(t, 2, v6, to6), "[2001:db8::7]:4711", ""},
		{"with values", proxyHeader(t, 2, v4, to4, tlvs(500)), "198.51.100.7:4711", ""},
		{"a health check of the proxy's", proxyHeader(t, 2, v4, to4, local), "", ""},
		{"a health check without addresses", proxyHeader(t, 2, nil, nil), "", ""},
		{"a client of the proxy's unix socket", proxyHeader(t, 2, &net.UnixAddr{Net: "unix", Name: "/a"}, &net.UnixAddr{Net: "unix", Name: "/b"}), "", ""},
		{"no address of a client", proxyHeader(t, 2, tcpAddr("0.0.0.0:1"), to4), "", ""},
		{"multicast", proxyHeader(t, 2, tcpAddr("[ff02::1]:1"), to6), "", ""},
		{"another machine's loopback", proxyHeader(t, 2, tcpAddr("127.0.0.1:1"), to4), "", ""},
		{"UDP", proxyHeader(t, 2, &net.UDPAddr{IP: v4.IP, Port: 1}, &net.UDPAddr{IP: to4.IP, Port: 1}), "", ""},

		{"version 1", proxyHeader(t, 1, v4, to4), "", "no PROXY header of version 2"},
		{"version 3", with(12, 0x31), "", "unsupported"},
		{"an unknown command", with(12, 0x2f), "", "unsupported"},
		{"an unknown family", with(13, 0x41), "", "unsupported"},
		{"an unknown transport", with(13, 0x13), "", "unsupported"},
		{"an IPv6 address that is too short", with(13, 0x21), "", "invalid length"},
		{"a length that is too short", with(15, 11), "", "invalid length"},
		{"a length of more than is there", with(15, 13), "", "unexpected EOF"},
		{"a length of 64 KiB", with(14, 0xff), "", "at most"},
		{"values of 3 KB", proxyHeader(t, 2, v4, to4, tlvs(3000)), "", "at most"},
		{"no header", []byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), "", "no PROXY header of version 2"},
		{"TLS", append([]byte{22, 3, 1, 2, 0, 1, 0}, make([]byte, 20)...), "", "no PROXY header of version 2"},
		{"half of it", good[:20], "", "unexpected EOF"},
		{"half of the signature", good[:7], "", "unexpected EOF"},
		{"nothing", nil, "", "EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			const rest = "\x16\x03\x01 what follows"
			sent := test.header
			if test.fails == "" {
				sent = append(bytes.Clone(sent), rest...)
			}
			conn := iotest.OneByteReader(bytes.NewReader(sent))
			client, err := readProxyHeader(conn, netip.MustParseAddr("10.0.0.9"))
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) || client != nil {
					t.Errorf("%v, %v, want %q", client, err, test.fails)
				}
				if errors.Is(err, io.EOF) != (len(sent) == 0) {
					t.Errorf("%v is taken for a probe of the port", err)
				}
				return
			}
			got := ""
			if client != nil {
				got = client.String()
			}
			if err != nil || got != test.want {
				t.Errorf("%q, %v, want %q", got, err, test.want)
			}
			if left, _ := io.ReadAll(conn); string(left) != rest {
				t.Errorf("after the header comes %q", left)
			}
		})
	}
	// On the proxy's own machine a client may be a process there.
	client, err := readProxyHeader(bytes.NewReader(proxyHeader(t, 2, tcpAddr("127.0.0.1:1"), to4)), netip.Addr{})
	if err != nil || client == nil || client.String() != "127.0.0.1:1" {
		t.Errorf("%v, %v", client, err)
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add(proxyHeader(f, 2, tcpAddr("198.51.100.7:1"), tcpAddr("10.0.0.1:2")))
	f.Add(proxyHeader(f, 2, tcpAddr("[2001:db8::7]:1"), tcpAddr("[2001:db8::1]:2")))
	f.Add([]byte("PROXY TCP4 198.51.100.7 10.0.0.1 1 2\r\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		conn := bytes.NewReader(sent)
		client, err := readProxyHeader(conn, netip.MustParseAddr("10.0.0.9"))
		if err != nil && client != nil {
			t.Errorf("%v with %v", client, err)
		}
		if err == nil && !bytes.HasPrefix(sent, proxyproto.SIGV2) {
			t.Error("what is no header is taken for one")
		}
		if client != nil && (!addrOf(client).IsValid() || addrOf(client).IsLoopback() || addrOf(client).IsMulticast() || addrOf(client).IsUnspecified()) {
			t.Errorf("the client is %v", client)
		}
		if read := len(sent) - conn.Len(); read > proxyFixed+proxyRest {
			t.Errorf("%d bytes were read", read)
		}
	})
}
