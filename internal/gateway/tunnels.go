package gateway

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/termgw/internal/keeper/program"
	"github.com/molecule-ai/termgw/pkg/eice"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/instance"
	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/store"
)

// sweepTime is the time between a tunnel's end by the gateway and its end by AWS. The
// gateway ends the shells in that time, over the same tunnel: a new tunnel for that would
// count among the 20.
const sweepTime = 10 * time.Second

// tunnelStore counts tunnels over all replicas and keeps the host keys of instances.
type tunnelStore interface {
	instance.HostKeys
	AcquireTunnel(ctx context.Context, endpoint, instanceID, replica string, limit int) (lease string, err error)
	FreeTunnels(ctx context.Context, endpoint string, limit int) (int, error)
	IdleTunnel(ctx context.Context, lease string) (wanted bool, err error)
	VacateTunnel(ctx context.Context, endpoint, replica string) (vacated bool, err error)
	ReleaseTunnel(ctx context.Context, lease string) error
}

// Names in a runner.Trail, besides the runner's own.
const (
	trailEndpoint = "endpoint"        // the endpoint's id
	trailAddress  = "address"         // the instance's
	trailRegion   = "region"          // of AWS
	trailIdentity = "source_identity" // of the session of the row's role

	// The ids of AWS's answers, as CloudTrail has them: AssumeRole, DescribeInstances, DescribeInstanceConnectEndpoints,
	// SendSSHPublicKey and OpenTunnel, and of the one that was refused. A route that was found for another terminal has the
	// requests of that time.
	trailRoleRequest     = "request_role"
	trailInstanceRequest = "request_instance"
	trailEndpointRequest = "request_endpoint"
	trailKeyRequest      = "request_key"
	trailTunnelRequest   = "request_tunnel"
	trailRefusedRequest  = "request_refused"
)

// tunnels opens tunnels to instances through an EC2 Instance Connect Endpoint. It
// joins pkg/eice and pkg/runner/instance, which do not import each other.
type tunnels struct {
	aws     *eice.Client
	shared  tunnelStore
	replica string
	cli     bool                 // tunnels are opened by the AWS CLI
	open    *prometheus.GaugeVec // tunnels of this replica, by endpoint
	log     *slog.Logger
	steps   *tunnelSteps // nil: nobody asks for them
}

func tunnelGauge(reg prometheus.Registerer) *prometheus.GaugeVec {
	return promauto.With(reg).NewGaugeVec(prometheus.GaugeOpts{
		Name: "termgw_eice_tunnels", Help: "Tunnels of this replica through an EC2 Instance Connect Endpoint. AWS lets an endpoint carry 20, over all replicas.",
	}, []string{"endpoint"})
}

// openInstances opens the kind of place for instances. It sends no request to AWS: a
// gateway without such workspaces needs no credentials, nor OpenSSH.
func (c *Config) openInstances(ctx context.Context, parts placeParts) (runner.Kind, func() error, error) {
	var steps *tunnelSteps
	if c.Tracer != nil {
		steps = &tunnelSteps{}
	}
	k, err := c.openInstanceKind(ctx, parts, steps)
	switch {
	case err != nil:
		c.Log.Warn("no terminals on instances", "err", err)
		return runner.Absent("remote", err), func() error { return nil }, nil
	case steps != nil:
		return &observedInstances{k, steps}, k.Close, nil
	}
	return k, k.Close, nil
}

func (c *Config) openInstanceKind(ctx context.Context, parts placeParts, steps *tunnelSteps) (*instance.Kind, error) {
	sdk, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithAPIOptions([]func(*middleware.Stack) error{eice.KeepRefusals}))
	if err != nil {
		return nil, fmt.Errorf("the AWS configuration: %w", err)
	}
	return instance.Open(instance.Config{
		Tunnels: &tunnels{
			aws:    eice.New(eice.Config{AWS: sdk, EndpointID: c.EICEEndpointID, Environ: c.Environ}),
			shared: parts.shared, replica: c.Replica, cli: c.EICETunnel == "aws-cli", open: tunnelGauge(parts.reg), log: c.Log, steps: steps,
		},
		HostKeys: parts.shared, OSUser: c.EICEOSUser, Target: c.RemoteTarget,
		Shells: c.Shells, KeepDetached: c.KeepDetached, Swept: parts.swept, Timing: c.Timing,
		Keepers: sync.OnceValues(program.Embedded),
	})
}

// Find asks AWS for the way to an instance.
func (t *tunnels) Find(ctx context.Context, r instance.TunnelRequest) (runner.Trail, error) {
	_, trail, err := t.find(ctx, r)
	return trail, err
}

func (t *tunnels) find(ctx context.Context, r instance.TunnelRequest) (eice.Route, runner.Trail, error) {
	began := time.Now()
	route, err := t.aws.Locate(ctx, asked(r))
	t.steps.found(r, began, time.Now())
	return route, refusedTrail(trailOf(route), err), told(err)
}

// Open finds the instance, takes a lease of one of its endpoint's tunnels, and opens the
// tunnel while AWS puts the key on the instance.
func (t *tunnels) Open(ctx context.Context, r instance.TunnelRequest) (instance.Tunnel, error) {
	route, trail, err := t.find(ctx, r)
	if err != nil {
		return instance.Tunnel{Trail: trail}, err
	}
	began := time.Now()
	place, err := t.acquire(ctx, route.EndpointID, r.InstanceID)
	if err != nil {
		return instance.Tunnel{Trail: trail}, err
	}
	tunnel := instance.Tunnel{
		Expires: time.Now().Add(eice.MaxTunnel - sweepTime), Trail: trail,
		Ended: place.release, Room: place.room, Idle: place.idle,
	}
	tunnel.Trail.Add(place.trail())
	var pushed, opened string // the ids of AWS's answers
	both, bothCtx := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		pushed, err = t.aws.PushKey(bothCtx, route, r.OSUser, r.PublicKey)
		return err
	})
	both.Go(func() error {
		if t.cli {
			var err error
			tunnel.Command, tunnel.Env, err = t.aws.Command(bothCtx, route, eice.MaxTunnel)
			tunnel.Explain = func(said string) error { return told(t.aws.CommandError(said)) }
			return err
		}
		conn, request, err := t.aws.OpenTunnel(bothCtx, route, eice.MaxTunnel)
		if refusedByAWS(err) && t.vacate(bothCtx, route.EndpointID) {
			conn, request, err = t.aws.OpenTunnel(bothCtx, route, eice.MaxTunnel)
		}
		if err == nil {
			tunnel.Conn, opened = newTellingConn(conn), request
		}
		return err
	})
	err = both.Wait()
	tunnel.Trail.Set(trailKeyRequest, pushed)
	tunnel.Trail.Set(trailTunnelRequest, opened)
	if err != nil {
		if tunnel.Conn != nil {
			_ = tunnel.Conn.Close()
		}
		tunnel.Ended()
		return instance.Tunnel{Trail: refusedTrail(tunnel.Trail, err)}, told(err)
	}
	t.steps.opened(r, place.lease, began, time.Now())
	return tunnel, nil
}

// asked returns the instance of a request as pkg/eice has it.
func asked(r instance.TunnelRequest) eice.Instance {
	return eice.Instance{ID: r.InstanceID, Region: r.Region, EndpointID: r.Endpoint, Role: r.Role, SourceIdentity: r.SourceIdentity}
}

// trailOf returns what AWS knows a route by. CloudTrail finds the requests by their ids.
func trailOf(route eice.Route) runner.Trail {
	t := runner.Trail{}
	t.Set(trailEndpoint, route.EndpointID)
	if route.Address.IsValid() {
		t.Set(trailAddress, route.Address.String())
	}
	t.Set(trailRegion, route.Region)
	t.Set(trailIdentity, route.SourceIdentity)
	t.Set(trailRoleRequest, route.RoleRequest)
	t.Set(trailInstanceRequest, route.InstanceRequest)
	t.Set(trailEndpointRequest, route.EndpointRequest)
	return t
}

// refusedTrail returns the trail with the id of the request that AWS refused.
func refusedTrail(t runner.Trail, err error) runner.Trail {
	if fault, ok := errors.AsType[*eice.Error](err); ok {
		t.Set(trailRefusedRequest, fault.Request)
	}
	return t
}

// Steps are the steps from the credentials to sshd's greeting.
func (t *tunnels) Steps(r instance.TunnelRequest) []runner.Step {
	var route eice.Route
	var err error // of Locate; the step that the error belongs to reports it
	of := func(step, found string) (string, error) {
		if stepOf(err) == step {
			return "", told(err)
		}
		return found, nil
	}
	return []runner.Step{
		{
			Name: "aws", Fix: "Check the SDK's configuration: AWS_REGION, AWS_PROFILE, the shared configuration file.",
			Run: func(ctx context.Context) (string, error) {
				route, err = t.aws.Locate(ctx, asked(r))
				found := "takes the gateway's credentials"
				if r.Role != "" {
					found += ", and lets it assume the workspace's role"
				}
				if r.SourceIdentity != "" {
					found += " as " + r.SourceIdentity
				}
				return of("aws", found)
			},
		},
		{Name: "instance", Run: func(context.Context) (string, error) {
			if err != nil {
				return of("instance", "runs")
			}
			return fmt.Sprintf("runs in %s at %s", route.Region, route.Address), nil
		}},
		{Name: "endpoint", Run: func(context.Context) (string, error) { return of("endpoint", route.EndpointID) }},
		{Name: "key", Apart: true, Run: func(ctx context.Context) (string, error) {
			// The private key is dropped: nobody can log in with this pair.
			public, _, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return "", fmt.Errorf("making a key: %w", err)
			}
			line, err := ssh.NewPublicKey(public)
			if err != nil {
				return "", fmt.Errorf("making a key: %w", err)
			}
			_, err = t.aws.PushKey(ctx, route, r.OSUser, string(ssh.MarshalAuthorizedKey(line)))
			return "AWS takes one for " + r.OSUser, told(err)
		}},
		{
			Name: "tunnel", Fix: "Check both security groups (endpoint outbound 22, instance inbound 22), network ACLs and sshd.",
			Run: func(ctx context.Context) (string, error) { return t.greeting(ctx, route) },
		},
	}
}

// greetTime bounds the wait for sshd's greeting.
const greetTime = 10 * time.Second

// greeting opens a tunnel and waits for sshd's greeting: the endpoint opens a tunnel also
// if it cannot reach the instance.
func (t *tunnels) greeting(ctx context.Context, route eice.Route) (string, error) {
	place, err := t.acquire(ctx, route.EndpointID, route.ID)
	if err != nil {
		return "", err
	}
	defer place.release()
	conn, _, err := t.aws.OpenTunnel(ctx, route, eice.MaxTunnel)
	if err != nil {
		return "", told(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(greetTime))
	greeting, err := instance.Greeting(conn)
	var failed *runner.Failure
	switch {
	case errors.As(err, &failed):
		return "", err // sshd, or what listens there, said why
	case err != nil:
		return "", fmt.Errorf("%w\nnot looked at: security groups, which the gateway's rights do not let it read", told(err))
	}
	found := "sshd answers: " + greeting
	if t.cli {
		found += "; terminals have theirs by the AWS CLI"
	}
	return found, nil
}

// stepOf returns the step that an error of Locate belongs to, or "" for no error.
func stepOf(err error) string {
	var e *eice.Error
	switch {
	case err == nil:
		return ""
	case !errors.As(err, &e):
		return "aws"
	}
	switch e.Detail {
	case eice.InstanceID, eice.InstanceUnknown, eice.InstancePending, eice.InstanceStopping, eice.InstanceStopped, eice.InstanceShuttingDown,
		eice.InstanceTerminated, eice.InstanceNoAddress, eice.IAMInstances:
		return "instance"
	case eice.EndpointID, eice.EndpointNone, eice.EndpointUnknown, eice.EndpointCreating, eice.EndpointFIPS, eice.EndpointAddress, eice.IAMEndpoints:
		return "endpoint"
	default:
		return "aws"
	}
}

// tellingConn is a tunnel whose errors are the session's (told). Only Read gets the
// endpoint's reason for an end; Write gets a broken connection, often before Read has the
// reason, so Write waits for the error of Read.
type tellingConn struct {
	net.Conn
	once  sync.Once
	ended chan struct{} // closed once err is set
	err   error         // of the Read that failed
}

// reasonTime bounds the wait of Write, for a tunnel from which nobody reads.
const reasonTime = time.Second

func newTellingConn(c net.Conn) *tellingConn {
	return &tellingConn{Conn: c, ended: make(chan struct{})}
}

func (c *tellingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	err = told(err)
	if err != nil {
		c.once.Do(func() {
			c.err = err
			close(c.ended)
		})
	}
	return n, err
}

func (c *tellingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err == nil {
		return n, nil
	}
	select {
	case <-c.ended:
		return n, c.err
	case <-time.After(reasonTime):
		return n, told(err)
	}
}

// told translates an error of pkg/eice into an error that the router's table knows. No
// other code does so.
func told(err error) error {
	var e *eice.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Detail {
	case eice.TunnelQuota:
		return noTunnelLeft(fmt.Errorf("%w: %w", &store.LimitError{Of: store.LimitTunnels, Max: eice.MaxTunnels}, err))
	case eice.TunnelExpired:
		return fmt.Errorf("%w: %w", session.ErrTunnel, err)
	default:
		return &runner.Failure{Step: string(e.Detail), Sentence: e.Sentence(), Final: e.Final(), Err: e.Err}
	}
}
