package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// session is one request for a terminal and what has been learnt of it.
type session struct {
	*Router
	id, client  string
	workspaceID string // the path's, then the row's own
	owner       owner  // of the connection, when it lingers
	request     *http.Request
	log         *slog.Logger
	target      string // "local", "remote"; "none" until it is known
	started     time.Time
	admitted    bool   // its ticket was good, and is spent
	recorded    bool   // the audit trail has it, without an end
	shell       *shell // nil: it has none yet
}

// terminal is the way of a request whose ticket is good: the store says where, the
// runner starts a shell there, and the bridge carries bytes until either side ends.
func (s *session) terminal(ws *bridge.Socket, claims ticket.Claims, size terminal.Size) error {
	s.owner = owner{subject: claims.Subject}
	s.log = s.log.With("subject", claims.Subject)

	ctx, err := s.live.add(s.id)
	if err != nil {
		return err
	}

	workspace, err := s.redeem(ctx, claims)
	if err != nil {
		return err
	}
	if workspace.ID != s.workspaceID { // the path spells it in another way
		s.workspaceID = workspace.ID
		s.log = s.logger().With("subject", claims.Subject)
	}

	b, err := s.open(ctx, ws, claims, workspace, size)
	if err != nil {
		s.finish(store.End{Reason: outcomeOf(err).code})
		return err
	}
	go s.carry(ctx, ws, b)
	return nil
}

// carry is the life of a session. It has a goroutine of its own, since the stack of
// the one that started the shell has become larger than a session needs.
func (s *session) carry(ctx context.Context, ws *bridge.Socket, b *bridge.Bridge) {
	defer s.live.remove(s.id)
	defer s.Metrics.left(s.target)
	defer s.recovered(ws)

	sum := b.Run(ctx)
	end := outcomeOf(sum.Cause)
	s.finish(store.End{Reason: end.code, ExitCode: exitCode(sum.Exit), BytesIn: sum.BytesIn, BytesOut: sum.BytesOut})
	s.live.release(s.id)
	s.Metrics.ended(s.target, end.code, time.Since(s.started))
	var revoked revokedError
	if errors.As(sum.Cause, &revoked) {
		s.Metrics.revoked(time.Since(revoked.ordered))
	}
	if end.close == 0 {
		ws.CloseNow() // a blank message to a client that may still listen helps nobody
	}
	if sum.Cause == nil {
		b.Close(end.close, nil)
	} else {
		e := end.tell(sum.Cause)
		b.Close(end.close, &e)
	}
	s.logEnd(sum.Cause)
}

// serveTerminal answers the endpoint. A browser cannot read why a handshake
// failed, so everything but a wrong origin is told after the upgrade.
func (rt *Router) serveTerminal(w http.ResponseWriter, r *http.Request) {
	addr := rt.clientAddr(r)
	s := &session{
		Router: rt, request: r, target: "none", started: time.Now(),
		id: newSessionID(), workspaceID: strings.Clone(chi.URLParam(r, "workspace_id")), client: addrString(addr),
	}
	s.log = s.logger()
	err := rt.checkRequest(r, s.workspaceID)
	if !rt.allow(r, addr, err == nil) {
		err = errRate
	}
	if err != nil {
		s.notUpgraded(err)
		problem(w, err)
		return
	}
	s.owner = owner{network: client(addr)}
	ws, err := bridge.Accept(w, r)
	if err != nil {
		s.notUpgraded(fmt.Errorf("%w: %w", errHandshake, err)) // which is answered
		return
	}
	defer s.recovered(ws)
	ws.Lingers = func(drop func()) func() { return s.lingering.add(s.owner, drop) }
	claims, size, err := s.checkTicket()
	s.request = nil
	go s.serve(ws, claims, size, err)
}

// serve opens the terminal, or refuses it for the ticket's error. It has a goroutine
// of its own, since what net/http holds of a request, a megabyte for a header of
// 32 KiB that is made for it, would wait with it for the store, the engine, and the
// client's answer to a refusal.
func (s *session) serve(ws *bridge.Socket, claims ticket.Claims, size terminal.Size, err error) {
	goesOn := false
	defer func() {
		if !goesOn {
			s.live.remove(s.id)
		}
	}()
	defer s.recovered(ws)
	if err == nil {
		err = s.terminal(ws, claims, size)
	}
	if err != nil {
		s.live.release(s.id)
		s.refuse(ws, err)
		return
	}
	goesOn = true
}

func (s *session) logger() *slog.Logger {
	return s.Log.With("session", s.id, "workspace", s.workspaceID, "client", s.client)
}

// notUpgraded counts and logs a request that is refused by an HTTP status.
func (s *session) notUpgraded(err error) {
	code := outcomeOf(err).code
	s.Metrics.over(s.target, code)
	if errors.Is(err, errUnknown) {
		return
	}
	s.lines.Do(code, func() {
		s.log.Info("request refused", "code", code, "origin", s.request.Header.Get("Origin"), "err", err)
	})
}

// checkTicket reads the request: who, and the terminal's first size.
func (s *session) checkTicket() (claims ticket.Claims, size terminal.Size, err error) {
	raw, err := ticketOf(s.request)
	if err == nil {
		claims, err = s.Verifier.Verify(s.request.Context(), raw)
	}
	if err == nil && claims.WorkspaceID != s.workspaceID {
		err = errMismatch
	}
	if err != nil {
		s.Metrics.rejections.WithLabelValues(outcomeOf(err).code).Inc()
		return claims, size, err
	}
	size, err = firstSize(s.request.URL.Query())
	return claims, size, err
}

// redeem spends the ticket. Its clock is the process's: a client that leaves
// meanwhile has spent it all the same.
func (s *session) redeem(ctx context.Context, claims ticket.Claims) (store.Workspace, error) {
	defer s.Metrics.timeStore("redeem", time.Now())
	s.recorded = true // it may be from now on
	workspace, err := s.Store.Redeem(ctx, claims, store.Session{ID: s.id, Replica: s.Replica, ClientAddr: s.client})
	s.recorded, s.admitted = err == nil, err == nil
	if errors.Is(err, store.ErrUsed) || errors.Is(err, store.ErrRevoked) {
		s.Metrics.rejections.WithLabelValues(outcomeOf(err).code).Inc()
	}
	if errors.Is(err, store.ErrUnavailable) {
		s.parts.doubt()
		err = cmp.Or(context.Cause(ctx), err) // cut while it asked, the store is not to blame
	}
	return workspace, err
}

// open starts a shell and joins it with the client.
func (s *session) open(ctx context.Context, ws *bridge.Socket, claims ticket.Claims, w store.Workspace, size terminal.Size) (*bridge.Bridge, error) {
	term, err := s.start(ctx, w, size)
	if err != nil {
		return nil, err
	}
	s.shell = &shell{Terminal: term, metrics: s.Metrics}
	opt := s.options(claims)
	opt.Size = size
	if tunneled, ok := term.(interface{ Expires() time.Time }); ok {
		opt.TunnelEnds = tunneled.Expires()
	}
	b := bridge.New(ws, s.shell, opt)
	if err := s.live.opened(s.id, func(left time.Duration) { b.Warn(outcomeOf(ErrDraining).code, drainNotice, left) }); err != nil {
		_ = s.shell.Close() // which logs its own failure
		return nil, err
	}
	s.log.Info("session started", "target", s.target, "after", time.Since(s.started).String())
	s.Metrics.started(s.target, time.Since(s.started))
	return b, nil
}

// start starts a shell where the row says: an instance's id means remote.
func (s *session) start(ctx context.Context, w store.Workspace, size terminal.Size) (terminal.Terminal, error) {
	var starter Starter
	if w.InstanceID == "" {
		s.target, starter = "local", s.Local
	} else {
		s.target, starter = "remote", s.Remote
	}
	if starter == nil {
		return nil, errRemote
	}
	term, err := starter.Start(ctx, runner.Target{
		Session: s.id, WorkspaceID: s.workspaceID, Name: w.Name, Container: w.Container, Log: s.log,
		InstanceID: w.InstanceID, Region: w.Region, OSUser: w.OSUser, HostKey: w.HostKey, RemoteTarget: w.RemoteTarget,
	}, size)
	if err != nil {
		return nil, cmp.Or(context.Cause(ctx), err)
	}
	return term, nil
}

func (s *session) options(claims ticket.Claims) bridge.Options {
	longest := s.MaxSession
	if d := claims.MaxSession; d > 0 && (longest == 0 || d < longest) {
		longest = d
	}
	return bridge.Options{
		Ready: bridge.Ready{
			Session: s.id, Workspace: s.workspaceID, Target: s.target, Mode: string(claims.Mode),
			IdleTimeout: s.IdleTimeout, MaxSession: longest,
		},
		PingInterval: s.PingInterval,
		Budget:       s.budget,
		Owner:        claims.Subject,
		RTT:          s.Metrics.rtt,
		Backlog:      s.Metrics.backlogged,
	}
}

// finishTimeout bounds the record of a session's end.
const finishTimeout = 10 * time.Second

func (s *session) finish(end store.End) {
	s.recorded = false // also if that fails: it is not tried again
	defer s.Metrics.timeStore("finish", time.Now())
	ctx, cancel := context.WithTimeout(context.Background(), finishTimeout)
	defer cancel()
	if err := s.Store.Finish(ctx, s.id, end); err != nil {
		s.log.Error("the session's end was not recorded", "reason", end.Reason, "err", err)
	}
}

// refuse tells a client that gets no session why.
func (s *session) refuse(ws *bridge.Socket, err error) {
	o := outcomeOf(err)
	s.Metrics.over(s.target, o.code)
	ws.Refuse(o.close, o.tell(err))
	if s.admitted {
		s.logEnd(err)
	} else {
		s.lines.Do(o.code, func() { s.logEnd(err) })
	}
}

func (s *session) logEnd(err error) {
	attrs := []any{"code", outcomeOf(err).code, "target", s.target, "duration", time.Since(s.started).String()}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	s.log.Info("session ended", attrs...)
}

// recovered ends a session in whose code there is a fault, and keeps it from
// ending the others, as net/http does. That leaves a hijacked connection open.
func (s *session) recovered(ws *bridge.Socket) {
	fault := recover()
	if fault == nil {
		return
	}
	s.log.Error("panic in a session", "panic", fault, "stack", strings.Split(string(debug.Stack()), "\n"))
	ws.CloseNow()
	if s.shell != nil {
		_ = s.shell.Close() // as above; or waits for the bridge, which does it in a goroutine of its own
	}
	if s.recorded {
		s.Metrics.over(s.target, backendFailed.code)
		s.finish(store.End{Reason: backendFailed.code})
	}
}

func exitCode(e *terminal.Exit) *int {
	if e == nil {
		return nil
	}
	return &e.Code
}
