package client

import (
	"strings"
	"testing"
)

// Whatever a gateway sends as a control message, the client goes on, and holds no more than it was sent.
func FuzzControl(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `[]`, `{}`, `{"type":7}`, "\xff",
		`{"type":"ready","session":"S","workspace":"w","target":"local","mode":"rw","window":1,"idle_timeout":1e18,"max_session":-1}`,
		`{"type":"pong","id":9223372036854775807,"input":0}`,
		`{"type":"notice","code":"idle_timeout","seconds":60,"message":"m"}`,
		`{"type":"exit","code":137,"signal":"SIGKILL"}`,
		`{"type":"error","code":"ticket_used","message":"m","retryable":true,"detail":"d","docs":"p"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, message string) {
		c := newConn(func(n Notice) {
			if n.Left < 0 {
				t.Errorf("a notice of %s", n.Left)
			}
		})
		err := c.receiveControl(strings.NewReader(message))
		if (err != nil) != (len(message) > maxMessage) {
			t.Errorf("%d bytes: %v", len(message), err)
		}
		if r := c.ready; r.IdleTimeout < 0 || r.MaxSession < 0 || r.ReadOnly() == (r.Mode == "rw") {
			t.Errorf("ready: %+v", r)
		}
		if c.heardAt != 0 || len(c.awaited) != 0 {
			t.Error("a pong answered no ping")
		}
	})
}
