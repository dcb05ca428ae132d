// Package router is the HTTP edge: the routes, the order in which a request for
// a terminal is checked, the one table of errors, and the sessions that live on
// this replica.
//
// The router joins the ticket, the store, the kinds of place, the session and the
// bridge, and knows nothing of how these work.
package router

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"go.opentelemetry.io/otel/trace"

	"github.com/molecule-ai/termgw/internal/logline"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Verifier checks a ticket, and returns its claims.
type Verifier interface {
	Verify(ctx context.Context, raw string) (ticket.Claims, error)
}

// Store has the workspaces' rows and the audit trail.
type Store interface {
	// Redeem spends the ticket and returns the workspace, or does neither.
	Redeem(context.Context, ticket.Claims, store.Session) (store.Workspace, error)
	// Resume spends the ticket for a session that lives, of the ticket's person and
	// workspace, or does nothing: store.ErrGone says that there is none.
	Resume(ctx context.Context, c ticket.Claims, sessionID, replica, clientAddr string) error
	// Unreached notes that a session of the ticket's person could not be gone on with, since
	// its replica was not reached, or has lost it: it counts no more, until that replica says
	// that it lives. The session is of the replica, or of any if that is empty.
	Unreached(ctx context.Context, c ticket.Claims, sessionID, replica string) error
	// HolderOf returns how a connection is passed on to the replica that holds a session
	// of the ticket's person, if that is not this one: else store.ErrGone.
	HolderOf(ctx context.Context, c ticket.Claims, sessionID, replica string) (store.Holder, error)
	// Trace records what others' logs know a live session by.
	Trace(ctx context.Context, sessionID string, trail map[string]string) error
	// Finish records a session's end.
	Finish(ctx context.Context, sessionID string, end store.End) error
	// Settle records that the last output of a session that has ended waits no more, and
	// how many bytes were taken in all.
	Settle(ctx context.Context, sessionID string, bytesOut int64) error
	Ping(context.Context) error
}

// Config is the parts that the router joins, and their settings. A duration of 0 means no limit, or no pings.
type Config struct {
	Verifier Verifier
	Store    Store
	Places   runner.Places // the places where workspaces' shells run
	// The checks of /readyz; each may be nil. An error of Keys or Orders makes the
	// gateway unready, an error of Docker or Watching is only shown.
	Docker   func(context.Context) error // the engine answers
	Keys     func() error                // there is a key to verify tickets with
	Orders   func() error                // revocations are read
	Watching func() error                // revocations arrive at once

	BasePath       string         // before /workspaces; empty or "/prefix"
	AllowedOrigins []string       // "scheme://host[:port]"
	TrustedProxies []netip.Prefix // proxies whose X-Forwarded-* headers and traceparent are believed
	TrustUnix      bool           // peers of a unix socket are such proxies
	HopTLS         *tls.Config    // of requests to other replicas; nil: the default

	PingInterval time.Duration
	IdleTimeout  time.Duration
	MaxSession   time.Duration
	Resume       time.Duration // the longest time that a shell waits for its person; 0: it ends with the connection
	AdvertiseURL string        // where other replicas reach this one, http(s)://host:port; empty: they do not
	MaxSessions  int           // at once on this replica; 0: no limit
	HeldBytes    int64         // the bytes that all sessions together may hold, see session.Budget; 0: no limit
	Replica      string        // the name of this process in the audit trail

	Log     *slog.Logger
	Metrics *Metrics
	Tracer  trace.Tracer // of the openings of terminals; nil: they are not traced
}

// Router serves the terminal endpoint, /healthz and /readyz.
type Router struct {
	Config
	mux       chi.Router
	live      *sessions
	lingering lingering
	parts     parts
	budget    *session.Budget // nil: no limit
	lines     *logline.Bound  // bounds the log's lines about refused requests
	hops      *http.Transport // to other replicas

	// handshakes paces well-made handshakes, others all requests that are refused
	// before the upgrade: a page of a wrong origin must not use up the handshakes of
	// its visitor's address.
	handshakes, others *pacer
}

// New returns a router. Drain ends the router's sessions.
func New(cfg Config) *Router {
	rt := &Router{
		Config: cfg, mux: chi.NewRouter(), live: newSessions(cfg.MaxSessions),
		lines: logline.NewBound(cfg.Log), handshakes: newPacer(time.Now), others: newPacer(time.Now), parts: parts{now: time.Now},
		lingering: lingering{of: map[holder][]*connection{}}, hops: newHops(cfg.HopTLS),
	}
	cfg.Metrics.begin(cfg.Places)
	if cfg.HeldBytes > 0 {
		rt.budget = session.NewBudget(cfg.HeldBytes)
	}
	rt.mux.Use(middleware.GetHead) // some probes ask /healthz by HEAD
	rt.mux.NotFound(rt.notFound)
	rt.mux.MethodNotAllowed(rt.notFound)
	rt.mux.Get("/healthz", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, "application/json", map[string]string{"status": "ok"})
	})
	rt.mux.Get("/readyz", rt.ready)
	rt.mux.HandleFunc(cfg.BasePath+"/workspaces/{workspace_id}/terminal", rt.serveTerminal)
	return rt
}

func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) { rt.mux.ServeHTTP(w, r) }

// Cut ends sessions that were revoked. Age is the time since the revocation was
// written. Ids of sessions on other replicas are ignored.
func (rt *Router) Cut(ids []string, age time.Duration) {
	cause := revokedError{written: time.Now().Add(-max(0, age))}
	for _, id := range ids {
		rt.live.end(id, cause)
	}
}

// Waiting returns the ids of the sessions that wait for their persons.
func (rt *Router) Waiting() []string { return rt.live.waiting() }

// notFound answers a request for an unknown path or method. notFound logs nothing.
func (rt *Router) notFound(w http.ResponseWriter, r *http.Request) {
	err := errUnknown
	if !rt.allow(r, rt.clientAddr(r), false) {
		err = errRate
		rt.Metrics.over(noTarget, outcomeOf(err).code)
	}
	problem(w, err)
}

// problem answers a request that is refused before the upgrade (RFC 9457).
func problem(w http.ResponseWriter, err error) {
	o := outcomeOf(err)
	switch o.status {
	case http.StatusUpgradeRequired: // RFC 9110, 15.5.22; RFC 6455, 4.4
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Version", "13")
	case http.StatusTooManyRequests: // RFC 6585, 4
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Connection", "close") // so that the next try costs the client a new connection
	}
	writeJSON(w, o.status, "application/problem+json", map[string]any{
		"title":  http.StatusText(o.status),
		"status": o.status,
		"code":   o.code,
		"detail": o.message,
	})
}

func writeJSON(w http.ResponseWriter, status int, contentType string, body any) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}

// newSessionID returns 26 characters of base32: 130 random bits.
func newSessionID() string { return rand.Text() }
