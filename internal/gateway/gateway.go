// Package gateway is the running process: it opens the store, the ticket keys and the
// kinds of place, joins them by a router, serves the listeners, does the background
// work of a replica, and ends in an orderly way.
//
// The package reads no flags and no environment: package main passes values. Requests
// are the router's business, and shells that of the kinds of place.
package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/termgw/pkg/router"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/docker"
	"github.com/molecule-ai/termgw/pkg/runner/instance"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Config holds the values of a gateway. The caller has checked them. Run opens the
// router's Store, Verifier and Places by these values, unless Store is set: then the
// caller sets all three, and closes them. Places that the caller has set come before the
// places that Run opens.
type Config struct {
	router.Config // Replica empty: the host's name and a random suffix; MaxSessions 0: as many as the process's descriptors allow

	// Faults lists the invalid values. Run does not serve then, but returns Faults together
	// with the errors of the parts that Run could not open.
	Faults  error
	Version string

	Listen, AdminListen, PprofListen                             string                    // host:port, unix:/PATH or systemd[:NAME]; empty, of the last two: none
	ListenMode                                                   fs.FileMode               // of the sockets of unix:/PATH
	Sockets                                                      map[string][]net.Listener // those that systemd has passed, by name
	TLS                                                          TLSFiles                  // of Listen; empty: no TLS
	Tracing                                                      bool                      // spans go where the OTEL_* variables say
	ProxyProtocol                                                bool                      // trusted proxies begin with a PROXY header
	DatabaseURL, DatabaseURLFile, WorkspacesFile, WorkspaceQuery string
	DatabaseMaxConns                                             int           // 0: 10
	AuditRetention                                               time.Duration // 0: for ever
	TicketJWKS, TicketIssuer, TicketAudience                     string
	TicketMaxTTL                                                 time.Duration
	Limits                                                       store.Limits
	DrainTimeout                                                 time.Duration
	Shells                                                       []string
	KeepDetached                                                 bool
	WithoutDocker                                                bool // no engine is asked for, nor for its state
	RemoteTarget, EICETunnel                                     string
	EICEOSUser, EICEEndpointID                                   string
	Environ                                                      []string // the environment of the AWS CLI, if EICETunnel is aws-cli
	Timing                                                       runner.Timing

	Listener net.Listener                              // nil: Run listens at Listen and AdminListen
	Front    func(terminals http.Handler) http.Handler // the handler of Listener
}

// Store holds workspaces, spent tickets, sessions and tunnels.
type Store interface {
	router.Store
	tunnelStore
	io.Closer
}

// OpenKeys returns the ticket keys of TicketJWKS: it reads a file at once, while the keys
// of a URL are fetched by Keys.Run. The keys are nil if TicketJWKS is empty, a fault.
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

// OpenStore opens the store without a connection to the database. The caller closes the
// store. It is nil if DatabaseURL, DatabaseURLFile and WorkspacesFile are all empty, a fault.
func (c *Config) OpenStore(ctx context.Context) (Store, error) {
	switch {
	case c.DatabaseURL == "" && c.DatabaseURLFile == "" && c.WorkspacesFile == "":
		return nil, nil
	case c.WorkspacesFile == "":
		var kinds []store.Kind
		for _, p := range c.Places {
			kinds = append(kinds, store.Kind{Name: p.Name, Column: p.Column})
		}
		for _, own := range c.ownPlaces() {
			kinds = append(kinds, store.Kind{Name: own.name, Column: own.column})
		}
		shared, err := store.OpenPostgres(store.PostgresConfig{
			URL: c.DatabaseURL, URLFile: c.DatabaseURLFile, Token: DatabaseToken, WorkspaceQuery: c.WorkspaceQuery, Limits: c.Limits, Logger: c.Log, Kinds: kinds,
			MaxConns: c.DatabaseMaxConns, Retention: c.AuditRetention,
		})
		if err != nil {
			return nil, fmt.Errorf("TERMGW_DATABASE_URL, TERMGW_WORKSPACE_QUERY: %w", err)
		}
		return shared, nil
	}
	workspaces, err := store.ReadWorkspacesFile(c.WorkspacesFile, c.Places.Columns()...)
	if err != nil {
		return nil, fmt.Errorf("TERMGW_WORKSPACES_FILE: %w", err)
	}
	// The times in a ticket are whole seconds. A ticket that is issued in the next second
	// or later cannot have been spent by an earlier process.
	since := time.Now().Truncate(time.Second).Add(time.Second)
	c.Log.Info("no database: sessions are kept in this process, which must be the only replica", "workspaces", len(workspaces))
	select {
	case <-time.After(time.Until(since)):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return store.NewMemory(store.MemoryConfig{Lookup: store.LookupIn(workspaces), Since: since, Limits: c.Limits}), nil
}

// ownPlaces are the kinds of place that OpenPlaces opens, by their names and the rows
// that are of them.
func (c *Config) ownPlaces() []ownPlace {
	return []ownPlace{
		{"remote", instance.Column, c.openInstances},
		{"local", "", c.openContainers},
	}
}

type ownPlace struct {
	name, column string
	open         func(context.Context, placeParts) (kind runner.Kind, closeKind func() error, err error)
}

// placeParts are parts of the gateway that a kind may need. The last two may be nil.
type placeParts struct {
	shared tunnelStore
	swept  func(runner.Swept)
	reg    prometheus.Registerer
}

// OpenPlaces returns the places that Places has, and after them those that it opens. ping
// asks the Docker engine; closeAll closes the opened kinds. swept and reg may be nil.
func (c *Config) OpenPlaces(ctx context.Context, shared tunnelStore, swept func(runner.Swept), reg prometheus.Registerer) (places runner.Places, ping func(context.Context) error, closeAll func() error, err error) {
	places = slices.Clone(c.Places)
	var closers []func() error
	closeAll = func() error {
		var all errgroup.Group // at the same time: each Close may try ends once more
		for _, c := range closers {
			all.Go(c)
		}
		return all.Wait()
	}
	for _, own := range c.ownPlaces() {
		kind, closeKind, openErr := own.open(ctx, placeParts{shared, swept, reg})
		if openErr != nil {
			err = errors.Join(err, openErr)
			continue
		}
		places, closers = append(places, runner.Place{Name: own.name, Column: own.column, Kind: kind}), append(closers, closeKind)
		if engine, ok := kind.(*docker.Kind); ok {
			ping = engine.Ping
		}
	}
	return places, ping, closeAll, err
}

func (c *Config) openContainers(_ context.Context, parts placeParts) (runner.Kind, func() error, error) {
	if c.WithoutDocker {
		return runner.Absent("docker", errors.New("TERMGW_DOCKER is false")), func() error { return nil }, nil
	}
	k, err := docker.Open(docker.Config{Shells: c.Shells, KeepDetached: c.KeepDetached, Swept: parts.swept, Timing: c.Timing})
	if err != nil {
		return nil, nil, err
	}
	return k, k.Close, nil
}

// gateway is a Config with the parts that Run has opened.
type gateway struct {
	Config
	reg     *prometheus.Registry
	router  *router.Router
	memory  int64                         // the process's memory limit, in bytes; 0: none
	jobs    []func(context.Context) error // each runs until its context ends
	servers []server
	certs   *certificates  // nil: no TLS
	closers []func() error // called in reverse order
}

// Run serves until ctx ends or a part fails; then Run drains, ends everything that it has
// started, and returns. From then on one of EndSignals ends the drain's grace time.
func Run(ctx context.Context, cfg Config) (err error) {
	g := &gateway{Config: cfg, reg: prometheus.NewRegistry()}
	g.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	buildInfo(g.reg, g.Version)
	g.Replica, g.Metrics = cmp.Or(g.Replica, replicaName()), router.NewMetrics(g.reg)
	var memoryErr error
	if g.memory, g.HeldBytes, memoryErr = memoryLimit(); memoryErr != nil {
		g.Log.Warn("no memory limit is kept", "err", memoryErr)
	}
	defer func() {
		for _, c := range slices.Backward(g.closers) {
			err = errors.Join(err, c())
		}
	}()
	if g.Tracing && g.Faults == nil {
		if err := g.openTracing(ctx); err != nil {
			return err
		}
	}
	if g.Store == nil {
		if err := g.open(ctx); err != nil {
			return err
		}
	}
	if g.certs != nil {
		g.HopTLS = &tls.Config{GetClientCertificate: g.certs.present}
	}
	g.router = router.New(g.Config.Config)
	g.reg.MustRegister(g.router)
	g.jobs = append(g.jobs, g.router.CheckParts)
	if err := g.listen(); err != nil {
		return err
	}
	return g.serve(ctx)
}

// open opens the parts that the router joins, and adds their jobs. The error lists every
// fault.
func (g *gateway) open(ctx context.Context) error {
	maxSessions, limitErr := sessionLimit(g.MaxSessions)
	keys, keysErr := g.OpenKeys()
	sessions, storeErr := g.OpenStore(ctx)
	if sessions != nil {
		g.closers = append(g.closers, sessions.Close)
		// A database that is away may come back; a query that it refuses stays wrong.
		if pingErr := sessions.Ping(ctx); errors.Is(pingErr, store.ErrQuery) {
			storeErr = fmt.Errorf("TERMGW_WORKSPACE_QUERY: %w", pingErr)
		}
	}
	var tlsErr error
	if g.TLS.Cert != "" {
		g.certs, tlsErr = openCertificates(g.TLS, g.Log)
	}
	swept := orphanCounter(g.reg)
	places, ping, closePlaces, placesErr := g.OpenPlaces(ctx, sessions, swept, g.reg)
	g.closers = append(g.closers, closePlaces)
	if err := errors.Join(g.Faults, limitErr, keysErr, storeErr, tlsErr, placesErr); err != nil {
		return err
	}
	g.Verifier = ticket.NewVerifier(ticket.VerifierConfig{
		Keys: keys, Issuer: g.TicketIssuer, Audience: g.TicketAudience, MaxTTL: g.TicketMaxTTL,
	})
	keysAge(g.reg, keys.Age)
	sessionsLimit(g.reg, maxSessions)
	g.Store, g.Places, g.Docker, g.MaxSessions = sessions, places, ping, maxSessions
	g.Keys = keys.Ready
	g.jobs = append(g.jobs, keys.Run)
	if shared, ok := sessions.(*store.Postgres); ok {
		g.Orders, g.Watching = shared.Reading, shared.Watching
		storeMetrics(g.reg, shared)
		r := &reaper{store: shared, places: places, replica: g.Replica, beatFailed: heartbeatFailures(g.reg).Inc, waiting: func() []string { return g.router.Waiting() }, log: g.Log}
		g.jobs = append(g.jobs, shared.Run, r.beat, r.reap, r.purge, func(ctx context.Context) error {
			return shared.Watch(ctx, func(revocation store.Revocation, ids []string) {
				g.Log.Info("sessions are revoked", "order", revocation.ID, "sessions", ids)
				g.router.Cut(ids, revocation.Age)
			})
		})
		g.closers = append(g.closers, func() error { // writes the outbox: ends of sessions that the database has not taken yet
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := shared.Flush(ctx); err != nil {
				g.Log.Error("the ends of sessions were not recorded", "sessions", shared.Unwritten(), "err", err)
			}
			return nil
		})
	}
	return nil
}

// replicaName returns a name for the audit trail that no other process has.
func replicaName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "-" + strings.ToLower(rand.Text()[:6])
}
