package instance

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/pollfd"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// channel is a session channel of a connection with a pty on the instance (RFC 4254, section 6). The gateway speaks the
// connection protocol itself, over the control socket of the connection's ssh in proxy mode (OpenSSH's PROTOCOL.mux,
// section 9; since OpenSSH 7.4): ssh encrypts the messages and renumbers the channels.
//
// So a terminal needs neither a process nor a pty on the gateway's machine, and its flow control is the gateway's: an
// ssh that opened the session would let sshd send 1 MB ahead (channels.h), which every terminal of the connection waits
// for in a slow tunnel.
//
// Read and TryRead handle all messages of the channel; also those that give Write room.
//
// A control socket stays open until its channel is closed from both sides: else ssh ends the whole connection, at the
// next output ("peer ignored channel window"), or at once if sshd has not confirmed or has refused the channel ("no
// remote id"; channels.c of OpenSSH 9.2 and 10). settle sees to that.
type channel struct {
	conn *net.UnixConn
	fd   *pollfd.FD
	peer uint32 // sshd's number of the channel
	flow flow

	reading sync.Mutex     // guards the next fields
	open    bool           // sshd has confirmed the channel
	closed  bool           // the close was sent
	buf     [16 << 10]byte // received and not handled: buf[from:to]
	from    int
	to      int
	output  int       // bytes of the current message of output that were not returned yet
	emptyAt time.Time // the socket was last seen empty

	exit    atomic.Pointer[terminal.Exit] // nil: not told yet
	over    atomic.Bool                   // sshd has closed the channel
	closing atomic.Bool                   // close was called: settle reads

	mu       sync.Mutex
	out      []byte        // packets that are not in the socket yet
	flushing bool          // flush runs
	room     int64         // bytes of input that sshd takes
	most     int           // bytes of input in one message
	left     bool          // no more input
	roomier  chan struct{} // has a value when Write may go on
	gone     chan struct{} // closed with the channel
	wg       sync.WaitGroup
}

// Messages of the connection protocol (RFC 4254, section 9).
const (
	msgIgnore              = 2 // RFC 4253, section 12
	msgChannelOpen         = 90
	msgChannelConfirmation = 91
	msgChannelOpenFailure  = 92
	msgChannelWindowAdjust = 93
	msgChannelData         = 94
	msgChannelExtendedData = 95
	msgChannelEOF          = 96
	msgChannelClose        = 97
	msgChannelRequest      = 98
	msgChannelSuccess      = 99
	msgChannelFailure      = 100
)

// Messages of OpenSSH's control sockets (mux.c).
const (
	muxHello   = 0x00000001
	muxVersion = 4
	muxProxy   = 0x1000000f
	muxIsProxy = 0x8000000f
)

// maxOutput is the most output that sshd puts into one message, in bytes. Keystrokes of other terminals wait for a
// whole message.
const maxOutput = 2 << 10

// mostQueued bounds the packets that wait for the socket, in bytes, where sshd decides how many there are.
const mostQueued = 64 << 10

// ptyModes are the encoded terminal modes of a pty request (RFC 4254, section 8): IUTF8 (RFC 8160), and both speeds.
// The rest is the instance's default.
var ptyModes = string([]byte{42, 0, 0, 0, 1, 128, 0, 0, 0x96, 0, 129, 0, 0, 0x96, 0, 0})

// ignored is a whole packet for a control socket with a message that sshd ignores.
var ignored = []byte{0, 0, 0, 6, 0, msgIgnore, 0, 0, 0, 0}

var errNoPty = errors.New("PTY allocation request failed on channel 0") // ssh's words

// dialControl opens a control socket in proxy mode. The error is errGone if no ssh answers.
func dialControl(ctx context.Context, control string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", control)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errGone, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	hello := binary.BigEndian.AppendUint32(nil, 8)
	for _, word := range []uint32{muxHello, muxVersion, 8, muxProxy, 0} {
		hello = binary.BigEndian.AppendUint32(hello, word)
	}
	_, err = conn.Write(hello)
	for _, want := range []uint32{muxHello, muxIsProxy} {
		var answer []byte
		if err == nil {
			answer, err = readMux(conn)
		}
		if err == nil && binary.BigEndian.Uint32(answer) != want {
			err = fmt.Errorf("it answers %x", answer)
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%w: the control socket: %w", errGone, err)
	}
	return conn.(*net.UnixConn), nil
}

// readMux reads a message of a control socket, and nothing after the message.
func readMux(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, fmt.Errorf("reading a length: %w", err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < 4 || n > 1<<10 {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, fmt.Errorf("reading a message: %w", err)
	}
	return message, nil
}

// openChannel opens a session and starts a command in the session, on a pty of this size; nil: on none. The error is
// errRefused, errGone, errNoPty, or the cause of ctx.
func (c *connection) openChannel(ctx context.Context, size *terminal.Size, command string) (*channel, error) {
	return c.newChannel(ctx, newFlow(&c.way), func(ch *channel) error { return ch.start(size, command) })
}

// openSocket opens a channel to a socket on the instance (OpenSSH's PROTOCOL, section 2.4). What it carries bounds its
// flow itself. The error is errRefused, errGone, or the cause of ctx.
func (c *connection) openSocket(ctx context.Context, path string) (*channel, error) {
	return c.newChannel(ctx, wideFlow(&c.way), func(ch *channel) error {
		ch.reading.Lock()
		defer ch.reading.Unlock()
		return ch.openAs("direct-streamlocal@openssh.com", ssh.Marshal(struct {
			Path, Reserved string
			Port           uint32
		}{path, "", 0}))
	})
}

// openWide is openChannel without a pty, for a command whose stdin and stdout carry what bounds its flow itself.
func (c *connection) openWide(ctx context.Context, command string) (*channel, error) {
	return c.newChannel(ctx, wideFlow(&c.way), func(ch *channel) error { return ch.start(nil, command) })
}

// newChannel opens a channel by a function.
func (c *connection) newChannel(ctx context.Context, flow flow, open func(*channel) error) (*channel, error) {
	conn, err := dialControl(ctx, c.control)
	if err != nil {
		return nil, err
	}
	fd, err := pollfd.New(conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("reaching ssh: %w", err)
	}
	ch := &channel{conn: conn, fd: fd, flow: flow, roomier: make(chan struct{}, 1), gone: make(chan struct{})}
	stop := context.AfterFunc(ctx, ch.stopReading)
	err = open(ch)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.close(ch)
		return nil, err
	}
	return ch, nil
}

// mostSaid bounds what run returns, in bytes.
const mostSaid = 64 << 10

// run runs a command without a pty and without input, and returns what it printed, on stderr too, and how it ended; nil: sshd
// has not told. The error is as openChannel's, or errGone.
//
// An ssh that opened the session would do as well, but for a fault of OpenSSH's (seen with 9.2, no longer in 10.5): while it
// has one, it may take the close of another channel for one of its own, closes that one again later, and sshd then ends the
// connection. Its control channel notes its session's local number where others have sshd's number (remote_id in mux.c).
func (c *connection) run(ctx context.Context, command string) (said string, exit *terminal.Exit, err error) {
	return c.runUntil(ctx, command, nil, func([]byte) bool { return false })
}

// runUntil is run with input, and returns as soon as what was printed is enough.
func (c *connection) runUntil(ctx context.Context, command string, input []byte, enough func(said []byte) bool) (said string, exit *terminal.Exit, err error) {
	ch, err := c.openChannel(ctx, nil, command)
	if err != nil {
		return "", nil, err
	}
	var writer sync.WaitGroup
	defer writer.Wait()
	defer c.close(ch) // ends a Write
	stop := context.AfterFunc(ctx, ch.stopReading)
	defer stop()
	if len(input) == 0 {
		ch.sendEOF()
	} else {
		writer.Go(func() {
			if _, err := ch.Write(input); err == nil {
				ch.sendEOF()
			}
		})
	}
	var all []byte
	for buf := make([]byte, 4<<10); len(all) < mostSaid; {
		n, err := ch.Read(buf)
		all = append(all, buf[:n]...)
		switch {
		case errors.Is(err, io.EOF):
			return string(all), ch.exit.Load(), nil
		case ctx.Err() != nil:
			return string(all), nil, context.Cause(ctx)
		case err != nil:
			return string(all), nil, err
		case enough(all):
			return string(all), nil, nil
		}
	}
	return string(all), nil, fmt.Errorf("it printed more than %d bytes", mostSaid)
}

// start opens the channel and starts the command.
func (c *channel) start(size *terminal.Size, command string) error {
	c.reading.Lock()
	defer c.reading.Unlock()
	if err := c.openAs("session", nil); err != nil {
		return err
	}
	answers := []error{errRefused}
	if size != nil {
		answers = []error{errNoPty, errRefused}
		c.request("pty-req", true, ssh.Marshal(struct {
			Term                      string
			Cols, Rows, Width, Height uint32
			Modes                     string
		}{"xterm-256color", uint32(size.Cols), uint32(size.Rows), 0, 0, ptyModes}))
	}
	c.request("exec", true, ssh.Marshal(struct{ Command string }{command}))
	for _, refused := range answers {
		if err := c.awaitAnswer(refused); err != nil {
			return err
		}
	}
	return nil
}

// openAs opens the channel as one of a kind. The lock reading is held.
func (c *channel) openAs(kind string, rest []byte) error {
	asked := time.Now()
	c.send(ssh.Marshal(struct {
		Type           byte
		Kind           string
		Number, Window uint32
		MaxPacket      uint32
		Rest           []byte `ssh:"rest"`
	}{msgChannelOpen, kind, 0, uint32(c.flow.window), maxOutput, rest})) //nolint:gosec // a window is small
	if err := c.awaitOpen(); err != nil {
		return err
	}
	c.flow.way.took(time.Since(asked))
	return nil
}

// awaitOpen waits for sshd's answer to the opening.
func (c *channel) awaitOpen() error {
	message, err := c.next(true)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errGone, err)
	case message == nil:
		return fmt.Errorf("%w: sshd sends output unasked", errGone)
	case message[0] == msgChannelOpenFailure:
		var failure struct {
			Number, Reason    uint32
			Message, Language string
		}
		_ = ssh.Unmarshal(message[1:], &failure)
		return fmt.Errorf("%w: %s", errRefused, shorten(failure.Message))
	case !c.confirmed(message):
		return fmt.Errorf("%w: sshd answers message %d", errGone, message[0])
	}
	return nil
}

// confirmed notes sshd's confirmation of the channel, and reports whether the message is one.
func (c *channel) confirmed(message []byte) bool {
	if message[0] != msgChannelConfirmation || len(message) < 17 || binary.BigEndian.Uint32(message[13:]) == 0 { // no input at all
		return false
	}
	c.open, c.peer = true, binary.BigEndian.Uint32(message[5:])
	c.room = int64(binary.BigEndian.Uint32(message[9:]))
	c.most = int(min(binary.BigEndian.Uint32(message[13:]), 32<<10))
	return true
}

// awaitAnswer waits for sshd's answer to a request, and returns refused if sshd refused the request.
func (c *channel) awaitAnswer(refused error) error {
	for {
		message, err := c.next(true)
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", errGone, err)
		case message == nil:
			return fmt.Errorf("%w: sshd sends output unasked", errGone)
		case message[0] == msgChannelSuccess:
			return nil
		case message[0] == msgChannelFailure:
			return refused
		}
		c.handle(message)
		if c.over.Load() {
			return errRefused
		}
	}
}

// Read waits for output. Its error is io.EOF after the last output, errGone if ssh has left, or os.ErrClosed after
// close.
func (c *channel) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closing.Load() {
		return 0, os.ErrClosed
	}
	n, err := c.read(p, true)
	if err == nil && n >= pollfd.Large {
		more, _ := c.readOn(p[n:])
		n += more
	}
	return n, err
}

// readOn reads the output that is there now. The end of the output is for Read to find.
func (c *channel) readOn(p []byte) (n int, _ error) {
	for n < len(p) {
		m, err := c.read(p[n:], false)
		if n += m; m == 0 || err != nil {
			break
		}
	}
	return n, nil
}

// TryRead returns the output that is there now.
func (c *channel) TryRead(p []byte, gather bool) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closing.Load() {
		return 0, nil
	}
	if gather {
		return pollfd.Gather(p, c.readOn)
	}
	return c.readOn(p)
}

// read returns output of one message. Without wait it returns 0, nil if there is none.
func (c *channel) read(p []byte, wait bool) (n int, err error) {
	for len(p) > 0 {
		if c.output > 0 {
			if c.from == c.to {
				c.from = 0
				if c.to, err = c.receive(c.buf[:], wait); c.to == 0 {
					return 0, err
				}
			}
			n = copy(p[:min(len(p), c.output)], c.buf[c.from:c.to])
			c.from += n
			c.output -= n
			if !c.closing.Load() {
				c.grant(n)
			}
			return n, nil
		}
		if c.over.Load() {
			if wait {
				return 0, io.EOF
			}
			return 0, nil
		}
		message, err := c.next(wait)
		if message == nil && c.output == 0 {
			return 0, err
		}
		if message != nil {
			c.handle(message)
		}
	}
	return 0, nil
}

// next returns the next message, whose bytes are valid until the next call; nil if the message is output, which is left
// to read, or without wait if there is none.
func (c *channel) next(wait bool) ([]byte, error) {
	for {
		message, err := c.parse()
		if message != nil || err != nil || c.output > 0 {
			return message, err
		}
		c.to = copy(c.buf[:], c.buf[c.from:c.to])
		c.from = 0
		n, err := c.receive(c.buf[c.to:], wait)
		if c.to += n; n == 0 {
			return nil, err
		}
	}
}

// parse takes a whole message from buf, or the head of one of output.
func (c *channel) parse() ([]byte, error) {
	for {
		b := c.buf[c.from:c.to]
		if len(b) < 6 {
			return nil, nil
		}
		length := int64(binary.BigEndian.Uint32(b)) // of what follows: the length of the padding, and the message
		head := 0
		switch b[5] {
		case msgChannelData:
			head = 14
		case msgChannelExtendedData: // stderr; with a pty there is none
			head = 18
		}
		switch {
		case b[4] != 0 || length < 2 || head == 0 && length > int64(len(c.buf)-4):
			return nil, fmt.Errorf("%w: ssh sends a message of type %d, %d bytes", errGone, b[5], length)
		case head == 0 && int64(len(b)) < 4+length, len(b) < head:
			return nil, nil
		case head == 0:
			c.from += int(4 + length)
			return b[5 : 4+length], nil
		}
		output := int64(binary.BigEndian.Uint32(b[head-4:]))
		switch {
		case output != 4+length-int64(head):
			return nil, fmt.Errorf("%w: ssh sends output of two lengths", errGone)
		case output > int64(c.flow.allowed) && !c.closing.Load(): // a closed channel counts no output
			return nil, fmt.Errorf("%w: sshd sends more output than it may", errGone)
		}
		c.output = int(output)
		if c.from += head; c.output > 0 {
			return nil, nil
		}
	}
}

// receive reads from the socket.
func (c *channel) receive(p []byte, wait bool) (int, error) {
	n, err := c.fd.TryRead(p)
	if n == 0 && err == nil {
		c.emptyAt = time.Now()
		if !wait {
			return 0, nil
		}
		n, err = c.fd.Read(p)
		c.emptyAt = time.Now()
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		err = errGone
		c.leave()
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = os.ErrClosed
	case err != nil:
		c.leave()
	}
	return n, err
}

// handle handles a message that is not output.
func (c *channel) handle(message []byte) {
	if len(message) < 5 {
		return
	}
	body := message[5:] // after the channel's number
	switch message[0] {
	case msgChannelWindowAdjust:
		if len(body) >= 4 {
			c.mu.Lock()
			c.room += int64(binary.BigEndian.Uint32(body))
			c.mu.Unlock()
			c.wake()
		}
	case msgChannelSuccess, msgChannelFailure: // of a probe
		now := time.Now()
		c.flow.answered(now, now.Sub(c.emptyAt) < promptly)
	case msgChannelRequest:
		c.handleRequest(body)
	case msgChannelClose:
		c.sendClose()
		c.over.Store(true)
		c.leave()
	}
}

func (c *channel) handleRequest(body []byte) {
	var request struct {
		Kind  string
		Reply bool
		Rest  []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(body, &request) != nil {
		return
	}
	switch request.Kind {
	case "exit-status":
		if len(request.Rest) >= 4 {
			c.exit.Store(exitOf(int(min(binary.BigEndian.Uint32(request.Rest), 255)))) // no process has more
		}
	case "exit-signal":
		var by struct {
			Signal string
			Rest   []byte `ssh:"rest"`
		}
		if ssh.Unmarshal(request.Rest, &by) == nil {
			c.exit.Store(exitBySignal("SIG" + strings.TrimPrefix(by.Signal, "SIG")))
		}
	default:
		if request.Reply {
			c.refuse()
		}
	}
}

// refuse answers a request of sshd. An sshd that asks without reading the answers gets no more of them.
func (c *channel) refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) < mostQueued {
		c.queue(binary.BigEndian.AppendUint32([]byte{msgChannelFailure}, c.peer), nil)
	}
}

// grant lets sshd send on after n bytes of output, and probes the way meanwhile.
func (c *channel) grant(n int) {
	more, probe := c.flow.received(n, time.Now())
	if more > 0 {
		var message [9]byte
		message[0] = msgChannelWindowAdjust
		binary.BigEndian.PutUint32(message[1:], c.peer)
		binary.BigEndian.PutUint32(message[5:], uint32(more)) //nolint:gosec // a window is small
		c.send(message[:])
	}
	if probe {
		c.request("keepalive@openssh.com", true, nil) // as sshd's own; unknown to every sshd, which answers so
	}
}

// send sends a message, at once or when the socket has room. It does not wait.
func (c *channel) send(message []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue(message, nil)
}

// queue sends a message of two parts. The lock is held.
func (c *channel) queue(head, rest []byte) {
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(1+len(head)+len(rest))) //nolint:gosec // a message is small
	c.out = append(c.out, 0)                                                    // no padding
	c.out = append(append(c.out, head...), rest...)
	if c.flushing {
		return
	}
	if c.flushSome(); len(c.out) > 0 {
		c.flushing = true
		c.wg.Go(c.flush)
	}
}

// flushSome writes what there is room for. An error is the reader's too. The lock is held.
func (c *channel) flushSome() {
	n, err := c.fd.TryWrite(c.out)
	if err != nil {
		n = len(c.out)
	}
	c.out = append(c.out[:0], c.out[n:]...)
}

// flush writes the packets that the socket had no room for. ssh reads its socket at once, so it seldom runs.
func (c *channel) flush() {
	for {
		err := c.fd.WaitWrite()
		c.mu.Lock()
		if c.flushSome(); err != nil || len(c.out) == 0 {
			c.out, c.flushing = c.out[:0], false
			c.mu.Unlock()
			c.wake()
			return
		}
		c.mu.Unlock()
	}
}

// request sends a request.
func (c *channel) request(kind string, reply bool, rest []byte) {
	c.send(ssh.Marshal(struct {
		Type  byte
		Peer  uint32
		Kind  string
		Reply bool
		Rest  []byte `ssh:"rest"`
	}{msgChannelRequest, c.peer, kind, reply, rest}))
}

// Resize tells sshd the terminal's size.
func (c *channel) Resize(size terminal.Size) error {
	c.request("window-change", false, ssh.Marshal(struct{ Cols, Rows, Width, Height uint32 }{uint32(size.Cols), uint32(size.Rows), 0, 0}))
	return nil
}

// TryWrite sends as much of the input as sshd takes now.
func (c *channel) TryWrite(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := 0
	for done < len(p) && !c.flushing && c.room > 0 {
		if c.left {
			return done, os.ErrClosed
		}
		n := int(min(int64(len(p)-done), c.room, int64(c.most)))
		var head [9]byte
		head[0] = msgChannelData
		binary.BigEndian.PutUint32(head[1:], c.peer)
		binary.BigEndian.PutUint32(head[5:], uint32(n)) //nolint:gosec // at most c.most
		c.queue(head[:], p[done:done+n])
		c.room -= int64(n)
		done += n
	}
	return done, nil
}

// Write sends input, and waits while sshd takes none.
func (c *channel) Write(p []byte) (int, error) {
	for done := 0; ; {
		n, err := c.TryWrite(p[done:])
		if done += n; err != nil || done == len(p) {
			return done, err
		}
		select {
		case <-c.roomier:
		case <-c.gone:
			return done, os.ErrClosed
		}
	}
}

// wake has a Write that waits look again.
func (c *channel) wake() {
	select {
	case c.roomier <- struct{}{}:
	default:
	}
}

// sendEOF ends the input.
func (c *channel) sendEOF() { c.send(binary.BigEndian.AppendUint32([]byte{msgChannelEOF}, c.peer)) }

// sendClose closes the channel from this side, once.
func (c *channel) sendClose() {
	if c.closed {
		return
	}
	c.closed = true
	c.send(binary.BigEndian.AppendUint32([]byte{msgChannelClose}, c.peer))
}

// leave ends all writes.
func (c *channel) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.left {
		c.left = true
		close(c.gone)
	}
}

// stopReading has a Read that waits return os.ErrClosed.
func (c *channel) stopReading() {
	c.closing.Store(true)
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
}

// close closes a channel, by which sshd hangs up. A Read and a Write that wait return os.ErrClosed.
func (c *connection) close(ch *channel) {
	ch.stopReading()
	ch.leave()
	c.kind.background(ch.settle)
}

// settle closes the channel from this side, waits until sshd has closed it too, or ssh has ended, and closes the socket.
func (c *channel) settle() {
	c.reading.Lock()
	defer c.reading.Unlock()
	_ = c.conn.SetReadDeadline(time.Time{})
	if c.open {
		c.sendClose()
	}
	for rest := make([]byte, 512); !c.over.Load(); {
		if c.output > 0 {
			if _, err := c.read(rest, true); err != nil {
				break
			}
			continue
		}
		message, err := c.next(true)
		if err != nil {
			break
		}
		if message != nil && c.confirmed(message) {
			c.sendClose()
		} else if message != nil {
			c.handle(message)
		}
	}
	_ = c.conn.Close()
	c.wg.Wait()
}
