package router

import (
	"sync"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// shell is a session's terminal. Its bytes are counted as they pass, and it may
// be closed by the bridge and by the router both, when the bridge has a fault:
// who comes second waits for the first.
type shell struct {
	terminal.Terminal
	metrics *Metrics
	closing sync.Once
	err     error // of closing
}

func (s *shell) Read(p []byte) (int, error) {
	n, err := s.Terminal.Read(p)
	s.metrics.out.Add(float64(n))
	return n, err
}

func (s *shell) Write(p []byte) (int, error) {
	n, err := s.Terminal.Write(p)
	s.metrics.in.Add(float64(n))
	return n, err
}

func (s *shell) Close() error {
	s.closing.Do(func() { s.err = s.Terminal.Close() })
	return s.err
}

func (s *shell) TryRead(p []byte, gather bool) (int, error) {
	n, err := s.Terminal.TryRead(p, gather)
	s.metrics.out.Add(float64(n))
	return n, err
}

func (s *shell) TryWrite(p []byte) (int, error) {
	n, err := s.Terminal.TryWrite(p)
	s.metrics.in.Add(float64(n))
	return n, err
}
