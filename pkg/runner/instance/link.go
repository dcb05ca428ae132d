package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/internal/keeper/wire"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// link is a gateway's end of a connection to the keeper, which carries one terminal (internal/keeper/wire).
//
// The flow of output is bounded here and not by the ssh channel: what the keeper may send is what the person's client has
// room for, so nothing waits on the way, and a ^C is answered at once.
type link struct {
	conn *connection
	ch   *channel

	// Of the one reader.
	flow    flow
	output  int       // bytes of the current frame of output that were not returned yet
	skip    int64     // bytes of output that came by the last link
	emptyAt time.Time // nothing more was there

	begun    [wire.Head + mostAnswer]byte // a frame that is not output, as far as it has come
	have     int
	expected int64          // offset of the next byte of output
	accepted int64          // offset at which the keeper expects input, at first
	taken    int64          // offset up to which the program's terminal has input
	exit     *terminal.Exit // nil: not told yet
	bad      error          // of a frame that cannot be

	mu       sync.Mutex
	came     int64  // offset up to which output came, at the last grant
	acked    int64  // offset up to which output was acknowledged
	ackMost  int64  // offset up to which it may be
	closed   bool   // no more frames
	out      []byte // frames that the channel had no room for
	flushing bool
	wg       sync.WaitGroup
}

const (
	// mostAnswer bounds a frame of the keeper that is not output, in bytes.
	mostAnswer = 512
	// mostUnsent bounds the frames that wait for the channel, in bytes: all input that may be under way, and as much more.
	mostUnsent = 2 * wire.InputWindow
	// closeTime bounds the wait for the frames before a hang-up.
	closeTime = time.Second
)

// newLink sends the first frame over a channel. It owns the channel.
// With opens, a terminal that the keeper may have opened is hung up where the answer does not come.
func newLink(ctx context.Context, c *connection, ch *channel, window int64, first []byte, opens bool) (*link, error) {
	l := &link{conn: c, ch: ch, flow: newFlow(&c.way), ackMost: math.MaxInt64}
	l.flow.window, l.flow.allowed = int(window), int(window)
	stop := context.AfterFunc(ctx, ch.stopReading)
	err := l.greet(first)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		l.close(opens)
		return nil, err
	}
	return l, nil
}

// greet says what the link is for, and reads the keeper's answer.
func (l *link) greet(first []byte) error {
	if _, err := l.ch.Write(first); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	kind, body, err := l.next(true)
	switch {
	case errors.Is(err, io.EOF):
		return errCut
	case err != nil:
		return err
	case kind == wire.Refused && string(body) == wire.Unknown:
		return errUnknown
	case kind == wire.Refused:
		return &denied{shorten(string(body))}
	case kind != wire.Attached:
		return errNonsense
	}
	offsets, err := wire.Offsets(body, 2)
	if err != nil {
		return errNonsense
	}
	l.expected, l.accepted = offsets[0], offsets[1]
	return nil
}

// errNonsense is the error of a keeper that does not speak as one does.
var errNonsense = errors.New("what holds the terminal on the instance does not answer as it should")

// next returns the next frame that is not output. Without wait its type is 0 if there is none, and with either if output
// comes first.
func (l *link) next(wait bool) (wire.Type, []byte, error) {
	for l.output == 0 {
		need := wire.Head
		var kind wire.Type
		if l.have >= wire.Head {
			var body int
			kind, body = wire.ParseHead(l.begun[:])
			switch {
			case kind == wire.Output && body > wire.MaxOutput, kind == wire.Output && body > l.flow.allowed, kind != wire.Output && body > mostAnswer:
				return 0, nil, errNonsense
			case kind == wire.Output:
				l.output, l.have = body, 0
				continue
			}
			if need += body; l.have == need {
				l.have = 0
				return kind, l.begun[wire.Head:need], nil
			}
		}
		n, err := l.receive(l.begun[l.have:need], wait)
		if l.have += n; n == 0 {
			return 0, nil, err
		}
	}
	return 0, nil, nil
}

// receive reads from the channel.
func (l *link) receive(p []byte, wait bool) (int, error) {
	n, err := l.ch.TryRead(p, false)
	if n > 0 || err != nil {
		return n, err
	}
	l.emptyAt = time.Now()
	if !wait {
		return 0, nil
	}
	n, err = l.ch.Read(p)
	l.emptyAt = time.Now()
	return n, err
}

// read returns output. It returns 0, nil when the keeper has told something else, and without wait if there is no output.
// The error is io.EOF after the exit.
func (l *link) read(p []byte, wait bool) (done int, _ error) {
	for done < len(p) {
		switch {
		case l.bad != nil:
			return done, l.bad
		case l.exit != nil && wait && done == 0:
			return 0, io.EOF
		case l.exit != nil:
			return done, nil
		}
		if l.output > 0 {
			n, err := l.receive(p[done:done+min(len(p)-done, l.output)], wait && done == 0)
			if n == 0 {
				return done, notAfter(done, err)
			}
			l.output -= n
			l.expected += int64(n)
			l.grant(n)
			if skip := int(min(l.skip, int64(n))); skip > 0 {
				l.skip -= int64(skip)
				copy(p[done:], p[done+skip:done+n])
				n -= skip
			}
			done += n
			continue
		}
		kind, body, err := l.next(wait && done == 0)
		switch {
		case errors.Is(err, errNonsense):
			l.bad = err
		case err != nil:
			return done, notAfter(done, err)
		case kind != 0:
			if l.handle(kind, body); done == 0 && l.exit == nil {
				return 0, nil // a Write may wait for it
			}
		case l.output == 0:
			return done, nil
		}
	}
	return done, nil
}

// notAfter returns the error of a read that has returned nothing before: the channel has it again for the next one.
func notAfter(done int, err error) error {
	if done > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return errCut
	}
	return err
}

// handle notes what the keeper tells.
func (l *link) handle(kind wire.Type, body []byte) {
	switch kind {
	case wire.Taken:
		n, err := wire.Offsets(body, 1)
		if err != nil || n[0] < l.taken {
			l.bad = errNonsense
			return
		}
		l.taken = n[0]
	case wire.Echo:
		now := time.Now()
		l.flow.answered(now, now.Sub(l.emptyAt) < promptly)
	case wire.Exit:
		if len(body) == 0 {
			l.bad = errNonsense
			return
		}
		l.exit = exitOf(int(body[0]))
		if name := string(body[1:]); name != "" {
			l.exit = exitBySignal(name)
		}
	default:
		l.bad = errNonsense
	}
}

// grant lets the keeper send on after n bytes of output, and probes the way meanwhile.
func (l *link) grant(n int) {
	more, probe := l.flow.received(n, time.Now())
	if more == 0 && !probe {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var frames []byte
	if more > 0 {
		l.came = l.expected
		l.acked = max(l.acked, min(l.came, l.ackMost))
		frames = wire.AppendOffsets(frames, wire.Grant, int64(more), l.acked)
	}
	if probe {
		frames = wire.Append(frames, wire.Probe, nil)
	}
	l.queue(frames)
}

// holdAcks keeps the keeper from dropping output from an offset on, or from a later one, which it returns.
func (l *link) holdAcks(from int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ackMost = max(from, l.acked)
	return l.ackMost
}

// releaseAcks lets the keeper drop what has come.
func (l *link) releaseAcks() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ackMost = math.MaxInt64
	if l.came > l.acked {
		l.acked = l.came
		l.queue(wire.AppendOffsets(nil, wire.Grant, 0, l.acked))
	}
}

// send sends frames, at once or when the channel has room. It does not wait. A link that takes nothing is cut.
func (l *link) send(frames []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue(frames)
}

// queue is send with the lock held.
func (l *link) queue(frames []byte) {
	if l.closed {
		return
	}
	if !l.flushing && len(l.out) == 0 {
		n, err := l.ch.TryWrite(frames)
		if err != nil {
			return
		}
		frames = frames[n:]
	}
	switch {
	case len(frames) == 0:
		return
	case len(l.out) > mostUnsent:
		l.closed = true
		l.ch.stopReading()
		return
	}
	if l.out = append(l.out, frames...); !l.flushing {
		l.flushing = true
		l.wg.Go(l.flush)
	}
}

// flush writes the frames that the channel had no room for.
func (l *link) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.out) > 0 {
		frames := l.out
		l.out = nil
		l.mu.Unlock()
		_, err := l.ch.Write(frames)
		l.mu.Lock()
		if err != nil {
			break
		}
	}
	l.out, l.flushing = nil, false
}

// stopReading has a read that waits return.
func (l *link) stopReading() { l.ch.stopReading() }

// close closes the link. With hangUp the keeper hangs up and forgets the terminal; else it waits for another link.
func (l *link) close(hangUp bool) {
	l.mu.Lock()
	if hangUp {
		l.queue(wire.Append(nil, wire.Close, nil))
	}
	l.closed = true
	flushing := l.flushing
	l.mu.Unlock()
	if hangUp && flushing { // what was queued goes before
		late := time.AfterFunc(closeTime, l.ch.leave)
		l.wg.Wait()
		late.Stop()
	}
	l.conn.close(l.ch)
	l.wg.Wait()
}

// isCut reports whether an error of a link's read means that another link may go on.
func isCut(err error) bool {
	return errors.Is(err, errCut) || errors.Is(err, errGone) || errors.Is(err, os.ErrClosed)
}
