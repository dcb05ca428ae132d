// Package client is the client's side of termgw.v1, the protocol of a terminal
// gateway: it opens the terminal of a workspace with a ticket, carries bytes both
// ways, and tells how the session ended. `termgw connect` is built on it, and a
// platform can test its own gateway with it.
//
// It mints no tickets (pkg/ticket does), knows no tty, reads no environment, and
// never opens a second session: a ticket opens one.
package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

const (
	subprotocol       = "termgw.v1"
	ticketSubprotocol = "termgw.ticket."
)

// maxDimension is the largest number of columns or rows in termgw.v1.
const maxDimension = 1000

// Config says which terminal Dial opens. URL and Ticket are required.
type Config struct {
	// URL is the terminal's address: wss://HOST/workspaces/ID/terminal, or ws://.
	URL string
	// Ticket is the JWT that opens one session. It leaves in the request's
	// Sec-WebSocket-Protocol, as a browser sends it.
	Ticket string
	// Cols and Rows are the terminal's first size, each 1 to 1000; beyond that they
	// are cut to it. 0 leaves the size to the gateway: 80 by 24.
	Cols, Rows int
	// Notice is called for each notice, in order. Nothing else is received while
	// it runs. Nil: notices are dropped.
	Notice func(Notice)
	// HTTPClient sends the request; nil: http.DefaultClient. Its CheckRedirect is
	// not used, since no redirect is followed: a ticket is for one address.
	HTTPClient *http.Client
}

// Ready is what the gateway says of a session once its shell is there. Fields
// that the gateway left out are zero.
type Ready struct {
	Session   string // its id, as in the audit trail
	Workspace string
	Target    string // the kind of place: "local", "remote", or one that is newer than this package
	Mode      string // "rw", "ro", or one that is newer than this package

	// Limits of the session; 0: none.
	IdleTimeout time.Duration // without input
	MaxSession  time.Duration
}

// ReadOnly reports whether input reaches no shell: in every mode but "rw".
func (r Ready) ReadOnly() bool { return r.Mode != "rw" }

// Notice is news of a session that goes on, such as a limit that ends it soon.
type Notice struct {
	Code    string        // of the end that is coming, or another word
	Left    time.Duration // until that end; 0: the gateway gave no time
	Message string        // the gateway's sentence for the person; may be empty
}

// Exit is how a shell ended.
type Exit struct {
	Code   int    // 128 and the signal's number for a shell that a signal ended; -1: the gateway told none
	Signal string // such as "SIGKILL"; empty: no signal
}

// Error is a session that was refused, or ended by something else than its
// shell. Message and Detail are the gateway's words, at most 64 KiB, and may hold
// characters that act on a terminal.
type Error struct {
	Code      string // such as "ticket_used"; empty: the gateway gave none
	Message   string // a sentence for the person; may be empty
	Detail    string // the step that failed or the rule that was broken; may be empty
	Docs      string // the page that helps whoever operates the gateway; may be empty
	Retryable bool   // whether another ticket may open the terminal
	CloseCode int    // of the WebSocket; 0: the connection was lost after the message
}

func (e *Error) Error() string {
	message := cmp.Or(e.Message, fmt.Sprintf("the gateway closed the session with code %d", e.CloseCode))
	switch {
	case e.Code == "":
		return message
	case e.Detail == "":
		return fmt.Sprintf("%s (%s)", message, e.Code)
	default:
		return fmt.Sprintf("%s (%s: %s)", message, e.Code, e.Detail)
	}
}

// ErrReadOnly is returned by Write in a session that takes no input.
var ErrReadOnly = errors.New("the session is read-only")

// ticketForm is what a subprotocol may be made of, of the characters of a JWT.
var ticketForm = regexp.MustCompile(`^[\w.-]+$`)

// Dial opens a terminal and returns once its shell is there. The error is an
// *Error if the gateway refused. ctx bounds Dial and not the session; a gateway
// gives a workspace 15 s to start a shell.
func Dial(ctx context.Context, config Config) (*Conn, error) {
	target, err := url.Parse(config.URL)
	if err != nil || target.Host == "" || target.Scheme != "ws" && target.Scheme != "wss" {
		return nil, errors.New("the address must be like wss://HOST/workspaces/ID/terminal")
	}
	if !ticketForm.MatchString(config.Ticket) {
		return nil, errors.New("the ticket is no JWT: a ticket is letters, digits, dots, dashes and underscores")
	}
	if config.Cols != 0 && config.Rows != 0 {
		query := target.Query()
		query.Set("cols", strconv.Itoa(dimension(config.Cols)))
		query.Set("rows", strconv.Itoa(dimension(config.Rows)))
		target.RawQuery = query.Encode()
	}
	c := newConn(config.Notice)
	if c.ws, err = c.upgrade(ctx, target, config); err != nil {
		return nil, err
	}
	c.loops.Go(c.receive)
	c.loops.Go(c.tell)
	select {
	case <-c.opened:
		return c, nil
	case <-c.done:
		err = c.end
	case <-ctx.Done():
		err = fmt.Errorf("waiting for a shell: %w", context.Cause(ctx))
	}
	_ = c.Close()
	if errors.Is(err, io.EOF) {
		err = errors.New("the gateway told how the shell ended before it told that there was one")
	}
	return nil, err
}

func (c *Conn) upgrade(ctx context.Context, target *url.URL, config Config) (*websocket.Conn, error) {
	sender := *cmp.Or(config.HTTPClient, http.DefaultClient)
	sender.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	//nolint:bodyclose // the library's documentation: it never needs to be
	ws, response, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{
		HTTPClient:     &sender,
		Subprotocols:   []string{subprotocol, ticketSubprotocol + config.Ticket},
		OnPingReceived: func(context.Context, []byte) bool { c.hear(); return true },
	})
	if err != nil {
		return nil, dialError(ctx, target, response, err)
	}
	if ws.Subprotocol() != subprotocol {
		_ = ws.CloseNow()
		return nil, fmt.Errorf("%s does not speak %s", target.Host, subprotocol)
	}
	ws.SetReadLimit(-1) // no message is held whole but a control message, which has a limit of its own
	return ws, nil
}

// dialError shows nothing of the address but its host: its query may hold a ticket.
func dialError(ctx context.Context, target *url.URL, response *http.Response, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("connecting to %s: %w", target.Host, context.Cause(ctx))
	}
	if response == nil || response.Body == nil {
		var request *url.Error
		if errors.As(err, &request) {
			err = request.Err
		}
		return fmt.Errorf("connecting to %s: %w", target.Host, err)
	}
	if to, err := response.Location(); err == nil {
		return fmt.Errorf("%s redirects to %s://%s (%s), which is not followed: the ticket is for the address that you gave",
			target.Host, to.Scheme, to.Host, response.Status)
	}
	var problem struct{ Detail string } // RFC 9457
	if json.NewDecoder(io.LimitReader(response.Body, maxMessage)).Decode(&problem) == nil && problem.Detail != "" {
		return fmt.Errorf("%s: %s", response.Status, problem.Detail)
	}
	return fmt.Errorf("%s answers %s, not as a terminal gateway would", target.Host, response.Status)
}

func dimension(n int) int { return min(max(n, 1), maxDimension) }

// retryableClose holds the close codes after which another ticket may open the
// terminal, for an end whose error message says nothing of that.
var retryableClose = map[int]bool{
	1012: true, 1013: true,
	4401: true, 4408: true, 4409: true, 4410: true, 4429: true,
	4502: true, 4503: true, 4504: true,
}
