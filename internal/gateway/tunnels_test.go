package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/molecule-ai/termgw/internal/awsplay"
	"github.com/molecule-ai/termgw/pkg/eice"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/instance"
	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/store"
)

// The gauge has the tunnels of this replica, by endpoint.
func TestTunnelsAreCounted(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := &tunnels{shared: store.NewMemory(store.MemoryConfig{}), replica: "replica", open: tunnelGauge(reg)}
	wantOpen := func(endpoint string, want float64) {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "termgw_eice_tunnels" && m.GetLabel()[0].GetValue() == endpoint {
					if got := m.GetGauge().GetValue(); got != want {
						t.Errorf("%s has %v tunnels, want %v", endpoint, got, want)
					}
					return
				}
			}
		}
		t.Errorf("%s is not counted", endpoint)
	}
	acquire := func(endpoint string) (release func()) {
		t.Helper()
		place, err := c.acquire(t.Context(), endpoint, "i-1")
		if err != nil {
			t.Fatal(err)
		}
		return place.release
	}
	var releases []func()
	for range eice.MaxTunnels {
		releases = append(releases, acquire("eice-1"))
	}
	acquire("eice-2")
	if _, err := c.acquire(t.Context(), "eice-1", "i-1"); !errors.Is(err, store.ErrLimit) {
		t.Errorf("one too many: %v", err)
	}
	wantOpen("eice-1", eice.MaxTunnels)
	wantOpen("eice-2", 1)
	for _, release := range releases {
		release()
	}
	wantOpen("eice-1", 0)
	wantOpen("eice-2", 1)
}

// freePlaces is a tunnelStore whose endpoint has places for all.
type freePlaces struct{ tunnelStore }

func (freePlaces) AcquireTunnel(context.Context, string, string, string, int) (string, error) {
	return "", nil
}
func (freePlaces) ReleaseTunnel(context.Context, string) error { return nil }

// A terminal's end by the hour leaves time to end its shell over the same tunnel.
func TestRemoteEndsBeforeAWSDoes(t *testing.T) {
	t.Parallel()
	keys := awsplay.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "a secret", SessionToken: "a token"}
	play, err := awsplay.New(awsplay.Config{Credentials: keys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := play.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := play.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	sshd, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sshd.Close() })
	play.PutInstance(awsplay.Instance{ID: "i-0123456789abcdef0", PrivateIP: "10.0.0.5", Target: sshd.Addr().String()})
	play.PutEndpoint(awsplay.Endpoint{ID: "eice-0123456789abcdef0"})
	client := eice.New(eice.Config{AWS: aws.Config{
		Region: "us-east-1",
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey, SessionToken: keys.SessionToken}, nil
		}),
		HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
			tr.Proxy, tr.DialContext = nil, play.Dial
			tr.TLSClientConfig.RootCAs = x509.NewCertPool()
			tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(play.CAPEM())
		}),
	}})
	for _, cli := range []bool{false, true} {
		before := time.Now()
		tunnel, err := (&tunnels{aws: client, shared: freePlaces{}, cli: cli, open: tunnelGauge(nil)}).Open(t.Context(), instance.TunnelRequest{
			InstanceID: "i-0123456789abcdef0", OSUser: "ec2-user",
			PublicKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUwSLuvlcpyY4dF5UkAIjJQJqaf8pWcHHMvYGkY9qWp",
		})
		if err != nil {
			t.Fatal(err)
		}
		if tunnel.Conn != nil {
			_ = tunnel.Conn.Close()
		}
		// AWS's hour begins no sooner than we ask.
		if left := before.Add(time.Hour).Sub(tunnel.Expires); left > 10*time.Second || left < 10*time.Second-time.Since(before) {
			t.Errorf("aws-cli %t: it ends %s before AWS's hour", cli, left)
		}
	}
}

// brokenConn is a tunnel that a writer finds broken before the reader hears why.
type brokenConn struct {
	net.Conn
	written chan struct{}
}

func (c brokenConn) Read([]byte) (int, error) {
	<-c.written
	return 0, &eice.Error{Detail: eice.TargetUnreachable, Err: io.ErrUnexpectedEOF}
}

func (c brokenConn) Write([]byte) (int, error) {
	close(c.written)
	return 0, &eice.Error{Detail: eice.TunnelCut, Err: io.ErrClosedPipe}
}

func TestWriterTellsTheEndpointsLastWord(t *testing.T) {
	t.Parallel()
	conn := newTellingConn(brokenConn{written: make(chan struct{})})
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() { _, _ = conn.Read(nil) })
	_, err := conn.Write([]byte("x"))
	var failed *runner.Failure
	if !errors.As(err, &failed) || failed.Step != "security_group" {
		t.Errorf("the writer is told %v", err)
	}
}

// AWS's own end of a tunnel, or its own count of them, is told as ours is.
func TestToldAsOurs(t *testing.T) {
	t.Parallel()
	var limit *store.LimitError
	if err := told(&eice.Error{Detail: eice.TunnelQuota, Err: io.EOF}); !errors.As(err, &limit) || limit.Of != store.LimitTunnels {
		t.Errorf("the quota becomes %v", err)
	}
	if err := told(&eice.Error{Detail: eice.TunnelExpired, Err: io.EOF}); !errors.Is(err, session.ErrTunnel) {
		t.Errorf("the end becomes %v", err)
	}
	for detail, final := range map[eice.Detail]bool{eice.IAMKey: true, eice.InstanceTerminated: true, eice.Throttled: false, eice.InstancePending: false} {
		var failed *runner.Failure
		if err := told(&eice.Error{Detail: detail, Err: io.EOF}); !errors.As(err, &failed) || failed.Final != final || failed.Step != string(detail) {
			t.Errorf("%s becomes %v", detail, err)
		}
	}
	if err := told(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("an orderly end becomes %v", err)
	}
}

// Each failure of AWS is told by the step that it belongs to, and by no other.
func TestStepsOfFailures(t *testing.T) {
	t.Parallel()
	for detail, want := range map[eice.Detail]string{
		eice.Credentials: "aws", eice.Clock: "aws", eice.Unreachable: "aws", eice.Throttled: "aws", eice.Region: "aws", eice.Answer: "aws",
		eice.InstanceUnknown: "instance", eice.IAMInstances: "instance", eice.InstancePending: "instance", eice.IAMRole: "aws", eice.Role: "aws", eice.Fault: "aws",
		eice.EndpointCreating: "endpoint", eice.IAMEndpoints: "endpoint", eice.EndpointFIPS: "endpoint", eice.EndpointAddress: "endpoint", eice.EndpointID: "endpoint",
	} {
		if got := stepOf(&eice.Error{Detail: detail, Err: io.EOF}); got != want {
			t.Errorf("%s is told by the step %q, want %q", detail, got, want)
		}
	}
}
