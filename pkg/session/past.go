package session

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// pastLeast is how many bytes of its past a session keeps at least, of a program that has
// printed so much: some screens of text. It keeps up to twice as many.
const pastLeast = 8 << 10

// past is the output that is no longer kept, in short: its last bytes, and what it has told
// the terminal to be. A person who comes back from another device has nothing on the screen,
// and a shell draws no more than its prompt there.
type past struct {
	modes modes  // after the output before tail
	tail  []byte // the last bytes
	// exact is the least offset that means the same to all owners: one that was given a
	// screen has that at the offsets before.
	exact int64
}

// add takes the output that comes next, which the caller may change later.
func (t *past) add(p []byte) {
	if len(t.tail)+len(p) > 2*pastLeast {
		if cut := len(t.tail) + len(p) - pastLeast; cut < len(t.tail) {
			t.modes.follow(t.tail[:cut])
			t.tail = t.tail[:copy(t.tail, t.tail[cut:])]
		} else {
			t.modes.follow(t.tail)
			cut -= len(t.tail)
			t.modes.follow(p[:cut])
			t.tail, p = t.tail[:0], p[cut:]
		}
	}
	t.tail = append(t.tail, p...)
}

// since returns the output from an offset on, if all of it is there. The past ends at the offset to.
func (t *past) since(from, to int64) (output []byte, ok bool) {
	n := to - from
	if from < t.exact || n > int64(len(t.tail)) {
		return nil, false
	}
	return slices.Clone(t.tail[int64(len(t.tail))-max(n, 0):]), true
}

// screen returns output for a terminal that is new, after which it shows about what another
// would that was given all of the past: the tail's whole lines, with the modes at their beginning.
// Of a full-screen program, which draws itself anew, there is nothing where the tail does not have all that it
// has drawn, or where the new terminal is of another size. Not followed are colours, margins and character sets
// that were set before the tail. The output takes the offsets before the past's end, and is no longer than what was
// printed.
func (t *past) screen(isOfSize bool) []byte {
	now := t.modes.clone()
	now.follow(t.tail)
	if isOfSize || !now.alternate() {
		if len(t.tail) < pastLeast { // nothing was cut off
			return quiet(t.tail)
		}
		for _, ends := range []string{"\n", "\r", ""} {
			if lines, ok := t.from(ends); ok {
				return lines
			}
		}
	}
	return append(now.restore(), t.tail[len(t.tail)-min(now.unfinished, len(t.tail)):]...)
}

// from returns the tail after the first of some bytes, with the modes there. With none it begins
// at the first character.
func (t *past) from(ends string) (output []byte, ok bool) {
	modes := t.modes.clone()
	for i, c := range t.tail {
		if ends == "" && modes.at == inText && !modes.alternate() && utf8.RuneStart(c) {
			return append(modes.restore(), quiet(t.tail[i:])...), true
		}
		modes.follow(t.tail[i : i+1])
		if ends != "" && c == ends[0] && modes.at == inText && !modes.alternate() {
			return append(modes.restore(), quiet(t.tail[i+1:])...), true
		}
	}
	return nil, false
}

// quiet returns output without what a terminal answers, rings or copies: it did so when the output
// was new, and an answer now would be typed into whatever reads there. What draws stays, and so does the beginning of
// a sequence that has no end yet.
func quiet(p []byte) []byte {
	var m modes
	out := make([]byte, 0, len(p))
	begun := 0 // where the sequence begins
	for i, c := range p {
		was := m.at
		m.follow(p[i : i+1])
		if was == inEscape && c != '\\' && p[i-1] == 0x1b {
			begun = i - 1 // a string that ESC has ended is none where nothing ends it as it should
		}
		switch {
		case was == inText && m.at == inText:
			switch {
			case c == 0x05 || c == 0x07: // ENQ, BEL
			case c >= 0x80 && c < 0xa0 && i > 0 && p[i-1] == 0xc2 && len(out) > 0:
				out = out[:len(out)-1] // a C1 control, which begins a sequence in some terminals
			default:
				out = append(out, c)
			}
		case was == inText:
			begun = i
		case m.at == inText && draws(p[begun:i+1]):
			out = append(out, p[begun:i+1]...)
		}
	}
	if m.at != inText {
		out = append(out, p[begun:]...)
	}
	return out
}

// drawing has the sequences that draw or set modes ("XTerm Control Sequences"). Others ask the terminal, or have an effect
// beyond it.
var drawing = regexp.MustCompile("^\x1b(" + strings.Join([]string{
	"\\[[0-9;:]*[@A-MPSTXZ`abdefghlmrsu]", `\[\?[0-9;]*[hlJK]`, `\[>[0-9;]*m`, `\[[<=>][0-9;]*u`, `\[[0-9]* q`, `\[[0-9]*"q`, `\[!p`,
	`\](0|1|2|8);[^\x1b\x07]*(\x07|\x1b\\)`, // titles and links
	"[ -/]+[0-~]", "[0-Y\\\\=>`c-~]",
}, "|") + ")$")

// draws reports whether a sequence that is whole does no more than draw, or set a mode.
func draws(sequence []byte) bool {
	if sequence[1] == '[' { // controls act within it, and are no part of it
		sequence = bytes.Map(func(r rune) rune {
			if r < 0x20 && r != 0x1b {
				return -1
			}
			return r
		}, sequence)
	}
	return drawing.Match(sequence)
}

// followed are DEC's private modes (CSI ? Pm h, CSI ? Pm l) that decide what a terminal sends
// and which screen it shows, as xterm has them: "XTerm Control Sequences", DECSET. Of each, the
// value is what a terminal begins with.
var followed = map[uint16]bool{
	1:      false, // application cursor keys
	5:      false, // reverse video
	6:      false, // origin
	7:      true,  // wraparound
	9:      false, // X10 mouse reports
	25:     true,  // cursor
	45:     false, // reverse wraparound
	47:     false, // alternate screen
	keypad: false,
	1000:   false, // mouse reports, and their forms
	1002:   false,
	1003:   false,
	1004:   false, // focus reports
	1005:   false,
	1006:   false,
	1007:   false,
	1015:   false,
	1016:   false,
	1047:   false, // alternate screen
	1049:   false, // alternate screen
	2004:   false, // bracketed paste
}

// keypad is the mode of the application keypad, also set by ESC = and ESC >.
const keypad = 66

// Modes of which a terminal has one at a time. To leave one leaves all.
var (
	alternates = []uint16{47, 1047, 1049}
	mice       = []uint16{9, 1000, 1002, 1003}
)

// syntax is what a byte of output is a part of (ECMA-48, 5).
type syntax uint8

const (
	inText     syntax = iota
	inEscape          // after ESC
	inFunction        // CSI: a control sequence
	inString          // OSC, DCS, APC, PM, SOS: up to ST, or BEL
)

// maxFunction bounds the parameters that are read of a control sequence, in bytes. Longer ones
// set no mode.
const maxFunction = 64

// modes follows the modes that a program sets, over all of its output.
type modes struct {
	changed    []uint16 // modes that are not as a terminal begins, in the order in which they came
	at         syntax
	read       []byte // of the control sequence
	unfinished int    // bytes of a sequence that has no end yet
}

func (m *modes) clone() modes {
	c := *m
	c.changed, c.read = slices.Clone(m.changed), slices.Clone(m.read)
	return c
}

// alternate reports whether the alternate screen is on: that of full-screen programs.
func (m *modes) alternate() bool {
	return slices.ContainsFunc(m.changed, func(n uint16) bool { return slices.Contains(alternates, n) })
}

// follow takes the output that comes next.
func (m *modes) follow(p []byte) {
	for len(p) > 0 {
		if m.at == inText {
			i := bytes.IndexByte(p, 0x1b)
			if i < 0 {
				return
			}
			p, m.at, m.unfinished = p[i+1:], inEscape, 1
			continue
		}
		c := p[0]
		p = p[1:]
		m.unfinished++
		switch {
		case c == 0x18 || c == 0x1a: // CAN and SUB end any sequence
			m.at = inText
		case c == 0x1b:
			m.at, m.unfinished = inEscape, 1
		case m.at == inEscape:
			m.escape(c)
		case m.at == inString:
			if c == 0x07 {
				m.at = inText
			}
		case c < 0x20: // a control within a sequence, which it does not end
		case c < 0x40:
			if len(m.read) <= maxFunction {
				m.read = append(m.read, c)
			}
		default:
			m.function(c)
			m.at = inText
		}
		if m.at == inText {
			m.unfinished = 0
		}
	}
}

func (m *modes) escape(c byte) {
	m.at = inText
	switch c {
	case '[':
		m.at, m.read = inFunction, m.read[:0]
	case ']', 'P', '_', '^', 'X':
		m.at = inString
	case '=':
		m.set(keypad, true)
	case '>':
		m.set(keypad, false)
	case 'c': // RIS: as it began
		m.changed = nil
	default:
		if c < 0x30 { // an intermediate byte: more follows
			m.at = inEscape
		}
	}
}

// function takes a control sequence that is whole.
func (m *modes) function(final byte) {
	switch {
	case len(m.read) > maxFunction:
	case final == 'p' && string(m.read) == "!": // DECSTR: what programs leave set, but for the screen and the mouse
		m.changed = slices.DeleteFunc(m.changed, func(n uint16) bool { return n < 1000 && !slices.Contains(alternates, n) && n != 9 })
	case (final == 'h' || final == 'l') && len(m.read) > 0 && m.read[0] == '?':
		for field := range bytes.SplitSeq(m.read[1:], []byte(";")) {
			if n, err := strconv.ParseUint(string(field), 10, 16); err == nil {
				m.set(uint16(n), final == 'h')
			}
		}
	}
}

func (m *modes) set(n uint16, on bool) {
	initial, ok := followed[n]
	if !ok {
		return
	}
	for _, one := range [][]uint16{alternates, mice} {
		if slices.Contains(one, n) {
			m.changed = slices.DeleteFunc(m.changed, func(other uint16) bool { return slices.Contains(one, other) })
		}
	}
	m.changed = slices.DeleteFunc(m.changed, func(other uint16) bool { return other == n })
	if on != initial {
		m.changed = append(m.changed, n)
	}
}

// restore returns output that sets the modes on a terminal that is new.
func (m *modes) restore() []byte {
	var out []byte
	for _, initial := range []bool{false, true} {
		start := len(out)
		for _, n := range m.changed {
			if followed[n] != initial || n == keypad {
				continue
			}
			separator := ";"
			if len(out) == start {
				separator = "\x1b[?"
			}
			out = strconv.AppendUint(append(out, separator...), uint64(n), 10)
		}
		if len(out) > start {
			out = append(out, map[bool]byte{false: 'h', true: 'l'}[initial])
		}
	}
	if slices.Contains(m.changed, keypad) {
		out = append(out, "\x1b="...) // which more terminals know
	}
	return out
}
