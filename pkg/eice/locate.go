package eice

import (
	"context"
	"maps"
	"net/netip"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// maxPages bounds the pages of an answer. A VPC has one endpoint.
const maxPages = 5

// Locate finds an instance and its endpoint. An empty region is the configured region. A route is cached for half a
// minute, a failure never. Errors are of type *Error.
func (c *Client) Locate(ctx context.Context, instanceID, region string) (Route, error) {
	if !ValidInstanceID(instanceID) {
		return Route{}, fault(InstanceID, "the instance's id is malformed")
	}
	region, err := c.region(region)
	if err != nil {
		return Route{}, err
	}
	at := routeKey{instanceID, region}
	if route, ok := c.recall(at); ok {
		return route, nil
	}
	found, err, _ := c.flight.Do(at.instance+" "+at.region, func() (any, error) {
		if route, ok := c.recall(at); ok { // found by another caller's search meanwhile
			return route, nil
		}
		// Other callers wait for this search, so the context of the caller that began it does not end it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.stepTime)
		defer cancel()
		route, err := c.locate(ctx, at)
		if err == nil {
			c.remember(at, route)
		}
		return route, err
	})
	if err != nil {
		return Route{}, err
	}
	return found.(Route), nil
}

func (c *Client) locate(ctx context.Context, at routeKey) (Route, error) {
	if _, err := c.credentials(ctx); err != nil {
		return Route{}, err
	}
	out, err := c.instances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{at.instance}},
		func(o *ec2.Options) { o.Region = at.region })
	if err != nil {
		return Route{}, c.explain(describeInstances, err)
	}
	instance, err := pickInstance(out, at.instance)
	if err != nil {
		return Route{}, err
	}
	endpoint, err := c.findEndpoint(ctx, at.region, instance)
	if err != nil {
		return Route{}, err
	}
	return Route{at.instance, at.region, instance.address, endpoint.id, endpoint.dns}, nil
}

// instanceInfo is the part of an instance that a route depends on.
type instanceInfo struct {
	address     netip.Addr
	vpc, subnet string
}

// pickInstance returns the running instance id from AWS's answer.
func pickInstance(out *ec2.DescribeInstancesOutput, id string) (instanceInfo, error) {
	var instance *types.Instance
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
	case types.InstanceStateNameRunning:
	case types.InstanceStateNameTerminated, types.InstanceStateNameShuttingDown:
		return instanceInfo{}, fault(InstanceTerminated, "the instance is terminated")
	case types.InstanceStateNamePending, types.InstanceStateNameStopping, types.InstanceStateNameStopped:
		return instanceInfo{}, fault(InstanceStopped, "the instance is "+string(state))
	default:
		return instanceInfo{}, fault(Answer, "the instance's state is none that is known")
	}
	if aws.ToString(instance.PrivateIpAddress) == "" {
		if aws.ToString(instance.Ipv6Address) != "" || hasIPv6(instance.NetworkInterfaces) {
			return instanceInfo{}, fault(InstanceIPv6Only, "the instance has an IPv6 address only")
		}
		return instanceInfo{}, fault(InstanceNoAddress, "the instance has no private address")
	}
	address, err := netip.ParseAddr(*instance.PrivateIpAddress)
	// A VPC may use public ranges, so every unicast address is accepted.
	if err != nil || !address.Is4() || !address.IsGlobalUnicast() {
		return instanceInfo{}, fault(Answer, "the instance's address is none")
	}
	return instanceInfo{address, aws.ToString(instance.VpcId), aws.ToString(instance.SubnetId)}, nil
}

func hasIPv6(interfaces []types.InstanceNetworkInterface) bool {
	for _, one := range interfaces {
		if len(one.Ipv6Addresses) > 0 {
			return true
		}
	}
	return false
}

// findEndpoint asks AWS for the configured endpoint, else for the endpoints of the instance's VPC, in any state: an
// endpoint that is being created is not the same as none.
func (c *Client) findEndpoint(ctx context.Context, region string, instance instanceInfo) (endpointInfo, error) {
	in := &ec2.DescribeInstanceConnectEndpointsInput{}
	if c.cfg.EndpointID != "" {
		in.InstanceConnectEndpointIds = []string{c.cfg.EndpointID}
	} else {
		if instance.vpc == "" {
			return endpointInfo{}, fault(Answer, "the instance is in no VPC")
		}
		in.Filters = []types.Filter{{Name: aws.String("vpc-id"), Values: []string{instance.vpc}}}
	}
	var all []types.Ec2InstanceConnectEndpoint
	pages := ec2.NewDescribeInstanceConnectEndpointsPaginator(c.endpoints, in)
	for page := 0; pages.HasMorePages() && page < maxPages; page++ {
		out, err := pages.NextPage(ctx, func(o *ec2.Options) { o.Region = region })
		if err != nil {
			return endpointInfo{}, c.explain(describeEndpoints, err)
		}
		all = append(all, out.InstanceConnectEndpoints...)
	}
	return pickEndpoint(all, c.cfg.EndpointID, instance, c.fips)
}

// endpointInfo is the part of an endpoint that a route depends on.
type endpointInfo struct{ id, dns string }

// pickEndpoint returns the endpoint with the id wanted; without a wanted id the endpoint in the instance's subnet, else
// the first of the VPC.
func pickEndpoint(all []types.Ec2InstanceConnectEndpoint, wanted string, instance instanceInfo, fips bool) (endpointInfo, error) {
	var best *types.Ec2InstanceConnectEndpoint
	creating := false
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
			if best == nil || aws.ToString(best.SubnetId) != instance.subnet && aws.ToString(one.SubnetId) == instance.subnet {
				best = one
			}
		}
	}
	switch {
	case best != nil:
	case creating:
		return endpointInfo{}, fault(EndpointCreating, "the endpoint is being created")
	case wanted != "":
		return endpointInfo{}, fault(EndpointUnknown, "the configured endpoint is not there or not ready")
	default:
		return endpointInfo{}, fault(EndpointNone, "no endpoint in the instance's VPC is ready")
	}
	name := aws.ToString(best.DnsName)
	if fips {
		if name = aws.ToString(best.FipsDnsName); name == "" {
			return endpointInfo{}, fault(EndpointFIPS, "the endpoint has no FIPS name")
		}
	}
	id := aws.ToString(best.InstanceConnectEndpointId)
	if !endpointForm.MatchString(id) {
		return endpointInfo{}, fault(Answer, "the endpoint's id is none")
	}
	if len(name) > 253 || !dnsForm.MatchString(name) {
		return endpointInfo{}, fault(Answer, "the endpoint's name is none of AWS")
	}
	return endpointInfo{id, name}, nil
}

func (c *Client) recall(at routeKey) (Route, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	got, ok := c.routes[at]
	return got.route, ok && c.now().Before(got.until)
}

func (c *Client) remember(at routeKey, route Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	maps.DeleteFunc(c.routes, func(_ routeKey, cached cachedRoute) bool { return !now.Before(cached.until) })
	c.routes[at] = cachedRoute{route, now.Add(cacheTime)}
}

// Forget removes a failed route from the cache: the next Locate asks AWS. PushKey and OpenTunnel call Forget
// themselves.
func (c *Client) Forget(route Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.routes, routeKey{route.InstanceID, route.Region})
}
