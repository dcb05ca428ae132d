package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// patience bounds every wait for one answer.
const patience = 30 * time.Second

// target is where one session can be opened, once. It is passed as JSON to the
// process that floods.
type target struct {
	Kind    string `json:"kind"` // "termgw", "ttyd" or "pty"
	URL     string `json:"url,omitempty"`
	Ticket  string `json:"ticket,omitempty"`
	Command string `json:"command,omitempty"` // of a bare pty
	Typed   string `json:"typed,omitempty"`   // what has the shell give its sign of life; empty: it does so by itself
}

// session is an open terminal, whatever carries it. Read gives the terminal's
// output alone; its end is io.EOF.
type session interface {
	io.ReadWriteCloser
	// rendered tells the gateway, if it wants to know, that n more bytes of the
	// output are on the screen; idle: and that no more are at hand.
	rendered(n int, idle bool) error
	// pending tells whether more output is at hand.
	pending() bool
	SetReadDeadline(time.Time) error
}

// open opens a session of 80 columns and 24 rows.
func (t target) open(ctx context.Context) (session, error) {
	switch t.Kind {
	case "termgw":
		c, err := dialWS(ctx, t.URL, "termgw.v1", "termgw.ticket."+t.Ticket)
		if err != nil {
			return nil, err
		}
		return &termgwSession{wsConn: c}, nil
	case "ttyd":
		c, err := dialWS(ctx, t.URL, "tty")
		if err != nil {
			return nil, err
		}
		if err := c.send(opBinary, []byte(`{"AuthToken":"","columns":80,"rows":24}`)); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return &ttydSession{wsConn: c}, nil
	default:
		return openPty(t.Command)
	}
}

// ackEvery is the largest output, in bytes, rendered without an ack.
const ackEvery = 8 << 10

// termgwSession speaks termgw.v1.
type termgwSession struct {
	*wsConn
	shown, acked int64 // bytes rendered, and told
}

func (s *termgwSession) Read(p []byte) (int, error) {
	for s.left == 0 || s.op != opBinary {
		if s.left == 0 {
			if err := s.next(); err != nil {
				return 0, err
			}
		}
		if s.op == opText {
			if err := s.control(); err != nil {
				return 0, err
			}
		}
	}
	return s.read(p)
}

func (s *termgwSession) control() error {
	p, err := s.rest()
	if err != nil {
		return err
	}
	var m struct {
		Type, Message string
		Code          any // a number in "exit"
	}
	if err := json.Unmarshal(p, &m); err != nil {
		return fmt.Errorf("a control message: %w", err)
	}
	if m.Type == "error" {
		return fmt.Errorf("refused: %v: %s", m.Code, m.Message)
	}
	return nil
}

func (s *termgwSession) Write(p []byte) (int, error) { return len(p), s.send(opBinary, p) }

func (s *termgwSession) rendered(n int, idle bool) error {
	s.shown += int64(n)
	if s.shown == s.acked || !idle && s.shown-s.acked < ackEvery {
		return nil
	}
	s.acked = s.shown
	b := append(make([]byte, 0, 48), `{"type":"ack","bytes":`...)
	return s.send(opText, append(strconv.AppendInt(b, s.shown, 10), '}'))
}

func (s *termgwSession) Close() error { return s.leave() }

// ttydSession speaks ttyd's protocol: the first byte of a message is its type,
// and '0' is the terminal's bytes in both directions.
type ttydSession struct {
	*wsConn
	output bool // the message being read is output
}

func (s *ttydSession) Read(p []byte) (int, error) {
	for {
		for s.left == 0 {
			first := s.fin || s.op == 0
			if err := s.next(); err != nil {
				return 0, err
			}
			if first && s.left > 0 {
				var kind [1]byte
				if _, err := s.read(kind[:]); err != nil {
					return 0, err
				}
				s.output = kind[0] == '0'
			}
		}
		n, err := s.read(p)
		if s.output || err != nil {
			return n, err
		}
	}
}

func (s *ttydSession) Write(p []byte) (int, error) {
	return len(p), s.send(opBinary, []byte{'0'}, p)
}

func (s *ttydSession) rendered(int, bool) error { return nil }

func (s *ttydSession) Close() error { return s.leave() }

// leave closes as a browser does: close frame, then the other's answer.
func (c *wsConn) leave() error {
	err := c.send(opClose, []byte{1000 >> 8, 1000 & 255})
	if err == nil {
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, _ = io.Copy(io.Discard, c.Conn)
	}
	return errors.Join(err, c.Close())
}

// cut ends the connection without a word.
func (c *wsConn) cut() error { return c.Close() }

// ptySession is a terminal without a gateway, the yardstick.
type ptySession struct {
	*os.File
	cmd *exec.Cmd
}

func openPty(command string) (session, error) {
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.Env = []string{"TERM=xterm-256color", "PATH=" + os.Getenv("PATH")}
	master, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 80, Rows: 24})
	if err != nil {
		return nil, err
	}
	// creack/pty leaves it in blocking mode, where no deadline works.
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.SetNonblock(fd, true), master.Close())
	}
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return &ptySession{os.NewFile(uintptr(fd), "pty"), cmd}, nil
}

func (s *ptySession) Read(p []byte) (int, error) {
	n, err := s.File.Read(p)
	if errors.Is(err, unix.EIO) {
		err = io.EOF // Linux's way to say that nobody holds the other side
	}
	return n, err
}

func (s *ptySession) rendered(int, bool) error { return nil }

func (s *ptySession) pending() bool { return false }

func (s *ptySession) Close() error {
	err := s.File.Close() // hangs up
	_ = s.cmd.Process.Signal(unix.SIGKILL)
	_ = s.cmd.Wait() // killed
	return err
}

// await reads until the output ends with want.
func await(s session, want string) error {
	if err := s.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var tail []byte
	p := make([]byte, 4<<10)
	for string(tail) != want {
		n, err := s.Read(p)
		if err == nil {
			err = s.rendered(n, !s.pending())
		}
		if err != nil {
			return fmt.Errorf("waiting for %q: %w", want, err)
		}
		tail = append(tail, p[:n]...)
		tail = tail[max(0, len(tail)-len(want)):]
	}
	return s.SetReadDeadline(time.Time{})
}

// finish types what ends the program, and waits for the end of the session.
func finish(s session, typed string) error {
	if err := s.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(s, typed); err != nil {
		return err
	}
	// A reader alone: the file in a ptySession has a WriteTo, which knows no such end.
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{s}); err != nil {
		return fmt.Errorf("waiting for the session's end: %w", err)
	}
	return nil
}

// child is what most sessions run: a raw terminal, so that a byte is one byte
// both ways, a sign of life, and then the command that the client types. The sign
// is written as an octal number, so that no echo of this line is one.
const child = `stty raw -echo; printf '\122'; read -r c; eval "$c"`

// openTo opens a session of child and has it run a command.
func openTo(ctx context.Context, t target, command string) (session, error) {
	s, err := openGreeted(ctx, t)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(s, command+"\n"); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openGreeted opens a session and waits for the sign of life.
func openGreeted(ctx context.Context, t target) (session, error) {
	s, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	if t.Typed != "" {
		_, err = io.WriteString(s, t.Typed+"\n")
	}
	if err == nil {
		err = await(s, "R")
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}
