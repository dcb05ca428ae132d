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

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/runner"
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

// Starter starts a shell.
type Starter interface {
	Start(context.Context, runner.Target, bridge.Size) (bridge.Terminal, error)
}

// Config is what the router joins.
type Config struct {
	Verifier Verifier
	Store    Store
	Local    Starter // of workspaces without an instance
	Remote   Starter // of workspaces on an instance; nil: refused
	// Docker tells whether the engine answers, for /readyz alone. May be nil.
	Docker func(context.Context) error

	BasePath       string         // before /workspaces; empty or "/prefix"
	AllowedOrigins []string       // "scheme://host[:port]"
	TrustedProxies []netip.Prefix // whose X-Forwarded-* headers are believed

	PingInterval time.Duration
	IdleTimeout  time.Duration
	MaxSession   time.Duration
	MaxSessions  int    // at once on this replica; 0: no limit
	Replica      string // this process, in the audit trail

	Log     *slog.Logger
	Metrics *Metrics
}

// Router serves the terminal endpoint, /healthz and /readyz.
type Router struct {
	Config
	mux   chi.Router
	live  *sessions
	turns bridge.Turns
}

// New returns a router; Drain ends its sessions.
func New(cfg Config) *Router {
	rt := &Router{Config: cfg, mux: chi.NewRouter(), live: newSessions(cfg.MaxSessions), turns: bridge.NewTurns()}
	rt.mux.Use(middleware.GetHead) // some probes ask /healthz by HEAD
	rt.mux.NotFound(func(w http.ResponseWriter, r *http.Request) { problem(w, errUnknown) })
	rt.mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) { problem(w, errUnknown) })
	rt.mux.Get("/healthz", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, "application/json", map[string]string{"status": "ok"})
	})
	rt.mux.Get("/readyz", rt.ready)
	rt.mux.HandleFunc(cfg.BasePath+"/workspaces/{workspace_id}/terminal", rt.serveTerminal)
	return rt
}

func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) { rt.mux.ServeHTTP(w, r) }

// Drain refuses new sessions, ends the live ones and waits until they are gone
// or ctx ends.
func (rt *Router) Drain(ctx context.Context) error {
	rt.Metrics.draining.Set(1)
	return rt.live.drain(ctx, ErrDraining)
}

// Cut ends live sessions because they were revoked. Those of other replicas it
// does not know.
func (rt *Router) Cut(ids []string) {
	for _, id := range ids {
		rt.live.cut(id, store.ErrRevoked)
	}
}

// readyTimeout bounds what /readyz asks.
const readyTimeout = 2 * time.Second

// ready answers 200 while the store answers and the replica takes sessions.
// Docker is told but does not decide: a gateway for remote workspaces has none.
func (rt *Router) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	state := func(err error) string {
		if err != nil {
			rt.Log.WarnContext(ctx, "not ready", "err", err)
			return "unavailable"
		}
		return "ok"
	}
	body := map[string]any{
		"status":   "ready",
		"store":    state(rt.Store.Ping(ctx)),
		"draining": rt.live.isDraining(),
		"sessions": rt.live.count(),
	}
	if rt.Docker != nil {
		body["docker"] = state(rt.Docker(ctx))
	}
	status := http.StatusOK
	if body["store"] != "ok" || rt.live.isDraining() {
		body["status"], status = "unavailable", http.StatusServiceUnavailable
	}
	writeJSON(w, status, "application/json", body)
}

// problem answers an error that is told before the upgrade (RFC 9457).
func problem(w http.ResponseWriter, err error) {
	o := outcomeOf(err)
	if o.status == http.StatusUpgradeRequired { // RFC 9110, 15.5.22; RFC 6455, 4.4
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Version", "13")
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
