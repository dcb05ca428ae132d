package shelltest

import (
	"bytes"
	"context"
	"runtime/metrics"
	"sync"
	"testing"

	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// typist is the owner of a session (session.Client) that waits for echoes.
type typist struct {
	mu      sync.Mutex
	changed sync.Cond
	out     []byte
}

func (p *typist) Begin(*session.Attachment, session.Resumed) {}
func (p *typist) Notice(session.Notice)                      {}
func (p *typist) Ending()                                    {}
func (p *typist) Exited(terminal.Exit)                       {}
func (p *typist) TakenOver()                                 {}

func (p *typist) Output(_ int64, b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out = append(p.out, b...)
	p.changed.Broadcast()
	return nil
}

// await waits for text in the output, and then drops the output.
func (p *typist) await(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !bytes.Contains(p.out, []byte(text)) {
		p.changed.Wait()
	}
	p.out = nil
}

// WantNoGoroutineAKey types keys in a session of the terminal, whose program is a shell,
// and fails the test if keys start goroutines. It ends the session. No other test may run
// at the same time.
func WantNoGoroutineAKey(tb testing.TB, term terminal.Terminal) {
	tb.Helper()
	s := session.New(term, session.Options{})
	var person typist
	person.changed.L = &person.mu
	attached := s.Attach(&person, 64<<10, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(context.Background())
		s.Join()
	}()
	attached.Type([]byte("stty -icanon; echo here$((1+1)); exec cat >/dev/null\n"))
	person.await("here2")
	created := func() uint64 {
		sample := []metrics.Sample{{Name: "/sched/goroutines-created:goroutines"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	const keys = 20
	before := created()
	for range keys {
		attached.Type([]byte("k"))
		person.await("k")
	}
	if n := created() - before; n >= keys/4 { // the runtime starts some goroutines, too
		tb.Errorf("%d keys have started %d goroutines", keys, n)
	}
	s.End(context.Canceled)
	<-done
}
