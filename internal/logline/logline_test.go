package logline

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"
)

const ticket = "eyJhbGciOiJFZERTQSIsImtpZCI6ImEifQ.eyJzdWIiOiJhbm4iLCJqdGkiOiIxIn0.c2lnbmF0dXJlLXRoYXQtaXMtc2VjcmV0"

func TestSafe(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"plain", "https://canvas.example:8443", "https://canvas.example:8443"},
		{"letters of any script", "Zoë, 日本, Ω", "Zoë, 日本, Ω"},
		{"a backslash and quotes stay", `C:\x "y"`, `C:\x "y"`},
		{"line ends", "a\r\nb\u2028c\u2029d\u0085e\vf\f", `a\r\nb\u2028c\u2029d\u0085e\vf\f`},
		{"escape", "\x1b]0;title\a\x1b[2J", `\x1b]0;title\a\x1b[2J`},
		{"C1", "\u009b2J\u009d0;x\u009c", `\u009b2J\u009d0;x\u009c`},
		{"C1 as a byte", "\x9b2J", `\x9b2J`},
		{"NUL and DEL", "a\x00\x7f", `a\x00\x7f`},
		{"direction", "a\u202eb\u2066c\u200fd\u061c", `a\u202eb\u2066c\u200fd\u061c`},
		{"without a width", "a\u200bb\ufeff\U000e0041", `a\u200bb\ufeff\U000e0041`},
		{"no UTF-8", "a\xffb\xc3", `a\xffb\xc3`},
		{"a ticket", ticket, "[ticket]"},
		{"a ticket in a URL", "https://x.example/?ticket=" + ticket + "&a=b", "https://x.example/?ticket=[ticket]&a=b"},
		{"a ticket as a subprotocol", "termgw.v1, termgw.ticket." + ticket, "termgw.v1, termgw.ticket.[ticket]"},
		{"a ticket in lower case", strings.ToLower(ticket), "[ticket]"},
		{"two tickets", ticket + " " + ticket, "[ticket] [ticket]"},
		{"two parts of a ticket", ticket[:strings.LastIndex(ticket, ".")], "[ticket]"},
		{"a header with white space", "eyAiYWxnIjogIkVkRFNBIiB9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl", "[ticket]"},
		{"percent-encoded dots", "https://x.example/?t=" + strings.ReplaceAll(ticket, ".", "%2E"), "https://x.example/?t=[ticket]"},
		{"percent-encoded twice, in lower case", strings.ToLower(strings.ReplaceAll(ticket, ".", "%252E")), "[ticket]"},
		{"in base64", "x " + base64.StdEncoding.EncodeToString([]byte(ticket+"=")) + " y", "x [ticket] y"},
		{"in base64url", base64.RawURLEncoding.EncodeToString([]byte(ticket)), "[ticket]"},
		{"a container's id", strings.Repeat("0123456789abcdef", 4), strings.Repeat("0123456789abcdef", 4)},
		{"a host name", "eyes.example.com", "eyes.example.com"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Safe(test.in); got != test.want {
				t.Errorf("Safe(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
	if got := Safe(strings.Repeat("é", 20<<10)); len(got) > maxText+20 || !strings.HasSuffix(got, "é…39936 bytes more") {
		t.Errorf("a long text becomes %d bytes, …%q", len(got), got[max(0, len(got)-40):])
	}
	// What a cut would make of a ticket is none that the mask finds.
	if got := Safe(strings.Repeat("x", maxText-50) + " " + ticket); strings.Contains(got, "eyJ") {
		t.Errorf("a part of a ticket is left: %q", got)
	}
}

func FuzzSafe(f *testing.F) {
	f.Add("\x1b[2J\u202e" + ticket)
	f.Fuzz(func(t *testing.T, s string) {
		got := Safe(s)
		if len(got) > 10*maxText+40 || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("Safe(%q) = %q", s, got)
		}
	})
}

func TestEveryValueOfALineIsSafe(t *testing.T) {
	evil := "\x1b[2J\u009b\u202e\n" + ticket + strings.Repeat("x", 40<<10)
	for _, format := range []string{"json", "text"} {
		t.Run(format, func(t *testing.T) {
			var out bytes.Buffer
			log := New(&out, format, slog.LevelInfo).With("client", evil)
			log.Info(evil, "origin", evil, "err", fmt.Errorf("a: %w", errors.New(evil)), "panic", any(struct{ s string }{evil}),
				"ids", append(make([]string, 3000), evil), "list", []string{evil}, "bytes", []byte(evil), slog.Group("g", "in", evil), "n", 7)
			line := out.String()
			if strings.Count(line, "\n") != 1 || len(line) > 40<<10 {
				t.Errorf("%d lines, %d bytes", strings.Count(line, "\n"), len(line))
			}
			if i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("at byte %d: %q", i, line[i:min(len(line), i+20)])
			}
			if strings.Contains(line, "eyJ") {
				t.Error("a ticket is in the line")
			}
			if format == "json" && !json.Valid([]byte(line)) {
				t.Error("the line is no JSON")
			}
			if !strings.Contains(line, "more") {
				t.Error("nothing says that texts were cut")
			}
		})
	}
}

func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := New(&out, "text", slog.LevelInfo)
		b := NewBound(log)
		lines := func(kind string, n int) (written int) {
			for range n {
				b.Do(kind, func() { written++ })
			}
			return written
		}
		if n := lines("a", 1000); n != linesAtOnce {
			t.Errorf("%d lines at once", n)
		}
		if n := lines("b", 1); n != 1 {
			t.Error("another kind has to wait")
		}
		time.Sleep(countEvery)
		synctest.Wait()
		if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "code=a lines=900") {
			t.Errorf("said of it:\n%s", got)
		}
		out.Reset()
		if n := lines("a", 1000); n != linesAtOnce {
			t.Errorf("%d lines after ten seconds", n)
		}
		b.Flush()
		b.Flush()
		if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "code=a lines=900") {
			t.Errorf("said at the end:\n%s", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := out.String(); strings.Count(got, "\n") != 1 {
			t.Errorf("said later:\n%s", got)
		}
		if n := lines("a", linesAtOnce); n != linesAtOnce {
			t.Errorf("%d lines after an hour", n)
		}
	})
}
