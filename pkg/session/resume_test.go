package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// program is a terminal whose program prints a pattern and notes its input, as far
// as it reads.
type program struct {
	mu      sync.Mutex
	changed sync.Cond
	rnd     *rand.Rand // nil: it prints and reads all at once
	length  int64      // of the output, to its end
	printed int64
	may     int64 // how much of it it prints for the time being
	input   []byte
	reads   int // how many bytes of input it reads more; -1: all
	sizes   []terminal.Size
	closed  bool
}

func newProgram(length int64, rnd *rand.Rand) *program {
	p := &program{length: length, may: length, rnd: rnd, reads: -1}
	p.changed.L = &p.mu
	return p
}

func (p *program) with(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

func (p *program) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.printed == p.may && p.may < p.length && !p.closed {
		p.changed.Wait()
	}
	return p.read(b)
}

func (p *program) read(b []byte) (int, error) {
	n := int(min(int64(len(b)), p.may-p.printed))
	if n == 0 || p.closed {
		return 0, io.EOF
	}
	if p.rnd != nil {
		n = 1 + p.rnd.IntN(n)
	}
	pattern(p.printed, b[:n])
	p.printed += int64(n)
	return n, nil
}

func (p *program) TryRead(b []byte, _ bool) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.printed == p.may || p.rnd != nil && p.rnd.IntN(3) == 0 {
		return 0, nil
	}
	n, err := p.read(b)
	if errors.Is(err, io.EOF) {
		err = nil // Read finds it
	}
	return n, err
}

func (p *program) take(b []byte) int {
	n := len(b)
	if p.reads >= 0 {
		n = min(n, p.reads)
		p.reads -= n
	}
	p.input = append(p.input, b[:n]...)
	return n
}

func (p *program) TryWrite(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rnd != nil {
		b = b[:p.rnd.IntN(len(b)+1)]
	}
	return p.take(b), nil
}

func (p *program) Write(b []byte) (done int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if done += p.take(b[done:]); done == len(b) {
			return done, nil
		}
		if p.closed {
			return done, os.ErrClosed
		}
		p.changed.Wait()
	}
}

func (p *program) Resize(s terminal.Size) error {
	p.with(func() { p.sizes = append(p.sizes, s) })
	return nil
}

func (p *program) Wait() (terminal.Exit, error) { return terminal.Exit{Code: 3}, nil }

func (p *program) Close() error {
	p.with(func() { p.closed = true })
	return nil
}

// person has the output of a session over all connections, and types.
type person struct {
	t       *testing.T
	session *Session
	out     int64  // how many bytes it has
	typed   []byte // all that it types
	sent    int    // how much of it was sent on this connection
	exit    *terminal.Exit
	notices []Notice
}

// connection is a person's Client.
type connection struct {
	*person
	mu     sync.Mutex
	a      *Attachment
	begun  chan struct{}
	cut    int // Output fails after so many bytes more; -1: never
	noAcks bool
	lost   bool          // the person has nothing of the output before this connection
	over   chan struct{} // closed by TakenOver
	at     Resumed
}

func (p *person) connection(cut int) *connection {
	return &connection{person: p, begun: make(chan struct{}), over: make(chan struct{}), cut: cut}
}

func (c *connection) Begin(a *Attachment, at Resumed) {
	c.a, c.at = a, at
	if c.lost {
		c.out = at.Output
	}
	close(c.begun)
}

var errCut = errors.New("cut")

func (c *connection) Output(at int64, b []byte) error {
	c.mu.Lock()
	if c.cut == 0 { // nothing comes after a cut
		c.mu.Unlock()
		return errCut
	}
	if at != c.out {
		c.t.Errorf("output at %d, want %d", at, c.out)
	}
	n := len(b)
	if c.cut >= 0 {
		n = min(n, c.cut)
		c.cut -= n
	}
	want := make([]byte, n)
	pattern(at, want)
	if !bytes.Equal(b[:n], want) {
		c.t.Errorf("another's bytes at %d", at)
	}
	c.out += int64(n)
	out := c.out
	c.mu.Unlock()
	if n < len(b) {
		return errCut
	}
	if !c.noAcks {
		c.a.Acknowledge(out, 64<<10)
	}
	return nil
}

func (c *connection) Notice(n Notice) { c.notices = append(c.notices, n) }
func (c *connection) Ending()         {}

func (c *connection) Exited(e terminal.Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut != 0 {
		c.exit = &e
		c.a.Detach(errCut)
	}
}

func (c *connection) TakenOver() { close(c.over) }

// resume has the person come back on another connection.
func (p *person) resume(c *connection, from int64) error {
	if err := p.session.Resume(c, 64<<10, false, terminal.Size{}, from); err != nil {
		return err
	}
	<-c.begun
	p.sent = int(c.at.Input)
	return nil
}

// sends types up to n bytes that were not sent yet, as one message.
func (c *connection) sends(n int) {
	p := c.typed[c.sent:min(c.sent+n, len(c.typed))]
	for taken := c.a.Type(p); taken < len(p); taken += c.a.TypePart(p[taken:], true) {
		c.a.AwaitInput()
	}
	c.sent += len(p)
}

// TestResumeIsExact: whenever the connection is cut, and however the next begins, no byte
// is lost or comes twice, in either direction.
func TestResumeIsExact(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 16))
			program := newProgram(int64(rnd.IntN(3<<20)), rand.New(rand.NewPCG(seed, 17)))
			s := New(program, Options{Resume: time.Hour})
			p := &person{t: t, session: s, typed: make([]byte, rnd.IntN(200<<10))}
			pattern(7, p.typed)
			c := p.connection(rnd.IntN(200 << 10))
			s.Attach(c, 64<<10, false)
			ended := make(chan Summary, 1)
			go func() { ended <- s.Run(context.Background()) }()
			<-c.begun
			for over := false; !over; {
				for range rnd.IntN(4) {
					c.sends(rnd.IntN(20 << 10))
				}
				if rnd.IntN(2) == 0 && !c.a.Leave(errCut, time.Hour) {
					break
				}
				// The connection may still take some bytes, which the person then has, or not: what
				// it has when it comes back is what counts.
				if rnd.IntN(2) == 0 {
					c.mu.Lock()
					c.cut = 0
					c.mu.Unlock()
				}
				next := p.connection(rnd.IntN(2 << 20))
				if rnd.IntN(20) == 0 {
					next.cut = -1
				}
				next.mu.Lock()
				c.mu.Lock() // no byte comes to the old one while it is left
				c.cut = 0
				from := p.out
				c.mu.Unlock()
				next.mu.Unlock()
				switch err := p.resume(next, from); {
				case errors.Is(err, ErrOver):
					over = true
				case err != nil:
					t.Fatal(err)
				case next.at.Output != from:
					t.Fatalf("goes on at %d, want %d", next.at.Output, from)
				default:
					c = next
				}
				if len(ended) > 0 {
					over = true
				}
			}
			sum := <-ended
			s.Join()
			if sum.Cause != nil || sum.Exit.Code != 3 {
				t.Errorf("the session ended with %+v", sum)
			}
			if sum.Owner == nil || p.out != program.length || p.exit == nil {
				t.Errorf("the person has %d bytes of %d, and exit %v", p.out, program.length, p.exit)
			}
			if !bytes.Equal(program.input, p.typed[:len(program.input)]) || len(program.input) > p.sent {
				t.Errorf("the program has read other input than was typed: %d bytes of %d", len(program.input), p.sent)
			}
			if s.kept.size() != 0 {
				t.Errorf("%d bytes are kept of a session that is over", s.kept.size())
			}
		})
	}
}

// waits runs a session that waits for its person, in a bubble.
func waits(t *testing.T, program *program, resume time.Duration, o Options) (*person, chan Summary) {
	t.Helper()
	o.Resume = resume
	s := New(program, o)
	p := &person{t: t, session: s}
	c := p.connection(-1)
	s.Attach(c, 64<<10, false)
	ended := make(chan Summary, 1)
	go func() { ended <- s.Run(t.Context()); s.Join() }()
	<-c.begun
	synctest.Wait()
	if !c.a.Leave(errCut, time.Hour) {
		t.Fatal("the session does not wait")
	}
	return p, ended
}

// TestWaitEnds: a session that nobody resumes ends with the cause of its loss, once its time
// is over, and not sooner when somebody came meanwhile.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		program := newProgram(1<<20, nil)
		program.may = 0
		p, ended := waits(t, program, time.Minute, Options{})
		time.Sleep(59 * time.Second)
		c := p.connection(-1)
		if err := p.resume(c, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if !c.a.Leave(errCut, time.Hour) {
			t.Fatal("the session does not wait")
		}
		left := time.Now()
		sum := <-ended
		if took := time.Since(left); took != time.Minute || !errors.Is(sum.Cause, errCut) || sum.Owner != nil {
			t.Errorf("after %s: %+v", took, sum)
		}
		if err := p.resume(p.connection(-1), 0); !errors.Is(err, ErrOver) {
			t.Errorf("a session that is over: %v", err)
		}
	})
}

// TestWaitIsBounded: while nobody is there the program prints 1 MiB, and then stands still.
func TestWaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		program := newProgram(10<<20, nil)
		program.may = 0
		p, ended := waits(t, program, time.Hour, Options{})
		program.with(func() { program.may = program.length })
		synctest.Wait()
		if program.printed != maxKept {
			t.Errorf("printed %d bytes", program.printed)
		}
		c := p.connection(-1)
		if err := p.resume(c, 0); err != nil {
			t.Fatal(err)
		}
		sum := <-ended
		if p.out != program.length || sum.BytesOut != program.length || p.exit == nil {
			t.Errorf("the person has %d bytes, %+v", p.out, sum)
		}
	})
}

// TestExitWaits: the output and the end of a shell that ends while its person is away are
// for the person.
func TestExitWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		program := newProgram(1000, nil)
		program.may = 0
		over := make(chan Summary, 2)
		p, ended := waits(t, program, time.Hour, Options{Over: func(sum Summary) { over <- sum }})
		program.with(func() { program.may = program.length })
		synctest.Wait()
		if !program.closed || len(ended) != 0 || len(over) != 1 {
			t.Errorf("closed: %v, ended: %v, over: %v", program.closed, len(ended), len(over))
		}
		if sum := <-over; sum.Cause != nil || sum.Exit == nil || sum.Exit.Code != 3 {
			t.Errorf("over: %+v", sum)
		}
		time.Sleep(30 * time.Minute)
		if err := p.resume(p.connection(-1), 0); err != nil {
			t.Fatal(err)
		}
		if sum := <-ended; sum.Cause != nil || p.exit == nil || p.exit.Code != 3 || p.out != 1000 {
			t.Errorf("%+v, exit %v after %d bytes", sum, p.exit, p.out)
		}
	})
}

// TestLimitsRunWhileItWaits: idle time and longest life run on, and who comes back is told
// what is near.
func TestLimitsRunWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		program := newProgram(1000, nil)
		program.may = 0
		p, ended := waits(t, program, time.Hour, Options{IdleTimeout: 10 * time.Minute})
		time.Sleep(9*time.Minute + 30*time.Second)
		c := p.connection(-1)
		if err := p.resume(c, 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(p.notices) != 1 || p.notices[0].Code != "idle_timeout" || p.notices[0].Left != 30*time.Second {
			t.Errorf("told %+v", p.notices)
		}
		if !c.a.Leave(errCut, time.Hour) {
			t.Fatal("the session does not wait")
		}
		if sum := <-ended; !errors.Is(sum.Cause, ErrIdle) {
			t.Errorf("ended with %+v", sum)
		}
	})
}

// TestResumeRefuses: output that was never sent; a session that does not wait, or ends.
func TestResumeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		program := newProgram(1000, nil)
		program.may = 0
		p, ended := waits(t, program, time.Hour, Options{})
		for _, from := range []int64{1, 1 << 62} {
			asked, err := p.session.Resumable(from), p.resume(p.connection(-1), from)
			if !errors.Is(asked, ErrAhead) || !errors.Is(err, ErrAhead) {
				t.Errorf("from %d: %v, %v", from, asked, err)
			}
		}
		p.session.End(errCut)
		if err := p.resume(p.connection(-1), 0); !errors.Is(err, ErrOver) {
			t.Errorf("a session that ends: %v", err)
		}
		<-ended

		program = newProgram(1000, nil)
		program.may = 0
		s := New(program, Options{})
		c := (&person{t: t}).connection(-1)
		s.Attach(c, 64<<10, false)
		done := make(chan Summary, 1)
		go func() { done <- s.Run(t.Context()); s.Join() }()
		<-c.begun
		if err := s.Resume(c, 64<<10, false, terminal.Size{}, 0); !errors.Is(err, ErrOver) {
			t.Errorf("a session that does not wait: %v", err)
		}
		if c.a.Leave(errCut, time.Hour) {
			t.Error("it waits")
		}
		if sum := <-done; !errors.Is(sum.Cause, errCut) {
			t.Errorf("ended with %+v", sum)
		}
	})
}

// TestTakenOver: the old connection types nothing more, and holds nothing back.
func TestTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		program := newProgram(5<<20, nil)
		program.may = 0
		s := New(program, Options{Resume: time.Hour})
		p := &person{t: t, session: s, typed: []byte("hello world")}
		old := p.connection(-1)
		old.noAcks = true
		s.Attach(old, 64<<10, false)
		ended := make(chan Summary, 1)
		go func() { ended <- s.Run(t.Context()); s.Join() }()
		<-old.begun
		old.sends(5)
		program.with(func() { program.may = program.length })
		synctest.Wait() // the old one's window is full
		next := p.connection(-1)
		if err := p.resume(next, p.out); err != nil {
			t.Fatal(err)
		}
		<-old.over
		if next.at.Input != 5 {
			t.Errorf("%d bytes of input were taken", next.at.Input)
		}
		old.a.Type([]byte("xxx"))
		old.a.Acknowledge(1<<40, 1<<20)
		old.a.Detach(errCut)
		next.sends(100)
		sum := <-ended
		if p.out != program.length || sum.Cause != nil {
			t.Errorf("the person has %d bytes, %+v", p.out, sum)
		}
		if string(program.input) != "hello world" {
			t.Errorf("the program read %q", program.input)
		}
	})
}

// TestPartOfAMessageIsTyped: the rest of a message whose connection was cut comes in another.
func TestPartOfAMessageIsTyped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		program := newProgram(1000, nil)
		program.may = 0
		s := New(program, Options{Resume: time.Hour})
		p := &person{t: t, session: s, typed: []byte("hello world")}
		old := p.connection(-1)
		s.Attach(old, 64<<10, false)
		ended := make(chan Summary, 1)
		go func() { ended <- s.Run(t.Context()); s.Join() }()
		<-old.begun
		old.a.TypePart([]byte("hello "), false)
		old.a.Leave(errCut, time.Hour)
		next := p.connection(-1)
		if err := p.resume(next, 0); err != nil {
			t.Fatal(err)
		}
		next.sends(100)
		synctest.Wait()
		if string(program.input) != "hello world" {
			t.Errorf("the program read %q", program.input)
		}
		s.End(errCut)
		<-ended
	})
}

// TestScreenIsDrawnAnew: for a client that has no output, or not what is kept, the program
// gets another size and its own again.
func TestScreenIsDrawnAnew(t *testing.T) {
	for _, c := range []struct {
		from  int64
		sizes []terminal.Size
	}{
		{100 << 10, nil},
		{-1, []terminal.Size{{Cols: 80, Rows: 23}, {Cols: 80, Rows: 24}}},
		{50 << 10, []terminal.Size{{Cols: 80, Rows: 23}, {Cols: 80, Rows: 24}}}, // it has acknowledged more
		{99 << 10, nil}, // so little more that it is there
	} {
		synctest.Test(t, func(t *testing.T) {
			program := newProgram(1<<30, nil)
			program.may = 100 << 10
			p, ended := waits(t, program, time.Hour, Options{Size: terminal.Size{Cols: 80, Rows: 24}})
			next := p.connection(-1)
			next.lost = c.sizes != nil
			p.out = max(c.from, 0)
			if err := p.resume(next, c.from); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if before := 100<<10 - next.at.Output; next.lost != (before > pastLeast/2) || before > 2*pastLeast || !next.lost && next.at.Output != c.from || next.out != 100<<10 {
				t.Errorf("from %d: goes on at %d, has %d", c.from, next.at.Output, next.out)
			}
			if !slices.Equal(program.sizes, c.sizes) {
				t.Errorf("from %d: sizes %v", c.from, program.sizes)
			}
			p.session.End(errCut)
			<-ended
		})
	}
}
