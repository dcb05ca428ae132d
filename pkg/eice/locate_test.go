package eice

import (
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
		near = "eice-00000000000000002"
		dns  = ".0a1b2c3d.ec2-instance-connect-endpoint.us-east-1.amazonaws.com"
	)
	for name, test := range map[string]struct {
		change func(*world, *Config)
		want   Route
	}{
		"by the VPC": {nil, Route{EndpointID: endpointID, EndpointDNS: endpointID + dns}},
		"the instance's subnet first": {
			func(w *world, _ *Config) {
				w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, Subnet: "subnet-2"})
				w.play.PutEndpoint(awsplay.Endpoint{ID: near})
				w.play.PutEndpoint(awsplay.Endpoint{ID: "eice-00000000000000003", Subnet: "subnet-3"})
			}, Route{EndpointID: near, EndpointDNS: near + dns},
		},
		"another subnet of the VPC": {
			func(w *world, _ *Config) { w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, Subnet: "subnet-2"}) },
			Route{EndpointID: endpointID, EndpointDNS: endpointID + dns},
		},
		"one that is ready before one that is not": {
			func(w *world, _ *Config) {
				w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, State: "create-in-progress"})
				w.play.PutEndpoint(awsplay.Endpoint{ID: near, Subnet: "subnet-2", State: "update-complete"})
			}, Route{EndpointID: near, EndpointDNS: near + dns},
		},
		"as configured": {
			func(w *world, c *Config) {
				w.play.PutEndpoint(awsplay.Endpoint{ID: near, VPC: "vpc-2"})
				c.EndpointID = near
			}, Route{EndpointID: near, EndpointDNS: near + dns},
		},
		"FIPS": {
			func(_ *world, c *Config) { c.AWS.ConfigSources = []any{fipsAsked{}} },
			Route{EndpointID: endpointID, EndpointDNS: endpointID + strings.Replace(dns, ".ec2", ".fips.ec2", 1)},
		},
		"China": {
			func(w *world, _ *Config) {
				w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, DNSName: "eice-1.cn-north-1.amazonaws.com.cn"})
			}, Route{EndpointID: endpointID, EndpointDNS: "eice-1.cn-north-1.amazonaws.com.cn"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			test.want.InstanceID, test.want.Region, test.want.Address = instanceID, "us-east-1", netip.MustParseAddr(privateIP)
			if got := newWorld(t, test.change).locate(t); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
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
			if _, err := w.client.Locate(t.Context(), instanceID, "us-east-1"); err != nil {
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
	_, err := w.client.Locate(t.Context(), instanceID, "")
	wantDetail(t, err, InstanceStopped)
	w.play.PutInstance(awsplay.Instance{ID: instanceID, PrivateIP: privateIP})
	w.locate(t)
}

func TestPushKey(t *testing.T) {
	w := newWorld(t, nil)
	route := w.locate(t)
	if err := w.client.PushKey(t.Context(), route, "ec2-user", publicKey+"\n"); err != nil {
		t.Fatal(err)
	}
	if got := w.play.AuthorizedKeys(instanceID, "ec2-user"); !slices.Equal(got, []string{publicKey}) {
		t.Errorf("the instance has %q", got)
	}
}

// FuzzAnswer holds that whatever AWS answers, a route has nothing that a
// command line or a URL knows.
func FuzzAnswer(f *testing.F) {
	f.Add(instanceID, "running", privateIP, "vpc-1", endpointID, "create-complete", "eice-1.amazonaws.com", "vpc-1")
	f.Add(instanceID, "running", "fe80::1%eth0", "vpc-1", "eice-1;x", "create-complete", "-x.amazonaws.com", "vpc-1")
	f.Fuzz(func(t *testing.T, id, state, address, vpc, endpoint, endpointState, dns, endpointVPC string) {
		found, err := pickInstance(&ec2.DescribeInstancesOutput{Reservations: []types.Reservation{{Instances: []types.Instance{{
			InstanceId: aws.String(id), State: &types.InstanceState{Name: types.InstanceStateName(state)},
			PrivateIpAddress: aws.String(address), VpcId: aws.String(vpc),
		}}}}}, instanceID)
		if err != nil {
			wantFault(t, err)
			return
		}
		way, err := pickEndpoint([]types.Ec2InstanceConnectEndpoint{{
			InstanceConnectEndpointId: aws.String(endpoint), State: types.Ec2InstanceConnectEndpointState(endpointState),
			DnsName: aws.String(dns), VpcId: aws.String(endpointVPC),
		}}, "", found, false)
		if err != nil {
			wantFault(t, err)
			return
		}
		argv, _ := New(Config{}).Command(Route{id, "us-east-1", found.address, way.id, way.dns}, 0)
		for i, arg := range argv {
			if strings.ContainsFunc(arg, func(r rune) bool {
				return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-.", r)
			}) || i > 2 && strings.HasPrefix(arg, "-") != (i%2 == 1) {
				t.Errorf("%q in %q", arg, argv)
			}
		}
	})
}
