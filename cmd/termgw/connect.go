package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/molecule-ai/termgw/pkg/client"
)

// ConnectCmd is a terminal client.
type ConnectCmd struct {
	URL            string `arg:"" name:"url" help:"The terminal's address: wss://HOST/workspaces/ID/terminal"`
	TicketEndpoint string `placeholder:"FILE" help:"File that holds an address which answers a POST with a ticket; 'termgw demo' writes one."`
}

// Help describes the sources of the ticket, the escape sequence and the exit status.
func (ConnectCmd) Help() string {
	return `The ticket is taken from TERMGW_TICKET, from --ticket-endpoint, or from the address's own ?ticket=
(which other users of this machine can read in the process list).

Where the gateway lets a shell wait for its person, and the ticket endpoint gives fresh tickets, a lost
connection is made anew: what was typed meanwhile goes to the same shell. If that is gone by then, a
person gets a new one; a script, whose input is no terminal, ends. No connection is tried for longer than
the shell waits, and a minute.

Enter ~ . leaves at once, and ends the shell; Enter ~ ~ types a tilde. The exit status is the shell's, or 255 if
there was none: no ticket, no gateway, refused, or ended by the gateway.`
}

// gatewayFailed is the exit status if there is none of a shell, as in ssh(1).
const gatewayFailed = exitStatus(255)

// Run carries bytes between this terminal and the gateway's until one side ends. The exit
// status is the shell's, or gatewayFailed after any error.
func (c *ConnectCmd) Run(ctx context.Context, std *stdio) error {
	err := c.carry(ctx, std)
	var status exitStatus
	if err != nil && !errors.As(err, &status) {
		_, _ = fmt.Fprintf(std.Err, "termgw: %s\n", shown(err.Error()))
		return gatewayFailed
	}
	return err
}

func (c *ConnectCmd) carry(ctx context.Context, std *stdio) error {
	target, tickets, err := c.tickets()
	if err != nil {
		return err
	}
	t := &console{stdio: std, tty: -1, comesBack: c.TicketEndpoint != "", redraw: make(chan struct{}, 1)}
	in, _ := std.In.(*os.File)
	out, _ := std.Out.(*os.File)
	if in != nil && out != nil && term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd())) {
		t.tty = int(in.Fd())
		t.screen = &screen{Writer: std.Out}
	}
	config := client.Config{URL: target.String(), HTTPClient: ticketClient(), Notice: func(n client.Notice) {
		t.say(cmp.Or(n.Message, n.Code))
	}, OneShell: t.tty < 0}
	config.Cols, config.Rows = t.size()
	session, err := client.Open(ctx, config, tickets, t.status)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	return t.run(ctx, session)
}

// errOneTicket is why a session with a single ticket ends with its connection.
var errOneTicket = fmt.Errorf("%w to come back with: give --ticket-endpoint", client.ErrNoTicket)

// tickets returns the address without a ticket, since errors show the address, and where
// tickets come from.
func (c *ConnectCmd) tickets() (*url.URL, func(context.Context) (string, error), error) {
	target, err := url.Parse(c.URL)
	if err != nil || target.Host == "" || target.Scheme != "ws" && target.Scheme != "wss" {
		return nil, nil, errors.New("the address must be like wss://HOST/workspaces/ID/terminal")
	}
	query := target.Query()
	raw := cmp.Or(query.Get("ticket"), os.Getenv("TERMGW_TICKET"))
	query.Del("ticket")
	target.RawQuery = query.Encode()
	more := func(ctx context.Context) (string, error) { return fetchTicket(ctx, c.TicketEndpoint, target) }
	if c.TicketEndpoint == "" {
		more = func(context.Context) (string, error) { return "", errOneTicket }
	}
	switch {
	case raw != "":
		return target, func(ctx context.Context) (string, error) {
			if once := raw; once != "" {
				raw = ""
				return once, nil
			}
			return more(ctx)
		}, nil
	case c.TicketEndpoint != "":
		return target, more, nil
	}
	return nil, nil, errors.New("no ticket: set TERMGW_TICKET, or give --ticket-endpoint")
}

// fetchTicket gets a ticket from the endpoint whose URL the file holds. Errors do not show
// the URL, which has a secret.
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
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&answer); err == nil && answer.Ticket != "" {
		return answer.Ticket, nil
	}
	err = fmt.Errorf("the ticket endpoint in %s answers %s", file, strings.TrimSpace(response.Status+" "+answer.Detail))
	switch code := response.StatusCode; {
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code >= 500:
		return "", err // may pass
	default:
		return "", fmt.Errorf("%w: %w", client.ErrNoTicket, err)
	}
}

// ticketClient returns the HTTP client for a request with a ticket, or with the secret of
// a ticket endpoint. The client follows no redirect, so that no other address gets the
// secret. It reads at most 64 KiB of a response's header, and waits 15 s for the header.
func ticketClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	transport.ResponseHeaderTimeout = 15 * time.Second
	transport.DisableKeepAlives = true // the client sends one request
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// endEvery is the pause between two end-of-file characters after the end of the input.
const endEvery = 250 * time.Millisecond

var errLeft = errors.New("left, by the escape sequence")

// console is the person's side: standard input and output, and the tty if there is one.
type console struct {
	*stdio
	comesBack bool          // there are tickets to come back with
	away      sync.Mutex    // guards the next two
	waits     bool          // there is no connection
	until     time.Time     // the shell waits so long at least; only if waits
	isNew     atomic.Bool   // the shell is another since input came last
	tty       int           // file descriptor of the tty; -1: input or output is no tty
	screen    *screen       // nil: input or output is no tty
	redraw    chan struct{} // has a value when the program is to draw its screen anew
	saying    sync.Mutex    // held while a message is printed
}

// run carries bytes both ways until one side ends.
func (t *console) run(ctx context.Context, conn *client.Session) error {
	restore := func() {}
	if t.tty >= 0 {
		state, err := term.MakeRaw(t.tty)
		if err != nil {
			return fmt.Errorf("setting the terminal to raw mode: %w", err)
		}
		restore = sync.OnceFunc(func() { _ = term.Restore(t.tty, state) })
		defer restore() // also after a panic
	}
	if conn.Ready().ReadOnly() {
		t.say(readOnly)
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	var loops sync.WaitGroup
	loops.Go(func() { t.followSize(ctx, conn) })
	// A Read of standard input cannot be interrupted: this goroutine ends with the process.
	go t.typeInput(conn, leave)
	closed := make(chan error, 1)
	stopped := context.AfterFunc(ctx, func() { closed <- conn.Close() }) // the gateway then ends the shell
	out := t.Out
	if t.screen != nil {
		out = t.screen
	}
	_, err := io.Copy(out, conn)
	if !stopped() {
		err = context.Cause(ctx)
		if <-closed != nil && conn.Ready().Resume > 0 {
			t.status(client.Status{Waiting: true, Left: conn.Ready().Resume})
		}
	}
	leave(nil)
	loops.Wait()
	restore()
	if err != nil {
		t.sayEnd(err)
		return gatewayFailed
	}
	switch code := conn.Exit().Code; {
	case code == 0:
		return nil
	case code < 0 || code > 255:
		return gatewayFailed // a process's exit status has 8 bits: 256 would become 0, a success
	default:
		return exitStatus(code)
	}
}

// typingPause ends what a person types or pastes in one go: half a line means another thing in
// another shell.
const typingPause = 500 * time.Millisecond

// typeInput sends standard input to the gateway. At the end of an input that is no tty
// typeInput sends the end-of-file character, so that a shell fed by a pipe ends.
func (t *console) typeInput(conn *client.Session, leave context.CancelCauseFunc) {
	escape := escape{active: t.tty >= 0, lineStart: true}
	buf := make([]byte, 32<<10)
	var came time.Time // when input came last
	isOld := false     // what comes was begun for a shell that is gone
	for {
		n, err := t.In.Read(buf)
		isOld = (t.isNew.Swap(false) || isOld) && time.Since(came) < typingPause
		p, left := escape.filter(buf[:n])
		if isOld {
			p = nil
		}
		if err := t.write(conn, p); err != nil && !errors.Is(err, client.ErrReadOnly) {
			return
		}
		came = time.Now() // write may have waited
		if left {
			leave(errLeft)
			return
		}
		if err != nil {
			if t.tty < 0 {
				typeEnd(conn)
			}
			return
		}
	}
}

// write is the Session's Write. While there is no connection, what a person types beyond a
// mebibyte is dropped, since the escape sequence has to be heard; a script waits.
func (t *console) write(conn *client.Session, p []byte) error {
	for {
		n, err := conn.Write(p)
		if !errors.Is(err, client.ErrNotKept) {
			return err
		}
		if p = p[n:]; t.tty >= 0 {
			if n > 0 {
				t.say("a mebibyte of what you typed is kept already: the rest is dropped (Enter ~ . leaves)")
			}
			return nil
		}
		time.Sleep(endEvery)
	}
}

// typeEnd sends the end-of-file character (Ctrl-D) again and again, as every reader of a
// pipe sees the pipe's end. A single Ctrl-D can be lost: the shell's line editor takes a
// Ctrl-D from before the editor has set the tty's mode as a NUL, and another program may
// read the Ctrl-D instead of the shell.
func typeEnd(w io.Writer) {
	again := time.NewTicker(endEvery)
	defer again.Stop()
	for {
		if _, err := w.Write([]byte{4}); err != nil {
			return
		}
		<-again.C
	}
}

// escape finds ~. at the start of a line, as ssh(1) does.
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

// redrawPause is how long a program has another size, so that it draws its screen anew.
const redrawPause = 300 * time.Millisecond

// followSize sends the tty's size to the gateway at once, since the size may have changed
// while the shell was started, and after each change until ctx ends.
func (t *console) followSize(ctx context.Context, conn *client.Session) {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	for {
		if cols, rows := t.size(); cols > 0 {
			conn.Resize(cols, rows)
		}
		select {
		case <-resized:
		case <-t.redraw:
			if cols, rows := t.size(); rows > 1 {
				conn.Resize(cols, rows-1)
			}
			select {
			case <-time.After(redrawPause):
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// size returns the tty's size, or zeros if the size is not known.
func (t *console) size() (cols, rows int) {
	if t.tty < 0 {
		return 0, 0
	}
	cols, rows, err := term.GetSize(t.tty)
	if err != nil || cols == 0 || rows == 0 {
		return 0, 0
	}
	return cols, rows
}

// shown returns untrusted text as it may be printed: on one line, without escape
// sequences, and at most some 1000 bytes long.
func shown(s string) string {
	const limit = 1000 // in bytes
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return printable(s)
}

// status tells the person what became of the connection, once for each change.
func (t *console) status(s client.Status) {
	t.away.Lock()
	before := t.waits
	t.waits, t.until = s.Waiting, time.Now().Add(s.Left)
	t.away.Unlock()
	switch {
	case s.Waiting && (before || !t.comesBack || s.Err == nil):
	case s.Waiting && s.Left > 0:
		t.say(fmt.Sprintf("%v: your shell waits for %s, and this comes back by itself (Enter ~ . leaves)", s.Err, s.Left.Round(time.Second)))
	case s.Waiting:
		t.say(fmt.Sprintf("%v: your shell may be gone, and is asked for (Enter ~ . leaves)", s.Err))
	case s.New:
		t.isNew.Store(true)
		if t.screen != nil {
			t.screen.leave()
		}
		t.say("the shell is gone: this is a new one")
	default:
		t.say("here is your shell again")
		if t.screen != nil && t.screen.isDrawn() { // messages are in it
			select {
			case t.redraw <- struct{}{}:
			default:
			}
		}
	}
	if !s.Waiting && s.Ready.ReadOnly() {
		t.say(readOnly)
	}
}

// sayEnd says why it is over, and what becomes of a shell that could not be told.
func (t *console) sayEnd(err error) {
	t.away.Lock()
	defer t.away.Unlock()
	message := err.Error()
	if left := time.Until(t.until).Round(time.Second); t.waits && left > 0 && !errors.Is(err, client.ErrShellGone) {
		message += fmt.Sprintf("; the shell, which could not be told, waits for %s and then ends", left)
	}
	if t.screen != nil {
		t.screen.leave()
	}
	t.say(message)
}

const readOnly = "this terminal is read-only: what you type is not sent"

// say prints a message to the person, apart from the shell's output.
func (t *console) say(message string) {
	if t.screen != nil {
		cols, _ := t.size()
		t.screen.say(shown(message), cols)
		return
	}
	t.saying.Lock()
	defer t.saying.Unlock()
	_, _ = fmt.Fprintf(t.Err, "\r\ntermgw: %s\r\n", shown(message))
}
