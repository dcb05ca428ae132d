package router

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// request is one request for a terminal, from the handshake to the session's end.
type request struct {
	*Router
	id, client  string // the session's id, and the client's address
	workspaceID string // as in the path, later as in the workspace's row
	holder      holder // of the connection while the connection lingers
	http        *http.Request
	log         *slog.Logger
	opening     opening
	target      string // the name of the workspace's place; "none" until the row was read
	started     time.Time
	admitted    bool      // the ticket is spent
	recorded    bool      // the audit trail has, or may have, a row without an end
	over        sync.Once // calls shellOver
	overAt      time.Time // when the shell was over, and its last output began to wait
	comeback    comeback
	unreached   bool                          // the replica that holds that session was not reached, or has it no more
	paused      bool                          // that replica does not answer, and lived a moment ago
	sized       bool                          // the query has a size
	claims      ticket.Claims                 // of the ticket that opened the session: issuer, subject and workspace
	longest     time.Duration                 // the session's longest life
	tunnelEnds  time.Time                     // when its tunnel is cut, and the session with it; zero: never
	resume      time.Duration                 // how long the session waits for its person, at most
	passing     store.Holder                  // of the session, for other replicas
	tries       tries                         // to come back to the session
	session     *session.Session              // nil: there is no shell yet
	socket      atomic.Pointer[bridge.Socket] // of the session's client; nil: the session goes on without one
	trail       runner.Trail                  // what others' logs know the session by
	traced      bool                          // the audit trail has it
}

// terminal opens the terminal of a request whose ticket is good: the store has the
// workspace's row, the kind of place starts a shell, and carry runs the session. After
// an error there is no session.
func (req *request) terminal(ws *bridge.Socket, claims ticket.Claims, size terminal.Size) error {
	req.holder = holder{subject: claims.Subject}
	req.log = req.log.With("subject", claims.Subject)

	ctx, err := req.live.add(req.id)
	if err != nil {
		return err
	}

	if ws.V1() {
		req.resume = min(claims.Resume, req.Resume)
	}
	if req.resume > 0 && req.AdvertiseURL != "" {
		req.passing = store.Holder{URL: req.AdvertiseURL, Key: rand.Text()}
	}
	req.noteUnreached(ctx, claims)
	workspace, err := req.redeem(ctx, claims)
	if err != nil {
		return err
	}
	if workspace.ID != req.workspaceID { // the path has another spelling of the id
		req.workspaceID = workspace.ID
		req.log = req.logger().With("subject", claims.Subject)
	}

	if err := req.open(ctx, ws, claims, workspace, size); err != nil {
		req.finish(store.End{Reason: outcomeOf(err).code})
		return err
	}
	go req.carry(ctx)
	return nil
}

// carry runs the session, records its end and tells the client that is there then. carry
// has a goroutine of its own: starting a shell leaves a stack that is larger than a session
// needs.
func (req *request) carry(ctx context.Context) {
	defer req.live.remove(req.id)
	defer req.over.Do(func() { req.Metrics.left(req.target) })
	defer req.recovered(nil)

	sum := req.session.Run(ctx)
	req.endOpening(sum.Cause)
	waited := true
	req.over.Do(func() {
		waited = false
		req.shellOver(sum, false)
	})
	if waited {
		req.settle(sum)
	}
	end := outcomeOf(sum.Cause)
	var revoked revokedError
	if errors.As(sum.Cause, &revoked) {
		req.Metrics.revoked(time.Since(revoked.written))
	}
	if b, ok := sum.Owner.(*bridge.Bridge); ok { // else nobody is there
		switch e := end.tell(sum.Cause); {
		case sum.Cause == nil, errors.Is(sum.Cause, bridge.ErrEnded):
			b.Close(ctx, exited.close, nil)
		case end.close == 0:
			b.Drop() // there is no message to send
			b.Close(ctx, 0, nil)
		default:
			b.Close(ctx, end.close, &e)
		}
	}
	req.session.Join()
	if !waited {
		req.logEnd(sum.Cause, &sum)
	}
}

// shellOver records the end of a shell, which is no live session from now on. Where its last
// output waits for its person, the session can be resumed all the same.
func (req *request) shellOver(sum session.Summary, waits bool) {
	req.Metrics.left(req.target)
	code := outcomeOf(sum.Cause).code
	req.finish(store.End{
		Reason: code, ExitCode: exitCode(sum.Exit), BytesIn: sum.BytesIn, BytesOut: sum.BytesOut, Waits: waits,
	})
	req.live.release(req.id)
	req.Metrics.ended(req.target, code, time.Since(req.started))
}

// waitsOver is shellOver for a shell that has ended while its person was away.
func (req *request) waitsOver(sum session.Summary) {
	req.over.Do(func() {
		req.overAt = time.Now()
		req.shellOver(sum, true)
		req.logEnd(sum.Cause, &sum)
	})
}

// settle notes that the last output of a shell that is over waits no more.
func (req *request) settle(sum session.Summary) {
	ctx, cancel := context.WithTimeout(context.Background(), finishTimeout)
	defer cancel()
	if err := req.Store.Settle(ctx, req.id, sum.BytesOut); err != nil {
		req.log.Warn("it is not recorded that a session's last output waits no more", "err", err)
	}
	message := "the last output was taken"
	if sum.Owner == nil {
		message = "nobody came back for the last output"
	}
	req.log.Info(message, "waited_seconds", time.Since(req.overAt).Seconds(), "bytes_out", sum.BytesOut)
}

// serveTerminal answers the terminal's endpoint. A browser cannot read why a handshake
// failed, so most errors are sent after the upgrade.
func (rt *Router) serveTerminal(w http.ResponseWriter, r *http.Request) {
	addr, passed := rt.passedOn(r)
	if !passed {
		addr = rt.clientAddr(r)
	}
	req := &request{
		Router: rt, http: r, target: noTarget, started: time.Now(),
		id: newSessionID(), workspaceID: strings.Clone(chi.URLParam(r, "workspace_id")), client: addrString(addr),
	}
	req.identify(r, passed)
	req.log = req.logger()
	err := rt.checkRequest(r, req.workspaceID)
	if err == nil && !passed {
		err = rt.checkOrigin(r)
	}
	if err == nil && !passed && len(r.Header.Values(hopHeader)) > 0 {
		err = errNotHeld
	}
	if !passed && !rt.allow(r, addr, err == nil) {
		err = errRate
	}
	if err != nil {
		req.notUpgraded(err)
		problem(w, err)
		return
	}
	req.beginOpening()
	if req.passOn(w, r) {
		return
	}
	req.holder = holder{network: client(addr)}
	ws, err := bridge.Accept(w, r)
	if err != nil {
		err = fmt.Errorf("%w: %w", errHandshake, err)
		req.notUpgraded(err) // Accept has answered the client
		req.endOpening(err)
		return
	}
	defer req.recovered(ws)
	ws.Lingers = func(drop func()) func() { return req.lingering.add(req.holder, drop) }
	checked := req.step("ticket")
	claims, size, err := req.checkTicket()
	checked(err)
	req.http = nil
	go req.serve(ws, claims, size, err)
}

// serve opens the terminal, or refuses the client for the ticket's error. serve has a
// goroutine of its own, so that net/http's memory of the request is freed before the
// store, the engine and the client's answer to a refusal are waited for: a header of
// 32 KiB can be made to take a megabyte.
func (req *request) serve(ws *bridge.Socket, claims ticket.Claims, size terminal.Size, err error) {
	goesOn := false
	defer func() {
		if !goesOn {
			req.live.remove(req.id)
		}
	}()
	defer req.recovered(ws)
	found := false
	if err == nil {
		found, err = req.comeBack(ws, claims, size)
	}
	switch {
	case err != nil || found || req.comeback.session == "":
	case ws.Left(): // it was given up for another one of its client
		err = bridge.ErrClosed
	case req.paused && req.comeback.by.client != "": // by a client that tries again; a person's act has a new shell at once
		err = errPaused
	}
	if err == nil && !found {
		err = req.terminal(ws, claims, size)
		goesOn = err == nil
	}
	if err != nil {
		req.endOpening(err)
		req.live.release(req.id)
		req.refuse(ws, err)
	}
}

func (req *request) logger() *slog.Logger {
	return req.Log.With("session", req.id, "workspace", req.workspaceID, "client", req.client).With(req.opening.logAttrs()...)
}

// notUpgraded counts and logs a request that was refused by an HTTP status.
func (req *request) notUpgraded(err error) {
	code := outcomeOf(err).code
	req.Metrics.over(req.target, code)
	if errors.Is(err, errUnknown) {
		return
	}
	req.lines.Do(code, func() {
		req.log.Info("request refused", "code", code, "origin", req.http.Header.Get("Origin"), "err", err)
	})
}

// checkTicket returns the claims of the request's ticket and the terminal's first size.
func (req *request) checkTicket() (claims ticket.Claims, size terminal.Size, err error) {
	raw, err := ticketOf(req.http)
	if err == nil {
		claims, err = req.Verifier.Verify(req.http.Context(), raw)
	}
	if err == nil && claims.WorkspaceID != req.workspaceID {
		err = errMismatch
	}
	switch {
	case errors.Is(err, ticket.ErrNoKeys): // the ticket may be good
		req.parts.doubt()
		return claims, size, err
	case err != nil:
		req.Metrics.rejections.WithLabelValues(outcomeOf(err).code).Inc()
		return claims, size, err
	}
	query := req.http.URL.Query()
	req.sized = query.Has("cols") || query.Has("rows")
	req.comeback, err = comebackOf(query)
	if err == nil {
		size, err = firstSize(query)
	}
	return claims, size, err
}

// redeem spends the ticket and returns the workspace. A client that leaves meanwhile
// does not stop redeem: ctx is the session's, not the HTTP request's.
func (req *request) redeem(ctx context.Context, claims ticket.Claims) (store.Workspace, error) {
	defer req.Metrics.timeStore("redeem", time.Now())
	req.recorded = true // possibly, even if Redeem panics
	redeemed := req.step("redeem")
	workspace, err := req.Store.Redeem(ctx, claims, store.Session{
		ID: req.id, Replica: req.Replica, ClientAddr: req.client, Holder: req.passing,
	})
	redeemed(err)
	req.recorded, req.admitted = err == nil, err == nil
	if errors.Is(err, store.ErrUsed) || errors.Is(err, store.ErrRevoked) {
		req.Metrics.rejections.WithLabelValues(outcomeOf(err).code).Inc()
	}
	if errors.Is(err, store.ErrUnavailable) {
		req.parts.doubt()
		err = cmp.Or(context.Cause(ctx), err) // if the session was cut, the store is not to blame
	}
	return workspace, err
}

// open starts a shell, and attaches the client to its session.
func (req *request) open(ctx context.Context, ws *bridge.Socket, claims ticket.Claims, w store.Workspace, size terminal.Size) error {
	term, err := req.start(ctx, claims, w, size)
	if err != nil {
		return err
	}
	req.claims = ticket.Claims{Issuer: claims.Issuer, Subject: claims.Subject, WorkspaceID: claims.WorkspaceID}
	req.longest = req.MaxSession
	if d := claims.MaxSession; d > 0 && (req.longest == 0 || d < req.longest) {
		req.longest = d
	}
	var mayResume *request
	if req.resume > 0 {
		mayResume = req
	}
	req.session = session.New(term, session.Options{
		Size: size, IdleTimeout: req.IdleTimeout, MaxSession: req.longest, Resume: req.resume,
		Budget: req.budget, Holder: claims.Subject, Count: req.countFirst(), Over: req.waitsOver,
	})
	if t, ok := term.(terminal.Expiring); ok {
		req.tunnelEnds = t.Expires()
	}
	req.socket.Store(ws)
	req.tries.last = req.comeback.by
	bridge.New(ws, req.session, req.clientOptions(ws, claims))
	warn := func(left time.Duration) { req.session.Warn(outcomeOf(ErrDraining).code, drainNotice, left) }
	if err := req.live.opened(req.id, warn, mayResume); err != nil {
		req.session.Close()
		return err
	}
	req.log.Info("session started", "target", req.target, "after_seconds", time.Since(req.started).Seconds(), "trail", req.trail)
	req.trace(ctx)
	req.Metrics.started(req.target, time.Since(req.started), req.opening.exemplar())
	return nil
}

// clientOptions are the settings of a client of the session, which has come with a ticket of
// its own.
func (req *request) clientOptions(ws *bridge.Socket, claims ticket.Claims) bridge.Options {
	o := bridge.Options{
		Ready: bridge.Ready{
			Session: req.id, Workspace: req.workspaceID, Target: req.target, Mode: string(claims.Mode),
			IdleTimeout: req.IdleTimeout, MaxSession: req.longest, Resume: min(claims.Resume, req.resume), Tunnel: req.tunnelEnds,
		},
		PingInterval: req.PingInterval, RTT: req.Metrics.rtt, Backlog: req.Metrics.backlogged,
	}
	if req.resume > 0 {
		o.ExitClose = exited.close
		o.Speaks = req.comeback.by.client != ""
		o.Gone = func(b *bridge.Bridge, cause error) {
			req.socket.CompareAndSwap(ws, nil) // a session that waits holds no memory of a connection
			req.goneOn(b, cause)
		}
	}
	return o
}

// start starts a shell in the place that the workspace's row is of.
func (req *request) start(ctx context.Context, claims ticket.Claims, w store.Workspace, size terminal.Size) (terminal.Terminal, error) {
	place := req.Places.Of(w.Attributes)
	req.target, req.trail = place.Name, runner.Trail{}
	inner, end := req.startContext(ctx)
	term, err := place.Kind.Start(inner, runner.Target{
		Session: req.id, WorkspaceID: req.workspaceID, Subject: claims.Subject, Attributes: w.Attributes,
		Trail: req.trail, Log: req.log,
	}, size)
	if err != nil {
		err = cmp.Or(context.Cause(ctx), err)
		end(err)
		return nil, err
	}
	end(nil)
	return term, nil
}

// traceTimeout bounds the recording of a trail, for which the client waits.
const traceTimeout = time.Second

// trace records the trail; without success finish does so, with the end.
func (req *request) trace(ctx context.Context) {
	if len(req.trail) == 0 {
		return
	}
	defer req.Metrics.timeStore("trace", time.Now())
	ctx, cancel := context.WithTimeout(ctx, traceTimeout)
	defer cancel()
	err := req.Store.Trace(ctx, req.id, req.trail)
	if req.traced = err == nil; err != nil {
		req.log.Warn("the session's trail is not recorded before its end", "err", err)
	}
}

// finishTimeout bounds the recording of a session's end in the audit trail.
const finishTimeout = 10 * time.Second

func (req *request) finish(end store.End) {
	req.recorded = false // whether Finish succeeds or not: the router tries once
	defer req.Metrics.timeStore("finish", time.Now())
	ctx, cancel := context.WithTimeout(context.Background(), finishTimeout)
	defer cancel()
	if !req.traced {
		end.Trail = req.trail
	}
	if err := req.Store.Finish(ctx, req.id, end); err != nil {
		req.log.Error("the session's end was not recorded", "reason", end.Reason, "err", err)
	}
}

// refuse sends the reason to a client that gets no session, and closes the connection.
func (req *request) refuse(ws *bridge.Socket, err error) {
	o := outcomeOf(err)
	req.Metrics.over(req.target, o.code)
	ws.Refuse(o.close, o.tell(err))
	if req.admitted {
		req.logEnd(err, nil)
	} else {
		req.lines.Do(o.code, func() { req.logEnd(err, nil) })
	}
}

// logEnd logs what the audit trail has of a session's end. The sum is nil where there was no shell.
func (req *request) logEnd(err error, sum *session.Summary) {
	attrs := []any{
		"code", outcomeOf(err).code, "target", req.target, "replica", req.Replica,
		"started", req.started, "duration_seconds", time.Since(req.started).Seconds(),
	}
	if sum != nil {
		attrs = append(attrs, "bytes_in", sum.BytesIn, "bytes_out", sum.BytesOut)
		if sum.Exit != nil {
			attrs = append(attrs, "exit_code", sum.Exit.Code)
		}
	}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	if req.session == nil && len(req.trail) > 0 { // else "session started" has it
		attrs = append(attrs, "trail", req.trail)
	}
	req.log.Info("session ended", attrs...)
}

// recovered, when deferred, ends the session after a panic in its goroutine, and keeps
// the process alive. net/http does so for a request, but leaves hijacked connections open.
// A nil ws is the session's client's.
func (req *request) recovered(ws *bridge.Socket) {
	fault := recover()
	if fault == nil {
		return
	}
	req.endOpening(errPanic)
	req.log.Error("panic in a session", "panic", fault, "stack", strings.Split(string(debug.Stack()), "\n"))
	if ws == nil {
		ws = req.socket.Load()
	}
	if ws != nil {
		ws.CloseNow()
	}
	if req.session != nil {
		req.session.Close()
	}
	if req.recorded {
		req.Metrics.over(req.target, backendFailed.code)
		req.finish(store.End{Reason: backendFailed.code})
	}
}

func exitCode(e *terminal.Exit) *int {
	if e == nil {
		return nil
	}
	return &e.Code
}
