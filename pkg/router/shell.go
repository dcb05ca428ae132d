package router

import (
	"sync"

	"github.com/molecule-ai/termgw/pkg/bridge"
)

// shell is a session's terminal. Its bytes are counted as they pass, and it may
// be closed by the bridge and by the router both, when the bridge has a fault:
// who comes second waits for the first.
type shell struct {
	bridge.Terminal
	metrics *Metrics
	closing sync.Once
	err     error // of closing
}

// terminal is the shell for the bridge.
func (s *shell) terminal() bridge.Terminal {
	switch t := s.Terminal.(type) {
	case bridge.NonBlocking:
		return &quickShell{s, t}
	case bridge.ReadDeadliner:
		return &patientShell{s, t}
	default:
		return s
	}
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

// quickShell is one that can be read and written without waiting.
type quickShell struct {
	*shell
	now bridge.NonBlocking
}

func (s *quickShell) TryRead(p []byte) (int, error) {
	n, err := s.now.TryRead(p)
	s.metrics.out.Add(float64(n))
	return n, err
}

func (s *quickShell) TryWrite(p []byte) (int, error) {
	n, err := s.now.TryWrite(p)
	s.metrics.in.Add(float64(n))
	return n, err
}

// patientShell is one that can be read until a deadline.
type patientShell struct {
	*shell
	bridge.ReadDeadliner
}
