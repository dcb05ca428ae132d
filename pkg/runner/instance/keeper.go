package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/internal/keeper/program"
)

// This file finds the keeper on an instance (internal/keeper), or brings it there.

// keeperAt is what is known of the keeper of an account on an instance.
type keeperAt struct {
	asking chan struct{} // has a value while nobody asks the instance

	mu     sync.Mutex
	place  place
	found  int       // counts the times that the keeper was found
	why    string    // there is none; empty: there is, or nobody has asked
	lookAt time.Time // when there is none: to ask again
}

// place is where a keeper is on its instance.
type place struct {
	file, socket string
	relayed      bool // sshd opens no channel to a socket: a command joins it
}

func newKeeperAt() *keeperAt {
	at := &keeperAt{asking: make(chan struct{}, 1)}
	at.asking <- struct{}{}
	return at
}

const (
	// lookAgain is the time after which an instance that can have no keeper is asked again.
	lookAgain = 10 * time.Minute
	// lookSoon is the same where the instance did not say so.
	lookSoon = time.Minute
)

// errNoKeeper is the error of an instance where nothing can hold a terminal.
var errNoKeeper = errors.New("no keeper")

// keeperFor returns what is known of a destination's keeper.
func (k *Kind) keeperFor(to destination) *keeperAt {
	key := to.keeper()
	k.mu.Lock()
	defer k.mu.Unlock()
	at := k.keepers[key]
	if at == nil {
		at = newKeeperAt()
		k.keepers[key] = at
	}
	return at
}

// keeperKey names the keeper of an account.
type keeperKey struct{ instance, user string }

func (d destination) keeper() keeperKey { return keeperKey{d.instance, d.user} }

// find returns where the keeper is, and counts it. The instance is asked if that is not known, or has not been found since it
// was counted as seen. For a terminal that is there (again) a keeper is looked for where there was none. The error is
// errNoKeeper, errRefused, errGone, or the cause of ctx.
func (at *keeperAt) find(ctx context.Context, c *connection, seen int, again bool) (place, int, error) {
	if p, found, err := at.known(c, again); err != nil || found != seen {
		return p, found, err
	}
	select {
	case <-at.asking:
	case <-ctx.Done():
		return place{}, 0, context.Cause(ctx)
	}
	defer func() { at.asking <- struct{}{} }()
	if p, found, err := at.known(c, again); err != nil || found != seen {
		return p, found, err // by another, meanwhile
	}
	p, err := at.ask(ctx, c)
	at.mu.Lock()
	defer at.mu.Unlock()
	if err != nil {
		return place{}, 0, err
	}
	p.relayed = at.place.relayed
	at.place, at.why = p, ""
	at.found++
	return at.place, at.found, nil
}

// known is find without asking.
func (at *keeperAt) known(c *connection, again bool) (place, int, error) {
	at.mu.Lock()
	defer at.mu.Unlock()
	if !again && at.why != "" && c.kind.cfg.Now().Before(at.lookAt) {
		return place{}, 0, fmt.Errorf("%w: %s", errNoKeeper, at.why)
	}
	return at.place, at.found, nil
}

// absent returns why there is no keeper, as far as that is known.
func (at *keeperAt) absent() (why string) {
	at.mu.Lock()
	defer at.mu.Unlock()
	return at.why
}

// holds reports whether the keeper is known to serve.
func (at *keeperAt) holds() bool {
	at.mu.Lock()
	defer at.mu.Unlock()
	return at.found > 0 && at.why == ""
}

// relay notes that sshd opens no channel to the keeper's socket.
func (at *keeperAt) relay() {
	at.mu.Lock()
	defer at.mu.Unlock()
	at.place.relayed = true
}

// none notes that there is no keeper, for a time.
func (at *keeperAt) none(c *connection, d time.Duration, why string) error {
	at.mu.Lock()
	defer at.mu.Unlock()
	at.why, at.lookAt = why, c.kind.cfg.Now().Add(d)
	return fmt.Errorf("%w: %s", errNoKeeper, why)
}

// toldKeeper is what keeper.sh reports.
var toldKeeper = regexp.MustCompile(`\x1e(keeper|missing|none|failed) ([^\x1e]*)\x1e`)

// plainPath is a path that the gateway hands on: without blanks, and not longer than a socket's.
var plainPath = regexp.MustCompile(`^/[!-~]{1,106}$`)

// putTries bounds the directories that are tried.
const putTries = 4

// ask runs keeper.sh.
func (at *keeperAt) ask(ctx context.Context, c *connection) (place, error) {
	programs, err := c.kind.cfg.Keepers()
	if err != nil {
		return place{}, err
	}
	if len(programs) == 0 {
		return place{}, at.none(c, lookAgain, "this gateway was built without one")
	}
	words := script{keeperCode, "mode=find"}
	for machine, p := range programs {
		words = append(words, machine+"="+p.Name())
	}
	told, rest, err := at.run(ctx, c, words, nil)
	if err != nil {
		return place{}, err
	}
	if machine, packed, _ := strings.Cut(rest, " "); told == "missing" && programs[machine].Gzip != nil {
		told, rest, err = at.put(ctx, c, programs[machine], packed == "true")
		if err != nil {
			return place{}, err
		}
	}
	fields := strings.Fields(rest)
	switch {
	case told == "keeper" && len(fields) == 2 && plainPath.MatchString(fields[0]) && plainPath.MatchString(fields[1]):
		return place{file: fields[0], socket: fields[1]}, nil
	case told == "none", told == "failed":
		return place{}, at.none(c, lookAgain, shorten(rest))
	}
	return place{}, at.none(c, lookSoon, "what looks for it answers "+shorten(told+" "+rest))
}

// put sends the file, to one directory after the other until one holds it.
func (at *keeperAt) put(ctx context.Context, c *connection, p program.Program, packed bool) (told, rest string, err error) {
	file := p.Gzip
	if !packed {
		if file, err = p.Unpack(); err != nil {
			return "", "", err
		}
	}
	for skip := range putTries {
		told, rest, err = at.run(ctx, c, script{
			keeperCode, "mode=put", "hash=" + p.Name(), "sum=" + p.SHA256, "packed=" + strconv.FormatBool(packed), "skip=" + strconv.Itoa(skip),
		}, file)
		if err != nil || told != "failed" {
			break
		}
	}
	return told, rest, err
}

// run runs keeper.sh. It takes no more than a third of a start, so that a terminal opens without the keeper; a file may take
// twice as long.
func (at *keeperAt) run(ctx context.Context, c *connection, words script, input []byte) (told, rest string, err error) {
	limit := startTime(c.kind.cfg.Timing) / 3
	if input != nil {
		limit *= 2
	}
	asked, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said, _, err := c.runUntil(asked, words.line(), input, toldKeeper.Match)
	for wait := 10 * time.Millisecond; errors.Is(err, errRefused) && wait < 200*time.Millisecond; wait *= 2 {
		select { // sshd may not have noticed yet that the last question is over
		case <-time.After(wait):
		case <-asked.Done():
		}
		said, _, err = c.runUntil(asked, words.line(), input, toldKeeper.Match)
	}
	if m := toldKeeper.FindStringSubmatch(said); m != nil {
		return m[1], m[2], nil
	}
	switch {
	case ctx.Err() != nil:
		return "", "", context.Cause(ctx)
	case errors.Is(err, errRefused), errors.Is(err, errGone):
		return "", "", err
	case err != nil:
		return "", "", at.none(c, lookSoon, "what looks for it has no end")
	}
	return "", "", at.none(c, lookSoon, fmt.Sprintf("the account does not run what looks for it, and prints %q", shorten(said)))
}

// attach opens a link to the keeper, and says a first frame, which opens a terminal or attaches to one that is there. The error
// is errNoKeeper, errRefused, errGone, errUnknown, or a *denied.
func (at *keeperAt) attach(ctx context.Context, c *connection, window int64, first []byte, opens bool) (*link, error) {
	seen := 0
	for try := 0; ; try++ {
		p, found, err := at.find(ctx, c, seen, !opens)
		if err != nil {
			return nil, err
		}
		var ch *channel
		if p.relayed {
			ch, err = c.openRelay(ctx, p)
		} else {
			ch, err = c.openSocket(ctx, p.socket)
		}
		var l *link
		if err == nil {
			l, err = newLink(ctx, c, ch, window, first, opens)
		}
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, errRefused) && !errors.Is(err, errCut), try == 2:
			return nil, err
		case try == 0:
			seen = found // it may have ended meanwhile
		default:
			at.relay() // it serves, but sshd does not let the gateway to it
		}
	}
}

// relayBegins is what the relay prints before the keeper's bytes. The account may print before.
var relayBegins = []byte("\x1erelay\x1e")

// openRelay opens a channel to a command that joins the keeper's socket.
func (c *connection) openRelay(ctx context.Context, p place) (*channel, error) {
	ch, err := c.openWide(ctx, script{`exec "$2" relay "$3" 2>/dev/null`, p.file, p.socket}.line())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, ch.stopReading)
	for printed := []byte(nil); err == nil && !bytes.HasSuffix(printed, relayBegins); {
		var next [1]byte
		var n int
		if n, err = ch.Read(next[:]); len(printed) == openingLimit {
			err = errCut
		}
		printed = append(printed, next[:n]...)
	}
	switch {
	case !stop():
		err = context.Cause(ctx)
	case errors.Is(err, io.EOF):
		err = errCut
	}
	if err != nil {
		c.close(ch)
		return nil, err
	}
	return ch, nil
}

// denied is what a keeper answers that starts no terminal.
type denied struct{ said string }

func (d *denied) Error() string { return "the keeper refuses: " + d.said }

// errCut is the error of a link that ended before the keeper's answer.
var errCut = errors.New("the keeper hung up")

// errUnknown is the error of an attachment to a terminal that the keeper does not have.
var errUnknown = errors.New("the keeper has no such terminal")
