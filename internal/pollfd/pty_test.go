package pollfd

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// openPty returns a master, and its other side in raw mode.
func openPty(t *testing.T) (*Pty, *os.File) {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() }) // a test may have closed it
	if _, err := term.MakeRaw(int(tty.Fd())); err != nil {
		t.Fatal(err)
	}
	p, err := NewPty(master)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() }) // likewise
	return p, tty
}

// Output wakes a Read, whether it was looked for in vain before or not.
func TestPtyReadWaits(t *testing.T) {
	p, tty := openPty(t)
	b := make([]byte, 16)
	for range 100 {
		if n, err := p.TryRead(b); n != 0 || err != nil {
			t.Fatalf("nothing is there, and TryRead gives %d, %v", n, err)
		}
		written := make(chan error)
		go func() {
			_, err := tty.WriteString("hello")
			written <- err
		}()
		var got []byte
		for len(got) < 5 {
			n, err := p.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b[:n]...)
		}
		if string(got) != "hello" {
			t.Fatalf("read %q", got)
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
	}
}

// A flood that is read by turns of both kinds is whole.
func TestPtyFlood(t *testing.T) {
	p, tty := openPty(t)
	sent := make([]byte, 8<<20)
	for i := range sent {
		sent[i] = byte(i ^ i>>8 ^ i>>16)
	}
	done := make(chan error)
	go func() {
		_, err := tty.Write(sent)
		done <- errors.Join(err, tty.Close())
	}()
	var got []byte
	b := make([]byte, 32<<10)
	for {
		n, err := p.Read(b)
		got = append(got, b[:n]...)
		for err == nil && n > 0 {
			n, err = p.TryRead(b)
			got = append(got, b[:n]...)
		}
		if errors.Is(err, unix.EIO) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes, or others", len(got), len(sent))
	}
}

// Input waits for a program that does not read, while its output is read: before
// a flood, in one, and when one begins meanwhile.
func TestPtyWriteWaits(t *testing.T) {
	for name, try := range map[string][2]bool{"before a flood": {}, "in a flood": {true, false}, "a flood begins": {false, true}} {
		t.Run(name, func(t *testing.T) { writeWaits(t, try) })
	}
}

func writeWaits(t *testing.T, try [2]bool) {
	p, tty := openPty(t)
	tryRead := func(really bool) {
		if !really {
			return
		}
		if n, err := p.TryRead(make([]byte, 16)); n != 0 || err != nil {
			t.Errorf("nothing is there, and TryRead gives %d, %v", n, err)
		}
	}
	tryRead(try[0])
	sent := bytes.Repeat([]byte("0123456789abcdef"), 32<<10)
	done := make(chan error)
	go func() {
		n, err := p.Write(sent)
		if n != len(sent) {
			err = errors.Join(err, errors.New("a short write"))
		}
		done <- err
	}()
	waitForInput(t, tty)
	tryRead(try[1])
	if _, err := tty.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(make([]byte, 16)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(tty, got); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, sent) {
		t.Error("other bytes arrived")
	}
}

// waitForInput waits until there is more input than fits in one read.
func waitForInput(t *testing.T, tty *os.File) {
	t.Helper()
	for n := 0; n < 4095; {
		var err error
		if n, err = unix.IoctlGetInt(int(tty.Fd()), unix.TIOCINQ); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPtyCloseWakesBoth(t *testing.T) {
	for name, flooded := range map[string]bool{"before a flood": false, "after one": true} {
		t.Run(name, func(t *testing.T) { closeWakesBoth(t, flooded) })
	}
}

func closeWakesBoth(t *testing.T, flooded bool) {
	p, tty := openPty(t)
	if flooded {
		if n, err := p.TryRead(make([]byte, 1)); n != 0 || err != nil {
			t.Fatalf("nothing is there, and TryRead gives %d, %v", n, err)
		}
	}
	read, written := make(chan error), make(chan error)
	go func() {
		_, err := p.Read(make([]byte, 1))
		read <- err
	}()
	go func() {
		_, err := p.Write(make([]byte, 1<<20))
		written <- err
	}()
	waitForInput(t, tty)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read: %v", err)
	}
	if err := <-written; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write: %v", err)
	}
	for _, call := range []func([]byte) (int, error){p.Read, p.TryRead, p.Write, p.TryWrite} {
		if n, err := call(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %d, %v", n, err)
		}
	}
	b := make([]byte, 1<<20)
	for { // what was written first, then the hang-up
		if _, err := tty.Read(b); err != nil {
			break
		}
	}
}

// A deadline outlives the beginning of a flood.
func TestPtyDeadline(t *testing.T) {
	p, tty := openPty(t)
	if err := p.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if n, err := p.TryRead(make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("nothing is there, and TryRead gives %d, %v", n, err)
	}
	if _, err := tty.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past the deadline: %d, %v", n, err)
	}
	if err := p.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("without one: %d, %v", n, err)
	}
}
