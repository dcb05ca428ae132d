package bridge

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// A client that is behind sees the prompt after an interrupt without all that the
// program had printed by then; and whatever is no interrupt's, it sees whole.
func TestInterrupt(t *testing.T) {
	var lines []byte
	for i := range 60_000 {
		lines = fmt.Appendf(lines, "line %d\r\n", i)
	}
	sent := lines[:initialWindow]
	rest := lines[len(sent):]
	const prompt = "^C\r\n$ "
	half, _, _ := bytes.Cut(rest, []byte("\n"))
	short := string(half) + "\n" + prompt
	for _, test := range []struct {
		name, key string
		out       []byte
		answer    string
		want      string // after what was sent
	}{
		{"Ctrl-C", "\x03", lines, prompt, short},
		{"Ctrl-C amid a line", "\x03", append(bytes.Clone(lines), "part of a line"...), prompt, string(half) + "\npart of a line" + prompt},
		{"Ctrl-Z", "\x1a", lines, "^Z\r\n[1]+  Stopped\r\n$ ", string(half) + "\n^Z\r\n[1]+  Stopped\r\n$ "},
		{"Ctrl-\\", "\x1c", lines, "^\\Quit\r\n$ ", string(half) + "\n^\\Quit\r\n$ "},
		{"no echo", "\x03", lines, "bye\r\n", string(rest) + "bye\r\n"},
		{"another key", "c", lines, prompt, string(rest) + prompt},
		{"pasted with more", "\x03x", lines, prompt, string(rest) + prompt},
		{"no lines", "\x03", bytes.Repeat([]byte("x"), len(lines)), prompt, prompt},
		{"more than is read ahead", "\x03", bytes.Repeat(lines, 10), prompt, string(bytes.Repeat(lines, 10)[len(sent):]) + prompt},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				term := newTerm()
				term.tells = true
				s := startInBubble(t, setup{term: term, noAck: true, opt: Options{Ready: someReady}})
				term.print(test.out)
				s.waitBytes(t, int64(len(sent)))
				synctest.Wait()
				s.input(t, test.key)
				term.until(t, "the key", func() bool { return len(term.events) > 0 })
				term.print([]byte(test.answer))
				time.Sleep(2 * time.Second)
				if s.received != int64(len(sent)) {
					t.Errorf("%d bytes came, the window is %d", s.received, len(sent))
				}
				s.ackAll(t)
				s.waitBytes(t, int64(len(sent)+len(test.want)))
				synctest.Wait()
				if got := string(s.out[len(sent):]); got != test.want {
					t.Errorf("after the window came %d bytes, want %d: %q", len(got), len(test.want), got[:min(len(got), 100)])
				}
				if s.received != int64(len(sent)+len(test.want)) {
					t.Errorf("%d bytes came, want %d", s.received, len(sent)+len(test.want))
				}
			})
		})
	}
}

// interruptedFlood prints a flood to a client that acknowledges nothing, and types Ctrl-C once the window is full.
func interruptedFlood(t *testing.T) (term *fakeTerm, s *harness, flood string) {
	t.Helper()
	term = newTerm()
	term.tells = true
	s = startInBubble(t, setup{term: term, noAck: true, opt: Options{Ready: someReady}})
	flood = strings.Repeat("y\r\n", initialWindow)
	term.print([]byte(flood))
	s.waitBytes(t, initialWindow)
	synctest.Wait()
	s.input(t, "\x03")
	term.until(t, "the key", func() bool { return len(term.events) > 0 })
	return term, s, flood
}

// A flood that comes in pieces, as from an engine that does not always have the processor, is skipped as one that comes at once.
func TestInterruptOfAFloodWithGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term, s, flood := interruptedFlood(t)
		for range 5 {
			time.Sleep(150 * time.Millisecond)
			term.print([]byte(flood))
		}
		time.Sleep(150 * time.Millisecond)
		term.print([]byte("^C\r\n$ "))
		synctest.Wait()
		s.ackAll(t)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := string(s.out); !strings.HasSuffix(got, "y\r\n^C\r\n$ ") || len(got) > initialWindow+100 {
			t.Errorf("%d bytes came, and at last %q", len(got), got[max(0, len(got)-20):])
		}
	})
}

// What the shell prints before it ends comes, also when it ends while it is read ahead.
func TestInterruptThenTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term, s, flood := interruptedFlood(t)
		term.print([]byte("last words"))
		term.quit(terminal.Exit{Code: 130})
		synctest.Wait()
		s.ackAll(t)
		sum := s.wait(t)
		if sum.Cause != nil || sum.Exit == nil || sum.Exit.Code != 130 || string(s.out) != flood+"last words" {
			t.Errorf("%+v after %d bytes", sum, len(s.out))
		}
	})
}
