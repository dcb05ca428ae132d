package deploy

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
)

// overHTTP2 opens WebSockets on a connection of HTTP/2 (RFC 8441), for a library that opens them by RFC 6455 alone.
type overHTTP2 struct{ conn http.RoundTripper }

// dialHTTP2 opens a connection of HTTP/2.
func dialHTTP2(t *testing.T, p *proxy) *http.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientIP)}},
		Config:    &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2"}},
	}
	conn, err := dialer.DialContext(ctx, "tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if chosen := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; chosen != "h2" {
		t.Fatalf("the proxy chose %q of h2", chosen)
	}
	h2, err := (&http2.Transport{}).NewClientConn(conn) //nolint:staticcheck // net/http's own, which it points to, sends no :protocol
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h2.Close() })
	return &http.Client{Transport: overHTTP2{h2}}
}

// RoundTrip sends an extended CONNECT, and answers as RFC 6455 has it.
func (o overHTTP2) RoundTrip(r *http.Request) (*http.Response, error) {
	input, typed := io.Pipe()
	connect := r.Clone(context.WithoutCancel(r.Context())) // that of the handshake
	connect.Method, connect.Body, connect.ContentLength = http.MethodConnect, input, -1
	connect.URL.Scheme = "https"
	for _, name := range []string{"Connection", "Upgrade", "Sec-Websocket-Key"} {
		connect.Header.Del(name)
	}
	connect.Header[":protocol"] = []string{"websocket"}
	response, err := o.conn.RoundTrip(connect)
	if err != nil {
		return nil, errors.Join(err, typed.Close())
	}
	if response.StatusCode != http.StatusOK {
		return response, nil
	}
	response.StatusCode = http.StatusSwitchingProtocols
	response.Header.Set("Connection", "Upgrade")
	response.Header.Set("Upgrade", "websocket")
	accept := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	response.Header.Set("Sec-Websocket-Accept", base64.StdEncoding.EncodeToString(accept[:]))
	response.Body = stream{response.Body, typed}
	return response, nil
}

// stream is a WebSocket's bytes, both ways.
type stream struct {
	io.ReadCloser
	typed *io.PipeWriter
}

func (s stream) Write(p []byte) (int, error) { return s.typed.Write(p) }
func (s stream) Close() error                { return errors.Join(s.typed.Close(), s.ReadCloser.Close()) }

// Two terminals of one page share a connection of HTTP/2, as a browser opens them where the proxy says that it can.
func TestTerminalsOverHTTP2(t *testing.T) {
	upstream, ticket := demo(t)
	p := startHAProxy(t, upstream, true)
	_, port, _ := net.SplitHostPort(upstream)
	name := "localhost:" + port // the demo goes by it, and trusts no proxy
	c := dialHTTP2(t, p)
	var terminals []*tty
	for range 2 {
		one, response := dial(t, c, "wss://"+name+"/workspaces/host/terminal?cols=100&rows=30", nil, "termgw.v1", "termgw.ticket."+ticket())
		if one == nil {
			t.Fatalf("refused: %s", response.Status)
		}
		if one.Subprotocol() != "termgw.v1" {
			t.Errorf("the subprotocol is %q", one.Subprotocol())
		}
		terminals = append(terminals, one)
	}
	for _, one := range terminals {
		one.run(t, "stty size; echo $((40+2))", "30 100\r\n42\r\n")
	}
	terminals[0].run(t, "exit 3", "exit")
	if code := terminals[0].end(t); code != websocket.StatusNormalClosure || !strings.Contains(strings.Join(terminals[0].events, ""), `"type":"exit","code":3`) {
		t.Errorf("the terminal ended by %d, %s", code, terminals[0].events)
	}
	terminals[1].run(t, "head -c 40000 /dev/zero | tr '\\0' x; echo; echo whole $((40+3))", "whole 43\r\n")
	if n := strings.Count(string(terminals[1].output), "x"); n < 40000 {
		t.Errorf("%d of 40000 bytes came", n)
	}
}

func TestWhatGatewaySeesOverHTTP2(t *testing.T) {
	gateway, upstream, _ := serve(t)
	p := startHAProxy(t, upstream, true)
	c := dialHTTP2(t, p)
	p.dialer = func(*testing.T) *http.Client { return c }
	p.testHeaders(t, gateway)
	t.Run("the longest ticket", func(t *testing.T) {
		if status := p.refused(t, nil, "termgw.v1", "termgw.ticket."+strings.Repeat("x", 8<<10)); status != 0 {
			t.Errorf("the handshake got %d", status)
		}
	})
}
