package bridge

import (
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

var someReady = Ready{
	Session: "s-1", Workspace: "w-1", Target: "local", Mode: "rw",
	IdleTimeout: 30 * time.Minute, MaxSession: 8 * time.Hour,
}

func TestReadyComesFirst(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: someReady}})
	s.term.print([]byte("$ "))
	s.waitBytes(t, 2)
	want := `{"type":"ready","session":"s-1","workspace":"w-1","target":"local","mode":"rw",` +
		`"window":65536,"idle_timeout":1800,"max_session":28800}`
	s.with(func() {
		if got := s.frames[0].text; got != want {
			t.Errorf("first frame\n got %s\nwant %s", got, want)
		}
	})
}

func TestOutputIsUntouched(t *testing.T) {
	for _, raw := range []bool{false, true} {
		s := start(t, setup{raw: raw, opt: Options{Ready: someReady}})
		// Half a character, and the other half once the first has arrived.
		s.term.print([]byte("\xe2\x82"))
		s.waitBytes(t, 2)
		s.term.print([]byte("\xac"))
		s.waitBytes(t, 3)
		random := make([]byte, 1<<20)
		r := rand.New(rand.NewPCG(1, 2))
		for i := range random {
			random[i] = byte(r.Uint32())
		}
		s.term.print(random)
		s.term.quit(terminal.Exit{})
		if code, _ := s.closed(t); code != websocket.StatusNormalClosure {
			t.Errorf("closed with %d", code)
		}
		same(t, "output", s.out, append([]byte("€"), random...))
		sum := s.wait(t)
		if sum.BytesOut != int64(len(s.out)) {
			t.Errorf("BytesOut = %d, want %d", sum.BytesOut, len(s.out))
		}
	}
}

func TestExitComesAfterAllOutput(t *testing.T) {
	for _, c := range []struct {
		exit terminal.Exit
		want string
	}{
		{terminal.Exit{Code: 3}, `{"type":"exit","code":3}`},
		{terminal.Exit{Code: 137, Signal: "SIGKILL"}, `{"type":"exit","signal":"SIGKILL","code":137}`},
	} {
		s := start(t, setup{opt: Options{Ready: someReady}})
		all := make([]byte, 3<<20)
		pattern(0, all)
		s.term.with(func() { s.term.out, s.term.exit, s.term.readErr = all, c.exit, io.EOF })
		code, reason := s.closed(t)
		if code != websocket.StatusNormalClosure || reason != "exit" {
			t.Errorf("closed with %d %q", code, reason)
		}
		same(t, "output", s.out, all)
		last := s.frames[len(s.frames)-1]
		if last.text != c.want || last.at != int64(len(all)) {
			t.Errorf("last frame %q after %d bytes, want %q after %d", last.text, last.at, c.want, len(all))
		}
		sum := s.wait(t)
		if sum.Cause != nil || sum.Exit == nil || *sum.Exit != c.exit {
			t.Errorf("summary %+v", sum)
		}
	}
}

func TestRawMode(t *testing.T) {
	s := start(t, setup{raw: true, opt: Options{Ready: someReady}})
	s.control(t, `{"type":"resize","cols":1,"rows":1}`)
	s.input(t, "ls\r")
	s.control(t, "{not json")
	want := `{"type":"resize","cols":1,"rows":1}` + "ls\r{not json"
	s.term.until(t, "the input", func() bool { return s.term.taken == int64(len(want)) })
	if got := s.term.typed(); got != want {
		t.Errorf("input %q, want %q", got, want)
	}
	s.term.print([]byte("bye"))
	s.term.quit(terminal.Exit{Code: 1})
	if code, reason := s.closed(t); code != websocket.StatusNormalClosure || reason != "exit" {
		t.Errorf("closed with %d %q", code, reason)
	}
	if texts := s.texts(); len(texts) != 0 {
		t.Errorf("control messages in raw mode: %q", texts)
	}
	if sum := s.wait(t); sum.BytesIn != int64(len(want)) || sum.BytesOut != 3 {
		t.Errorf("summary %+v", sum)
	}
}

func TestRawModeTellsTheEndInOneSentence(t *testing.T) {
	s := start(t, setup{raw: true, opt: Options{Ready: someReady}})
	s.cancel(errors.New("drained"))
	if code, reason := s.closed(t); code != 1012 || reason != "draining" {
		t.Errorf("closed with %d %q", code, reason)
	}
	if texts := s.texts(); !slices.Equal(texts, []string{"The terminal ended.\r\n"}) {
		t.Errorf("text frames %q", texts)
	}
}

func TestRefuse(t *testing.T) {
	e := Error{Code: "ticket_used", Message: "Ask for a new ticket.", Retryable: true, Detail: "d", Docs: "docs/x.md"}
	for _, c := range []struct {
		offered []string
		want    string
	}{
		{nil, "Ask for a new ticket.\r\n"},
		{[]string{Subprotocol}, `{"type":"error","code":"ticket_used","message":"Ask for a new ticket.","retryable":true,"detail":"d","docs":"docs/x.md"}`},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ws, err := Accept(w, r)
			if err == nil {
				ws.Refuse(4409, e)
			}
		}))
		defer srv.Close()
		ws, _, err := websocket.Dial(t.Context(), srv.URL, &websocket.DialOptions{Subprotocols: c.offered})
		if err != nil {
			t.Fatal(err)
		}
		typ, p, err := ws.Read(t.Context())
		if err != nil || typ != websocket.MessageText || string(p) != c.want {
			t.Errorf("%v %q %v, want %q", typ, p, err, c.want)
		}
		_, _, err = ws.Read(t.Context())
		var ce websocket.CloseError
		if !errors.As(err, &ce) || ce.Code != 4409 || ce.Reason != "ticket_used" {
			t.Errorf("closed with %v", err)
		}
	}
}

func TestUnknownMessagesAreIgnored(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: someReady}})
	s.control(t, `{"type":"dance","cols":-1,"bytes":"x"}`)
	s.control(t, `{"type":"resize","cols":80,"rows":24,"pixels":{"x":[1]}}`)
	s.barrier(t, "1")
	s.term.until(t, "the size", func() bool { return len(s.term.events) > 0 })
	if got := s.term.log(); !slices.Equal(got, []string{"resize 80x24"}) {
		t.Errorf("the terminal got %q", got)
	}
}

// A name in another case is another name.
func TestNamesAreExact(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: someReady}})
	s.control(t, `{"type":"ping","id":8,"ID":"x","Type":"dance"}`)
	s.waitText(t, `{"type":"pong","id":8,`)
	s.control(t, `{"type":"resize","cols":80,"rows":24,"Cols":0,"ROWS":0}`)
	s.barrier(t, "1")
	s.term.until(t, "the size", func() bool { return len(s.term.events) > 0 })
	if got := s.term.log(); !slices.Equal(got, []string{"resize 80x24"}) {
		t.Errorf("the terminal got %q", got)
	}
	s.control(t, `{"TYPE":"ping","id":2}`)
	if code, _ := s.closed(t); code != 4400 {
		t.Errorf("closed with %d", code)
	}
}

// The subprotocol's name is exact too (RFC 6455, 4.1): who offers another gets none.
func TestSubprotocolIsExact(t *testing.T) {
	for _, c := range []struct {
		offered []string
		want    string
	}{
		{[]string{"termgw.v1"}, "termgw.v1"},
		{[]string{"TERMGW.V1"}, ""},
		{[]string{"Termgw.v1, termgw.v2,termgw.v1x"}, ""},
		{[]string{"TERMGW.V1, termgw.v1"}, "termgw.v1"},
		{[]string{"other", " other ,termgw.v1 "}, "termgw.v1"},
		{[]string{""}, ""},
		{nil, ""},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		for name, value := range map[string]string{
			"Connection": "Upgrade", "Upgrade": "websocket",
			"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
		} {
			r.Header.Set(name, value)
		}
		for _, line := range c.offered {
			r.Header.Add("Sec-WebSocket-Protocol", line)
		}
		client, server := net.Pipe()
		w := &hijackable{httptest.NewRecorder(), server}
		ws, err := Accept(w, r)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(w.Header().Values("Sec-WebSocket-Protocol"), ","); got != c.want || ws.V1() != (c.want != "") {
			t.Errorf("%q is answered by %q", c.offered, got)
		}
		if got := r.Header.Values("Sec-WebSocket-Protocol"); !slices.Equal(got, c.offered) {
			t.Errorf("the request's header became %q", got)
		}
		ws.CloseNow()
		_ = client.Close()
	}
}

func TestPongCarriesTheIDAsWritten(t *testing.T) {
	s := start(t, setup{opt: Options{Ready: someReady}})
	for _, id := range []string{"7", "0", "-1", "12345678901234567890123", "1.50", "1E5"} {
		s.control(t, `{"type":"ping", "id": `+id+` }`)
		s.waitText(t, `{"type":"pong","id":`+id+`,`)
	}
}

func TestBadMessagesEndTheSession(t *testing.T) {
	big := func(n int) string { return `{"type":"ping","id":1,"x":"` + strings.Repeat("x", n-29) + `"}` }
	if len(big(100)) != 100 {
		t.Fatal("big is wrong")
	}
	for _, c := range []struct {
		name, send string
		cause      error
		code       websocket.StatusCode
	}{
		{"empty", "", ErrBadMessage, 4400},
		{"not JSON", "hello", ErrBadMessage, 4400},
		{"truncated", `{"type":"ping"`, ErrBadMessage, 4400},
		{"array", `[1]`, ErrBadMessage, 4400},
		{"null", `null`, ErrBadMessage, 4400},
		{"two objects", `{"type":"ping","id":1}{"type":"ping","id":2}`, ErrBadMessage, 4400},
		{"no type", `{}`, ErrBadMessage, 4400},
		{"type is a number", `{"type":7}`, ErrBadMessage, 4400},
		{"resize without size", `{"type":"resize"}`, ErrBadMessage, 4400},
		{"resize to 0", `{"type":"resize","cols":0,"rows":24}`, ErrBadMessage, 4400},
		{"negative resize", `{"type":"resize","cols":80,"rows":-24}`, ErrBadMessage, 4400},
		{"huge resize", `{"type":"resize","cols":1001,"rows":24}`, ErrBadMessage, 4400},
		{"resize over 16 bits", `{"type":"resize","cols":65616,"rows":24}`, ErrBadMessage, 4400},
		{"resize by a fraction", `{"type":"resize","cols":80.5,"rows":24}`, ErrBadMessage, 4400},
		{"resize by text", `{"type":"resize","cols":"80","rows":24}`, ErrBadMessage, 4400},
		{"ping without id", `{"type":"ping"}`, ErrBadMessage, 4400},
		{"ping with a text id", `{"type":"ping","id":"7"}`, ErrBadMessage, 4400},
		{"ping with a long id", `{"type":"ping","id":` + strings.Repeat("7", 33) + `}`, ErrBadMessage, 4400},
		{"ack without bytes", `{"type":"ack"}`, ErrBadMessage, 4400},
		{"negative ack", `{"type":"ack","bytes":-1}`, ErrBadMessage, 4400},
		{"ack ahead", `{"type":"ack","bytes":1}`, ErrBadMessage, 4400},
		{"hidden without a value", `{"type":"hidden"}`, ErrBadMessage, 4400},
		{"hidden of null", `{"type":"hidden","hidden":null}`, ErrBadMessage, 4400},
		{"hidden by text", `{"type":"hidden","hidden":"true"}`, ErrBadMessage, 4400},
		{"hidden by a number", `{"type":"hidden","hidden":1}`, ErrBadMessage, 4400},
		{"ack of null", `{"type":"ack","bytes":null}`, ErrBadMessage, 4400},
		{"control over the limit", big(MaxControl + 1), ErrTooLarge, 1009},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, setup{opt: Options{Ready: someReady}})
			s.control(t, c.send)
			code, _ := s.closed(t)
			if sum := s.wait(t); code != c.code || !errors.Is(sum.Cause, c.cause) {
				t.Errorf("closed with %d for %v, want %d for %v", code, sum.Cause, c.code, c.cause)
			}
			if errs := s.messages(t, "error"); len(errs) != 1 {
				t.Errorf("error messages: %v", errs)
			}
			if got := s.term.log(); len(got) != 0 {
				t.Errorf("the terminal got %q", got)
			}
		})
	}
	t.Run("control at the limit", func(t *testing.T) {
		s := start(t, setup{opt: Options{Ready: someReady}})
		s.control(t, big(MaxControl))
		s.waitText(t, `{"type":"pong","id":1,`)
	})
}

func TestAckMayNotFall(t *testing.T) {
	s := start(t, setup{noAck: true, opt: Options{Ready: someReady}})
	s.term.print(make([]byte, 100))
	s.waitBytes(t, 100)
	s.ack(t, 100)
	s.ack(t, 100) // the same again is no fault
	s.ack(t, 99)
	if code, _ := s.closed(t); code != 4400 {
		t.Errorf("closed with %d", code)
	}
	if sum := s.wait(t); !errors.Is(sum.Cause, errAckFalls) {
		t.Errorf("cause %v", sum.Cause)
	}
}

// Nothing of a message over the limit reaches the terminal, nor what follows.
func TestInputOverTheLimit(t *testing.T) {
	t.Run("one frame", func(t *testing.T) {
		s := start(t, setup{opt: Options{Ready: someReady}})
		s.input(t, strings.Repeat("x", MaxInput+1))
		_ = s.ws.Write(t.Context(), websocket.MessageBinary, []byte("after")) // may find it closed
		assertTooLarge(t, s)
	})
	t.Run("raw text", func(t *testing.T) {
		s := start(t, setup{raw: true, opt: Options{Ready: someReady}})
		s.control(t, strings.Repeat("x", MaxInput+1))
		assertTooLarge(t, s)
	})
	for name, c := range map[string]struct {
		typ   websocket.MessageType
		piece int
	}{
		"endless continuation":            {websocket.MessageBinary, 64 << 10},
		"endless small continuation":      {websocket.MessageBinary, 100},
		"endless continuation of control": {websocket.MessageText, 1 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, setup{opt: Options{Ready: someReady}})
			w, err := s.ws.Writer(t.Context(), c.typ)
			if err != nil {
				t.Fatal(err)
			}
			for err == nil { // one frame each, none the last, until the server leaves
				_, err = w.Write(make([]byte, c.piece))
			}
			assertTooLarge(t, s)
		})
	}
	t.Run("at the limit", func(t *testing.T) {
		s := start(t, setup{opt: Options{Ready: someReady}})
		s.input(t, strings.Repeat("x", MaxInput))
		s.term.until(t, "the input", func() bool { return s.term.taken == MaxInput })
	})
}

func assertTooLarge(t *testing.T, s *harness) {
	t.Helper()
	code, reason := s.closed(t)
	if sum := s.wait(t); code != 1009 || reason != "too_large" || !errors.Is(sum.Cause, ErrTooLarge) {
		t.Errorf("closed with %d %q for %v", code, reason, sum.Cause)
	}
	if got := s.term.typed(); got != "" {
		t.Errorf("%d bytes reached the terminal", len(got))
	}
}

func FuzzParseControl(f *testing.F) {
	for _, s := range []string{
		`{"type":"resize","cols":120,"rows":40}`, `{"type":"ack","bytes":9007199254740993}`,
		`{"type":"hidden","hidden":true}`, `{"type":"hidden","hidden":0}`,
		`{"type":"ping","id":7}`, `{"type":"ping","id":1e999}`, `{"type":"ping","id":"7"}`,
		`{"type":"ack","bytes":0}`, `{"type":"ack","bytes":01}`, `{"type":"ack","bytes":}`, `{"type":"ack","bytes":1234567890123456789}`,
		`{"type":"x"}`, `{}`, `[]`, ``, "\x00", `{"type":"resize","cols":65537,"rows":1}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		const canary = "Zq7canary"
		m, err := parseControl(p)
		if slow, slowErr := parseAnyControl(p); slow != m || (slowErr == nil) != (err == nil) {
			t.Errorf("the short way gives %+v, %v; the long one %+v, %v", m, err, slow, slowErr)
		}
		if err != nil {
			if m != (control{}) {
				t.Errorf("an error and a message: %+v", m)
			}
			// The same fault in a message that has a secret in it.
			_, err = parseControl([]byte(strings.ReplaceAll(string(p), `"type"`, `"`+canary+`":"`+canary+`","type"`)))
			if err != nil && strings.Contains(err.Error(), canary) {
				t.Errorf("the error quotes the input: %v", err)
			}
			_, err = parseControl(append([]byte(canary), p...))
			if err == nil || strings.Contains(err.Error(), canary) {
				t.Errorf("no error, or one that quotes the input: %v", err)
			}
			return
		}
		switch m.Type {
		case "":
			if m != (control{}) {
				t.Errorf("an unknown message with content: %+v", m)
			}
		case "resize":
			if !m.Size.Valid() {
				t.Errorf("size %+v", m.Size)
			}
		case "ack":
			if m.Bytes < 0 {
				t.Errorf("bytes %d", m.Bytes)
			}
		case "hidden":
			if (m != control{Type: "hidden", Hidden: m.Hidden}) {
				t.Errorf("more than whether the page is hidden: %+v", m)
			}
		case "ping":
			pong := encodePong(m.ID, 1)
			if len(m.ID) == 0 || len(m.ID) > 32 || !json.Valid(pong) || !strings.Contains(string(p), string(m.ID)) {
				t.Errorf("id %q, pong %s", m.ID, pong)
			}
		case "end":
		default:
			t.Errorf("type %q", m.Type)
		}
	})
}
