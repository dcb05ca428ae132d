package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/molecule-ai/termgw/pkg/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen. It is never waited out
// unless the test fails.
const patience = 3 * time.Minute

const (
	ticket = "eyJub3QiOiJmb3IifQ.c2hvd2luZw.dGlja2V0"
	ready  = `{"type":"ready","session":"S","workspace":"ws","target":"local","mode":"rw","window":65536,"idle_timeout":1800,"max_session":28800}`
)

// gateway is the other side of a connection: what a test makes of it.
type gateway struct {
	*websocket.Conn
	t       *testing.T
	request *http.Request
}

// handler upgrades each request, and plays the gateway.
func handler(t *testing.T, play func(gateway)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"termgw.v1"}})
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = ws.CloseNow() }()
		ws.SetReadLimit(-1)
		play(gateway{ws, t, r})
	})
}

// serve starts a gateway, and returns what opens its terminal.
func serve(t *testing.T, h http.Handler) client.Config {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return client.Config{URL: strings.Replace(server.URL, "http", "ws", 1) + "/workspaces/ws/terminal", Ticket: ticket}
}

func (g gateway) tell(format string, args ...any) {
	g.write(websocket.MessageText, fmt.Appendf(nil, format, args...))
}

func (g gateway) print(p string) { g.write(websocket.MessageBinary, []byte(p)) }

func (g gateway) write(typ websocket.MessageType, p []byte) {
	if err := g.Write(context.Background(), typ, p); err != nil {
		g.t.Errorf("the client does not take %.100q: %v", p, err)
	}
}

// hear returns the next message; pings are answered.
func (g gateway) hear() (typ websocket.MessageType, message string, err error) {
	for {
		typ, p, err := g.Read(context.Background())
		var id int
		if _, bad := fmt.Sscanf(string(p), `{"type":"ping","id":%d}`, &id); err != nil || bad != nil {
			return typ, string(p), err
		}
		g.tell(`{"type":"pong","id":%d,"input":0}`, id)
	}
}

// expect waits for a message.
func (g gateway) expect(want string) {
	if _, got, err := g.hear(); err != nil || got != want {
		g.t.Errorf("the client sent %.100q, %v; want %q", got, err, want)
	}
}

// wait hears the client until it goes, and returns how.
func (g gateway) wait() websocket.StatusCode {
	for {
		if _, _, err := g.hear(); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

func dial(t *testing.T, config client.Config) *client.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := client.Dial(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestDial(t *testing.T) {
	t.Parallel()
	var notices []client.Notice
	config := serve(t, handler(t, func(g gateway) {
		if got := g.request.Header.Get("Sec-WebSocket-Protocol"); got != "termgw.v1,termgw.ticket."+ticket {
			t.Errorf("subprotocols %q", got)
		}
		if got := g.request.URL.RequestURI(); got != "/workspaces/ws/terminal?cols=1000&rows=24" {
			t.Errorf("asked for %q", got)
		}
		g.tell(`{"type":"tomorrow","code":7}`)
		g.tell(ready)
		g.tell(`{"type":"ready","mode":"ro"}`) // the first counts
		g.print("$ ")
		g.tell(`{"type":"notice","code":"idle_timeout","seconds":60,"message":"A minute left."}`)
		g.tell(`{"type":"notice","code":"joined","subject":"ann","seconds":"soon"}`)
		g.expect("exit\n")
		g.expect(`{"type":"ack","bytes":2}`)
		g.print("bye")
		g.tell(`{"type":"exit","code":7,"mood":"good"}`)
		_ = g.Close(websocket.StatusNormalClosure, "exit")
	}))
	config.Cols, config.Rows = 5000, 24
	config.Notice = func(n client.Notice) { notices = append(notices, n) }
	c := dial(t, config)
	want := client.Ready{Session: "S", Workspace: "ws", Target: "local", Mode: "rw", IdleTimeout: 30 * time.Minute, MaxSession: 8 * time.Hour}
	if got := c.Ready(); got != want || got.ReadOnly() {
		t.Errorf("ready: %+v", got)
	}
	buf := make([]byte, 100)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "$ " {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if n, err := c.Write([]byte("exit\n")); n != 5 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	if rest, err := io.ReadAll(c); err != nil || string(rest) != "bye" || c.Exit() != (client.Exit{Code: 7}) {
		t.Errorf("read %q, %v, %+v", rest, err, c.Exit())
	}
	if _, err := c.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("after the end input is taken")
	}
	wantNotices := []client.Notice{{Code: "idle_timeout", Left: time.Minute, Message: "A minute left."}, {Code: "joined"}}
	if fmt.Sprint(notices) != fmt.Sprint(wantNotices) {
		t.Errorf("notices %+v", notices)
	}
}

// What a newer gateway says of a session is kept; a mode that is not known is read-only.
func TestNewerGateway(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fields   string
		target   string
		mode     string
		readOnly bool
	}{
		{`"target":"pod","mode":"rw","resume":120,"resumed":false,"output":0,"input":0,"colours":{"deep":[1,2]}`, "pod", "rw", false},
		{`"target":"local","mode":"ro"`, "local", "ro", true},
		{`"target":"pod","mode":"watch"`, "pod", "watch", true},
		{`"target":"pod","mode":"RW"`, "pod", "RW", true},
		{`"target":7,"mode":{"rw":true},"idle_timeout":"1h","max_session":1e999`, "", "", true},
		{`"target":""`, "", "", true},
	} {
		t.Run(test.fields, func(t *testing.T) {
			t.Parallel()
			c := dial(t, serve(t, handler(t, func(g gateway) {
				g.tell(`{"type":"ready","session":"S",%s}`, test.fields)
				if !test.readOnly {
					g.expect("typed")
				}
				g.expect(`{"type":"resize","cols":90,"rows":1}`)
				g.tell(`{"type":"exit","code":0}`)
				_ = g.Close(websocket.StatusNormalClosure, "")
			})))
			if r := c.Ready(); r.Session != "S" || r.Target != test.target || r.Mode != test.mode || r.ReadOnly() != test.readOnly {
				t.Errorf("ready: %+v", r)
			}
			n, err := c.Write([]byte("typed"))
			if test.readOnly != errors.Is(err, client.ErrReadOnly) || test.readOnly != (n == 0) {
				t.Errorf("wrote %d, %v", n, err)
			}
			c.Resize(90, -3)
			if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
				t.Errorf("read %q, %v", rest, err)
			}
		})
	}
}

// The gateway's word decides whether another try makes sense, and the close code where there is none.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		message string
		close   websocket.StatusCode // 0: the connection is cut
		reason  string
		want    client.Error
		says    string
	}{
		{
			`{"type":"error","code":"ticket_used","message":"Used.","retryable":true}`, 4409, "ticket_used",
			client.Error{Code: "ticket_used", Message: "Used.", Retryable: true, CloseCode: 4409},
			"Used. (ticket_used)",
		},
		{
			`{"type":"error","code":"backend_failed","message":"No.","retryable":false,"detail":"role","docs":"docs/x.md","more":1}`, 4502, "",
			client.Error{Code: "backend_failed", Message: "No.", Detail: "role", Docs: "docs/x.md", CloseCode: 4502},
			"No. (backend_failed: role)",
		},
		{`{"type":"error","code":"revoked","message":"A moment.","retryable":true}`, 4423, "", client.Error{Code: "revoked", Message: "A moment.", Retryable: true, CloseCode: 4423}, "A moment. (revoked)"},
		{`{"type":"error","code":"draining","message":"For good.","retryable":false}`, 1012, "", client.Error{Code: "draining", Message: "For good.", CloseCode: 1012}, "For good. (draining)"},
		{`{"type":"error","code":"moon_phase","message":"Wait."}`, 4503, "", client.Error{Code: "moon_phase", Message: "Wait.", Retryable: true, CloseCode: 4503}, "Wait. (moon_phase)"},
		{`{"type":"error","code":"moon_phase","message":"Wait.","retryable":"perhaps"}`, 4999, "", client.Error{Code: "moon_phase", Message: "Wait.", CloseCode: 4999}, "Wait. (moon_phase)"},
		{`{"type":"error","code":"moon_phase","message":"Wait.","retryable":true}`, 4000, "", client.Error{Code: "moon_phase", Message: "Wait.", Retryable: true, CloseCode: 4000}, "Wait. (moon_phase)"},
		{`{"type":"error","retryable":true}`, 4502, "", client.Error{Retryable: true, CloseCode: 4502}, "the gateway closed the session with code 4502"},
		{`{"type":"error","code":"idle_timeout","message":"Idle.","retryable":true}`, 0, "", client.Error{Code: "idle_timeout", Message: "Idle.", Retryable: true}, "Idle. (idle_timeout)"},
		{`{"type":"tomorrow"}`, 4408, "idle_timeout", client.Error{Code: "idle_timeout", Retryable: true, CloseCode: 4408}, "the gateway closed the session with code 4408 (idle_timeout)"},
		// The first end is the cause.
		{`{"type":"error","code":"revoked","message":"Cut."}{"type":"error","code":"draining","message":"Later."}`, 4423, "", client.Error{Code: "revoked", Message: "Cut.", CloseCode: 4423}, "Cut. (revoked)"},
		{`{"type":"error","code":"revoked","message":"Cut, too."}{"type":"exit","code":0}`, 4423, "", client.Error{Code: "revoked", Message: "Cut, too.", CloseCode: 4423}, "Cut, too. (revoked)"},
		{`{"type":"tomorrow"}`, 4423, "", client.Error{CloseCode: 4423}, "the gateway closed the session with code 4423"},
	} {
		t.Run(test.says, func(t *testing.T) {
			t.Parallel()
			for _, opens := range []bool{false, true} { // refused, or ended later
				config := serve(t, handler(t, func(g gateway) {
					if opens {
						g.tell(ready)
						g.print("last words")
					}
					for message := range strings.SplitAfterSeq(test.message, "}") {
						if message != "" {
							g.tell("%s", message)
						}
					}
					if test.close != 0 {
						_ = g.Close(test.close, test.reason)
					}
				}))
				c, err := client.Dial(t.Context(), config)
				if opens && err == nil {
					var last []byte
					if last, err = io.ReadAll(c); string(last) != "last words" {
						t.Errorf("read %q", last)
					}
					_ = c.Close()
				}
				var end *client.Error
				if !errors.As(err, &end) || *end != test.want || end.Error() != test.says {
					t.Errorf("opened %t: %+v", opens, err)
				}
			}
		})
	}
}

// What is no gateway, or none that can be reached, is told without the ticket or the address's query.
func TestNoTerminal(t *testing.T) {
	t.Parallel()
	with := func(status int, header, value, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(header, value)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})
	}
	raw := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err == nil {
			_ = ws.CloseNow()
		}
	})
	for name, test := range map[string]struct {
		handler http.Handler
		change  func(*client.Config)
		says    string
	}{
		"problem":     {with(403, "Content-Type", "application/problem+json", `{"detail":"Not this page."}`), nil, "403 Forbidden: Not this page."},
		"no problem":  {with(500, "X", "y", "<html>"), nil, "not as a terminal gateway would"},
		"redirect":    {with(307, "Location", "https://elsewhere.example/x?"+ticket, ""), nil, "redirects to https://elsewhere.example (307"},
		"no protocol": {raw, nil, "does not speak termgw.v1"},
		"exit first": {handler(t, func(g gateway) {
			g.tell(`{"type":"exit","code":0}`)
			_ = g.Close(websocket.StatusNormalClosure, "")
		}), nil, "before it told that there was one"},
		"output first": {handler(t, func(g gateway) { g.print("x"); g.wait() }), nil, "sent output before"},
		"cut":          {handler(t, func(g gateway) {}), nil, "the connection to the gateway is lost"},
		"nobody":       {nil, func(c *client.Config) { c.URL = "ws://127.0.0.1:1/workspaces/ws/terminal?ticket=" + ticket }, "127.0.0.1:1"},
		"http":         {nil, func(c *client.Config) { c.URL = "https://h/?ticket=" + ticket }, "must be like wss://"},
		"no host":      {nil, func(c *client.Config) { c.URL = "wss:///?ticket=" + ticket }, "must be like wss://"},
		"no address":   {nil, func(c *client.Config) { c.URL = "wss://h/%zz" + ticket }, "must be like wss://"},
		"no ticket":    {nil, func(c *client.Config) { c.Ticket = "" }, "the ticket is no JWT"},
		"two tickets":  {nil, func(c *client.Config) { c.Ticket = ticket + ", termgw.ticket." + ticket }, "the ticket is no JWT"},
		"header":       {nil, func(c *client.Config) { c.Ticket = ticket + "\r\nX: y" }, "the ticket is no JWT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := client.Config{URL: "ws://127.0.0.1:1/", Ticket: ticket}
			if test.handler != nil {
				config = serve(t, test.handler)
			}
			if test.change != nil {
				test.change(&config)
			}
			c, err := client.Dial(t.Context(), config)
			if c != nil || err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), ticket) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("no shell in time", func(t *testing.T) {
		t.Parallel()
		closed := make(chan websocket.StatusCode, 1)
		ctx, cancel := context.WithCancelCause(t.Context())
		config := serve(t, handler(t, func(g gateway) {
			go func() { // once the client waits
				_ = g.Ping(context.Background())
				cancel(errors.New("the test has waited enough"))
			}()
			closed <- g.wait()
		}))
		if _, err := client.Dial(ctx, config); err == nil || !strings.HasSuffix(err.Error(), "the test has waited enough") {
			t.Errorf("%v", err)
		}
		if code := <-closed; code != websocket.StatusNormalClosure {
			t.Errorf("the gateway was left with %d", code)
		}
	})
}

// The status is the gateway's number, or -1.
func TestExit(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]client.Exit{
		`"code":0`: {}, `"code":255`: {Code: 255}, `"code":137,"signal":"SIGKILL"`: {Code: 137, Signal: "SIGKILL"}, `"code":256`: {Code: 256},
		`"code":"0"`: {Code: -1}, `"code":null`: {Code: -1}, `"mood":0`: {Code: -1}, `"code":0.5`: {Code: -1}, `"code":1e400`: {Code: -1},
	} {
		c := dial(t, serve(t, handler(t, func(g gateway) {
			g.tell(ready)
			g.tell(`{"type":"exit",%s}`, message)
			_ = g.Close(websocket.StatusNormalClosure, "")
		})))
		if _, err := io.Copy(io.Discard, c); err != nil || c.Exit() != want {
			t.Errorf("%s: %+v, %v", message, c.Exit(), err)
		}
	}
}

// The gateway is told of output as it is read: at once when no more is there, and every 4 KiB otherwise.
func TestAcks(t *testing.T) {
	t.Parallel()
	acks := make(chan string)
	c := dial(t, serve(t, handler(t, func(g gateway) {
		g.tell(ready)
		g.print(strings.Repeat("x", 10_000))
		for {
			_, m, err := g.hear()
			if err != nil {
				return
			}
			acks <- m
		}
	})))
	read := func(n int) {
		t.Helper()
		if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	read(4096)
	read(4096) // the second call says that the first was rendered
	if got := <-acks; got != `{"type":"ack","bytes":4096}` {
		t.Errorf("got %s", got)
	}
	read(1000)
	if got := <-acks; got != `{"type":"ack","bytes":8192}` {
		t.Errorf("got %s", got)
	}
	read(808)
	go func() { _, _ = c.Read(make([]byte, 1)) }() // nothing is left: this one waits
	if got := <-acks; got != `{"type":"ack","bytes":10000}` {
		t.Errorf("got %s", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// Of input that the gateway does not read little is on its way. Meanwhile output goes on, and nothing else waits: the newest
// size is sent when the gateway reads again, and no input is lost.
func TestGatewayThatDoesNotRead(t *testing.T) {
	t.Parallel()
	input := bytes.Repeat([]byte("0123456789abcde\n"), 1<<20/16)
	const output, sizes = 4 << 20, 10_000
	reads := make(chan struct{})
	got := make(chan []byte, 1)
	c := dial(t, serve(t, handler(t, func(g gateway) {
		g.tell(ready)
		for range output / 4096 {
			g.print(strings.Repeat("x", 4096))
		}
		<-reads
		var all []byte
		heard := 0
		for len(all) < len(input) {
			switch typ, m, err := g.hear(); {
			case err != nil:
				t.Error(err)
				return
			case typ == websocket.MessageBinary:
				all = append(all, m...)
			default:
				heard++
			}
		}
		if heard > 1500 { // one for each 4 KiB of output at most, and few sizes
			t.Errorf("%d control messages were sent", heard)
		}
		got <- all
		g.wait()
	})))
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(input)
		written <- err
	}()
	if _, err := io.CopyN(io.Discard, c, output); err != nil {
		t.Fatal(err)
	}
	for i := range sizes {
		c.Resize(80+i%2, 24)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no time"))
	if _, err := c.Ping(ctx); err == nil || err.Error() != "no time" {
		t.Errorf("a ping that cannot leave: %v", err)
	}
	select {
	case err := <-written:
		t.Errorf("1 MiB was written to a gateway that does not read: %v", err)
	default:
	}
	close(reads)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if all := <-got; !bytes.Equal(all, input) {
		t.Errorf("%d bytes came, or others", len(all))
	}
	if roundTrip, err := c.Ping(t.Context()); err != nil || roundTrip <= 0 {
		t.Errorf("ping: %s, %v", roundTrip, err)
	}
}
