// Package logline writes the operators' log. Its lines are safe to show on a terminal, bounded in length and free of
// tickets; where a stranger decides how many lines there are, their number is bounded too.
//
// The package does not decide what is logged.
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
	maxText = 1 << 10 // bytes of one text in a line, before quoting
	maxList = 100     // elements of one list in a line
)

// New returns a logger that writes lines of text if format is "text", else of JSON. Every text in a line, the message
// too, passes through Safe, and a list is cut to 100 elements.
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

// jwt matches a compact JWS (RFC 7515, section 3.1), or its first two parts. The first part is the base64url of a JSON
// object, which begins with a brace and then a quote or white space. Case is ignored: an origin is compared in lower
// case, and may be logged so. The dots may be percent-encoded, more than once, and the whole may be base64 again.
var jwt = regexp.MustCompile(`(?i)e[wy][a-z0-9_-]{14,}((\.|%(25)*2e)[a-z0-9_-]{8,}){1,2}|zx[lc][a-z0-9+/_-]{60,}=*`)

// Safe makes a text from outside safe for a line: tickets are masked; a text over 1 KiB is cut, and ends with the
// number of bytes left out; characters that a terminal does not show are escaped as in Go's string literals: control
// characters of ASCII and of ISO 6429 (C1), line ends, marks that change the direction of writing, and bytes that are
// not UTF-8.
func Safe(s string) string {
	if len(s) > 2*len("eyJ.") { // no ticket is shorter
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

// unsafe reports whether a rune is escaped. DecodeRune and ContainsFunc return RuneError for a byte that is not UTF-8;
// the character itself is as rare.
func unsafe(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
