package eice

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

const (
	signingName = "ec2-instance-connect"
	emptyHash   = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of no body
	signedFor   = "60"                                                               // seconds
	maxRefusal  = 16 << 10
)

// OpenTunnel opens a connection to the instance's port 22 through its endpoint; the caller closes the connection.
// maxDuration is at most MaxTunnel, which 0 stands for. The context bounds the opening alone, which is retried while
// AWS throttles it or has a fault of its own. request is the request's id; empty: AWS gave none. Errors are
// of type *Error, those of Read and Write too, except for io.EOF after an orderly close by the endpoint and net.ErrClosed
// after Close.
//
// An endpoint that cannot reach the instance opens the tunnel all the same: the first Read returns the error.
func (c *Client) OpenTunnel(ctx context.Context, route Route, maxDuration time.Duration) (conn net.Conn, request string, err error) {
	ctx, cancel := c.step(ctx)
	defer cancel()
	for tries := 1; ; tries++ {
		t, request, err := c.openTunnel(ctx, route, bound(maxDuration))
		if err == nil {
			return t, request, nil
		}
		failed, ok := errors.AsType[*Error](err)
		passes := ok && (failed.Detail == Throttled || failed.Detail == Fault)
		if !passes || tries == attempts || !sleep(ctx, backoff(tries)) {
			c.Forget(route)
			c.doubt(route.principal(), err)
			return nil, "", err
		}
	}
}

func (c *Client) openTunnel(ctx context.Context, route Route, maxDuration time.Duration) (*tunnel, string, error) {
	credentials, err := c.credentials(ctx, route.principal(), route.Region)
	if err != nil {
		return nil, "", err
	}
	signed, err := c.presign(ctx, credentials, route, maxDuration)
	if err != nil {
		return nil, "", err
	}
	// A transport for this tunnel alone gives access to the connection under the WebSocket, which
	// bounds a close.
	var under net.Conn
	transport := c.transport.Clone()
	dial := transport.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		repeatSoon(conn)
		under = conn
		return conn, nil
	}
	opened := c.now()
	shake := &handshake{transport: transport}
	//nolint:bodyclose // the connection itself, or handshake has read it: Dial closes it
	ws, answer, err := websocket.Dial(ctx, signed, &websocket.DialOptions{HTTPClient: &http.Client{
		Transport:     shake,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}})
	if err != nil {
		return nil, "", c.refusedTunnel(ctx, shake.refused, err)
	}
	return c.newTunnel(ws, under, route, opened.Add(maxDuration-min(endSlack, maxDuration/10))), validRequest(requestIDOf(answer)), nil
}

// requestIDOf returns the id that AWS gave a request, or "".
func requestIDOf(answer *http.Response) string {
	return cmp.Or(answer.Header.Get("X-Amzn-Requestid"), answer.Header.Get("X-Amz-Request-Id"), answer.Header.Get("X-Amz-Requestid"))
}

// repeatSoon has TCP repeat what a break has swallowed every 2 s, where the pauses double up to two minutes: after a
// break of a minute nothing would be repeated for another. Linux can do so since 6.15 (tcp(7), TCP_RTO_MAX_MS).
func repeatSoon(conn net.Conn) {
	const rtoMaxMS = 44
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, rtoMaxMS, 2000) }) // an older kernel refuses
	}
}

// presign returns the URL that opens a tunnel: a secret for a minute.
func (c *Client) presign(ctx context.Context, credentials aws.Credentials, route Route, maxDuration time.Duration) (string, error) {
	query := url.Values{
		"instanceConnectEndpointId": {route.EndpointID},
		"remotePort":                {sshPort},
		"privateIpAddress":          {route.Address.String()},
		"maxTunnelDuration":         {seconds(maxDuration)},
		// The signer does not add X-Amz-Expires, which must be signed.
		"X-Amz-Expires": {signedFor},
	}
	target := url.URL{Scheme: "wss", Host: route.EndpointDNS, Path: "/openTunnel", RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return "", fault(Answer, "the endpoint's name makes no URL")
	}
	signed, _, err := v4.NewSigner().PresignHTTP(ctx, credentials, request, emptyHash, signingName, route.Region, c.now())
	if err != nil {
		return "", &Error{Detail: Credentials, Err: scrub(fmt.Errorf("signing a tunnel's request: %w", err))}
	}
	return signed, nil
}

// handshake keeps the endpoint's answer to a refused upgrade. The WebSocket library reads 1 KiB of an answer, and a
// denial's message may be longer.
type handshake struct {
	transport *http.Transport
	refused   *refusal
}

func (h *handshake) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := h.transport.RoundTrip(request)
	if err != nil || response.StatusCode == http.StatusSwitchingProtocols {
		return response, err
	}
	// After a failed read the status and the part that was read are enough.
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
	r := parseRefusal(body)
	r.status, r.date, r.requestID = response.StatusCode, response.Header.Get("Date"), requestIDOf(response)
	h.refused = &r
	return response, nil
}

// refusedTunnel returns the Error of a failed handshake. r is nil if the endpoint did not answer.
func (c *Client) refusedTunnel(ctx context.Context, r *refusal, err error) *Error {
	switch {
	case r != nil && ctx.Err() == nil:
		keep(ctx, openTunnel.name, *r)
		return c.refused(openTunnel, *r)
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // url.Error's text repeats the signed URL
	}
	return c.explain(ctx, openTunnel, err)
}

// noJSON is the code of an answer that is not JSON.
const noJSON = "no JSON"

// parseRefusal reads the JSON of a refused handshake. Any other body has the code noJSON.
func parseRefusal(body []byte) refusal {
	var answer struct {
		ErrorCode string `json:"ErrorCode"`
		Message   string `json:"Message"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return refusal{code: noJSON}
	}
	return refusal{code: answer.ErrorCode, message: answer.Message}
}
