package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

// screen is a terminal on which a program's output and messages of this one are shown. A message
// waits for the end of a sequence, and on the alternate screen, which a program draws as it likes, it
// takes the last row and leaves the cursor where it is.
type screen struct {
	io.Writer

	mu          sync.Mutex
	at          byte   // what the output ends in: 0 is text, else the byte that begins a sequence, or ESC
	parameters  []byte // of a control sequence
	rest        int    // bytes of a character that are still to come
	isAlternate bool
	held        string // the last message that could not be shown yet
}

const escapeByte = 0x1b

// Write shows output of a program.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.Writer.Write(p)
	for _, c := range p[:n] {
		s.follow(c)
	}
	if s.held != "" && s.isBetween() {
		s.show(s.held)
		s.held = ""
	}
	return n, err
}

func (s *screen) follow(c byte) {
	switch {
	case c == escapeByte:
		s.at = escapeByte
	case c == 0x18 || c == 0x1a: // CAN and SUB end any sequence
		s.at = 0
	case s.at == 0:
		s.character(c)
	case s.at == escapeByte && strings.IndexByte("[]P_^X", c) >= 0:
		s.at, s.parameters = c, s.parameters[:0]
	case s.at == escapeByte:
		if c >= 0x30 { // else more follows
			s.at = 0
		}
	case s.at != '[': // a string
		if c == 0x07 {
			s.at = 0
		}
	case c >= 0x40:
		s.at = 0
		if c == 'h' || c == 'l' {
			s.mode(string(s.parameters), c == 'h')
		}
	case len(s.parameters) < 64:
		s.parameters = append(s.parameters, c)
	}
}

func (s *screen) character(c byte) {
	switch {
	case c < 0x80:
		s.rest = 0
	case c < 0xc0:
		s.rest = max(s.rest-1, 0)
	case c < 0xe0:
		s.rest = 1
	case c < 0xf0:
		s.rest = 2
	default:
		s.rest = 3
	}
}

// mode follows DEC's modes of the alternate screen.
func (s *screen) mode(parameters string, on bool) {
	private, ok := strings.CutPrefix(parameters, "?")
	if !ok {
		return
	}
	for mode := range strings.SplitSeq(private, ";") {
		if mode == "47" || mode == "1047" || mode == "1049" {
			s.isAlternate = on
		}
	}
}

// isBetween reports whether the output ends in no sequence and no character. The lock is held.
func (s *screen) isBetween() bool { return s.at == 0 && s.rest == 0 }

// say shows a message as soon as it can be shown. A later one takes the place of one that waits. On
// the alternate screen it is cut to the columns.
func (s *screen) say(message string, cols int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := cols - len(" termgw:   "); s.isAlternate && most > 0 && len(message) > most {
		message = strings.ToValidUTF8(message[:most], "")
	}
	if !s.isBetween() {
		s.held = message
		return
	}
	s.show(message)
}

// show shows a message. The lock is held.
func (s *screen) show(message string) {
	if s.isAlternate {
		_, _ = fmt.Fprintf(s.Writer, "\x1b7\x1b[999;1H\x1b[0;7m termgw: %s \x1b[K\x1b8", message)
		return
	}
	_, _ = fmt.Fprintf(s.Writer, "\r\ntermgw: %s\r\n", message)
}

// leave ends what a program that is gone has begun and set.
func (s *screen) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isBetween() {
		_, _ = io.WriteString(s.Writer, "\x18")
	}
	if s.isAlternate {
		_, _ = io.WriteString(s.Writer, "\x1b[?1049l")
	}
	s.at, s.rest, s.held, s.isAlternate = 0, 0, "", false
	_, _ = io.WriteString(s.Writer, "\x1b[?1;1000;1002;1003;1004;1006;2004l\x1b[?7;25h\x1b>\x1b[0m\x1b(B\x0f")
}

// isDrawn reports whether a program draws the whole screen.
func (s *screen) isDrawn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isAlternate
}
