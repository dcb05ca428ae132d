// Package eice is the AWS side of a remote workspace: it finds an instance and its EC2 Instance Connect Endpoint,
// pushes a public key for one login, and opens a tunnel to the instance's sshd, or names the AWS CLI command for a
// tunnel.
//
// The package knows neither SSH nor workspaces nor users. AWS's answers are checked before use: addresses and names
// from an answer go into signed requests and command lines.
package eice

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2instanceconnect"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"golang.org/x/sync/singleflight"
)

const (
	// stepTime bounds Locate, PushKey and OpenTunnel, each with its retries. PushKey and OpenTunnel run at the same
	// time, so the whole path fails within 12 s.
	stepTime = 6 * time.Second

	// cacheTime is how long Locate reuses a route. OpenTunnel authorises an address, and in time AWS gives the address
	// to another instance.
	cacheTime = 30 * time.Second

	// MaxTunnel is the longest life that AWS gives a tunnel.
	MaxTunnel = time.Hour

	// MaxTunnels is AWS's limit of open tunnels for one endpoint, all replicas together (EC2 Instance Connect Endpoint
	// quotas; not adjustable).
	MaxTunnels = 20

	sshPort = "22"
)

// Config holds the parameters of New.
type Config struct {
	// AWS is the SDK's own configuration. Tunnels use its HTTP client's transport too (roots, proxy, dialer), if the
	// client is an awshttp.BuildableClient, else the SDK's default transport.
	AWS aws.Config
	// EndpointID is the endpoint of instances that name none; empty: the endpoint is found by the instance's VPC.
	EndpointID string
	// Environ is the gateway's environment. Command passes on the variables that the AWS CLI reads; nothing else needs
	// Environ.
	Environ []string
	// Now is the clock for signatures and lifetimes; nil: time.Now.
	Now func() time.Time
}

// Client talks to AWS. Its methods may be called concurrently.
type Client struct {
	cfg        Config
	instances  instancesCall
	endpoints  endpointsCall
	sendKey    sendKeyCall
	assumeRole assumeCall
	transport  *http.Transport
	fips       bool
	now        func() time.Time
	stepTime   time.Duration

	flight singleflight.Group
	mu     sync.Mutex
	routes map[Instance]cachedRoute
	roles  map[principal]*assumed
}

// The operations in use are kept as functions: if the SDK's clients were reachable, the linker would keep all
// their methods, and EC2's 700 are 25 MB.
type (
	instancesCall func(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	endpointsCall func(context.Context, *ec2.DescribeInstanceConnectEndpointsInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceConnectEndpointsOutput, error)
	sendKeyCall   func(context.Context, *ec2instanceconnect.SendSSHPublicKeyInput, ...func(*ec2instanceconnect.Options)) (*ec2instanceconnect.SendSSHPublicKeyOutput, error)
)

// DescribeInstanceConnectEndpoints calls f, for the SDK's paginator.
func (f endpointsCall) DescribeInstanceConnectEndpoints(ctx context.Context, in *ec2.DescribeInstanceConnectEndpointsInput, o ...func(*ec2.Options)) (*ec2.DescribeInstanceConnectEndpointsOutput, error) {
	return f(ctx, in, o...)
}

// Instance names an instance, and how AWS is asked for it.
type Instance struct {
	ID         string
	Region     string // empty: the configured region
	EndpointID string // empty: Config.EndpointID
	// Role is the ARN of a role to assume, in the instance's account; empty: the gateway's own credentials do.
	Role string
	// SourceIdentity is the person whom AWS records with every request of the role; empty: none. It needs Role.
	SourceIdentity string
}

func (i Instance) principal() principal { return principal{i.Role, i.SourceIdentity} }

type cachedRoute struct {
	route Route
	until time.Time
}

// Route is the way to an instance, as found and checked by Locate.
type Route struct {
	Instance               // with the region and the endpoint that were found
	Address     netip.Addr // private IPv4, or IPv6
	EndpointDNS string
	// InstanceRequest and EndpointRequest are the ids of the requests that the route was found by, RoleRequest is that of the
	// AssumeRole of the credentials; empty: AWS gave none, or was not asked.
	InstanceRequest, EndpointRequest, RoleRequest string

	key Instance // in the cache
}

// New returns a client. It makes no request.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg, now: cfg.Now, stepTime: stepTime, routes: map[Instance]cachedRoute{}, roles: map[principal]*assumed{}}
	if c.now == nil {
		c.now = time.Now
	}
	if sdk, ok := cfg.AWS.HTTPClient.(*awshttp.BuildableClient); ok {
		c.transport = sdk.GetTransport()
	} else {
		c.transport = awshttp.NewBuildableClient().GetTransport()
	}
	// A WebSocket begins with an Upgrade, which HTTP/2 does not have.
	c.transport.Protocols = new(http.Protocols)
	c.transport.Protocols.SetHTTP1(true)
	c.transport.ForceAttemptHTTP2 = false
	c.transport.DisableKeepAlives = true

	sdk := cfg.AWS.Copy()
	// A wrong clock breaks tickets and the AWS CLI as well, so it must show as an error.
	sdk.DisableClockSkewCorrection = true
	sdk.Retryer = newRetryer
	sdk.RetryMaxAttempts = 0 // another value would override the retryer's
	sdk.APIOptions = append(slices.Clip(sdk.APIOptions), KeepRefusals)
	compute := ec2.NewFromConfig(sdk, func(o *ec2.Options) { o.APIOptions = append(o.APIOptions, checkRoot) })
	c.instances, c.endpoints = compute.DescribeInstances, compute.DescribeInstanceConnectEndpoints
	c.sendKey = ec2instanceconnect.NewFromConfig(sdk).SendSSHPublicKey
	c.assumeRole = sts.NewFromConfig(sdk, func(o *sts.Options) { o.APIOptions = append(o.APIOptions, checkRoot) }).AssumeRole
	c.fips = compute.Options().EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled
	return c
}

var (
	instanceForm = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)
	endpointForm = regexp.MustCompile(`^eice-[0-9a-f]{8,17}$`)
	// regionForm is the form of all regions' names. Which of them there are is AWS's matter (partition.go).
	regionForm = regexp.MustCompile(`^[a-z]{2,8}(-[a-z0-9]{1,16}){1,4}-[0-9]{1,2}$`)
	userForm   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
)

// ValidInstanceID reports whether id has the form of an instance's id.
func ValidInstanceID(id string) bool { return instanceForm.MatchString(id) }

// ValidOSUser reports whether name is a POSIX user name of at most 32 characters. Such a name is safe in a command
// line.
func ValidOSUser(name string) bool { return userForm.MatchString(name) }

// region returns wanted, or the configured region if wanted is empty.
func (c *Client) region(wanted string) (string, error) {
	region := cmp.Or(wanted, c.cfg.AWS.Region)
	if !regionForm.MatchString(region) {
		return "", fault(Region, "no valid AWS region is configured for the workspace")
	}
	return region, nil
}
