package pollfd

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

// pipe returns a pipe's two ends, both in the poller.
func pipe(t *testing.T) (r, w *FD, rf, wf *os.File) {
	t.Helper()
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	rf, wf = os.NewFile(uintptr(p[0]), "r"), os.NewFile(uintptr(p[1]), "w")
	t.Cleanup(func() { _ = errors.Join(rf.Close(), wf.Close()) }) // a test may have closed them
	var err error
	if r, err = New(rf); err == nil {
		w, err = New(wf)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r, w, rf, wf
}

func TestReadWaits(t *testing.T) {
	r, w, _, _ := pipe(t)
	p := make([]byte, 16)
	if n, err := r.TryRead(p); n != 0 || err != nil {
		t.Errorf("nothing is there, and TryRead gives %d, %v", n, err)
	}
	written := make(chan error)
	go func() {
		_, err := w.Write([]byte("hello"))
		written <- err
	}()
	if n, err := r.Read(p); err != nil || string(p[:n]) != "hello" {
		t.Errorf("read %q, %v", p[:n], err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// What is larger than the pipe goes through it whole, in pieces of every size.
func TestWriteWaits(t *testing.T) {
	r, w, _, wf := pipe(t)
	sent := make([]byte, 3<<20)
	for i := range sent {
		sent[i] = byte(i ^ i>>8 ^ i>>16)
	}
	done := make(chan error)
	go func() {
		n, err := w.Write(sent)
		if n != len(sent) {
			err = errors.Join(err, errors.New("a short write"))
		}
		done <- errors.Join(err, wf.Close())
	}()
	var got []byte
	p := make([]byte, 5000)
	for {
		n, err := r.Read(p)
		got = append(got, p[:n]...)
		if errors.Is(err, io.EOF) {
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

func TestTryWriteTakesWhatFits(t *testing.T) {
	r, w, _, _ := pipe(t)
	big := make([]byte, 1<<20)
	n, err := w.TryWrite(big)
	if n == 0 || n == len(big) || err != nil {
		t.Fatalf("TryWrite of %d bytes took %d, %v", len(big), n, err)
	}
	if more, err := w.TryWrite(big); more != 0 || err != nil {
		t.Errorf("into a full pipe went %d, %v", more, err)
	}
	room := make(chan error)
	go func() { room <- w.WaitWrite() }()
	if _, err := io.ReadFull(r, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if err := <-room; err != nil {
		t.Error(err)
	}
	if again, err := w.TryWrite(big); again == 0 || err != nil {
		t.Errorf("into an empty pipe went %d, %v", again, err)
	}
}

// The poller tells of room once: it may have done so before somebody waits.
func TestWaitWriteSeesRoomThatIsThere(t *testing.T) {
	r, w, _, _ := pipe(t)
	other, tell, _, _ := pipe(t)
	big := make([]byte, 1<<20)
	n, err := w.TryWrite(big)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, big[:n]); err != nil {
		t.Fatal(err)
	}
	told := make(chan error)
	go func() {
		_, err := other.Read(make([]byte, 1)) // the poller runs for it, and hears of the room
		told <- err
	}()
	if _, err := tell.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	if err := w.WaitWrite(); err != nil { // hangs without the fix
		t.Error(err)
	}
}

func TestWaitingEnds(t *testing.T) {
	r, _, rf, _ := pipe(t)
	if err := rf.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past the deadline: %d, %v", n, err)
	}
	if err := rf.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 1))
		read <- err
	}()
	if err := rf.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed while it waits: %v", err)
	}
}

func TestErrorsOfTheKernel(t *testing.T) {
	_, w, rf, _ := pipe(t)
	if err := rf.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a pipe that nobody reads: %v", err)
	}
}
