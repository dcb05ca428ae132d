package router

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

const proxy = "10.0.0.1:40000"

var proxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("127.0.0.9/32")}

func TestOrigin(t *testing.T) {
	for _, test := range []struct {
		name    string
		origin  []string
		host    string
		tls     bool
		remote  string
		forward http.Header
		allowed []string
		ok      bool
	}{
		{name: "none: not a browser", host: "a.test", ok: true},
		{name: "same", origin: []string{"http://a.test"}, host: "a.test", ok: true},
		{name: "same, over TLS", origin: []string{"https://a.test"}, host: "a.test", tls: true, ok: true},
		{name: "the host has the default port", origin: []string{"http://a.test"}, host: "a.test:80", ok: true},
		{name: "the origin has the default port", origin: []string{"https://a.test:443"}, host: "a.test", tls: true, ok: true},
		{name: "the same port", origin: []string{"http://a.test:8080"}, host: "a.test:8080", ok: true},
		{name: "case", origin: []string{"HTTP://A.Test"}, host: "a.TEST", ok: true},
		{name: "IPv6", origin: []string{"http://[::1]:8080"}, host: "[::1]:8080", ok: true},
		{name: "IPv6 with the default port", origin: []string{"http://[::1]"}, host: "[::1]:80", ok: true},
		{name: "allowed", origin: []string{"https://b.test"}, host: "a.test", allowed: []string{"https://c.test", "https://b.test"}, ok: true},
		{name: "allowed with a port", origin: []string{"https://b.test:8443"}, host: "a.test", allowed: []string{"https://B.test:8443"}, ok: true},
		{name: "allowed with the default port", origin: []string{"https://b.test"}, host: "a.test", allowed: []string{"https://b.test:443"}, ok: true},

		{name: "another host", origin: []string{"http://b.test"}, host: "a.test"},
		{name: "a host within a host", origin: []string{"http://a.test.evil.example"}, host: "a.test"},
		{name: "a subdomain", origin: []string{"http://x.a.test"}, host: "a.test"},
		{name: "another port", origin: []string{"http://a.test:81"}, host: "a.test"},
		{name: "the other scheme's port", origin: []string{"http://a.test:443"}, host: "a.test"},
		{name: "http page, https gateway", origin: []string{"http://a.test"}, host: "a.test", tls: true},
		{name: "https page, http gateway", origin: []string{"https://a.test"}, host: "a.test"},
		{name: "null", origin: []string{"null"}, host: "a.test", allowed: []string{"null"}},
		{name: "empty", origin: []string{""}, host: "a.test"},
		{name: "empty, and so is the host", origin: []string{""}, host: ""},
		{name: "two", origin: []string{"http://a.test", "http://a.test"}, host: "a.test"},
		{name: "a list", origin: []string{"http://a.test, http://evil.example"}, host: "a.test"},
		{name: "userinfo", origin: []string{"http://a.test@evil.example"}, host: "evil.example"},
		{name: "a path", origin: []string{"http://a.test/"}, host: "a.test"},
		{name: "a query", origin: []string{"http://a.test?x"}, host: "a.test"},
		{name: "another scheme", origin: []string{"file://a.test"}, host: "a.test", allowed: []string{"file://a.test"}},
		{name: "no URL", origin: []string{"http://a.test:port"}, host: "a.test:port"},
		{name: "an extension", origin: []string{"chrome-extension://abcdef"}, host: "a.test"},
		{name: "allowed at another port", origin: []string{"https://b.test:8443"}, host: "a.test", allowed: []string{"https://b.test"}},
		{name: "allowed by another scheme", origin: []string{"http://b.test"}, host: "a.test", allowed: []string{"https://b.test"}},

		{
			name: "the proxy speaks TLS", origin: []string{"https://a.test"}, host: "a.test", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"https"}}, ok: true,
		},
		{
			name: "the proxy calls it wss, as Traefik does", origin: []string{"https://a.test"}, host: "a.test", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"wss"}}, ok: true,
		},
		{
			name: "the proxy calls it ws", origin: []string{"http://a.test"}, host: "a.test", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"ws"}}, ok: true,
		},
		{
			name: "an http page behind that proxy", origin: []string{"http://a.test"}, host: "a.test", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"https"}},
		},
		{
			name: "an http page behind Traefik", origin: []string{"http://a.test"}, host: "a.test", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"wss"}},
		},
		{
			name: "the proxy names the host", origin: []string{"https://a.test"}, host: "10.1.1.1:8080", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"HTTPS"}, "X-Forwarded-Host": {"A.test:443"}}, ok: true,
		},
		{
			name: "the proxy is IPv6", origin: []string{"https://a.test"}, host: "a.test", remote: "[fd00::1]:40000",
			forward: http.Header{"X-Forwarded-Proto": {"https"}}, ok: true,
		},
		{
			name: "the proxy is IPv4 on an IPv6 socket", origin: []string{"https://a.test"}, host: "a.test", remote: "[::ffff:10.0.0.1]:40000",
			forward: http.Header{"X-Forwarded-Proto": {"https"}}, ok: true,
		},
		{
			name: "in a list the nearest proxy's word counts", origin: []string{"https://a.test"}, host: "x", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"http, https"}, "X-Forwarded-Host": {"evil.example", "b.test, a.test"}}, ok: true,
		},
		{
			name: "in a list the first word is anyone's", origin: []string{"https://evil.example"}, host: "x", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"evil.example, a.test"}},
		},
		{
			name: "not a proxy", origin: []string{"https://a.test"}, host: "a.test", remote: "192.0.2.1:40000",
			forward: http.Header{"X-Forwarded-Proto": {"https"}},
		},
		{
			name: "not a proxy, and it names the host", origin: []string{"http://evil.example"}, host: "a.test", remote: "192.0.2.1:40000",
			forward: http.Header{"X-Forwarded-Host": {"evil.example"}},
		},
		{
			name: "the proxy's scheme is no scheme", origin: []string{"http://a.test"}, host: "a.test", remote: proxy,
			forward: http.Header{"X-Forwarded-Proto": {"javascript"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Host = test.host
			r.RemoteAddr = "192.0.2.7:1234"
			if test.remote != "" {
				r.RemoteAddr = test.remote
			}
			if test.tls {
				r.TLS = &tls.ConnectionState{}
			}
			for name, values := range test.forward {
				r.Header[name] = values
			}
			if test.origin != nil {
				r.Header["Origin"] = test.origin
			}
			rt := &Router{Config: Config{AllowedOrigins: test.allowed, TrustedProxies: proxies}}
			err := rt.checkOrigin(r)
			if test.ok && err != nil || !test.ok && !errors.Is(err, errOrigin) {
				t.Errorf("checkOrigin: %v, want ok: %t", err, test.ok)
			}
		})
	}
}

func TestClientAddr(t *testing.T) {
	for _, test := range []struct {
		name, remote string
		forwarded    []string
		want         string
	}{
		{"direct", "192.0.2.1:1234", nil, "192.0.2.1"},
		{"direct, IPv6", "[2001:db8::1]:1234", nil, "2001:db8::1"},
		{"direct, IPv4 on an IPv6 socket", "[::ffff:192.0.2.1]:1234", nil, "192.0.2.1"},
		{"direct, link-local", "[fe80::1%eth0]:1234", nil, "fe80::1"},
		{"not a proxy: its claim is ignored", "192.0.2.1:1234", []string{"198.51.100.1"}, "192.0.2.1"},
		{"one proxy", proxy, []string{"198.51.100.1"}, "198.51.100.1"},
		{"the client's own claim comes first", proxy, []string{"1.1.1.1, 198.51.100.1"}, "198.51.100.1"},
		{"two proxies", proxy, []string{"1.1.1.1, 198.51.100.1, 10.2.2.2"}, "198.51.100.1"},
		{"two headers", proxy, []string{"1.1.1.1", "198.51.100.1", "10.2.2.2"}, "198.51.100.1"},
		{"mixed proxies", "[fd00::1]:1", []string{"198.51.100.1,10.2.2.2"}, "198.51.100.1"},
		{"only proxies: the farthest", proxy, []string{"10.3.3.3, 10.2.2.2"}, "10.3.3.3"},
		{"IPv4-mapped client", proxy, []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"IPv4-mapped proxy", "[::ffff:10.0.0.1]:1", []string{"198.51.100.1, ::ffff:10.2.2.2"}, "198.51.100.1"},
		{"with a port, as Azure has it", proxy, []string{"198.51.100.1:5678"}, "198.51.100.1"},
		{"IPv6 in brackets", proxy, []string{"[2001:db8::1]"}, "2001:db8::1"},
		{"IPv6 with a port", proxy, []string{"[2001:db8::1]:443"}, "2001:db8::1"},
		{"IPv6 that ends like a port", proxy, []string{"2001:db8::1:443"}, "2001:db8::1:443"},
		{"IPv4-mapped with a port", proxy, []string{"[::ffff:198.51.100.1]:443"}, "198.51.100.1"},
		{"a proxy with a port", proxy, []string{"1.1.1.1:1, 198.51.100.1:2 , 10.2.2.2:3"}, "198.51.100.1"},
		{"a zone in brackets could say anything", proxy, []string{"[fe80::1%\xff<script>]:1"}, "fe80::1"},
		{"a port that is none", proxy, []string{"198.51.100.1:99999"}, "10.0.0.1"},
		{"an empty port", proxy, []string{"198.51.100.1:"}, "10.0.0.1"},
		{"IPv4 in brackets", proxy, []string{"[198.51.100.1]"}, "10.0.0.1"},
		{"half a bracket", proxy, []string{"[2001:db8::1"}, "10.0.0.1"},
		{"brackets twice", proxy, []string{"[[2001:db8::1]]"}, "10.0.0.1"},
		{"brackets after a port", proxy, []string{"[2001:db8::1]:1]"}, "10.0.0.1"},
		{"nothing in brackets", proxy, []string{"[]"}, "10.0.0.1"},
		{"a name with a port", proxy, []string{"localhost:80"}, "10.0.0.1"},
		{"a proxy that says nothing", proxy, nil, "10.0.0.1"},
		{"empty", proxy, []string{""}, "10.0.0.1"},
		{"garbage", proxy, []string{"unknown"}, "10.0.0.1"},
		{"garbage behind a proxy", proxy, []string{"1.1.1.1, <script>, 10.2.2.2"}, "10.2.2.2"},
		{"a zone could say anything", proxy, []string{"fe80::1%\xff<script>"}, "fe80::1"},
		{"this machine, of another one", proxy, []string{"127.0.0.1"}, "10.0.0.1"},
		{"this machine in IPv6", proxy, []string{"::1"}, "10.0.0.1"},
		{"this machine, mapped", proxy, []string{"::ffff:127.0.0.1"}, "10.0.0.1"},
		{"this machine, mapped in hexadecimal, with a zone and a port", proxy, []string{"[::ffff:7f00:1%1]:80"}, "10.0.0.1"},
		{"this machine as IPv6 of old", proxy, []string{"::127.0.0.1"}, "10.0.0.1"},
		{"any of the loopback network", proxy, []string{"127.99.0.1:5"}, "10.0.0.1"},
		{"this machine in the second header", proxy, []string{"192.0.2.1", "127.0.0.1"}, "10.0.0.1"},
		{"this machine before a proxy", proxy, []string{"127.0.0.1, 10.2.2.2"}, "10.2.2.2"},
		{"no machine", proxy, []string{"0.0.0.0"}, "10.0.0.1"},
		{"no machine in IPv6", proxy, []string{"::"}, "10.0.0.1"},
		{"many machines", proxy, []string{"224.0.0.1"}, "10.0.0.1"},
		{"all machines", proxy, []string{"255.255.255.255"}, "10.0.0.1"},
		{"many machines in IPv6", proxy, []string{"ff02::1"}, "10.0.0.1"},
		{"a proxy here, whose client is here", "127.0.0.9:1", []string{"127.99.0.1"}, "127.99.0.1"},
		{"a proxy here, whose client is elsewhere and says it is here", "127.0.0.9:1", []string{"127.0.0.1, 10.2.2.2"}, "10.2.2.2"},
		{"no address", "@", nil, ""},
		{"no address, but a claim", "@", []string{"198.51.100.1"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.RemoteAddr = test.remote
			r.Header["X-Forwarded-For"] = test.forwarded
			rt := &Router{Config: Config{TrustedProxies: proxies}}
			if got := addrString(rt.clientAddr(r)); got != test.want {
				t.Errorf("clientAddr is %q, want %q", got, test.want)
			}
		})
	}
}

func TestTicketOf(t *testing.T) {
	const protocol = "Sec-Websocket-Protocol"
	for _, test := range []struct {
		name   string
		query  string
		header http.Header
		want   string
		err    error
	}{
		{name: "a subprotocol", header: http.Header{protocol: {"termgw.ticket.a.b.c"}}, want: "a.b.c"},
		{name: "among others", header: http.Header{protocol: {"termgw.v1, termgw.ticket.T ,other"}}, want: "T"},
		{name: "in the second header", header: http.Header{protocol: {"termgw.v1", "termgw.ticket.T"}}, want: "T"},
		{name: "Bearer", header: http.Header{"Authorization": {"Bearer T"}}, want: "T"},
		{name: "bearer", header: http.Header{"Authorization": {"bearer T"}}, want: "T"},
		{name: "BEARER and more spaces", header: http.Header{"Authorization": {"BEARER   T "}}, want: "T"},
		{name: "after Basic", header: http.Header{"Authorization": {"Basic eDp5", "Bearer T"}}, want: "T"},
		{name: "the query", query: "cols=80&ticket=T", want: "T"},
		{name: "the same everywhere", query: "ticket=T&ticket=T", want: "T", header: http.Header{
			protocol: {"termgw.ticket.T, termgw.ticket.T"}, "Authorization": {"Bearer T"},
		}},
		{name: "an empty one does not count", query: "ticket=", header: http.Header{protocol: {"termgw.ticket."}, "Authorization": {"Bearer T"}}, want: "T"},

		{name: "none", err: errNoTicket},
		{name: "empty ones", query: "ticket=", header: http.Header{protocol: {"termgw.ticket."}, "Authorization": {"Bearer "}}, err: errNoTicket},
		{name: "Basic", header: http.Header{"Authorization": {"Basic eDp5"}}, err: errNoTicket},
		{name: "no scheme", header: http.Header{"Authorization": {"T"}}, err: errNoTicket},
		{name: "another subprotocol", header: http.Header{protocol: {"termgw.v1, xtermgw.ticket.T"}}, err: errNoTicket},
		{name: "two in the query", query: "ticket=T&ticket=U", err: errTwoTickets},
		{name: "two subprotocols", header: http.Header{protocol: {"termgw.ticket.T", "termgw.ticket.U"}}, err: errTwoTickets},
		{name: "two in Authorization", header: http.Header{"Authorization": {"Bearer T", "Bearer U"}}, err: errTwoTickets},
		{name: "query and subprotocol", query: "ticket=T", header: http.Header{protocol: {"termgw.ticket.U"}}, err: errTwoTickets},
		{name: "subprotocol and Authorization", header: http.Header{protocol: {"termgw.ticket.T"}, "Authorization": {"Bearer U"}}, err: errTwoTickets},
		{name: "two, the first again", query: "ticket=T&ticket=U&ticket=T", err: errTwoTickets},
		{name: "two that differ in case", query: "ticket=T&ticket=t", err: errTwoTickets},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/?"+test.query, nil)
			r.Header = test.header
			got, err := ticketOf(r)
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("ticketOf: %q, %v; want %q, %v", got, err, test.want, test.err)
			}
		})
	}
}

func TestFirstSize(t *testing.T) {
	for query, want := range map[string]terminal.Size{
		"":                     {Cols: 80, Rows: 24},
		"cols=120":             {Cols: 120, Rows: 24},
		"rows=40":              {Cols: 80, Rows: 40},
		"cols=1&rows=1000":     {Cols: 1, Rows: 1000},
		"cols=100&cols=0":      {Cols: 100, Rows: 24}, // the first counts
		"Cols=0&columns=0&x=y": {Cols: 80, Rows: 24},
	} {
		values, _ := url.ParseQuery(query)
		if got, err := firstSize(values); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", query, got, err, want)
		}
	}
	for _, query := range []string{
		"cols=0", "rows=0", "cols=1001", "rows=1001", "cols=-1", "cols=", "cols", "rows=abc", "cols=80.5",
		"cols=0x50", "cols=%2080", "cols=1e2", "cols=65616", "cols=18446744073709551696", "cols=%D9%A1", "cols=1_0",
	} {
		values, _ := url.ParseQuery(query)
		if got, err := firstSize(values); !errors.Is(err, bridge.ErrBadMessage) {
			t.Errorf("%q: %v, %v; want bridge.ErrBadMessage", query, got, err)
		}
	}
}

// hijackable is an answer whose connection takes everything and says nothing.
type hijackable struct{ *httptest.ResponseRecorder }

func (h hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	var c gone
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}

type gone struct{}

func (gone) Read([]byte) (int, error)         { return 0, io.EOF }
func (gone) Write(p []byte) (int, error)      { return len(p), nil }
func (gone) Close() error                     { return nil }
func (gone) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (gone) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (gone) SetDeadline(time.Time) error      { return nil }
func (gone) SetReadDeadline(time.Time) error  { return nil }
func (gone) SetWriteDeadline(time.Time) error { return nil }

func FuzzRequest(f *testing.F) {
	key, err := signingKey()
	if err != nil {
		f.Fatal(err)
	}
	rt := New(Config{
		Verifier: ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(key)}),
		Store: store.NewMemory(store.MemoryConfig{Lookup: func(context.Context, string) (store.Workspace, error) {
			return store.Workspace{}, nil
		}}),
		Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
		TrustedProxies: proxies, AllowedOrigins: []string{"https://b.test"},
	})
	for _, seed := range [][9]string{
		{"GET", "/workspaces/ws-1/terminal", "", "a.test", "http://a.test", "termgw.v1, termgw.ticket.a.b.c", "Bearer a.b.c", "1.1.1.1, 10.0.0.2", "https"},
		{"HEAD", "/workspaces/%2e%2e/terminal", "ticket=T&ticket=U&cols=-1", "[::1]:80", "null", ",,", "Bearer", "::ffff:1.1.1.1%x", "wss,"},
		{"PRI", "*", "%zz;", ":", "http://[", "termgw.ticket.", "\x00", "\xff", ":"},
		{"", "", "", "", "", "", "", "", ""},
		{"GET", "/healthz", "", "", "", "", "", "", ""},
		{"POST", "//workspaces//terminal", "", "", "", "", "", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7], seed[8])
	}
	f.Fuzz(func(t *testing.T, method, path, query, host, origin, protocol, authorization, forwarded, proto string) {
		decoded, err := url.PathUnescape(path)
		if err != nil {
			decoded = path
		}
		r := &http.Request{
			Method: method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: host, RemoteAddr: proxy,
			URL:    &url.URL{Path: decoded, RawPath: path, RawQuery: query},
			Body:   http.NoBody,
			Header: requestFor("x", "").header,
		}
		for name, value := range map[string]string{
			"Origin": origin, "Sec-Websocket-Protocol": protocol, "Authorization": authorization,
			"X-Forwarded-For": forwarded, "X-Forwarded-Proto": proto, "X-Forwarded-Host": host,
		} {
			if value != "" {
				r.Header[name] = []string{value}
			}
		}
		rt.handshakes, rt.others = newPacer(time.Now), newPacer(time.Now) // the fuzzer is faster than anybody may be
		w := httptest.NewRecorder()
		rt.ServeHTTP(hijackable{w}, r)
		switch w.Code {
		case 101, 200, 400, 403, 404, 426:
		default:
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
		if got := w.Header().Get("Sec-WebSocket-Protocol"); got != "" && !strings.EqualFold(got, bridge.Subprotocol) {
			t.Errorf("the subprotocol %q was answered", got)
		}
		if n := rt.live.count(); n != 0 {
			t.Errorf("%d sessions are live", n)
		}
	})
}
