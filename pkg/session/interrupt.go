package session

import (
	"bytes"
	"time"
)

// When Ctrl-C is typed, the kernel drops the output that the terminal holds
// (termios(3), NOFLSH), and echoes ^C. But a container's engine holds 1.4 MB more,
// and ssh as much again, all of which a slow client would have to render before the
// prompt: 1.4 s at 1 MB/s (measured). So for a client that is behind, the session
// reads ahead until the echo comes, and drops the output before the echo, as the
// kernel does. Without an echo, from a program in raw mode for example, no output is
// dropped.
const (
	// lookTime bounds the search for an echo.
	lookTime = 2 * time.Second
	// lookQuiet is the silence after which all output is taken to have come: an engine that has the processor back after a
	// while, or a slow tunnel, makes gaps in a flood. The client has something to render meanwhile.
	lookQuiet = 250 * time.Millisecond
	// maxAhead bounds the output that is read ahead, in bytes.
	maxAhead = 4 << 20
	// farBehind is the output, in bytes, that a client has not rendered when an
	// interrupt may skip output: half of the smallest window.
	farBehind = 8 << 10
	// maxLine is the longest line of which the client gets the rest, in bytes.
	maxLine = 4 << 10
)

// interrupts are the keys, typed alone, for which the kernel drops output by
// default, with their echoes.
var interrupts = map[string][]byte{
	"\x03": []byte("^C"),
	"\x1a": []byte("^Z"),
	"\x1c": []byte("^\\"),
}

// interrupt notes an interrupt that was typed. The lock is held.
func (s *Session) interrupt(typed []byte) {
	if s.owner.behind() < farBehind {
		return
	}
	if echo, ok := interrupts[string(typed)]; ok {
		s.echo = echo
		s.output.Signal()
	}
}

// readAhead reads output until the echo of an interrupt is there or no more may be
// held, and drops the lines before the echo. The terminal's error, which readAhead
// returns, comes after the output that was read.
func (s *Session) readAhead(echo []byte) error {
	ahead := &s.ahead
	for end := time.Now().Add(lookTime); time.Now().Before(end); {
		p := ahead.space()
		if len(p) == 0 {
			return nil
		}
		n, err := s.readSoon(p)
		from := ahead.size()
		ahead.wrote(n)
		if i := echoIn(ahead, echo, from, p[:n]); i >= 0 {
			withoutLines(ahead, i)
			return err
		}
		if n == 0 || err != nil {
			return err
		}
	}
	return nil
}

// echoIn returns the index of an echo of two bytes in the queue, whose last piece
// begins at from; -1 if there is none.
func echoIn(q *queue, echo []byte, from int, piece []byte) int {
	if from > 0 && len(piece) > 0 && *q.at(from - 1) == echo[0] && piece[0] == echo[1] {
		return from - 1
	}
	if i := bytes.Index(piece, echo); i >= 0 {
		return from + i
	}
	return -1
}

// readSoon reads the output that is there, or comes within lookQuiet.
func (s *Session) readSoon(p []byte) (int, error) {
	for end := time.Now().Add(lookQuiet); ; time.Sleep(time.Millisecond) {
		n, err := s.term.TryRead(p, false)
		if n > 0 || err != nil || time.Now().After(end) {
			return n, err
		}
	}
}

// withoutLines drops the lines before the line with the echo, which begins at i, but
// for the rest of the first line: the client has its beginning.
func withoutLines(q *queue, i int) {
	first := 0 // where the second line begins; 0: the first is too long
	for k := range min(i, maxLine) {
		if *q.at(k) == '\n' {
			first = k + 1
			break
		}
	}
	last := i // where the line with the echo begins, unless it is too long
	for k := i; i-k <= maxLine; k-- {
		if k == 0 || *q.at(k - 1) == '\n' {
			last = k
			break
		}
	}
	if first >= last {
		return
	}
	for k := first - 1; k >= 0; k-- {
		*q.at(k + last - first) = *q.at(k)
	}
	q.drop(last - first)
}
