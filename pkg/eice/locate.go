package eice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// maxPages bounds the pages of an answer. A VPC has one endpoint.
const maxPages = 5

// Locate finds an instance and its endpoint. A route is cached for half a minute, a failure never. Errors are of type
// *Error.
func (c *Client) Locate(ctx context.Context, at Instance) (Route, error) {
	key := at
	switch {
	case !ValidInstanceID(at.ID):
		return Route{}, fault(InstanceID, "the instance's id is malformed")
	case at.Role != "" && !roleForm.MatchString(at.Role):
		return Route{}, fault(Role, "the role's ARN is malformed")
	case at.SourceIdentity != "" && (at.Role == "" || !identityForm.MatchString(at.SourceIdentity)):
		return Route{}, fault(SourceIdentity, "the source identity is malformed, or has no role")
	}
	if at.EndpointID = cmp.Or(at.EndpointID, c.cfg.EndpointID); at.EndpointID != "" && !endpointForm.MatchString(at.EndpointID) {
		return Route{}, fault(EndpointID, "the endpoint's id is malformed")
	}
	var err error
	if at.Region, err = c.region(at.Region); err != nil {
		return Route{}, err
	}
	if route, ok := c.recall(key); ok {
		return route, nil
	}
	found, err, _ := c.flight.Do(fmt.Sprintf("%q", key), func() (any, error) {
		if route, ok := c.recall(key); ok { // found by another caller's search meanwhile
			return route, nil
		}
		// Other callers wait for this search, so the context of the caller that began it does not end it.
		ctx, cancel := c.step(context.WithoutCancel(ctx))
		defer cancel()
		route, err := c.locate(ctx, at)
		if err != nil {
			c.doubt(at.principal(), err)
			return route, err
		}
		route.key = key
		c.remember(route)
		return route, nil
	})
	return found.(Route), err
}

func (c *Client) locate(ctx context.Context, at Instance) (route Route, err error) {
	route.Instance = at
	_, err = c.credentials(ctx, at.principal(), at.Region)
	route.RoleRequest = c.roleRequest(at.principal())
	if err != nil {
		return route, err
	}
	out, err := c.instances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{at.ID}}, c.asked(at))
	if err != nil {
		return route, c.explain(ctx, describeInstances, err)
	}
	route.InstanceRequest = requestOf(out.ResultMetadata)
	instance, err := pickInstance(out, at.ID)
	if err != nil {
		return route, err
	}
	return route, c.findEndpoint(ctx, &route, instance)
}

// asked returns the options of EC2's calls for an instance.
func (c *Client) asked(at Instance) func(*ec2.Options) {
	return func(o *ec2.Options) { o.Region, o.Credentials = at.Region, c.provider(at.principal(), at.Region) }
}

// instanceInfo is the part of an instance that a route depends on.
type instanceInfo struct {
	ipv4, ipv6  netip.Addr // the zero Addr: it has none
	vpc, subnet string
}

// pickInstance returns the running instance id from AWS's answer.
func pickInstance(out *ec2.DescribeInstancesOutput, id string) (instanceInfo, error) {
	var instance *types.Instance
	var ok bool
	for _, reservation := range out.Reservations {
		for i := range reservation.Instances {
			if aws.ToString(reservation.Instances[i].InstanceId) == id {
				instance = &reservation.Instances[i]
			}
		}
	}
	if instance == nil {
		return instanceInfo{}, fault(InstanceUnknown, "AWS does not know the instance")
	}
	var state types.InstanceStateName
	if instance.State != nil {
		state = instance.State.Name
	}
	switch state {
	case types.InstanceStateNameRunning: // also while it reboots
	case types.InstanceStateNamePending:
		return instanceInfo{}, fault(InstancePending, "the instance is pending")
	case types.InstanceStateNameStopping:
		return instanceInfo{}, fault(InstanceStopping, "the instance is stopping")
	case types.InstanceStateNameStopped:
		return instanceInfo{}, fault(InstanceStopped, "the instance is stopped")
	case types.InstanceStateNameShuttingDown:
		return instanceInfo{}, fault(InstanceShuttingDown, "the instance is shutting down")
	case types.InstanceStateNameTerminated:
		return instanceInfo{}, fault(InstanceTerminated, "the instance is terminated")
	default:
		return instanceInfo{}, fault(Answer, "the instance's state is none that is known")
	}
	found := instanceInfo{vpc: aws.ToString(instance.VpcId), subnet: aws.ToString(instance.SubnetId)}
	if found.ipv4, ok = addressOf(aws.ToString(instance.PrivateIpAddress)); !ok || found.ipv4.Is6() {
		return instanceInfo{}, fault(Answer, "the instance's IPv4 address is none")
	}
	if found.ipv6, ok = addressOf(ipv6Of(instance)); !ok || found.ipv6.Is4() {
		return instanceInfo{}, fault(Answer, "the instance's IPv6 address is none")
	}
	if !found.ipv4.IsValid() && !found.ipv6.IsValid() {
		return instanceInfo{}, fault(InstanceNoAddress, "the instance has no private address")
	}
	return found, nil
}

// addressOf returns an address of an answer, or the zero Addr for "". It reports false for what an instance cannot have. A
// VPC may use public ranges, so every unicast address is accepted.
func addressOf(text string) (netip.Addr, bool) {
	if text == "" {
		return netip.Addr{}, true
	}
	address, err := netip.ParseAddr(text)
	return address, err == nil && address.IsGlobalUnicast() && !address.Is4In6() && address.Zone() == ""
}

// ipv6Of returns an instance's IPv6 address, or "".
func ipv6Of(instance *types.Instance) string {
	if own := aws.ToString(instance.Ipv6Address); own != "" {
		return own
	}
	for _, one := range instance.NetworkInterfaces {
		for _, address := range one.Ipv6Addresses {
			return aws.ToString(address.Ipv6Address)
		}
	}
	return ""
}

// findEndpoint asks AWS for the wanted endpoint, else for the endpoints of the instance's VPC, in any state: an
// endpoint that is being created is not the same as none. The route gets what was found.
func (c *Client) findEndpoint(ctx context.Context, route *Route, instance instanceInfo) error {
	at := route.Instance
	in := &ec2.DescribeInstanceConnectEndpointsInput{}
	if at.EndpointID != "" {
		in.InstanceConnectEndpointIds = []string{at.EndpointID}
	} else {
		if instance.vpc == "" {
			return fault(Answer, "the instance is in no VPC")
		}
		in.Filters = []types.Filter{{Name: aws.String("vpc-id"), Values: []string{instance.vpc}}}
	}
	var all []types.Ec2InstanceConnectEndpoint
	pages := ec2.NewDescribeInstanceConnectEndpointsPaginator(c.endpoints, in)
	for page := 0; pages.HasMorePages() && page < maxPages; page++ {
		out, err := pages.NextPage(ctx, c.asked(at))
		if err != nil {
			return c.explain(ctx, describeEndpoints, err)
		}
		all = append(all, out.InstanceConnectEndpoints...)
		route.EndpointRequest = requestOf(out.ResultMetadata) // of the last page
	}
	best, err := pickEndpoint(all, at.EndpointID, instance)
	if err != nil {
		return err
	}
	route.Address = instance.reachedBy(best)
	if route.EndpointDNS = dnsName(best, c.fips); route.EndpointDNS == "" && c.fips {
		return fault(EndpointFIPS, "the endpoint has no FIPS name")
	}
	if route.EndpointID = aws.ToString(best.InstanceConnectEndpointId); !endpointForm.MatchString(route.EndpointID) {
		return fault(Answer, "the endpoint's id is none")
	}
	if !ofAWS(ctx, route.EndpointDNS, at.Region) {
		return fault(Answer, "the endpoint's name is none of AWS")
	}
	return nil
}

// reachedBy returns the address that an endpoint reaches the instance at, or the zero Addr. An ipv4 endpoint, and one from
// before there were types, reaches IPv4 addresses, an ipv6 one IPv6 addresses, a dualstack one both (EC2 User Guide,
// "Create an EC2 Instance Connect Endpoint"). Of two, IPv4 goes first: that is what security groups have rules for.
func (i instanceInfo) reachedBy(endpoint *types.Ec2InstanceConnectEndpoint) netip.Addr {
	switch {
	case endpoint.IpAddressType != types.IpAddressTypeIpv6 && i.ipv4.IsValid():
		return i.ipv4
	case endpoint.IpAddressType == types.IpAddressTypeIpv6, endpoint.IpAddressType == types.IpAddressTypeDualstack:
		return i.ipv6
	}
	return netip.Addr{}
}

// pickEndpoint returns the endpoint with the id wanted; without a wanted id one that reaches the instance, in the
// instance's subnet, else the first of the VPC.
func pickEndpoint(all []types.Ec2InstanceConnectEndpoint, wanted string, instance instanceInfo) (*types.Ec2InstanceConnectEndpoint, error) {
	var best *types.Ec2InstanceConnectEndpoint
	creating, unfit := false, false
	for i := range all {
		one := &all[i]
		if wanted != "" && aws.ToString(one.InstanceConnectEndpointId) != wanted ||
			wanted == "" && aws.ToString(one.VpcId) != instance.vpc {
			continue
		}
		switch one.State {
		case types.Ec2InstanceConnectEndpointStateCreateInProgress:
			creating = true
		case types.Ec2InstanceConnectEndpointStateCreateComplete,
			types.Ec2InstanceConnectEndpointStateUpdateInProgress,
			types.Ec2InstanceConnectEndpointStateUpdateComplete,
			types.Ec2InstanceConnectEndpointStateUpdateFailed:
			switch {
			case !instance.reachedBy(one).IsValid():
				unfit = true
			case best == nil || aws.ToString(best.SubnetId) != instance.subnet && aws.ToString(one.SubnetId) == instance.subnet:
				best = one
			}
		}
	}
	switch {
	case best != nil:
		return best, nil
	case creating:
		return nil, fault(EndpointCreating, "the endpoint is being created")
	case unfit:
		return nil, fault(EndpointAddress, "the endpoint's address type is none of the instance's addresses")
	case wanted != "":
		return nil, fault(EndpointUnknown, "the configured endpoint is not there or not ready")
	}
	return nil, fault(EndpointNone, "no endpoint in the instance's VPC is ready")
}

// dnsName returns the name that the gateway reaches an endpoint by, or "": the dual-stack name where there is one and the
// endpoint is not of the type ipv4, else the IPv4 name.
func dnsName(endpoint *types.Ec2InstanceConnectEndpoint, fips bool) string {
	name, fipsName := aws.ToString(endpoint.DnsName), aws.ToString(endpoint.FipsDnsName)
	if names := endpoint.PublicDnsNames; names != nil && names.Dualstack != nil && endpoint.IpAddressType != types.IpAddressTypeIpv4 {
		name = cmp.Or(aws.ToString(names.Dualstack.DnsName), name)
		fipsName = cmp.Or(aws.ToString(names.Dualstack.FipsDnsName), fipsName)
	}
	if fips {
		return fipsName
	}
	return name
}

func (c *Client) recall(key Instance) (Route, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	got, ok := c.routes[key]
	return got.route, ok && c.now().Before(got.until)
}

func (c *Client) remember(route Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	maps.DeleteFunc(c.routes, func(_ Instance, cached cachedRoute) bool { return !now.Before(cached.until) })
	c.routes[route.key] = cachedRoute{route, now.Add(cacheTime)}
}

// Forget removes a failed route from the cache: the next Locate asks AWS. PushKey and OpenTunnel call Forget
// themselves.
func (c *Client) Forget(route Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.routes, route.key)
}

// doubt removes the credentials of a role that AWS refused: what was denied to them may be allowed to new ones, and they
// may have been revoked.
func (c *Client) doubt(who principal, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok || !slices.Contains([]Detail{IAMInstances, IAMEndpoints, IAMKey, IAMTunnel, Credentials, CredentialsExpired}, e.Detail) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.roles, who)
}
