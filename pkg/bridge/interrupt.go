package bridge

import (
	"bytes"
	"errors"
	"os"
	"time"
)

// When Ctrl-C is typed, the kernel drops what its terminal holds of the output
// (termios(3), NOFLSH), and echoes ^C. But the engine of a container holds
// 1.4 MB more, and ssh as much again, which a slow client would have to render
// before it sees the prompt: 1.4 s at 1 MB/s (measured). So for a client that is
// behind, output is read ahead of it until the echo comes, and what was to be
// sent before the echo goes where the kernel's went. Without an echo, from a
// program in raw mode say, nothing is dropped.
const (
	// lookTime is how long an echo is looked for.
	lookTime = time.Second
	// lookQuiet is for how long nothing comes once all of it has come.
	lookQuiet = 50 * time.Millisecond
	// maxAhead bounds what is read ahead, in bytes.
	maxAhead = 4 << 20
	// farBehind is how much a client has not rendered that is behind, in bytes.
	farBehind = minWindow / 2
	// maxLine is the longest line of which a part is not dropped, in bytes.
	maxLine = 4 << 10
)

// interrupts are the keys for which the kernel drops output, with their echoes:
// of the default settings, and typed alone.
var interrupts = map[string][]byte{
	"\x03": []byte("^C"),
	"\x1a": []byte("^Z"),
	"\x1c": []byte("^\\"),
}

// interrupt notes an interrupt that was typed. The lock is held.
func (b *Bridge) interrupt(typed []byte) {
	if b.window.backlog() < farBehind {
		return
	}
	if echo, ok := interrupts[string(typed)]; ok {
		b.echo = echo
		b.output.Signal()
	}
}

// skip sends what the terminal has until the echo, but for what need not be
// seen. It returns the terminal's error, as carryOutput does.
func (b *Bridge) skip(echo []byte) error {
	large := largeBuffers.Get().(*largeBuffer)
	defer largeBuffers.Put(large)
	var ahead []byte
	var failed error
	for {
		if echo != nil && failed == nil {
			ahead, failed = b.look(ahead, echo, large[headroom:])
		}
		if len(ahead) == 0 {
			return failed
		}
		var room int
		if room, echo = b.awaitRoom(); echo != nil {
			continue // typed again
		}
		n := copy(large[headroom:], ahead[:min(len(ahead), room)])
		ahead = ahead[n:]
		b.sendOutput(large[:headroom+n])
	}
}

// look reads on after what was read ahead until the echo is there.
func (b *Bridge) look(ahead, echo, p []byte) ([]byte, error) {
	for end := time.Now().Add(lookTime); len(ahead) < maxAhead && time.Now().Before(end); {
		n, err := b.readSoon(p)
		from := max(0, len(ahead)-len(echo)+1) // its first byte may have been the last
		ahead = append(ahead, p[:n]...)
		if i := bytes.Index(ahead[from:], echo); i >= 0 {
			return withoutLines(ahead, from+i), err
		}
		if n == 0 || err != nil {
			return ahead, err
		}
	}
	return ahead, nil
}

// readSoon reads what is there, or comes soon.
func (b *Bridge) readSoon(p []byte) (int, error) {
	end := time.Now().Add(lookQuiet)
	if d, ok := b.term.(ReadDeadliner); ok {
		_ = d.SetReadDeadline(end)
		n, err := b.term.Read(p)
		_ = d.SetReadDeadline(time.Time{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
		return n, err
	}
	if b.now == nil {
		return 0, nil
	}
	for {
		n, err := b.now.TryRead(p)
		if n > 0 || err != nil || time.Now().After(end) {
			return n, err
		}
		time.Sleep(time.Millisecond)
	}
}

// withoutLines drops the lines before the one with the echo, which begins at i,
// but for the rest of the first, of which the client has a part.
func withoutLines(p []byte, i int) []byte {
	first := bytes.IndexByte(p[:i], '\n') + 1
	if first > maxLine {
		first = 0
	}
	last := bytes.LastIndexByte(p[:i], '\n') + 1
	if i-last > maxLine {
		last = i
	}
	if first >= last {
		return p
	}
	return append(p[:first], p[last:]...)
}
