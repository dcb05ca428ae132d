// Package client is the client's side of termgw.v1, the protocol of a terminal
// gateway: it opens the terminal of a workspace with a ticket, carries bytes both
// ways, and returns how the session ended. `termgw connect` is built on this package,
// and a platform can test its own gateway with it.
//
// The package mints no tickets (pkg/ticket does), knows no tty, and reads no environment.
// Dial opens one connection with one ticket. Open asks for further tickets and comes back to
// its session when the connection is lost, where the gateway has the shell wait.
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

// Config describes the terminal that Dial opens. URL and Ticket are required.
type Config struct {
	// URL is the terminal's address: wss://HOST/workspaces/ID/terminal, or ws://.
	URL string
	// Ticket is the JWT that opens one session. Dial sends the ticket in
	// Sec-WebSocket-Protocol, as a browser does.
	Ticket string
	// Cols and Rows are the terminal's first size, each 1 to 1000; a value outside
	// becomes the nearest inside. If either is 0 the gateway's default holds, 80 by 24.
	Cols, Rows int
	// Resume is the session to go on with, by Ready.Session of an earlier connection; empty:
	// a new shell. Output is how many bytes of its output the caller has, from the
	// beginning (Conn.Output); negative: none are left. Ready tells what came of it.
	Resume string
	Output int64
	// OneShell has a Session (Open) end with ErrShellGone when its shell is gone; without,
	// it goes on with a new one.
	OneShell bool
	// Notice is called for each notice, in order. While Notice runs nothing else is
	// received. Nil: notices are dropped.
	Notice func(Notice)
	// HTTPClient sends the request; nil: http.DefaultClient. CheckRedirect is not
	// used: Dial follows no redirect, since the ticket is for the given address alone.
	HTTPClient *http.Client

	given     func(conn *Conn, input int64) // told how many bytes of input the terminal was given, of all connections; may be nil
	handshake time.Duration                 // bounds the handshake; 0: nothing does but the context of Dial
	name      string                        // of the client, among all that come back to a session; empty: it has none
	try       int                           // counts the client's connections
	answered  func()                        // called after the handshake; may be nil
	busy      time.Duration                 // Conn's; 0: its own
}

// Ready is the gateway's message that the shell runs. Fields that the gateway left
// out are zero.
type Ready struct {
	Session   string // the session's id, as in the audit trail
	Workspace string // the workspace's id
	Target    string // the kind of place: "local", "remote", or a kind that is newer than this package
	Mode      string // "rw", "ro", or a mode that is newer than this package

	// Limits of the session; 0: none.
	IdleTimeout time.Duration // the longest time without input
	MaxSession  time.Duration // the longest life
	Tunnel      time.Duration // the time until AWS cuts the way to the instance, which ends the terminal; 0: the terminal outlives it

	// Resume is how long the shell waits for its person when this connection is lost; 0: it
	// does not. Output and Input are 0 in a new shell that does not wait.
	Resume  time.Duration
	Resumed bool  // this is the session that Config.Resume named, and not a new shell
	Output  int64 // the offset of the first byte that Read returns, in the session's output
	Input   int64 // how many bytes of input the gateway has taken on all connections
}

// ReadOnly reports whether the session takes no input: in every mode but "rw".
func (r Ready) ReadOnly() bool { return r.Mode != "rw" }

// Notice announces the end of a session, or is other news of a session that goes on.
type Notice struct {
	Code    string        // the code of the coming end, or another word
	Left    time.Duration // the time until that end; 0: the gateway gave no time
	Message string        // the gateway's sentence for the person; may be empty
}

// Exit is how a shell ended.
type Exit struct {
	Code   int    // 128 plus the signal's number for a shell that a signal ended; -1: the gateway gave no code
	Signal string // such as "SIGKILL"; empty: no signal
}

// Error is the end of a session that was refused, or did not end by its shell's exit.
// Message and Detail are the gateway's text, at most 64 KiB, and may hold escape
// sequences for a terminal.
type Error struct {
	Code      string // such as "ticket_used"; empty: the gateway gave none
	Message   string // a sentence for the person; may be empty
	Detail    string // the step that failed or the rule that was broken; may be empty
	Docs      string // a page for the gateway's operator; may be empty
	Retryable bool   // another ticket may open the terminal; each try may cost the workspace a login, so bound the tries
	CloseCode int    // the WebSocket's close code; 0: the connection was lost after the message
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

// ticketForm matches the characters of a JWT, all of which a subprotocol may have.
var ticketForm = regexp.MustCompile(`^[\w.-]+$`)

// Dial opens a terminal, and returns once the shell runs; the caller closes the Conn. The
// error is an *Error if the gateway refused. ctx bounds Dial and not the session; a
// gateway gives a workspace 15 s to start a shell.
func Dial(ctx context.Context, config Config) (*Conn, error) {
	target, err := url.Parse(config.URL)
	if err != nil || target.Host == "" || target.Scheme != "ws" && target.Scheme != "wss" {
		return nil, errors.New("the address must be like wss://HOST/workspaces/ID/terminal")
	}
	if !ticketForm.MatchString(config.Ticket) {
		return nil, errors.New("the ticket is no JWT: a ticket is letters, digits, dots, dashes and underscores")
	}
	query := target.Query()
	if config.Cols != 0 && config.Rows != 0 {
		query.Set("cols", strconv.Itoa(dimension(config.Cols)))
		query.Set("rows", strconv.Itoa(dimension(config.Rows)))
	}
	if config.Resume != "" {
		query.Set("resume", config.Resume)
		if config.Output >= 0 {
			query.Set("output", strconv.FormatInt(config.Output, 10))
		}
	}
	if config.name != "" {
		query.Set("client", config.name)
		query.Set("try", strconv.Itoa(config.try))
	}
	target.RawQuery = query.Encode()
	c := newConn(config.Notice)
	c.given, c.try, c.busy = config.given, config.try, cmp.Or(config.busy, c.busy)
	began := time.Now()
	if c.ws, err = c.upgrade(ctx, target, config); err != nil {
		return nil, err
	}
	c.trip = time.Since(began) / 2
	if config.answered != nil {
		config.answered()
	}
	c.loops.Go(c.receive)
	c.loops.Go(c.tell)
	c.loops.Go(c.watch)
	select {
	case <-c.opened:
		return c, nil
	case <-c.done:
		select {
		case <-c.opened: // by a shell that has ended at once
			return c, nil
		default:
			err = c.end
		}
	case <-ctx.Done():
		err = fmt.Errorf("waiting for a shell: %w", context.Cause(ctx))
	}
	if config.Resume == "" || errors.Is(context.Cause(ctx), errNotNeeded) {
		_ = c.Close()
	} else {
		c.drop() // a close frame would end the shell
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the gateway told how the shell ended before it told that there was one")
	}
	return nil, err
}

func (c *Conn) upgrade(ctx context.Context, target *url.URL, config Config) (*websocket.Conn, error) {
	sender := *cmp.Or(config.HTTPClient, http.DefaultClient)
	sender.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if config.handshake > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, config.handshake, fmt.Errorf("no answer within %s", config.handshake))
		defer cancel()
	}
	//nolint:bodyclose // the library's documentation: the body never needs to be closed
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
	ws.SetReadLimit(-1) // only control messages are held whole, and they are bounded by maxMessage
	return ws, nil
}

// dialError returns an error that shows only the address's host: the query may hold a ticket.
func dialError(ctx context.Context, target *url.URL, response *http.Response, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("connecting to %s: %w", target.Host, context.Cause(ctx))
	}
	if response == nil || response.Body == nil {
		return fmt.Errorf("connecting to %s: %w", target.Host, root(err))
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
// terminal, for an end without the field retryable in its error message.
var retryableClose = map[int]bool{
	1012: true, 1013: true,
	4401: true, 4408: true, 4409: true, 4410: true, 4429: true,
	4502: true, 4503: true, 4504: true,
}
