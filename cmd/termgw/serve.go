package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/molecule-ai/termgw/internal/logline"
	"github.com/molecule-ai/termgw/pkg/router"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// ServeCmd runs the gateway.
type ServeCmd struct{}

// Help lists the environment variables.
func (ServeCmd) Help() string {
	var b strings.Builder
	if err := environmentUsage(&b); err != nil {
		panic(err) // the template is wrong
	}
	return b.String()
}

// Run serves until it is told to end.
func (ServeCmd) Run(ctx context.Context, std *stdio, timing runner.Timing) (err error) {
	cfg, err := loadConfig()
	maxSessions, limitErr := sessionLimit(cfg.MaxSessions)
	log := logline.New(std.Err, cfg.LogFormat, cfg.LogLevel)
	memory, held, memoryErr := memoryLimit()
	if memoryErr != nil {
		log.Warn("no memory limit is kept", "err", memoryErr)
	}
	keys, keysErr := openKeys(cfg, log)
	sessions, storeErr := openStore(ctx, cfg, log)
	if sessions != nil {
		defer func() { err = errors.Join(err, sessions.Close()) }()
	}
	reg := newRegistry()
	swept, replica := orphanCounter(reg), replicaName()
	docker, dockerErr := runner.OpenDocker(runner.DockerConfig{
		Shells: cfg.Shells, EndDetached: !cfg.KeepDetached, Swept: swept, Timing: timing,
	})
	if docker != nil {
		defer func() { err = errors.Join(err, docker.Close()) }()
	}
	if err := errors.Join(err, limitErr, keysErr, storeErr, dockerErr); err != nil {
		return err // all that is wrong, in one go
	}
	g := gateway{log: log, drain: cfg.DrainTimeout, jobs: []func(context.Context) error{keys.Run, docker.Run}}

	var remote router.Starter
	if r, err := openRemote(ctx, cfg, countTunnels(sessions, reg), replica, swept, timing, log); err != nil {
		log.Warn("no terminals on instances", "err", err)
	} else {
		remote = r
		defer func() { err = errors.Join(err, r.Close()) }()
	}

	g.jobs = append(g.jobs, func(ctx context.Context) error {
		return sessions.Watch(ctx, func(order store.Revocation, ids []string) {
			log.Info("sessions are revoked", "order", order.ID, "sessions", ids)
			g.router.Cut(ids, order.Age)
		})
	})
	var orders, watching func() error
	if shared, ok := sessions.(*store.Postgres); ok {
		orders, watching = shared.Reading, shared.Watching
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "termgw_orders_age_seconds", Help: "How long ago the orders to cut sessions were last read.",
		}, func() float64 { return shared.OrdersAge().Seconds() }))
		r := &reaper{store: shared, docker: docker, replica: replica, log: log}
		g.jobs = append(g.jobs, shared.Run, r.beat, r.reap, purging(shared, log))
		defer flush(shared, log) // once the sessions are over
	}

	g.router = router.New(router.Config{
		Verifier: ticket.NewVerifier(ticket.VerifierConfig{
			Keys: keys, Issuer: cfg.TicketIssuer, Audience: cfg.TicketAudience, MaxTTL: cfg.TicketMaxTTL,
		}),
		Store: sessions, Local: docker, Remote: remote, Docker: docker.Ping, Orders: orders, Watching: watching,
		BasePath: cfg.BasePath, AllowedOrigins: cfg.AllowedOrigins, TrustedProxies: cfg.TrustedProxies,
		PingInterval: cfg.PingInterval, IdleTimeout: cfg.IdleTimeout, MaxSession: cfg.MaxSession,
		MaxSessions: maxSessions, HeldBytes: held, Replica: replica,
		Log: log, Metrics: router.NewMetrics(reg),
	})
	reg.MustRegister(g.router)

	terminals, err := listen(cfg.Listen)
	if err != nil {
		return fmt.Errorf("TERMGW_LISTEN: %w", err)
	}
	g.servers = append(g.servers, server{&sparing{Listener: terminals}, g.router})
	if cfg.AdminListen != "" {
		admin, err := listen(cfg.AdminListen)
		if err != nil {
			return errors.Join(fmt.Errorf("TERMGW_ADMIN_LISTEN: %w", err), terminals.Close())
		}
		g.servers = append(g.servers, server{admin, adminHandler(reg, cfg.AdminListen)})
		log.Info("serving metrics", "address", admin.Addr().String())
	}
	log.Info("serving terminals", "address", terminals.Addr().String(), "version", version, "max_sessions", maxSessions, "memory_limit", memory, "held_bytes", held)
	return g.run(ctx)
}

// sessionStore is a store, its orders to cut sessions, and its end.
type sessionStore interface {
	router.Store
	tunnelStore
	Watch(ctx context.Context, cut func(order store.Revocation, sessions []string)) error
	io.Closer
}

// openKeys reads a file of keys; those of an address come later. Without either
// loadConfig has said so.
func openKeys(cfg config, log *slog.Logger) (*ticket.Keys, error) {
	if cfg.TicketJWKS == "" {
		return nil, nil
	}
	keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: cfg.TicketJWKS, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("TERMGW_TICKET_JWKS: %w", err)
	}
	return keys, nil
}

// openStore does not connect to a database yet. Without one, or a list of
// workspaces, loadConfig has said so.
func openStore(ctx context.Context, cfg config, log *slog.Logger) (sessionStore, error) {
	switch {
	case cfg.DatabaseURL == "" && cfg.WorkspacesFile == "":
		return nil, nil
	case cfg.DatabaseURL != "":
		shared, err := store.OpenPostgres(store.PostgresConfig{
			URL: cfg.DatabaseURL, WorkspaceQuery: cfg.WorkspaceQuery, Limits: cfg.Limits, Logger: log,
		})
		if err != nil {
			return nil, fmt.Errorf("TERMGW_DATABASE_URL, TERMGW_WORKSPACE_QUERY: %w", err)
		}
		return shared, nil
	}
	workspaces, err := store.ReadWorkspacesFile(cfg.WorkspacesFile)
	if err != nil {
		return nil, fmt.Errorf("TERMGW_WORKSPACES_FILE: %w", err)
	}
	// A ticket's time is in whole seconds. Served from the next one on, a ticket
	// of this process is told from one that an earlier process may have seen.
	since := time.Now().Truncate(time.Second).Add(time.Second)
	log.Info("no database: sessions are kept in this process, which must be the only replica", "workspaces", len(workspaces))
	select {
	case <-time.After(time.Until(since)):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return store.NewMemory(store.MemoryConfig{Lookup: store.LookupIn(workspaces), Since: since, Limits: cfg.Limits}), nil
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

// MigrateCmd brings the schema up to date.
type MigrateCmd struct{}

// Run applies what is missing and names it.
func (MigrateCmd) Run(ctx context.Context, std *stdio) error {
	url := os.Getenv("TERMGW_DATABASE_URL")
	if url == "" {
		return errors.New("TERMGW_DATABASE_URL is not set")
	}
	applied, err := store.Migrate(ctx, url)
	for _, name := range applied {
		_, _ = fmt.Fprintf(std.Out, "applied %s\n", name)
	}
	if err == nil && len(applied) == 0 {
		_, err = fmt.Fprintln(std.Out, "the schema is up to date")
	}
	return err
}
