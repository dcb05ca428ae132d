package session

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestModes: what a program has set, and a new terminal is told.
func TestModes(t *testing.T) {
	for _, c := range []struct{ output, restore string }{
		{"text\r\n\x1b[1;31mred\x1b[m\x1b[2J\x1b[?12h\x1b[4h", ""},
		{"\x1b[?1049h\x1b[?1h\x1b=", "\x1b[?1049;1h\x1b="},
		{"\x1b[?1049h\x1b[?1h\x1b=\x1b[?1l\x1b>\x1b[?1049l", ""},
		{"\x1b[?1;2004h\x1b[?25l", "\x1b[?1;2004h\x1b[?25l"},
		{"\x1b[?25;7l\x1b[?7h", "\x1b[?25l"},
		{"\x1b[?1000h\x1b[?1006h", "\x1b[?1000;1006h"},
		{"\x1b[?1003h\x1b[?1002h\x1b[?1006h", "\x1b[?1002;1006h"},
		{"\x1b[?1000h\x1b[?1003l", ""},
		{"\x1b[?47h\x1b[?1049h", "\x1b[?1049h"},
		{"\x1b[?1049h\x1b[?47l", ""},
		{"\x1b[?66h", "\x1b="},
		{"\x1b[?1049h\x1b[?1h\x1b[?1000h\x1b[!p", "\x1b[?1049;1000h"},
		{"\x1b[?1049h\x1b[?1h\x1bc", ""},
		{"\x1b[1h\x1b[?1$p\x1b[>1h\x1b[?1:2h\x1b[?h\x1b[?;h\x1b[?99999999999h", ""},
		{"\x1b]0;\x1b[?1h\a", "\x1b[?1h"}, // an ESC ends a string
		{"\x1b]0;[?1h\a\x1bP[?1h\x1b\\\x1b_[?1h\x1b\\", ""},
		{"\x1b]0;no end [?1h\r\n", ""},
		{"\x1b[?1\x18h\x1b[?2004h", "\x1b[?2004h"},
		{"\x1b[?1\r\nh", "\x1b[?1h"}, // controls act within a sequence
		{"\x1b[?1\x1b[?2004h", "\x1b[?2004h"},
		{"\x1b(0\x1b[?1h\x1b(B\x1b#8", "\x1b[?1h"},
		{"\x1b[?" + strings.Repeat("9;", 100) + "1h\x1b[?2004h", "\x1b[?2004h"},
	} {
		var m modes
		m.follow([]byte(c.output))
		if got := string(m.restore()); got != c.restore {
			t.Errorf("%q: restored by %q, want %q", c.output, got, c.restore)
		}
		var by modes
		for _, b := range []byte(c.output) {
			by.follow([]byte{b})
		}
		if !slices.Equal(by.changed, m.changed) || by.at != m.at || by.unfinished != m.unfinished {
			t.Errorf("%q: byte by byte it is %+v, not %+v", c.output, by, m)
		}
	}
}

// TestQuiet: of what is repeated to a new terminal, nothing has an answer or rings.
func TestQuiet(t *testing.T) {
	for _, c := range []struct{ output, quiet string }{
		{"plain\ttext\r\n\x1b[1;38:2::1:2:3mred\x1b[m\x1b[2J\x1b[10;20Hé", "plain\ttext\r\n\x1b[1;38:2::1:2:3mred\x1b[m\x1b[2J\x1b[10;20Hé"},
		{"a\x1b[6nb\x1b[cc\x1b[>cd\x1b[=ce\x1b[5nf\x1b[?6ng\x1b[xh\x1b[18ti\x1b[?1$pj\x1b[4$pk", "abcdefghijk"},
		{"a\x1b]10;?\ab\x1b]52;c;aGk=\x1b\\c\x1bP$qm\x1b\\d\x1bP+q544e\x1b\\e\x1b_Gi=1\x1b\\f\x1b^x\x1b\\g\x1bXx\x1b\\h", "abcdefgh"},
		{"a\x1bZb\x05c\ad\x1b[>qe\x1b[?uf\x1b[?4mg\x1b[?1Sh\x1b[4ii\x1b[?996nj\x1b[?1;2sk", "abcdefghijk"},
		{"a\u009b6nb\u0085c\u00a0d", "a6nbc\u00a0d"},
		{"\x1b]0;title\a\x1b]2;other\x1b\\\x1b]8;;http://h/\x1b\\link\x1b]8;;\a", "\x1b]0;title\a\x1b]2;other\x1b\\\x1b]8;;http://h/\x1b\\link\x1b]8;;\a"},
		{"\x1b7\x1b8\x1bM\x1b(0\x1b=\x1b>\x1bc\x1b#8\x1b[?1049h\x1b[>4;1m\x1b[>1u\x1b[2 q\x1b[1\"q\x1b[!p\x1b[?2J", "\x1b7\x1b8\x1bM\x1b(0\x1b=\x1b>\x1bc\x1b#8\x1b[?1049h\x1b[>4;1m\x1b[>1u\x1b[2 q\x1b[1\"q\x1b[!p\x1b[?2J"},
		{"a\x1b[1\x18b\x1b[6\x1b[1mc\x1b]0;\x1b[?1h\x1b[3\r1m", "ab\x1b[1mc\x1b[?1h\x1b[3\r1m"},
		{"a\x1b[6", "a\x1b[6"}, // its end is still to come
		{"a\x1b]0;x\x1b", "a\x1b]0;x\x1b"},
	} {
		if got := string(quiet([]byte(c.output))); got != c.quiet {
			t.Errorf("%q: %q, want %q", c.output, got, c.quiet)
		}
	}
}

// TestPastBegins: where what is repeated to a new terminal begins.
func TestPastBegins(t *testing.T) {
	long := strings.Repeat("x", 40<<10)
	for name, c := range map[string]struct{ output, begins, ends string }{
		"all of a short session":  {"$ vim\r\n\x1b[?1049h\x1b[2JPress a key", "$ vim\r\n\x1b[?1049h\x1b[2J", "Press a key"},
		"at a line":               {strings.Repeat("a line\r\n", 5<<10), "a line\r\na line\r\n", "a line\r\n"},
		"at a full-screen switch": {long + "\r\n$ vim\r\n\x1b[?1049h\x1b[2JPress a key", "$ vim\r\n\x1b[?1049h\x1b[2J", "Press a key"},
		"at a return":             {strings.Repeat("progress 50%\r", 5<<10) + "progress 51%", "progress 50%\rprogress 50%", "progress 51%"},
		"at a character":          {strings.Repeat("é", 20<<10), "éé", "é"},
		"not in a sequence":       {long + "\x1b[?2004h\x1b]0;" + strings.Repeat("y", 17<<10) + "\a$ ", "\x1b[?2004h$ ", "$ "},
		"not on another screen":   {"\x1b[?1049h" + long + "\r\n\x1b[6", "\x1b[?1049h\x1b[6", "\x1b[6"},
	} {
		var past past
		past.add([]byte(c.output))
		got := string(past.screen(true))
		if !strings.HasPrefix(got, c.begins) || !strings.HasSuffix(got, c.ends) {
			t.Errorf("%s: %d bytes, %.60q … %q", name, len(got), got, got[max(0, len(got)-20):])
		}
	}
	var past past
	past.add([]byte("$ vim\r\n\x1b[?1049h\x1b[2JPress a key"))
	if got := string(past.screen(false)); got != "\x1b[?1049h" {
		t.Errorf("of another size: %q", got)
	}
}

// TestPastScreen: a terminal that is given what a session kept of its past, and then all that is
// printed, is as one that was given everything.
func TestPastScreen(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var past past
		var all []byte
		for range 1 + rnd.IntN(400) {
			before := len(all)
			switch rnd.IntN(10) {
			case 0:
				all = fmt.Appendf(all, "\x1b[?%dh", []int{1, 25, 1000, 1002, 1006, 1049, 47, 2004, 7}[rnd.IntN(9)])
			case 1:
				all = fmt.Appendf(all, "\x1b[?%dl", []int{1, 25, 1000, 1002, 1006, 1049, 47, 2004, 7}[rnd.IntN(9)])
			case 2:
				all = append(all, []string{"\x1b=", "\x1b>", "\x1bc", "\x1b[!p", "\x1b]0;title\a", "\x1b[1;31m"}[rnd.IntN(6)]...)
			case 3:
				all = append(all, "\r\n"...)
			default:
				all = append(all, bytes.Repeat([]byte("é"), rnd.IntN(200))...)
			}
			for next := all[before:]; len(next) > 0; {
				n := 1 + rnd.IntN(len(next))
				past.add(next[:n])
				next = next[n:]
			}
		}
		var want, got modes
		want.follow(all)
		screen := past.screen(true)
		got.follow(screen)
		if string(got.restore()) != string(want.restore()) || got.at != want.at {
			t.Fatalf("seed %d: it has %+v, want %+v", seed, got, want)
		}
		if len(screen) > 2*pastLeast+100 || len(screen) > len(all) {
			t.Fatalf("seed %d: %d bytes of %d", seed, len(screen), len(all))
		}
		if !want.alternate() && len(all) < pastLeast && string(screen) != string(all) {
			t.Fatalf("seed %d: %q of %q", seed, screen, all)
		}
	}
}
