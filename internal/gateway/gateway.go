// Package gateway is the running process: it opens the store, the ticket keys and
// the runners, joins them by a router, serves its listeners, and ends in order.
//
// It reads no flag and no environment: package main passes values. What a request
// goes through is the router's, and what a shell is, the runners'.
package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/molecule-ai/termgw/pkg/router"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Config holds the values that a gateway runs with, each checked by its reader.
type Config struct {
	// Faults is what the reader found wrong. Run returns it, with whatever cannot be
	// opened, before it serves.
	Faults  error
	Log     *slog.Logger
	Version string
	Replica string // this process, in the audit trail; empty: the host's name and a random end

	Listen, AdminListen, BasePath               string // host:port; AdminListen empty: no admin port
	DatabaseURL, WorkspacesFile, WorkspaceQuery string
	TicketJWKS, TicketIssuer, TicketAudience    string
	TicketMaxTTL                                time.Duration
	AllowedOrigins, Shells                      []string
	TrustedProxies                              []netip.Prefix
	PingInterval, IdleTimeout, MaxSession       time.Duration
	DrainTimeout                                time.Duration
	MaxSessions                                 int // 0: as many as the process's descriptors hold
	Limits                                      store.Limits
	KeepDetached                                bool
	RemoteTarget, EICETunnel                    string // RemoteTarget empty: no terminals on instances
	EICEOSUser, EICEEndpointID                  string
	Environ                                     []string // of the AWS CLI, if EICETunnel is aws-cli
	Timing                                      runner.Timing

	// Parts that take the place of those which Run opens. They stay the caller's, who
	// closes them once Run has returned.
	Keys     *ticket.Keys                              // nil: those of TicketJWKS
	Store    Store                                     // nil: the one of DatabaseURL or WorkspacesFile
	Docker   *runner.Docker                            // nil: OpenDocker
	Local    router.Starter                            // of workspaces without an instance; nil: Docker
	Listener net.Listener                              // nil: Listen and AdminListen, which the log tells
	Front    func(terminals http.Handler) http.Handler // what Listener serves
}

// Store is where workspaces, spent tickets, sessions and tunnels are.
type Store interface {
	router.Store
	tunnelStore
	io.Closer
}

// OpenKeys reads a file of keys; those of an address are fetched by Keys.Run. It
// returns nil if TicketJWKS is empty, which is one of Faults.
func (c *Config) OpenKeys() (*ticket.Keys, error) {
	if c.TicketJWKS == "" {
		return nil, nil
	}
	keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: c.TicketJWKS, Logger: c.Log})
	if err != nil {
		return nil, fmt.Errorf("TERMGW_TICKET_JWKS: %w", err)
	}
	return keys, nil
}

// OpenStore does not connect to a database yet. It returns nil if neither a database
// nor a list of workspaces is given, which is one of Faults.
func (c *Config) OpenStore(ctx context.Context) (Store, error) {
	switch {
	case c.DatabaseURL == "" && c.WorkspacesFile == "":
		return nil, nil
	case c.DatabaseURL != "":
		shared, err := store.OpenPostgres(store.PostgresConfig{
			URL: c.DatabaseURL, WorkspaceQuery: c.WorkspaceQuery, Limits: c.Limits, Logger: c.Log,
		})
		if err != nil {
			return nil, fmt.Errorf("TERMGW_DATABASE_URL, TERMGW_WORKSPACE_QUERY: %w", err)
		}
		return shared, nil
	}
	workspaces, err := store.ReadWorkspacesFile(c.WorkspacesFile)
	if err != nil {
		return nil, fmt.Errorf("TERMGW_WORKSPACES_FILE: %w", err)
	}
	// A ticket's time is in whole seconds. Served from the next one on, a ticket
	// of this process is told from one that an earlier process may have seen.
	since := time.Now().Truncate(time.Second).Add(time.Second)
	c.Log.Info("no database: sessions are kept in this process, which must be the only replica", "workspaces", len(workspaces))
	select {
	case <-time.After(time.Until(since)):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return store.NewMemory(store.MemoryConfig{Lookup: store.LookupIn(workspaces), Since: since, Limits: c.Limits}), nil
}

// OpenDocker returns the runner of workspaces in containers. Swept may be nil.
func (c *Config) OpenDocker(swept func(runner.Swept)) (*runner.Docker, error) {
	return runner.OpenDocker(runner.DockerConfig{Shells: c.Shells, EndDetached: !c.KeepDetached, Swept: swept, Timing: c.Timing})
}

// gateway is a Config and what was opened by it.
type gateway struct {
	Config
	reg     *prometheus.Registry
	swept   func(runner.Swept)
	remote  router.Starter // nil: none
	router  *router.Router
	held    int64 // see memoryLimit, in bytes
	memory  int64
	jobs    []func(context.Context) error // run until their context ends
	servers []server
	closers []func() error
}

// Run serves until ctx ends or a part fails; then it ends the sessions, and everything
// that it started. From then on a signal that would end the process hurries: nobody
// is waited for any more.
func Run(ctx context.Context, cfg Config) (err error) {
	g := &gateway{Config: cfg, reg: newRegistry()}
	g.Replica = cmp.Or(g.Replica, replicaName())
	g.swept = orphanCounter(g.reg)
	defer func() {
		for _, c := range slices.Backward(g.closers) {
			err = errors.Join(err, c())
		}
	}()
	if err := g.open(ctx); err != nil {
		return err
	}
	g.join()
	if err := g.listen(); err != nil {
		return err
	}
	return g.serve(ctx)
}

// open opens the parts, and tells all that is wrong in one go.
func (g *gateway) open(ctx context.Context) error {
	faults := []error{g.Faults}
	var err error
	g.MaxSessions, err = sessionLimit(g.MaxSessions)
	faults = append(faults, err)
	if g.memory, g.held, err = memoryLimit(); err != nil {
		g.Log.Warn("no memory limit is kept", "err", err)
	}
	if g.Keys == nil {
		g.Keys, err = g.OpenKeys()
		faults = append(faults, err)
	}
	if g.Store == nil {
		if g.Store, err = g.OpenStore(ctx); g.Store != nil {
			g.closers = append(g.closers, g.Store.Close)
			// A database that is away may come up later; what it says of the query stays.
			if pingErr := g.Store.Ping(ctx); errors.Is(pingErr, store.ErrQuery) {
				err = fmt.Errorf("TERMGW_WORKSPACE_QUERY: %w", pingErr)
			}
		}
		faults = append(faults, err)
	}
	if g.Docker == nil {
		if g.Docker, err = g.OpenDocker(g.swept); g.Docker != nil {
			g.closers = append(g.closers, g.Docker.Close)
		}
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil || g.RemoteTarget == "" {
		return err
	}
	remote, err := g.OpenRemote(ctx, countTunnels(g.Store, g.reg), g.swept)
	if err != nil {
		g.Log.Warn("no terminals on instances", "err", err)
		return nil
	}
	g.remote = remote
	g.closers = append(g.closers, remote.Close)
	return nil
}

// join joins the parts by a router, and says what is done in the background.
func (g *gateway) join() {
	if g.Local == nil {
		g.Local = g.Docker
	}
	g.jobs = append(g.jobs, g.Keys.Run, g.Docker.Run)
	var orders, watching func() error
	if shared, ok := g.Store.(*store.Postgres); ok {
		orders, watching = shared.Reading, shared.Watching
		g.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "termgw_orders_age_seconds", Help: "How long ago the orders to cut sessions were last read.",
		}, func() float64 { return shared.OrdersAge().Seconds() }))
		r := &reaper{store: shared, docker: g.Docker, replica: g.Replica, log: g.Log}
		g.jobs = append(g.jobs, shared.Run, r.beat, r.reap, purging(shared, g.Log), func(ctx context.Context) error {
			return shared.Watch(ctx, func(order store.Revocation, ids []string) {
				g.Log.Info("sessions are revoked", "order", order.ID, "sessions", ids)
				g.router.Cut(ids, order.Age)
			})
		})
		g.closers = append(g.closers, func() error { flush(shared, g.Log); return nil })
	}
	g.router = router.New(router.Config{
		Verifier: ticket.NewVerifier(ticket.VerifierConfig{
			Keys: g.Keys, Issuer: g.TicketIssuer, Audience: g.TicketAudience, MaxTTL: g.TicketMaxTTL,
		}),
		Store: g.Store, Local: g.Local, Remote: g.remote, Docker: g.Docker.Ping, Orders: orders, Watching: watching,
		BasePath: g.BasePath, AllowedOrigins: g.AllowedOrigins, TrustedProxies: g.TrustedProxies,
		PingInterval: g.PingInterval, IdleTimeout: g.IdleTimeout, MaxSession: g.MaxSession,
		MaxSessions: g.MaxSessions, HeldBytes: g.held, Replica: g.Replica,
		Log: g.Log, Metrics: router.NewMetrics(g.reg),
	})
	g.reg.MustRegister(g.router)
}

// listen listens, unless the caller does.
func (g *gateway) listen() error {
	if g.Listener != nil {
		g.servers = []server{{g.Listener, g.Front(g.router)}}
		return nil
	}
	terminals, err := net.Listen("tcp", g.Listen)
	if err != nil {
		return fmt.Errorf("TERMGW_LISTEN: listening: %w", err)
	}
	g.servers = []server{{&sparing{Listener: terminals}, g.router}}
	if g.AdminListen != "" {
		admin, err := net.Listen("tcp", g.AdminListen)
		if err != nil {
			return errors.Join(fmt.Errorf("TERMGW_ADMIN_LISTEN: listening: %w", err), terminals.Close())
		}
		g.servers = append(g.servers, server{admin, adminHandler(g.reg, g.AdminListen)})
		g.Log.Info("serving metrics", "address", admin.Addr().String())
	}
	g.Log.Info("serving terminals", "address", terminals.Addr().String(), "version", g.Version,
		"max_sessions", g.MaxSessions, "memory_limit", g.memory, "held_bytes", g.held)
	return nil
}

// purgeEvery is how often a replica tries to remove old rows; one gets to.
const purgeEvery = 10 * time.Minute

func purging(shared *store.Postgres, log *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		return every(ctx, purgeEvery, func() {
			if err := shared.Purge(ctx); err != nil && ctx.Err() == nil {
				log.Warn("old rows were not purged", "err", err)
			}
		})
	}
}

// flush writes what of the audit trail a database that was away has not taken.
func flush(shared *store.Postgres, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := shared.Flush(ctx); err != nil {
		log.Error("the ends of sessions were not recorded", "sessions", shared.Unwritten(), "err", err)
	}
}

// replicaName tells this process from every other in the audit trail.
func replicaName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "-" + strings.ToLower(rand.Text()[:6])
}

// newRegistry has the process's own metrics.
func newRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// orphanCounter counts what the ends of sessions found.
func orphanCounter(reg prometheus.Registerer) func(runner.Swept) {
	orphans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "termgw_orphans_total",
		Help: "Processes that a shell left behind: killed, kept because they were told to stay, or left, which should never move.",
	}, []string{"outcome"})
	reg.MustRegister(orphans)
	killed, kept, left := orphans.WithLabelValues("killed"), orphans.WithLabelValues("kept"), orphans.WithLabelValues("left")
	return func(s runner.Swept) {
		killed.Add(float64(s.Killed))
		kept.Add(float64(s.Kept))
		left.Add(float64(s.Left))
	}
}
