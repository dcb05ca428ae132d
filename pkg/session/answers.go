package session

// answers tells what a terminal sends by itself from what its person does. A
// terminal answers what a program asks (cursor position, device attributes, modes,
// settings, capabilities, window, colours, clipboard, keyboard protocol), and
// reports focus and size where a program wants to hear of them. So a program in a
// loop could keep its session from being idle for ever.
//
// An answer is known by its form, which is none of a key, a mouse report or a paste
// (ECMA-48, section 5.4; xterm's "Control Sequences"; kitty's protocols):
//
//   - CSI with a private mark ? > =, whatever its end: keys have none, and a mouse
//     report has <;
//   - CSI numbers R n t x m, numbers $ y, numbers " w, numbers * q or * {; CSI I, CSI O.
//     F3 with a modifier is CSI 1;2R to CSI 1;16R in xterm, and counts as an answer:
//     a cursor in the first line says the same;
//   - DCS, OSC and APC strings with the beginning of an answer, to their end;
//   - ESC / Z, which is a VT52's name.
//
// The zero value is ready to use. An answer may be split over messages: what has
// begun like one and goes on differently is the person's. ESC, or ESC and one
// character, that is a message of its own is a key: Escape, or Alt and a character.
type answers struct {
	state  answerState
	amid   bool // a byte of the message was looked at
	alone  bool // the sequence began with the message
	length int  // of the sequence so far, in bytes

	// Of a control sequence, or of the beginning of a string:
	private, digits, semicolon, colon bool
	between                           byte // the intermediate byte; 0: none
}

type answerState byte

const (
	answerGround answerState = iota
	answerEscape             // after ESC
	answerC1                 // after the first byte of a C1 control character in UTF-8
	answerVT52
	answerCSI
	answerDCS
	answerOSC
	answerAPC
	answerText       // of a string
	answerTextEscape // after ESC in it
	answerTextC1     // after the first byte of what may be C1's ST in it
	answerNone       // the message has something of the person's; the rest of it is not looked at
)

// typed reports whether a part of a message has something that a person did, or
// follows a part that had. The last part ends the message.
func (a *answers) typed(p []byte, last bool) bool {
	for _, c := range p {
		if a.state == answerNone {
			break
		}
		first := !a.amid
		a.amid = true
		if a.state == answerGround {
			*a = answers{amid: true, alone: first}
		}
		a.length++
		a.state = a.next(c)
	}
	if last && a.alone && a.length <= 2 && a.state != answerGround {
		a.state = answerNone
	}
	typed := a.state == answerNone
	if last {
		a.amid, a.alone = false, false
		if typed {
			*a = answers{}
		}
	}
	return typed
}

// next is the state after a byte.
func (a *answers) next(c byte) answerState {
	switch a.state {
	case answerGround:
		switch {
		case c == 0x1b:
			return answerEscape
		case c == 0xc2:
			return answerC1
		case c >= 0x80 && c < 0xa0: // a terminal that writes no UTF-8
			return introduced(c - 0x40)
		}
	case answerC1:
		if c >= 0x80 && c < 0xa0 {
			return introduced(c - 0x40)
		}
	case answerEscape:
		return introduced(c)
	case answerVT52:
		if c == 'Z' {
			return answerGround
		}
	case answerCSI:
		return a.nextOfCSI(c)
	case answerDCS:
		switch {
		case c >= 0x20 && c < 0x40:
			return answerDCS
		case c >= 0x40 && c < 0x7f && a.length > len("\x1bP")+1: // else it is Alt+P and a letter
			return answerText
		}
	case answerOSC:
		switch {
		case c >= '0' && c <= '9':
			a.digits = true
			return answerOSC
		case c == ';' && a.digits, (c == 'l' || c == 'L') && !a.digits: // a colour's number and its value; a title
			return answerText
		}
	case answerAPC:
		if c == 'G' { // kitty's graphics
			return answerText
		}
	case answerText, answerTextC1:
		switch {
		case c == 0x9c && a.state == answerTextC1, c == 0x07:
			return answerGround
		case c == 0x1b:
			return answerTextEscape
		case c == 0xc2:
			return answerTextC1
		case c >= 0x20 && c != 0x7f:
			return answerText
		}
	case answerTextEscape:
		if c == '\\' {
			return answerGround
		}
	case answerNone:
	}
	return answerNone
}

// introduced is the state after ESC and a character.
func introduced(c byte) answerState {
	switch c {
	case '[':
		return answerCSI
	case 'P':
		return answerDCS
	case ']':
		return answerOSC
	case '_':
		return answerAPC
	case '/':
		return answerVT52
	}
	return answerNone
}

func (a *answers) nextOfCSI(c byte) answerState {
	number := a.digits || a.semicolon || a.colon // something follows CSI, or its private mark
	switch {
	case a.between == 0 && c >= '0' && c <= '9':
		a.digits = true
	case a.between == 0 && c == ';':
		a.semicolon = true
	case a.between == 0 && c == ':':
		a.colon = true
	case !number && !a.private && a.between == 0 && (c == '?' || c == '>' || c == '='):
		a.private = true
	case a.between == 0 && c >= 0x20 && c < 0x30:
		a.between = c
	case c >= 0x40 && c < 0x7f && a.isAnswer(c):
		return answerGround
	default:
		return answerNone
	}
	return answerCSI
}

// isAnswer reports whether a control sequence with this end is one.
func (a *answers) isAnswer(end byte) bool {
	if a.private {
		return true
	}
	switch string([]byte{a.between, end}) {
	case "\x00R":
		return a.digits && a.semicolon && !a.colon
	case "\x00n", "\x00t", "\x00x", "\x00m", "$y", "\"w", "*q", "*{":
		return a.digits
	case "\x00I", "\x00O":
		return !a.digits && !a.semicolon && !a.colon
	}
	return false
}
