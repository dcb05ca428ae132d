package main

import (
	"bytes"
	"testing"
)

// TestScreenSays: a message is in no sequence and in no character, and moves nothing on a screen that a program draws.
func TestScreenSays(t *testing.T) {
	t.Parallel()
	const plain, last = "\r\ntermgw: hello\r\n", "\x1b7\x1b[999;1H\x1b[0;7m termgw: hello \x1b[K\x1b8"
	for _, c := range []struct{ before, after, want string }{
		{"$ ", "ls", "$ " + plain + "ls"},
		{"\x1b[3", "1mred", "\x1b[31mred" + plain},
		{"\xc3", "\xa9t", "\xc3\xa9t" + plain},
		{"\x1b]0;ti", "tle\x1b\\$", "\x1b]0;title\x1b\\$" + plain},
		{"\x1b(", "0x", "\x1b(0x" + plain},
		{"\x1b[?1049h\x1b[2Jvi", "m", "\x1b[?1049h\x1b[2Jvi" + last + "m"},
		{"\x1b[?1049h\x1b[?1;1049l$ ", "", "\x1b[?1049h\x1b[?1;1049l$ " + plain},
		{"\x1b[?1047", "h", "\x1b[?1047h" + last},
	} {
		var out bytes.Buffer
		s := &screen{Writer: &out}
		_, _ = s.Write([]byte(c.before))
		s.say("hello", 80)
		_, _ = s.Write([]byte(c.after))
		if out.String() != c.want {
			t.Errorf("%q, then %q: %q, want %q", c.before, c.after, out.String(), c.want)
		}
	}
	var out bytes.Buffer
	s := &screen{Writer: &out}
	_, _ = s.Write([]byte("\x1b[?1049h"))
	s.say("hello", 13)
	if !bytes.Contains(out.Bytes(), []byte("termgw: he ")) {
		t.Errorf("in 13 columns: %q", out.String())
	}
}
