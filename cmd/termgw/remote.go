package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/eice"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
)

// endpointQuota is how many tunnels AWS lets an endpoint carry, over all
// replicas (EC2 Instance Connect Endpoint quotas; it cannot be raised).
const endpointQuota = 20

// tunnelStore counts tunnels over all replicas and keeps what an instance's
// sshd showed.
type tunnelStore interface {
	runner.HostKeys
	AcquireTunnel(ctx context.Context, endpoint, instanceID, replica string, limit int) (lease string, err error)
	ReleaseTunnel(ctx context.Context, lease string) error
}

// tunnels opens ways to instances through an EC2 Instance Connect Endpoint. It
// is where pkg/eice and pkg/runner meet, which do not know each other.
type tunnels struct {
	aws     *eice.Client
	shared  tunnelStore
	replica string
	cli     bool // the AWS CLI carries the bytes
	log     *slog.Logger
}

// openRemote returns the runner of workspaces on instances. It asks AWS nothing
// yet: a gateway without such workspaces needs no credentials.
func openRemote(ctx context.Context, cfg config, shared tunnelStore, replica string, swept func(runner.Swept), log *slog.Logger) (remoteStarter, error) {
	sdk, err := awsconfig.LoadDefaultConfig(ctx)
	if err != nil {
		return remoteStarter{}, fmt.Errorf("the AWS configuration: %w", err)
	}
	remote, err := runner.NewRemote(runner.RemoteConfig{
		Tunnels: &tunnels{
			aws:    eice.New(eice.Config{AWS: sdk, EndpointID: cfg.EICEEndpointID, Environ: os.Environ()}),
			shared: shared, replica: replica, cli: cfg.EICETunnel == "aws-cli", log: log,
		},
		HostKeys: shared, OSUser: cfg.EICEOSUser, Target: cfg.RemoteTarget,
		Shells: cfg.Shells, EndDetached: !cfg.KeepDetached, Swept: swept, Log: log,
	})
	return remoteStarter{remote}, err
}

// remoteStarter gives the failures of a login a sentence, as AWS's have.
type remoteStarter struct{ *runner.Remote }

// Start is that of runner.Remote.
func (r remoteStarter) Start(ctx context.Context, t runner.Target, size bridge.Size) (bridge.Terminal, error) {
	term, err := r.Remote.Start(ctx, t, size)
	var failed *runner.Error
	if errors.As(err, &failed) && loginSentences[failed.Step] != "" {
		return nil, &loginError{err, loginSentences[failed.Step]}
	}
	return term, err
}

// loginSentences say what to do, by the step that failed.
var loginSentences = map[string]string{
	"instance_id":   "The workspace's instance id is malformed: correct it in the workspace's row.",
	"os_user":       "The OS user configured for this workspace is not a valid user name: correct os_user in the workspace's row.",
	"remote_target": "The workspace's remote_target is neither container nor host: correct it in the workspace's row.",
	"ssh_auth":      "The instance refused the gateway's key. Check the OS user (os_user in the workspace's row, TERMGW_EICE_OS_USER), and that the instance's image has ec2-instance-connect.",
	"ssh_hostkey":   "The instance's host key is not the one that is known for it. If the instance was made anew, correct host_key in the workspace's row, or delete the instance's line from termgw.host_keys. If not, find out who answers.",
	"ssh_timeout":   "The instance's sshd does not answer. Check that sshd runs on the instance and is not overloaded.",
	"ssh_closed":    "The instance's sshd hung up. Check sshd's own log on the instance: it, or the tunnel, hung up.",
	"ssh_sessions":  "The instance's sshd opens no session. Check MaxSessions in its configuration.",
}

type loginError struct {
	error
	sentence string
}

func (e *loginError) Unwrap() error    { return e.error }
func (e *loginError) Sentence() string { return e.sentence + " See " + eice.Docs + "." }

// Open finds the instance, takes one of its endpoint's places, and lets the key
// in while the tunnel opens.
func (t *tunnels) Open(ctx context.Context, r runner.TunnelRequest) (runner.Tunnel, error) {
	route, err := t.aws.Locate(ctx, r.InstanceID, r.Region)
	if err != nil {
		return runner.Tunnel{}, told(err)
	}
	lease, err := t.shared.AcquireTunnel(ctx, route.EndpointID, r.InstanceID, t.replica, endpointQuota)
	if err != nil {
		return runner.Tunnel{}, err
	}
	tunnel := runner.Tunnel{Expires: time.Now().Add(eice.MaxTunnel), Ended: func() { t.release(lease) }}
	both, bothCtx := errgroup.WithContext(ctx)
	both.Go(func() error { return t.aws.PushKey(bothCtx, route, r.OSUser, r.PublicKey) })
	if t.cli {
		tunnel.Command, tunnel.Env = t.aws.Command(route, eice.MaxTunnel)
	} else {
		both.Go(func() error {
			conn, err := t.aws.OpenTunnel(bothCtx, route, eice.MaxTunnel)
			if err == nil {
				tunnel.Conn = newTellingConn(conn)
			}
			return err
		})
	}
	if err := both.Wait(); err != nil {
		if tunnel.Conn != nil {
			_ = tunnel.Conn.Close()
		}
		tunnel.Ended()
		return runner.Tunnel{}, told(err)
	}
	return tunnel, nil
}

func (t *tunnels) release(lease string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := t.shared.ReleaseTunnel(ctx, lease); err != nil {
		t.log.Warn("a tunnel's place is freed late", "err", err) // it frees itself
	}
}

// tellingConn is a tunnel whose errors say what they mean for a session. The
// endpoint's last word comes to whoever reads; a writer sees no more than a
// broken connection, and often first: it waits for that word.
type tellingConn struct {
	net.Conn
	once  sync.Once
	ended chan struct{} // closed after the next was set
	err   error         // of the Read that failed
}

// lastWord bounds that wait, for when nobody reads.
const lastWord = time.Second

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
	case <-time.After(lastWord):
		return n, told(err)
	}
}

// told gives an error of AWS's the meaning that the error table knows.
func told(err error) error {
	var e *eice.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Detail {
	case eice.TunnelQuota:
		return fmt.Errorf("%w: %w", &store.LimitError{Of: store.LimitTunnels, Max: endpointQuota}, err)
	case eice.TunnelExpired:
		return fmt.Errorf("%w: %w", bridge.ErrTunnel, err)
	default:
		return &runner.Error{Step: string(e.Detail), Err: err}
	}
}
