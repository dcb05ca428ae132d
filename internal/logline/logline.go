// Package logline writes the operators' log: lines that are safe to show on a
// terminal, of a bounded length, without tickets, and few of them where a
// stranger decides how many there are.
//
// It does not decide what is logged.
package logline

import (
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxText = 1 << 10 // of one text in a line, in bytes before it is quoted
	maxList = 100     // elements of one list in a line
)

// New returns a logger that writes lines of JSON, or of text where format is
// "text". Every text in a line, the message too, is safe as Safe makes it, and
// a list has at most 100 elements.
func New(w io.Writer, format string, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		a.Value = safeValue(a.Value)
		return a
	}}
	if format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

func safeValue(v slog.Value) slog.Value {
	switch v.Kind() {
	case slog.KindString:
		return slog.StringValue(Safe(v.String()))
	case slog.KindAny:
	default: // numbers and times
		return v
	}
	switch a := v.Any().(type) {
	case nil, slog.Level:
		return v
	case []string:
		list := make([]string, 0, min(len(a), maxList+1))
		for _, s := range a[:min(len(a), maxList)] {
			list = append(list, Safe(s))
		}
		if more := len(a) - maxList; more > 0 {
			list = append(list, fmt.Sprintf("…%d more", more))
		}
		return slog.AnyValue(list)
	default: // an error, or the value of a panic
		return slog.StringValue(Safe(fmt.Sprint(a)))
	}
}

// jwt is what looks like a compact JWS (RFC 7515, section 3.1), or like its first
// two parts: the first is the base64url of a JSON object, which begins with a
// brace and then a quote or white space. In any case: an origin is compared in
// lower case, and can be logged so. The dots may be percent-encoded, more than
// once, and the whole may be base64 again.
var jwt = regexp.MustCompile(`(?i)e[wy][a-z0-9_-]{14,}((\.|%(25)*2e)[a-z0-9_-]{8,}){1,2}|zx[lc][a-z0-9+/_-]{60,}=*`)

// Safe returns a text that comes from outside as it may stand in a line: tickets
// are masked; what is longer than 1 KiB is cut, and the line says so; what no
// terminal shows as a character of its own is escaped as in Go's string literals:
// control characters of ASCII and of ISO 6429 (C1), line ends, marks that change
// the direction of writing, and bytes that are no UTF-8.
func Safe(s string) string {
	if len(s) > 2*len("eyJ.") { // no word is shorter
		s = jwt.ReplaceAllString(s, "[ticket]")
	}
	cut := 0
	if len(s) > maxText {
		end := maxText
		for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		s, cut = s[:end], len(s)-end
	}
	if cut == 0 && !strings.ContainsFunc(s, unsafe) {
		return s
	}
	var b strings.Builder
	for rest := s; len(rest) > 0; {
		r, size := utf8.DecodeRuneInString(rest)
		if unsafe(r) {
			quoted := strconv.Quote(rest[:size])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(rest[:size])
		}
		rest = rest[size:]
	}
	if cut > 0 {
		fmt.Fprintf(&b, "…%d bytes more", cut)
	}
	return b.String()
}

// unsafe reports whether a rune is escaped. RuneError is what DecodeRune and
// ContainsFunc give for a byte that is no UTF-8; the character itself is as rare.
func unsafe(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
