package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/term"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// ConnectCmd is a terminal client.
type ConnectCmd struct {
	URL            string `arg:"" name:"url" help:"The terminal's address: wss://HOST/workspaces/ID/terminal"`
	TicketEndpoint string `placeholder:"FILE" help:"File that holds an address which answers a POST with a ticket; 'termgw demo' writes one."`
}

// Help tells where the ticket comes from and how to leave.
func (ConnectCmd) Help() string {
	return `The ticket is taken from TERMGW_TICKET, from --ticket-endpoint, or from the address's own ?ticket=
(which other users of this machine can read in the process list).

Enter ~ . leaves at once; Enter ~ ~ types a tilde. The exit status is the shell's, or 255 if
there was none: no ticket, no gateway, refused, or ended by the gateway.`
}

// gatewayFailed is the exit status when it is not the shell's, as ssh has it.
const gatewayFailed = exitStatus(255)

// Run carries this terminal until the other side ends. Whatever it fails of, its
// exit status is none that a shell's would be taken for.
func (c *ConnectCmd) Run(ctx context.Context, std *stdio) error {
	err := c.carry(ctx, std)
	var status exitStatus
	if err != nil && !errors.As(err, &status) {
		_, _ = fmt.Fprintf(std.Err, "termgw: %s\n", said(err.Error()))
		return gatewayFailed
	}
	return err
}

func (c *ConnectCmd) carry(ctx context.Context, std *stdio) error {
	target, raw, err := c.ticket(ctx)
	if err != nil {
		return err
	}
	in, _ := std.In.(*os.File)
	out, _ := std.Out.(*os.File)
	t := &connection{in: std.In, out: std.Out, err: std.Err, tty: -1, acks: make(chan struct{}, 1)}
	if in != nil && out != nil && term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd())) {
		t.tty = int(in.Fd())
		if size, ok := t.size(); ok {
			q := target.Query()
			q.Set("cols", strconv.Itoa(int(size.Cols)))
			q.Set("rows", strconv.Itoa(int(size.Rows)))
			target.RawQuery = q.Encode()
		}
	}
	header := http.Header{"Authorization": {"Bearer " + raw}}
	dialing, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	//nolint:bodyclose // the library's documentation: it never needs to be
	ws, response, err := websocket.Dial(dialing, target.String(), &websocket.DialOptions{
		HTTPClient: ticketClient(), HTTPHeader: header, Subprotocols: []string{bridge.Subprotocol},
	})
	if err != nil {
		return dialError(target, response, err)
	}
	defer func() { _ = ws.CloseNow() }()
	ws.SetReadLimit(-1) // no message is held whole but a control message, which has a limit of its own
	t.ws = ws
	return t.run(ctx)
}

// ticket finds the ticket, and takes it out of the address, which is shown.
func (c *ConnectCmd) ticket(ctx context.Context) (*url.URL, string, error) {
	target, err := url.Parse(c.URL)
	if err != nil || target.Host == "" || target.Scheme != "ws" && target.Scheme != "wss" {
		return nil, "", errors.New("the address must be like wss://HOST/workspaces/ID/terminal")
	}
	query := target.Query()
	raw := query.Get("ticket")
	query.Del("ticket")
	target.RawQuery = query.Encode()
	if raw == "" {
		raw = os.Getenv("TERMGW_TICKET")
	}
	if raw == "" && c.TicketEndpoint != "" {
		raw, err = fetchTicket(ctx, c.TicketEndpoint, target)
		if err != nil {
			return nil, "", err
		}
	}
	if raw == "" {
		return nil, "", errors.New("no ticket: set TERMGW_TICKET, or give --ticket-endpoint")
	}
	return target, raw, nil
}

// fetchTicket asks the endpoint in a file for a ticket. Errors do not show the
// endpoint: it carries a secret.
func fetchTicket(ctx context.Context, file string, target *url.URL) (string, error) {
	endpoint, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("--ticket-endpoint: %w", err)
	}
	segments := strings.Split(strings.Trim(target.Path, "/"), "/")
	if len(segments) < 3 {
		return "", errors.New("the address names no workspace")
	}
	body, err := json.Marshal(map[string]string{"workspace": segments[len(segments)-2]})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSpace(string(endpoint)), strings.NewReader(string(body)))
	if err != nil {
		return "", fmt.Errorf("%s does not hold an address", file)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := ticketClient().Do(request)
	if err != nil {
		return "", fmt.Errorf("the ticket endpoint in %s does not answer: %w", file, errors.Unwrap(err))
	}
	defer func() { _ = response.Body.Close() }()
	if response.Header.Get("Location") != "" {
		return "", fmt.Errorf("the ticket endpoint in %s redirects (%s), which is not followed: the endpoint carries a secret", file, response.Status)
	}
	var answer struct{ Ticket, Detail string }
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&answer); err != nil || answer.Ticket == "" {
		return "", fmt.Errorf("the ticket endpoint in %s gave no ticket: %s %s", file, response.Status, answer.Detail)
	}
	return answer.Ticket, nil
}

// ticketClient sends a ticket, or what a ticket is got with, to the address that
// was given and to no other: a redirect is an answer like any other. It takes no
// more of an answer's header than a gateway sends.
func ticketClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	transport.DisableKeepAlives = true // it is used once
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func dialError(target *url.URL, response *http.Response, err error) error {
	if response == nil || response.Body == nil {
		return fmt.Errorf("connecting to %s: %w", target.Host, err)
	}
	if to, err := response.Location(); err == nil {
		return fmt.Errorf("%s redirects to %s://%s (%s), which is not followed: the ticket is for the address that you gave",
			target.Host, to.Scheme, to.Host, response.Status)
	}
	var problem struct{ Detail string }
	if json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&problem) == nil && problem.Detail != "" {
		return fmt.Errorf("%s: %s", response.Status, problem.Detail)
	}
	return fmt.Errorf("%s answers %s, not as a terminal gateway would", target.Host, response.Status)
}

// connection is one connection: three copies, of which the first to end ends all.
type connection struct {
	ws      *websocket.Conn
	in      io.Reader
	out     io.Writer
	err     io.Writer
	tty     int // file descriptor of the terminal; -1: none
	mu      sync.Mutex
	restore func()

	rendered atomic.Int64  // output that is shown, in bytes
	acks     chan struct{} // an ack is due; closed by show
	typing   atomic.Bool   // input waits for the gateway to take it
}

// Silence for lostAfter, with a ping every pingEvery, means that nobody is there.
const (
	pingEvery = 15 * time.Second
	lostAfter = 30 * time.Second
	endEvery  = 250 * time.Millisecond
)

var errLeft = errors.New("left, by the escape sequence")

func (t *connection) run(ctx context.Context) error {
	if t.tty >= 0 {
		state, err := term.MakeRaw(t.tty)
		if err != nil {
			return fmt.Errorf("setting the terminal to raw mode: %w", err)
		}
		restore := sync.OnceFunc(func() { _ = term.Restore(t.tty, state) })
		defer restore() // on every way out, a panic too
		t.restore = restore
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var copies sync.WaitGroup
	copies.Go(func() { t.watch(ctx, cancel) })
	// Standard input cannot be woken: this one ends with the process.
	go t.typeInput(cancel)
	ended := make(chan error, 1)
	copies.Go(func() { ended <- t.show() })
	copies.Go(t.acknowledge)

	var err error
	select {
	case err = <-ended:
		cancel(err)
	case <-ctx.Done():
		// Told to leave: the gateway ends the shell when the socket closes.
		_ = t.ws.Close(websocket.StatusNormalClosure, "")
		<-ended //nolint:errcheck // why it left is known
		err = context.Cause(ctx)
	}
	copies.Wait()
	if t.restore != nil {
		t.restore()
	}
	var status exitStatus
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		return status
	default:
		t.say("%s", err)
		return gatewayFailed
	}
}

// maxMessage bounds a control message from the gateway, in bytes. The longest is
// an error with its sentence.
const maxMessage = 64 << 10

// show prints what the gateway sends, and acknowledges it once it is printed.
func (t *connection) show() error {
	defer close(t.acks)
	var shown output
	var end *bridge.Error
	exit := -1
	for {
		typ, r, err := t.ws.Reader(context.Background())
		if err == nil && typ == websocket.MessageBinary {
			if err := t.print(r, &shown); err != nil {
				return err
			}
			continue
		}
		var p []byte
		if err == nil {
			p, err = io.ReadAll(io.LimitReader(r, maxMessage+1))
		}
		switch {
		case err != nil && exit >= 0:
			return exitStatus(exit)
		case err != nil && end != nil:
			if end.Detail != "" {
				return fmt.Errorf("%s (%s: %s)", end.Message, end.Code, end.Detail)
			}
			return fmt.Errorf("%s (%s)", end.Message, end.Code)
		case err != nil:
			return fmt.Errorf("the connection to the gateway is lost: %w", err)
		case len(p) > maxMessage:
			return fmt.Errorf("the gateway sent a control message of more than %d bytes", maxMessage)
		default:
			var m struct {
				Type    string
				Message string
				Code    json.RawMessage // a number in exit, a name elsewhere
			}
			if json.Unmarshal(p, &m) != nil {
				continue
			}
			switch m.Type {
			case "exit":
				if json.Unmarshal(m.Code, &exit) != nil || exit != int(uint8(exit)) {
					exit = int(gatewayFailed) // 256 would leave this process as a success
				}
			case "error":
				end = &bridge.Error{}
				_ = json.Unmarshal(p, end) // what is missing is empty
			case "notice":
				t.say("%s", m.Message)
			}
		}
	}
}

// acknowledge tells what is shown, beside show: while the gateway takes no input,
// since the program reads none, nothing else can be sent, and perhaps the program
// reads none because nobody takes its output.
func (t *connection) acknowledge() {
	for range t.acks {
		t.send(map[string]any{"type": "ack", "bytes": t.rendered.Load()})
	}
}

// output counts the shell's bytes.
type output struct {
	rendered, acked int64
	buf             [32 << 10]byte
}

// print prints one message, of any length, as it comes. What is shown is told at
// once when little is under way, else every 4 KiB: termgw.v1 asks for at least
// every 8.
func (t *connection) print(r io.Reader, o *output) error {
	const often = 4 << 10
	for size := 0; ; {
		n, err := r.Read(o.buf[:])
		if _, err := t.out.Write(o.buf[:n]); err != nil {
			return fmt.Errorf("writing to the terminal: %w", err)
		}
		size += n
		o.rendered += int64(n)
		if over := err != nil; o.rendered-o.acked >= often || over && size < often && o.rendered > o.acked {
			o.acked = o.rendered
			t.rendered.Store(o.rendered)
			select {
			case t.acks <- struct{}{}:
			default: // an ack is due already
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the connection to the gateway is lost: %w", err)
		}
	}
}

// typeInput sends what is typed. At the end of an input that is no terminal it
// sends the end-of-file character, so that a shell fed by a pipe ends.
func (t *connection) typeInput(leave context.CancelCauseFunc) {
	escape := escape{active: t.tty >= 0, lineStart: true}
	buf := make([]byte, 32<<10)
	for {
		n, err := t.in.Read(buf)
		p, left := escape.filter(buf[:n])
		if len(p) > 0 {
			t.typing.Store(true)
			err := t.ws.Write(context.Background(), websocket.MessageBinary, p)
			t.typing.Store(false)
			if err != nil {
				return
			}
		}
		if left {
			leave(errLeft)
			return
		}
		if err != nil {
			if t.tty < 0 {
				t.typeEnd()
			}
			return
		}
	}
}

// typeEnd says that there is no more input, over and over, as the end of a pipe
// is there for everyone who reads it. Once would not do: a Ctrl-D that comes
// before the shell's line editor has set its mode is a NUL to it, and one that
// a program reads is not the shell's.
func (t *connection) typeEnd() {
	again := time.NewTicker(endEvery)
	defer again.Stop()
	for t.ws.Write(context.Background(), websocket.MessageBinary, []byte{4}) == nil {
		<-again.C
	}
}

// escape finds ~. at the start of a line, as ssh does.
type escape struct {
	active, lineStart, tilde bool
}

func (e *escape) filter(p []byte) (send []byte, left bool) {
	if !e.active {
		return p, false
	}
	send = make([]byte, 0, len(p)+1)
	for _, c := range p {
		switch {
		case e.tilde && c == '.':
			return send, true
		case e.tilde:
			e.tilde = false
			send = append(send, '~')
			if c != '~' {
				send = append(send, c)
			}
		case e.lineStart && c == '~':
			e.tilde = true
			continue
		default:
			send = append(send, c)
		}
		e.lineStart = c == '\r' || c == '\n'
	}
	return send, false
}

// watch follows the terminal's size and finds out that nobody is there.
func (t *connection) watch(ctx context.Context, leave context.CancelCauseFunc) {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		select {
		case <-resized:
			if size, ok := t.size(); ok {
				t.send(map[string]any{"type": "resize", "cols": size.Cols, "rows": size.Rows})
			}
		case <-ping.C:
			if t.typing.Load() {
				continue // it would wait behind the input, for as long as the program reads none
			}
			answer, cancel := context.WithTimeout(ctx, lostAfter)
			err := t.ws.Ping(answer)
			cancel()
			if err != nil && ctx.Err() == nil && !t.typing.Load() {
				leave(fmt.Errorf("the gateway has not answered for %s", lostAfter))
				_ = t.ws.CloseNow()
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (t *connection) size() (terminal.Size, bool) {
	if t.tty < 0 {
		return terminal.Size{}, false
	}
	cols, rows, err := term.GetSize(t.tty)
	clamp := func(n int) uint16 { return uint16(min(max(n, 1), terminal.MaxDimension)) }
	return terminal.Size{Cols: clamp(cols), Rows: clamp(rows)}, err == nil
}

func (t *connection) send(m map[string]any) {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // maps of numbers and strings
	}
	_ = t.ws.Write(context.Background(), websocket.MessageText, b) // show finds out
}

// said is what others say, as it may be shown: on one line that acts on no
// terminal, and a few of such lines long at most.
func said(s string) string {
	const limit = 1000 // in bytes
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return printable(s)
}

// say tells the person something that is not the shell's.
func (t *connection) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.err, "\r\ntermgw: %s\r\n", said(fmt.Sprintf(format, args...)))
}
