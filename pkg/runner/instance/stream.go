package instance

import (
	"errors"
	"io"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// stream carries a terminal's bytes between an instance and the gateway. Its reads and writes are as a terminal's; an
// error of Read other than io.EOF tells why no more output comes.
type stream interface {
	Read(p []byte) (int, error)
	TryRead(p []byte, gather bool) (int, error)
	Write(p []byte) (int, error)
	TryWrite(p []byte) (int, error)
	Resize(size terminal.Size) error

	// opened is called at the end of the handshake.
	opened()
	// stopReading has reads return at once, for good.
	stopReading()
	// told returns how the shell ended; nil: the instance has not told.
	told() *terminal.Exit
	// hangUp hangs up, and returns the connection, whose session stays reserved; nil: there is none now.
	hangUp() *connection
	// expires returns when the stream is cut; zero: never.
	expires() time.Time
	silence() terminal.Silence
	// onLost has a function called when the stream has lost its connection and waits for another.
	onLost(do func())
}

// plainStream is a session channel, and ends with its connection.
type plainStream struct {
	*channel
	conn *connection
}

func (s *plainStream) Read(p []byte) (int, error) {
	n, err := s.channel.Read(p)
	if err == nil || n > 0 {
		return n, err
	}
	switch {
	case errors.Is(err, io.EOF) && s.exit.Load() == nil:
		return 0, failed("ssh_closed", errors.New("the instance's sshd closed the session, and told no exit status"))
	case errors.Is(err, io.EOF), s.closing.Load():
		return 0, io.EOF
	case s.conn.isGone():
		return 0, s.conn.lost
	}
	return 0, failed("ssh", err)
}

func (s *plainStream) opened() {}

func (s *plainStream) told() *terminal.Exit { return s.exit.Load() }

func (s *plainStream) hangUp() *connection {
	s.conn.closeOpened(s.channel)
	return s.conn
}

func (s *plainStream) expires() time.Time { return s.conn.tunnel.Expires }

func (s *plainStream) silence() terminal.Silence {
	return terminal.Silence{Lasts: s.conn.pump.silence(), Limit: s.conn.kind.cfg.Timing.Patience()}
}

func (s *plainStream) onLost(func()) {}
