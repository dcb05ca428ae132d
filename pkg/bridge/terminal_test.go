package bridge

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// fakeTerm is a terminal in memory. Its program prints what the test tells it
// to and reads as much input as the test allows.
type fakeTerm struct {
	watched
	out      []byte // printed and not yet read by the bridge
	flood    bool   // prints pattern without end
	echo     bool   // prints its input, and reads none while echoLimit bytes of it were not taken
	readErr  error  // after out; nil: the terminal waits for more
	writeErr error
	waitErr  error
	exit     terminal.Exit
	expires  time.Time
	tells    bool // what is there now, and what there is room for
	allowed  int  // bytes of input that the program still reads; -1: all
	sink     io.Writer
	resizing time.Duration // that the engine takes for a size

	waiting int      // bytes that a Read that waits has room for; 0: none does
	given   int64    // bytes that the bridge has read
	taken   int64    // bytes that the program has read
	events  []string // what reached the terminal, in order
	closes  int
	misuses []string
}

const echoLimit = 4 << 10 // a tty's own buffers hold about as much

func newTerm() *fakeTerm {
	f := &fakeTerm{allowed: -1}
	f.init()
	return f
}

// pattern is output whose every byte tells where it belongs.
func pattern(off int64, p []byte) {
	for i := range p {
		n := off + int64(i)
		p[i] = byte(n ^ n>>8 ^ n>>16)
	}
}

func (f *fakeTerm) print(p []byte)          { f.with(func() { f.out = append(f.out, p...) }) }
func (f *fakeTerm) allow(n int)             { f.with(func() { f.allowed = n }) }
func (f *fakeTerm) fail(err error)          { f.with(func() { f.readErr = err }) }
func (f *fakeTerm) quit(exit terminal.Exit) { f.with(func() { f.exit, f.readErr = exit, io.EOF }) }
func (f *fakeTerm) log() (all []string)     { f.with(func() { all = append(all, f.events...) }); return }
func (f *fakeTerm) read() (n int64)         { f.with(func() { n = f.given }); return }

// typed is all input so far, events of other kinds left out.
func (f *fakeTerm) typed() string {
	var s strings.Builder
	for _, e := range f.log() {
		if in, ok := strings.CutPrefix(e, "input "); ok {
			s.WriteString(in)
		}
	}
	return s.String()
}

func (f *fakeTerm) Read(p []byte) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.changed.Broadcast()
	for f.closes == 0 && len(f.out) == 0 && !f.flood && f.readErr == nil {
		f.waiting = len(p)
		f.changed.Wait()
	}
	f.waiting = 0
	switch {
	case len(p) == 0:
		f.misuses = append(f.misuses, "a read of 0 bytes")
	case len(f.out) > 0:
		n = copy(p, f.out)
		f.out = f.out[n:]
	case f.closes > 0:
		f.readErr = io.EOF
		return 0, io.EOF
	case f.flood:
		pattern(f.given, p)
		n = len(p)
	default:
		return 0, f.readErr
	}
	f.given += int64(n)
	return n, nil
}

func (f *fakeTerm) TryRead(p []byte, _ bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.tells {
		return 0, nil
	}
	n := copy(p, f.out)
	if f.out = f.out[n:]; f.flood && f.closes == 0 && n < len(p) {
		pattern(f.given+int64(n), p[n:])
		n = len(p)
	}
	f.given += int64(n)
	f.changed.Broadcast()
	return n, nil
}

func (f *fakeTerm) TryWrite(p []byte) (n int, err error) {
	f.with(func() {
		if f.tells && f.closes == 0 && f.writeErr == nil && f.allowed != 0 && !f.echo {
			n = len(p)
			if f.allowed > 0 {
				n = min(n, f.allowed)
				f.allowed -= n
			}
			f.events = append(f.events, "input "+string(p[:n]))
			f.taken += int64(n)
		}
	})
	return n, nil
}

func (f *fakeTerm) Write(p []byte) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.changed.Broadcast()
	for n < len(p) {
		for f.closes == 0 && f.writeErr == nil && (f.allowed == 0 || f.echo && len(f.out) >= echoLimit) {
			f.changed.Wait()
		}
		if f.closes > 0 {
			return n, errors.New("fake terminal: closed")
		}
		if f.writeErr != nil {
			return n, f.writeErr
		}
		m := len(p) - n
		if f.allowed > 0 {
			m = min(m, f.allowed)
			f.allowed -= m
		}
		piece := p[n : n+m]
		if f.echo {
			piece = piece[:min(len(piece), echoLimit-len(f.out))]
			f.out = append(f.out, piece...)
		}
		if f.sink != nil {
			_, _ = f.sink.Write(piece)
		} else {
			f.events = append(f.events, "input "+string(piece))
		}
		n += len(piece)
		f.taken += int64(len(piece))
		f.changed.Broadcast()
	}
	return n, nil
}

func (f *fakeTerm) Resize(s terminal.Size) error {
	time.Sleep(f.resizing)
	f.with(func() { f.events = append(f.events, fmt.Sprintf("resize %dx%d", s.Cols, s.Rows)) })
	return nil
}

func (f *fakeTerm) Expires() time.Time { return f.expires }

func (f *fakeTerm) Close() error {
	f.with(func() { f.closes++ })
	return nil
}

func (f *fakeTerm) Wait() (exit terminal.Exit, err error) {
	f.with(func() {
		if f.readErr == nil {
			f.misuses = append(f.misuses, "Wait before Read failed")
		}
		exit, err = f.exit, f.waitErr
	})
	return exit, err
}
