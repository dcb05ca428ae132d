package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen. It is never waited out
// unless the test fails.
const patience = 3 * time.Minute

// eventually waits until ok, which nobody tells.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}

// pipe is a terminal whose program prints what the test prints, and reads nothing.
type pipe struct {
	*io.PipeReader
	print *io.PipeWriter
	over  chan struct{} // closed by Close
	code  int
}

func newPipe() *pipe {
	p := &pipe{over: make(chan struct{})}
	p.PipeReader, p.print = io.Pipe()
	return p
}

func (p *pipe) TryRead([]byte, bool) (int, error) { return 0, nil }
func (p *pipe) TryWrite([]byte) (int, error)      { return 0, nil }
func (p *pipe) Resize(terminal.Size) error        { return nil }
func (p *pipe) Wait() (terminal.Exit, error)      { return terminal.Exit{Code: p.code}, nil }

func (p *pipe) Write([]byte) (int, error) {
	<-p.over
	return 0, os.ErrClosed
}

func (p *pipe) Close() error {
	close(p.over)
	return p.print.CloseWithError(io.EOF)
}

// quit ends the shell.
func (p *pipe) quit(code int) {
	p.code = code
	_ = p.print.CloseWithError(io.EOF)
}

// owner is a Client that notes what it is told.
type owner struct {
	mu     sync.Mutex
	out    bytes.Buffer
	exit   *terminal.Exit
	ending bool
	broken bool // at an offset that does not follow
	hold   chan struct{}
}

func (o *owner) Output(at int64, p []byte) error {
	if o.hold != nil {
		<-o.hold
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broken = o.broken || at != int64(o.out.Len())
	o.out.Write(p)
	return nil
}

func (o *owner) Begin(*Attachment, Resumed) {}
func (o *owner) Notice(Notice)              {}
func (o *owner) TakenOver()                 {}

func (o *owner) Ending() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ending = true
}

func (o *owner) Exited(e terminal.Exit) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.exit = &e
}

func (o *owner) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.out.Len()
}

// observing is an Observer at work.
type observing struct {
	Observer
	done chan struct{}
	err  error
}

func observe(ctx context.Context, s *Session, o Observer, from int64) *observing {
	w := &observing{Observer: o, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.err = s.Observe(ctx, o, from)
	}()
	return w
}

func (s *Session) watched(n int) func() bool {
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.observers) == n
	}
}

// noted is an observer that keeps what it gets, or stands still.
type noted struct {
	first int64 // the offset of the first byte
	out   []byte
	gap   bool
	stall chan struct{} // nil: it does not stand still
	calls int
}

func (n *noted) Output(at int64, p []byte) error {
	n.calls++
	if n.stall != nil {
		<-n.stall
	}
	if n.out == nil {
		n.first = at
	}
	n.gap = n.gap || at != n.first+int64(len(n.out))
	n.out = append(n.out, p...)
	return nil
}

// recording is an observer that writes a file.
type recording struct{ f *os.File }

func (r recording) Output(at int64, p []byte) error {
	_, err := r.f.WriteAt(p, at)
	return err
}

// text is output of which every line tells where it belongs.
func text(lines int) (p []byte) {
	for i := range lines {
		p = fmt.Appendf(p, "line %d\r\n", i)
	}
	return p
}

// Observers get every byte from their offset on; one that stands still slows
// nobody, and is dropped; and a file holds the whole session.
func TestObservers(t *testing.T) {
	term := newPipe()
	budget := NewBudget(64 << 20)
	s := New(term, Options{Budget: budget, Holder: "somebody"})
	var person owner
	s.Attach(&person, 0, false)
	file, err := os.Create(filepath.Join(t.TempDir(), "recording"))
	if err != nil {
		t.Fatal(err)
	}
	recorder := observe(t.Context(), s, recording{file}, 0)
	eventually(t, "the recorder watches", s.watched(1))
	sums := make(chan Summary, 1)
	go func() { sums <- s.Run(t.Context()) }()

	all := text(400_000) // 5 MB
	first, rest := all[:100_000], all[100_000:]
	if _, err := term.print.Write(first); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the person has the first part", func() bool { return person.len() == len(first) })
	stalled := &noted{stall: make(chan struct{})}
	late := &noted{}
	ctx, leave := context.WithCancelCause(t.Context())
	leaving := &noted{}
	a, b, c := observe(t.Context(), s, stalled, int64(len(first))), observe(t.Context(), s, late, int64(len(first))), observe(ctx, s, leaving, int64(len(first)))
	eventually(t, "all watch", s.watched(4))
	errLeft := errors.New("left")
	leave(errLeft)
	<-c.done
	for piece := range slices.Chunk(rest, 64<<10) { // no faster than they read
		if _, err := term.print.Write(piece); err != nil {
			t.Fatal(err)
		}
		eventually(t, "who reads has it", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			behind := 0
			for _, o := range s.observers {
				if s.printed-o.at > 256<<10 {
					behind++
				}
			}
			return behind <= 1 // the one that stands still
		})
	}
	eventually(t, "the one that stands still is dropped", s.watched(2))
	term.quit(7)
	sum := <-sums
	s.Join()
	<-recorder.done
	<-b.done
	if sum.Cause != nil || sum.Exit == nil || sum.Exit.Code != 7 || sum.BytesOut != int64(len(all)) {
		t.Errorf("summary %+v", sum)
	}
	if person.broken || !bytes.Equal(person.out.Bytes(), all) || person.exit == nil || person.exit.Code != 7 {
		t.Errorf("the person has %d bytes of %d", person.out.Len(), len(all))
	}
	if late.gap || late.first != int64(len(first)) || !bytes.Equal(late.out, rest) || b.err != nil {
		t.Errorf("the late observer has %d bytes of %d: %v", len(late.out), len(rest), b.err)
	}
	recorded, err := os.ReadFile(file.Name())
	if err != nil || !bytes.Equal(recorded, all) || recorder.err != nil {
		t.Errorf("the file has %d bytes of %d: %v, %v", len(recorded), len(all), recorder.err, err)
	}
	if !errors.Is(c.err, errLeft) {
		t.Errorf("one that has left: %v", c.err)
	}
	close(stalled.stall)
	<-a.done
	if !errors.Is(a.err, ErrBehind) {
		t.Errorf("one that stood still: %v", a.err)
	}
	if budget.left != 64<<20 {
		t.Errorf("%d bytes are not given back", 64<<20-budget.left)
	}
	_ = file.Close()
}

// Where an observer cannot begin, it is told so; it may begin where another still is.
func TestObserveFrom(t *testing.T) {
	term := newPipe()
	s := New(term, Options{})
	var person owner
	s.Attach(&person, 0, false)
	sums := make(chan Summary, 1)
	go func() { sums <- s.Run(t.Context()) }()
	if _, err := term.print.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is printed", func() bool { return person.len() == 10 })
	for _, from := range []int64{0, 9, 11} {
		if err := s.Observe(t.Context(), &noted{}, from); !errors.Is(err, ErrNotKept) {
			t.Errorf("from %d: %v", from, err)
		}
	}
	slow := &noted{stall: make(chan struct{})}
	a := observe(t.Context(), s, slow, 10)
	eventually(t, "it watches", s.watched(1))
	if _, err := term.print.Write([]byte("abcdef")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is printed", func() bool { return person.len() == 16 })
	second := &noted{}
	b := observe(t.Context(), s, second, 12)
	eventually(t, "both watch", s.watched(2))
	close(slow.stall)
	term.quit(0)
	<-a.done
	<-b.done
	<-sums
	s.Join()
	if string(slow.out) != "abcdef" || string(second.out) != "cdef" || second.first != 12 {
		t.Errorf("they have %q, %q from %d", slow.out, second.out, second.first)
	}
	if err := s.Observe(t.Context(), &noted{}, 16); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// With no memory to keep output, an observer is dropped, and nobody waits.
func TestObserverWithoutBudget(t *testing.T) {
	term := newPipe()
	s := New(term, Options{Budget: NewBudget(0)})
	var person owner
	s.Attach(&person, 0, false)
	stalled := &noted{stall: make(chan struct{})}
	a := observe(t.Context(), s, stalled, 0)
	eventually(t, "it watches", s.watched(1))
	sums := make(chan Summary, 1)
	go func() { sums <- s.Run(t.Context()) }()
	all := text(100_000)
	if _, err := term.print.Write(all); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is printed", func() bool { return person.len() == len(all) })
	term.quit(0)
	<-sums
	s.Join()
	close(stalled.stall)
	<-a.done
	if !errors.Is(a.err, ErrBehind) {
		t.Errorf("told %v", a.err)
	}
}

// What sessions hold together is within the budget, but for a block each, and is given back with their end, however
// they are cut.
func TestSessionsGiveBack(t *testing.T) {
	const all, sessions = 8 << 20, 12
	budget := NewBudget(all)
	type open struct {
		*Session
		term *pipe
		sums chan Summary
	}
	var opened []open
	var typing sync.WaitGroup
	for i := range sessions {
		o := open{term: newPipe(), sums: make(chan Summary, 1)}
		o.Session = New(o.term, Options{Budget: budget, Holder: fmt.Sprint(i % 4)})
		a := o.Attach(&owner{}, 64<<10, false)
		opened = append(opened, o)
		go func() { o.sums <- o.Run(context.Background()) }()
		typing.Go(func() {
			for range 2 * all >> 20 { // until the end
				for p := make([]byte, 1<<20); len(p) > 0; {
					if p = p[a.TypePart(p, true):]; len(p) > 0 {
						a.AwaitInput()
					}
				}
			}
		})
	}
	locked := func(s *Session, f func()) {
		s.mu.Lock()
		defer s.mu.Unlock()
		f()
	}
	eventually(t, "all are full", func() bool {
		full := 0
		for _, o := range opened {
			locked(o.Session, func() {
				if o.choked {
					full++
				}
			})
		}
		return full == sessions
	})
	held := 0
	for _, o := range opened {
		locked(o.Session, func() { held += o.input.size() })
	}
	if held > all+sessions*blockSize {
		t.Errorf("%d bytes are held", held)
	}
	for i, o := range opened {
		if i%2 == 0 {
			o.End(errors.New("cut"))
		} else {
			o.term.quit(0)
		}
		<-o.sums
		o.Join()
	}
	typing.Wait()
	if budget.left != all {
		t.Errorf("%d bytes are not given back", all-budget.left)
	}
}
