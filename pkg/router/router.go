// Package router is the HTTP edge: the routes, the order in which a request for
// a terminal is checked, the one table of errors, and the sessions that live on
// this replica.
//
// It joins the ticket, the store, the runner and the bridge through the
// interfaces that it declares, and knows nothing of how they work.
package router

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/molecule-ai/termgw/internal/logline"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Verifier tells who a ticket is for.
type Verifier interface {
	Verify(ctx context.Context, raw string) (ticket.Claims, error)
}

// Store tells where a workspace is, and keeps the audit trail.
type Store interface {
	// Redeem spends the ticket and returns the workspace, or does neither.
	Redeem(context.Context, ticket.Claims, store.Session) (store.Workspace, error)
	// Finish records a session's end.
	Finish(ctx context.Context, sessionID string, end store.End) error
	Ping(context.Context) error
}

// Config is what the router joins.
type Config struct {
	Verifier Verifier
	Store    Store
	Places   runner.Places // where workspaces live
	// Docker tells whether the engine answers, for /readyz alone. May be nil.
	Docker func(context.Context) error
	// Keys tells whether there is a key to verify tickets with: else the gateway is
	// not ready. May be nil.
	Keys func() error
	// Orders tells whether orders to cut sessions are read: else the gateway is
	// not ready. May be nil.
	Orders func() error
	// Watching tells whether such orders arrive at once, for /readyz alone. May
	// be nil.
	Watching func() error

	BasePath       string         // before /workspaces; empty or "/prefix"
	AllowedOrigins []string       // "scheme://host[:port]"
	TrustedProxies []netip.Prefix // whose X-Forwarded-* headers are believed

	PingInterval time.Duration
	IdleTimeout  time.Duration
	MaxSession   time.Duration
	MaxSessions  int    // at once on this replica; 0: no limit
	HeldBytes    int64  // that all sessions together may hold for their clients, see session.Budget; 0: no limit
	Replica      string // this process, in the audit trail

	Log     *slog.Logger
	Metrics *Metrics
}

// Router serves the terminal endpoint, /healthz and /readyz.
type Router struct {
	Config
	mux       chi.Router
	live      *sessions
	lingering lingering
	parts     parts
	budget    *session.Budget // nil: without a limit
	lines     *logline.Bound  // of what is refused

	// Each address has a pace for handshakes, and one for what is refused before
	// the upgrade: a page elsewhere, whose origin is wrong, must not use up what
	// its visitor's address has.
	pace, strays *pacer
}

// New returns a router; Drain ends its sessions.
func New(cfg Config) *Router {
	rt := &Router{
		Config: cfg, mux: chi.NewRouter(), live: newSessions(cfg.MaxSessions),
		lines: logline.NewBound(cfg.Log), pace: newPacer(time.Now), strays: newPacer(time.Now), parts: parts{now: time.Now},
		lingering: lingering{of: map[owner][]*connection{}},
	}
	for _, place := range cfg.Places {
		cfg.Metrics.active.WithLabelValues(place.Name) // 0 from the start: an autoscaler reads nothing as unknown
	}
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

// Cut ends live sessions because they were revoked, by an order that is so old.
// Those of other replicas it does not know.
func (rt *Router) Cut(ids []string, age time.Duration) {
	cause := revokedError{ordered: time.Now().Add(-max(0, age))}
	for _, id := range ids {
		rt.live.end(id, cause)
	}
}

// notFound answers what is at no path. It logs nothing.
func (rt *Router) notFound(w http.ResponseWriter, r *http.Request) {
	err := errUnknown
	if !rt.allow(r, rt.clientAddr(r), false) {
		err = errRate
		rt.Metrics.over("none", outcomeOf(err).code)
	}
	problem(w, err)
}

// problem answers an error that is told before the upgrade (RFC 9457).
func problem(w http.ResponseWriter, err error) {
	o := outcomeOf(err)
	switch o.status {
	case http.StatusUpgradeRequired: // RFC 9110, 15.5.22; RFC 6455, 4.4
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Version", "13")
	case http.StatusTooManyRequests: // RFC 6585, 4
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Connection", "close") // the next try costs a connection, too
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

// newSessionID is 26 characters of base32: 130 random bits.
func newSessionID() string { return rand.Text() }
