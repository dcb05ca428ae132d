package eice

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

func TestLocate(t *testing.T) {
	const (
		near     = "eice-00000000000000002"
		dns      = ".0a1b2c3d.ec2-instance-connect-endpoint.us-east-1.amazonaws.com"
		dualName = "eice-1.ec2-instance-connect-endpoint.us-east-1.api.aws"
		ipv6     = "2001:db8::5"
	)
	both := awsplay.Instance{ID: instanceID, PrivateIP: privateIP, IPv6: ipv6}
	of := func(addressType string) awsplay.Endpoint {
		return awsplay.Endpoint{ID: endpointID, AddressType: addressType, DualStackName: dualName}
	}
	for name, test := range map[string]struct {
		change           func(*world, *Config)
		id, dns, address string // address: default privateIP
	}{
		"by the VPC": {nil, endpointID, endpointID + dns, ""},
		"the instance's subnet first": {
			func(w *world, _ *Config) {
				w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, Subnet: "subnet-2"})
				w.play.PutEndpoint(awsplay.Endpoint{ID: near})
				w.play.PutEndpoint(awsplay.Endpoint{ID: "eice-00000000000000003", Subnet: "subnet-3"})
			}, near, near + dns, "",
		},
		"another subnet of the VPC": {
			func(w *world, _ *Config) { w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, Subnet: "subnet-2"}) },
			endpointID, endpointID + dns, "",
		},
		"one that is ready before one that is not": {
			func(w *world, _ *Config) {
				w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, State: "create-in-progress"})
				w.play.PutEndpoint(awsplay.Endpoint{ID: near, Subnet: "subnet-2", State: "update-complete"})
			}, near, near + dns, "",
		},
		"as configured": {
			func(w *world, c *Config) {
				w.play.PutEndpoint(awsplay.Endpoint{ID: near, VPC: "vpc-2"})
				c.EndpointID = near
			}, near, near + dns, "",
		},
		"FIPS": {
			func(_ *world, c *Config) { c.AWS.ConfigSources = []any{fipsAsked{}} },
			endpointID, endpointID + strings.Replace(dns, ".ec2", ".fips.ec2", 1), "",
		},
		"a dual-stack name, for both addresses": {
			func(w *world, _ *Config) { w.play.PutInstance(both); w.play.PutEndpoint(of("dualstack")) }, endpointID, dualName, "",
		},
		"a dual-stack name, for IPv6 alone": {
			func(w *world, _ *Config) {
				w.play.PutInstance(awsplay.Instance{ID: instanceID, IPv6: ipv6})
				w.play.PutEndpoint(of("dualstack"))
			}, endpointID, dualName, ipv6,
		},
		"an IPv6 endpoint, for both addresses": {
			func(w *world, _ *Config) { w.play.PutInstance(both); w.play.PutEndpoint(of("ipv6")) }, endpointID, dualName, ipv6,
		},
		"an IPv4 endpoint, for both addresses": {
			func(w *world, _ *Config) { w.play.PutInstance(both); w.play.PutEndpoint(of("ipv4")) }, endpointID, endpointID + dns, "",
		},
		"a dual-stack endpoint without a name of its own": {
			func(w *world, _ *Config) {
				w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, AddressType: "dualstack"})
			}, endpointID, endpointID + dns, "",
		},
		"FIPS with a dual-stack name": {
			func(w *world, c *Config) {
				w.play.PutEndpoint(of("dualstack"))
				c.AWS.ConfigSources = []any{fipsAsked{}}
			}, endpointID, strings.Replace(dualName, ".ec2", ".fips.ec2", 1), "",
		},
		"the one that reaches the instance": {
			func(w *world, _ *Config) {
				w.play.PutInstance(awsplay.Instance{ID: instanceID, IPv6: ipv6})
				w.play.PutEndpoint(of("ipv4"))
				w.play.PutEndpoint(awsplay.Endpoint{ID: near, Subnet: "subnet-2", AddressType: "ipv6", DualStackName: dualName})
			}, near, dualName, ipv6,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := newWorld(t, test.change).locate(t)
			if test.address == "" {
				test.address = privateIP
			}
			if got.EndpointID != test.id || got.EndpointDNS != test.dns || got.Address != netip.MustParseAddr(test.address) ||
				got.ID != instanceID || got.Region != "us-east-1" {
				t.Errorf("got %+v, want %+v", got, test)
			}
		})
	}
}

// The domains of AWS's partitions, as its General Reference has them, and no other domain, also none of another partition.
func TestNamesAreOfThePartition(t *testing.T) {
	domains := map[string][]string{
		"us-east-1": {"amazonaws.com", "api.aws"}, "us-gov-west-1": {"amazonaws.com", "api.aws"},
		"cn-north-1":     {"amazonaws.com.cn", "api.amazonwebservices.com.cn"},
		"eusc-de-east-1": {"amazonaws.eu", "api.amazonwebservices.eu"},
		"us-iso-east-1":  {"c2s.ic.gov", "api.aws.ic.gov"}, "us-isob-east-1": {"sc2s.sgov.gov", "api.aws.scloud"},
		"eu-isoe-west-1": {"cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"}, "us-isof-south-1": {"csp.hci.ic.gov", "api.aws.hci.ic.gov"},
	}
	for region, own := range domains {
		if !regionForm.MatchString(region) {
			t.Errorf("%s is no region", region)
		}
		for _, others := range domains {
			for _, domain := range others {
				if got, want := ofAWS(t.Context(), "eice-1.0a1b."+region+"."+domain, region), slices.Contains(own, domain); got != want {
					t.Errorf("a name under %s in %s: %t, want %t", domain, region, got, want)
				}
			}
		}
		for _, name := range []string{
			own[0], "." + own[0], "eice-1." + own[0] + ".example.com", "eice-1.x" + own[0], "eice_1." + own[0], "eice-1." + own[0] + ":443",
			"x@eice-1." + own[0], "eice-1." + own[0] + ".", "-eice." + own[0], "", "eice-1/." + own[0], strings.Repeat("eice-1.", 40) + own[0],
		} {
			if ofAWS(t.Context(), name, region) {
				t.Errorf("%q is a name of AWS in %s", name, region)
			}
		}
	}
}

// The whole way in a partition of its own, to an instance with an IPv6 address alone.
func TestSovereignPartition(t *testing.T) {
	const region = "eusc-de-east-1"
	w := newWorldIn(t, region, func(w *world, _ *Config) {
		w.play.PutInstance(awsplay.Instance{ID: instanceID, IPv6: "2001:db8::5", Target: listen(t, echo)})
		w.play.PutEndpoint(awsplay.Endpoint{
			ID: endpointID, AddressType: "ipv6", DNSName: "eice-1." + region + ".amazonaws.eu",
			DualStackName: "eice-1." + region + ".api.amazonwebservices.eu",
		})
	})
	if _, err := w.client.PushKey(t.Context(), w.locate(t), "ec2-user", publicKey); err != nil {
		t.Fatal(err)
	}
	conn := w.open(t, 0)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	// The same names are no names of AWS for a region elsewhere.
	w = newWorldIn(t, "us-east-1", func(w *world, _ *Config) {
		w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, DNSName: "eice-1." + region + ".amazonaws.eu"})
	})
	_, err := w.client.Locate(t.Context(), Instance{ID: instanceID})
	wantDetail(t, err, Answer)
}

func TestRoutesAreKeptBriefly(t *testing.T) {
	w := newWorld(t, nil)
	calls := func(want int) {
		t.Helper()
		for _, op := range []awsplay.Op{awsplay.DescribeInstances, awsplay.DescribeEndpoints} {
			if n := w.play.Calls(op); n != want {
				t.Errorf("%s was called %d times, want %d", op, n, want)
			}
		}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := w.client.Locate(t.Context(), Instance{ID: instanceID}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	calls(1)
	w.later.Store(int64(cacheTime / 2))
	w.locate(t)
	calls(1)
	w.later.Store(int64(cacheTime + time.Minute))
	route := w.locate(t)
	calls(2)
	if n := w.client.kept(); n != 1 {
		t.Errorf("%d routes are kept", n)
	}
	w.client.Forget(route)
	w.locate(t)
	calls(3)
}

func TestFailuresAreNotKept(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) {
		w.play.PutInstance(awsplay.Instance{ID: instanceID, PrivateIP: privateIP, State: "stopped"})
	})
	_, err := w.client.Locate(t.Context(), Instance{ID: instanceID})
	wantDetail(t, err, InstanceStopped)
	w.play.PutInstance(awsplay.Instance{ID: instanceID, PrivateIP: privateIP})
	w.locate(t)
}

func TestPushKey(t *testing.T) {
	w := newWorld(t, nil)
	route := w.locate(t)
	if _, err := w.client.PushKey(t.Context(), route, "ec2-user", publicKey+"\n"); err != nil {
		t.Fatal(err)
	}
	if got := w.play.AuthorizedKeys(instanceID, "ec2-user"); !slices.Equal(got, []string{publicKey}) {
		t.Errorf("the instance has %q", got)
	}
}

// FuzzAnswer holds that whatever AWS answers, a route has nothing that a
// command line or a URL knows.
func FuzzAnswer(f *testing.F) {
	f.Add(instanceID, "running", privateIP, "", "vpc-1", endpointID, "create-complete", "ipv4", "eice-1.amazonaws.com", "", "vpc-1")
	f.Add(instanceID, "running", "fe80::1%eth0", "2001:db8::1", "vpc-1", "eice-1;x", "create-complete", "", "-x.amazonaws.com", "", "vpc-1")
	f.Add(instanceID, "running", "", "2001:db8::1%eth0", "vpc-1", endpointID, "create-complete", "ipv6", "", "eice-1.api.aws", "vpc-1")
	f.Fuzz(func(t *testing.T, id, state, ipv4, ipv6, vpc, endpoint, endpointState, addressType, dns, dualName, endpointVPC string) {
		c := New(Config{AWS: aws.Config{Region: "us-east-1", Credentials: aws.AnonymousCredentials{}}})
		c.instances = func(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
			return &ec2.DescribeInstancesOutput{Reservations: []types.Reservation{{Instances: []types.Instance{{
				InstanceId: aws.String(id), State: &types.InstanceState{Name: types.InstanceStateName(state)},
				PrivateIpAddress: aws.String(ipv4), Ipv6Address: aws.String(ipv6), VpcId: aws.String(vpc),
			}}}}}, nil
		}
		c.endpoints = func(context.Context, *ec2.DescribeInstanceConnectEndpointsInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceConnectEndpointsOutput, error) {
			return &ec2.DescribeInstanceConnectEndpointsOutput{InstanceConnectEndpoints: []types.Ec2InstanceConnectEndpoint{{
				InstanceConnectEndpointId: aws.String(endpoint), State: types.Ec2InstanceConnectEndpointState(endpointState),
				IpAddressType: types.IpAddressType(addressType), DnsName: aws.String(dns), VpcId: aws.String(endpointVPC),
				PublicDnsNames: &types.InstanceConnectEndpointPublicDnsNames{Dualstack: &types.InstanceConnectEndpointDnsNames{DnsName: aws.String(dualName)}},
			}}}, nil
		}
		route, err := c.locate(t.Context(), Instance{ID: instanceID, Region: "us-east-1"})
		if err != nil {
			wantFault(t, err)
			return
		}
		argv, _, err := c.Command(t.Context(), route, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, arg := range argv {
			if strings.ContainsFunc(arg, func(r rune) bool {
				return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-.:", r)
			}) || i > 2 && strings.HasPrefix(arg, "-") != (i%2 == 1) {
				t.Errorf("%q in %q", arg, argv)
			}
		}
	})
}
