package eice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/coder/websocket"
)

const (
	signingName = "ec2-instance-connect"
	emptyHash   = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of no body
	signedFor   = "60"                                                               // seconds
	maxRefusal  = 16 << 10
)

// OpenTunnel opens a connection to the instance's port 22 through its
// endpoint; maxDuration is cut to what AWS allows, 0 is its longest. The
// context bounds the opening alone, which is tried again while AWS throttles it.
// Its errors are an *Error, and so are the connection's, but for io.EOF after an
// orderly close.
//
// An endpoint that cannot reach the instance opens the tunnel all the same: the
// first Read says so.
func (c *Client) OpenTunnel(ctx context.Context, route Route, maxDuration time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.stepTime)
	defer cancel()
	wait := maxBackoff / 4
	for attempt := 1; ; attempt++ {
		t, err := c.openTunnel(ctx, route, bound(maxDuration))
		if err == nil {
			return t, nil
		}
		failed, ok := errors.AsType[*Error](err)
		jittered := wait/2 + rand.N(wait/2) //nolint:gosec // it spreads a load and hides nothing
		if !ok || failed.Detail != Throttled || attempt == attempts || !sleep(ctx, jittered) {
			c.Forget(route)
			return nil, err
		}
		wait = min(2*wait, maxBackoff)
	}
}

// sleep tells whether the context outlives the wait.
func sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *Client) openTunnel(ctx context.Context, route Route, maxDuration time.Duration) (*tunnel, error) {
	credentials, err := c.credentials(ctx)
	if err != nil {
		return nil, err
	}
	signed, err := c.presign(ctx, credentials, route, maxDuration)
	if err != nil {
		return nil, err
	}
	// A transport of its own: the connection under the WebSocket is needed to
	// bound a close, and to see whether anything arrives.
	w := new(wire)
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
		w.Conn = conn
		return w, nil
	}
	opened := c.now()
	shake := &handshake{transport: transport}
	//nolint:bodyclose // the connection itself, or handshake has read it: Dial closes it
	ws, _, err := websocket.Dial(ctx, signed, &websocket.DialOptions{HTTPClient: &http.Client{
		Transport:     shake,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}})
	if err != nil {
		return nil, c.refusedTunnel(ctx, shake.refused, err)
	}
	return c.newTunnel(ws, w, route, opened.Add(maxDuration-min(endSlack, maxDuration/10))), nil
}

// presign is the URL that opens a tunnel, which is a secret for a minute.
func (c *Client) presign(ctx context.Context, credentials aws.Credentials, route Route, maxDuration time.Duration) (string, error) {
	query := url.Values{
		"instanceConnectEndpointId": {route.EndpointID},
		"remotePort":                {sshPort},
		"privateIpAddress":          {route.Address.String()},
		"maxTunnelDuration":         {seconds(maxDuration)},
		// The signer does not add it, and it has to be signed.
		"X-Amz-Expires": {signedFor},
	}
	target := url.URL{Scheme: "wss", Host: route.EndpointDNS, Path: "/openTunnel", RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return "", fault(Answer, "the endpoint's name makes no URL")
	}
	signed, _, err := v4.NewSigner().PresignHTTP(ctx, credentials, request, emptyHash, signingName, route.Region, c.now())
	if err != nil {
		return "", &Error{Credentials, scrub(fmt.Errorf("signing a tunnel's request: %w", err))}
	}
	return signed, nil
}

// handshake keeps what the endpoint answers instead of an upgrade. The library
// reads 1 KiB of it, and a denial's message may be longer.
type handshake struct {
	transport *http.Transport
	refused   *refusal
}

func (h *handshake) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := h.transport.RoundTrip(request)
	if err != nil || response.StatusCode == http.StatusSwitchingProtocols {
		return response, err
	}
	// What can be read of it is enough; an error leaves the status.
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
	r := parseRefusal(body)
	r.status, r.date = response.StatusCode, response.Header.Get("Date")
	h.refused = &r
	return response, nil
}

// refusedTunnel says why a handshake failed.
func (c *Client) refusedTunnel(ctx context.Context, r *refusal, err error) *Error {
	switch {
	case ctx.Err() != nil:
		return &Error{Unreachable, scrub(fmt.Errorf("OpenTunnel: %w", ctx.Err()))}
	case r != nil:
		return c.refused(openTunnel, *r)
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // it repeats the URL
	}
	return &Error{Unreachable, scrub(fmt.Errorf("OpenTunnel: %w", err))}
}

// noJSON stands for the code of an answer that has none.
const noJSON = "no JSON"

// parseRefusal reads the JSON of a refused handshake; anything else has no code.
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
