// Package eice is the AWS side of a remote workspace: it finds an instance and
// its EC2 Instance Connect Endpoint, pushes a key for one login, and opens a
// tunnel to the instance's sshd, or says how the AWS CLI would open it.
//
// It does not know SSH, what a workspace is, nor who asks. What AWS answers is
// not trusted until it was checked: an address or a name from it goes into a
// signed request and into a command line.
package eice

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2instanceconnect"
	"golang.org/x/sync/singleflight"
)

const (
	// stepTime bounds each of the three steps with its retries. Key and tunnel
	// go at the same time, so that the whole path fails within 12 s.
	stepTime   = 6 * time.Second
	attempts   = 4
	maxBackoff = time.Second

	// cacheTime is how long a route is believed. OpenTunnel authorises an
	// address, and addresses are given to other instances in time.
	cacheTime = 30 * time.Second

	// MaxTunnel is AWS's longest tunnel.
	MaxTunnel = time.Hour

	// MaxTunnels is how many tunnels AWS lets an endpoint carry, over all replicas
	// (EC2 Instance Connect Endpoint quotas; it cannot be raised).
	MaxTunnels = 20

	sshPort = "22"
)

// Config is what a Client needs.
type Config struct {
	// AWS is the SDK's own configuration. Its HTTP client's transport (roots,
	// proxy, dialer) carries the tunnels too, when it is the SDK's own type.
	AWS aws.Config
	// EndpointID is the endpoint to use; empty: found by the instance's VPC.
	EndpointID string
	// Environ is the gateway's environment, of which Command hands on what the
	// AWS CLI reads. Only needed for Command.
	Environ []string
	// Now is the clock that signs; nil is time.Now.
	Now func() time.Time
}

// Client talks to AWS. Its methods may be called at the same time.
type Client struct {
	cfg       Config
	instances instancesCall
	endpoints endpointsCall
	sendKey   sendKeyCall
	transport *http.Transport
	fips      bool
	now       func() time.Time
	stepTime  time.Duration
	pingEvery time.Duration
	pongTime  time.Duration

	flight singleflight.Group
	mu     sync.Mutex
	routes map[place]known
}

// The three operations that are used, as functions: with the SDK's clients in
// its reach the linker keeps all their methods, and EC2's 700 are 25 MB.
type (
	instancesCall func(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	endpointsCall func(context.Context, *ec2.DescribeInstanceConnectEndpointsInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceConnectEndpointsOutput, error)
	sendKeyCall   func(context.Context, *ec2instanceconnect.SendSSHPublicKeyInput, ...func(*ec2instanceconnect.Options)) (*ec2instanceconnect.SendSSHPublicKeyOutput, error)
)

// DescribeInstanceConnectEndpoints is what the SDK's paginator calls.
func (f endpointsCall) DescribeInstanceConnectEndpoints(ctx context.Context, in *ec2.DescribeInstanceConnectEndpointsInput, o ...func(*ec2.Options)) (*ec2.DescribeInstanceConnectEndpointsOutput, error) {
	return f(ctx, in, o...)
}

// place is what a route is found by.
type place struct{ instance, region string }

type known struct {
	route Route
	until time.Time
}

// Route is the way to an instance, as Locate found and checked it.
type Route struct {
	InstanceID  string
	Region      string
	Address     netip.Addr // private, IPv4
	EndpointID  string
	EndpointDNS string
}

// New returns a client. It makes no request.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg, now: cfg.Now, stepTime: stepTime, pingEvery: pingEvery, pongTime: pongTime, routes: map[place]known{}}
	if c.now == nil {
		c.now = time.Now
	}
	if sdk, ok := cfg.AWS.HTTPClient.(*awshttp.BuildableClient); ok {
		c.transport = sdk.GetTransport()
	} else {
		c.transport = awshttp.NewBuildableClient().GetTransport()
	}
	// A WebSocket is an upgrade, which HTTP/2 does not have.
	c.transport.Protocols = new(http.Protocols)
	c.transport.Protocols.SetHTTP1(true)
	c.transport.ForceAttemptHTTP2 = false
	c.transport.DisableKeepAlives = true

	sdk := cfg.AWS.Copy()
	// A wrong clock breaks tickets and the CLI as well: it is told, not hidden.
	sdk.DisableClockSkewCorrection = true
	sdk.Retryer = func() aws.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff = attempts, maxBackoff
		})
	}
	sdk.RetryMaxAttempts = 0 // it would go before the Retryer's own
	compute := ec2.NewFromConfig(sdk, func(o *ec2.Options) { o.APIOptions = append(o.APIOptions, checkRoot) })
	c.instances, c.endpoints = compute.DescribeInstances, compute.DescribeInstanceConnectEndpoints
	c.sendKey = ec2instanceconnect.NewFromConfig(sdk).SendSSHPublicKey
	c.fips = compute.Options().EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled
	return c
}

var (
	instanceForm = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)
	endpointForm = regexp.MustCompile(`^eice-[0-9a-f]{8,17}$`)
	regionForm   = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{2,16}){1,3}-[0-9]{1,2}$`)
	userForm     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	// dnsForm keeps signed requests with AWS, whatever an answer says.
	dnsForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.){1,8}amazonaws\.com(\.cn)?$`)
)

// ValidInstanceID tells whether id is written as an instance's.
func ValidInstanceID(id string) bool { return instanceForm.MatchString(id) }

// ValidOSUser tells whether name is a POSIX user name, which also fits into a
// command line.
func ValidOSUser(name string) bool { return userForm.MatchString(name) }

// credentials asks for them before each request, so that their failure is told
// from the request's. The SDK keeps them: this costs nothing while they last.
func (c *Client) credentials(ctx context.Context) (aws.Credentials, error) {
	if c.cfg.AWS.Credentials == nil {
		return aws.Credentials{}, fault(Credentials, "no AWS credentials are configured")
	}
	got, err := c.cfg.AWS.Credentials.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, &Error{Credentials, scrub(fmt.Errorf("getting AWS credentials: %w", err))}
	}
	return got, nil
}

// region is the one to ask.
func (c *Client) region(wanted string) (string, error) {
	region := cmp.Or(wanted, c.cfg.AWS.Region)
	if !regionForm.MatchString(region) {
		return "", fault(Region, "no valid AWS region is configured for the workspace")
	}
	return region, nil
}
