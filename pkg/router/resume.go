package router

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// comeback is what a request says of the session that its person comes back to.
type comeback struct {
	session string // the id; empty: none
	output  int64  // the output bytes that the client has; negative: none
	by      try
}

// try is one of a client's tries to come back. A client that comes back by itself keeps its name
// and counts its tries; when its person asks for the session, it takes another name.
type try struct {
	client string // a random name; empty: the client has none
	number uint64
}

// clientName is the form of a client's name.
var clientName = regexp.MustCompile(`^[\w-]{1,64}$`)

// comebackOf returns the resume, output, client and try of the query.
func comebackOf(query url.Values) (comeback, error) {
	c := comeback{session: query.Get("resume"), output: -1}
	for _, name := range []string{"resume", "output", "client", "try"} {
		if len(query[name]) > 1 {
			return c, fmt.Errorf("%w: %s comes twice", bridge.ErrBadMessage, name)
		}
	}
	if c.by.client = query.Get("client"); c.by.client != "" && !clientName.MatchString(c.by.client) {
		return c, fmt.Errorf("%w: client must be up to 64 letters, digits, dashes and underscores", bridge.ErrBadMessage)
	}
	if query.Has("try") {
		var err error
		if c.by.number, err = strconv.ParseUint(query.Get("try"), 10, 32); err != nil {
			return c, fmt.Errorf("%w: try must be a whole number, 0 or more", bridge.ErrBadMessage)
		}
	}
	if c.session == "" || !query.Has("output") {
		return c, nil
	}
	n, err := strconv.ParseUint(query.Get("output"), 10, 63)
	if err != nil {
		return c, fmt.Errorf("%w: output must be a whole number, 0 or more", bridge.ErrBadMessage)
	}
	c.output = int64(n)
	return c, nil
}

// Outcomes of a request to resume, for termgw_resumes_total.
const (
	resumeDone    = "resumed"
	resumeTaken   = "taken_over" // from a connection that was still thought open
	resumeGone    = "gone"       // there is no such session: a new shell was opened, or refused
	resumeRefused = "refused"
	resumePassed  = "passed_on" // to the replica that holds the session, which counts it too
)

// comeBack gives a client the session that it asks for, if that is on this replica and of
// its person and workspace; else the request opens a new shell, and the ticket is not
// spent.
func (req *request) comeBack(ws *bridge.Socket, claims ticket.Claims, size terminal.Size) (found bool, err error) {
	asked := req.comeback.session
	if asked == "" || !ws.V1() {
		return false, nil
	}
	outcome := resumeRefused
	defer func() { req.Metrics.resumes.WithLabelValues(outcome).Inc() }()
	first := req.live.resumable(asked)
	if first == nil || first.claims.Subject != claims.Subject || first.claims.Issuer != claims.Issuer ||
		first.claims.WorkspaceID != claims.WorkspaceID && first.workspaceID != claims.WorkspaceID {
		outcome = resumeGone
		return false, nil
	}
	switch err := first.session.Resumable(req.comeback.output); {
	case errors.Is(err, session.ErrAhead):
		return true, fmt.Errorf("%w: output: %w", bridge.ErrBadMessage, err)
	case err != nil:
		outcome = resumeGone
		return false, nil
	}
	if ws.Left() { // else it would take the session from a later connection of its own
		return true, bridge.ErrClosed
	}
	if err := first.tries.allows(req.comeback.by); err != nil { // before the ticket is spent
		return true, err
	}
	err = req.spend(claims, asked)
	if errors.Is(err, store.ErrGone) {
		outcome = resumeGone
		return false, nil
	}
	if err != nil {
		return true, err
	}
	req.admitted = true
	req.opening.resumes(asked)
	req.log = req.Log.With("session", asked, "workspace", first.workspaceID, "client", req.client, "subject", claims.Subject).With(req.opening.logAttrs()...)
	waited := first.session.Waits()
	if !req.sized {
		size = terminal.Size{}
	}
	err = first.tries.take(req.comeback.by, func() error {
		return bridge.Resume(ws, first.session, first.clientOptions(ws, claims), size, req.comeback.output)
	})
	switch {
	case errors.Is(err, bridge.ErrTakenOver):
		return true, err
	case err != nil: // it has ended since
		return true, fmt.Errorf("%w: %w", errOver, err)
	case waited:
		outcome = resumeDone
	default:
		outcome = resumeTaken
	}
	first.socket.Store(ws)
	req.log.Info("session resumed", "outcome", outcome, "after_seconds", time.Since(req.started).Seconds())
	req.endOpening(nil)
	return true, nil
}

// noteUnreached has the session to which the person came back, and which is lost with its replica, take none of the
// person's limits from the shell that is opened instead of it.
func (req *request) noteUnreached(ctx context.Context, claims ticket.Claims) {
	asked := req.comeback.session
	replica := req.Replica
	if req.unreached {
		replica = ""
	}
	if asked == "" || req.live.has(asked) {
		return
	}
	defer req.Metrics.timeStore("unreached", time.Now())
	if err := req.Store.Unreached(ctx, claims, asked, replica); err != nil {
		req.log.Warn("it is not recorded that a session was not reached", "resume", asked, "err", err)
	}
}

// spend spends the ticket for a session that lives.
func (req *request) spend(claims ticket.Claims, sessionID string) error {
	defer req.Metrics.timeStore("resume", time.Now())
	redeemed := req.step("redeem")
	err := req.Store.Resume(context.Background(), claims, sessionID, req.Replica, req.client) // bounded by the store
	redeemed(err)
	if errors.Is(err, store.ErrUsed) || errors.Is(err, store.ErrRevoked) {
		req.Metrics.rejections.WithLabelValues(outcomeOf(err).code).Inc()
	}
	if errors.Is(err, store.ErrUnavailable) {
		req.parts.doubt()
	}
	return err
}

// goneOn ends the connection of a client without which its session goes on.
func (req *request) goneOn(b *bridge.Bridge, cause error) {
	defer req.live.leave()()
	end := outcomeOf(cause)
	req.log.Info("session goes on without its client", "code", end.code, "err", cause)
	if req.live.isDraining() {
		req.live.end(req.id, ErrDraining) // nobody comes back to it
	}
	if end.close == 0 {
		b.Drop()
		b.Close(context.Background(), 0, nil)
		return
	}
	e := end.tell(cause)
	b.Close(context.Background(), end.close, &e)
}

// maxSuperseded bounds the clients of a session that are remembered as superseded: each reload of a
// page is another client, and one that sleeps may come back after a day. The oldest is forgotten first.
const maxSuperseded = 1000

// tries puts the tries to come back to one session in order. A try that the network has held up
// must not take the session from a later one of the same client; and a client that comes back by
// itself, because it wakes up, must not take it from the client where its person has gone on.
type tries struct {
	mu         sync.Mutex
	last       try // that has the session
	superseded []string
}

// take has resume give the session to a try, unless that is superseded: the error is then
// ErrTakenOver, else that of resume.
func (t *tries) take(by try, resume func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.check(by); err != nil {
		return err
	}
	if err := resume(); err != nil {
		return err
	}
	if other := t.last.client; other != "" && other != by.client {
		t.superseded = append(t.superseded, other)
		t.superseded = t.superseded[max(0, len(t.superseded)-maxSuperseded):]
	}
	t.last = by
	return nil
}

// allows returns the error that take would return for the try now.
func (t *tries) allows(by try) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.check(by)
}

// check is allows. The lock is held.
func (t *tries) check(by try) error {
	if by.client != "" && (slices.Contains(t.superseded, by.client) || by.client == t.last.client && by.number <= t.last.number) {
		return fmt.Errorf("%w: a later try has it", bridge.ErrTakenOver)
	}
	return nil
}
