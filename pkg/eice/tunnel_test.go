package eice

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

var goldenRoute = Route{
	Instance: Instance{ID: instanceID, Region: "us-east-1", EndpointID: endpointID}, Address: netip.MustParseAddr(privateIP),
	EndpointDNS: endpointID + ".0a1b2c3d.ec2-instance-connect-endpoint.us-east-1.amazonaws.com",
}

// What the AWS CLI is given: see the facts in Command. A change here changes
// what runs against AWS.
func TestCommand(t *testing.T) {
	c := New(Config{Environ: []string{
		"PATH=/usr/bin", "HOME=/root", "AWS_REGION=eu-west-1", "AWS_PROFILE=gateway", "AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/token",
		"SSL_CERT_FILE=/ca.pem", "HTTPS_PROXY=http://proxy:3128",
		"HTTP_PROXY=http://other:3128", "TERMGW_DATABASE_URL=postgres://u:p@db/x", "PGPASSWORD=p", "XAWS_SECRET=s", "SSH_AUTH_SOCK=/s", "LD_PRELOAD=/x.so", "BROKEN",
	}})
	argv, env, err := c.Command(t.Context(), goldenRoute, 90*time.Second+time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{
		"aws", "ec2-instance-connect", "open-tunnel",
		"--region", "us-east-1",
		"--instance-connect-endpoint-id", "eice-0123456789abcdef0",
		"--instance-connect-endpoint-dns-name", "eice-0123456789abcdef0.0a1b2c3d.ec2-instance-connect-endpoint.us-east-1.amazonaws.com",
		"--private-ip-address", "10.0.0.5",
		"--remote-port", "22",
		"--max-tunnel-duration", "90",
	}; !slices.Equal(argv, want) {
		t.Errorf("argv is %q, want %q", argv, want)
	}
	if want := []string{
		"PATH=/usr/bin", "HOME=/root", "AWS_REGION=eu-west-1", "AWS_PROFILE=gateway", "AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/token",
		"SSL_CERT_FILE=/ca.pem", "HTTPS_PROXY=http://proxy:3128",
	}; !slices.Equal(env, want) {
		t.Errorf("env is %q, want %q", env, want)
	}
}

// The CLI's own words, of version 2.23.6, become what the endpoint's answers become.
func TestCommandError(t *testing.T) {
	refused := func(answer string) string {
		return "2026-11-23 15:13:58,289 - awscli.customizations.ec2instanceconnect.websocket - ERROR - " + answer +
			"\n\nAWS_ERROR_HTTP_WEBSOCKET_UPGRADE_FAILURE: Failed to upgrade HTTP connection to Websocket.\n"
	}
	for _, test := range []struct {
		said string
		want Detail
	}{
		{refused(`{"ErrorCode":"AccessDeniedException","Message":"User: arn:aws:sts::210987654321:assumed-role/gateway is not authorized"}`), IAMTunnel},
		{refused(`{"ErrorCode":"ServiceQuotaExceededException","Message":"The maximum number of tunnels is open."}`), TunnelQuota},
		{refused(`{"ErrorCode":"InvalidParameter","Message":"no"}`), TunnelRefused},
		{refused(`{"ErrorCode":"ExpiredTokenException","Message":"The security token is expired"}`), CredentialsExpired},
		{refused(`<html>arn:aws:sts::210987654321:assumed-role/gateway</html>`), TunnelCommand},
		{refused(`{"ErrorCode"`), TunnelCommand},
		{"\nWebsocket Closure Reason: Unable to connect to target\n", TargetUnreachable},
		{"\nWebsocket Closure Reason: Max tunnel duration reached\n", TunnelCut},
		{"\nAWS_ERROR_HTTP_CONNECTION_CLOSED: The connection has closed or is closing.\n", TunnelCut},
		{"aws: error: argument operation: Invalid choice, valid choices are:\n", NoTunnelCommand},
		{"Unable to locate credentials. You can configure credentials by running \"aws configure\".\n", Credentials},
		{"An error occurred (Throttling) when calling the AssumeRole operation (reached max retries: 2): Rate exceeded\n", Throttled},
		{"An error occurred (ServiceUnavailable) when calling the AssumeRoleWithWebIdentity operation: arn:aws:iam::210987654321:role/x\n", Fault},
		{"An error occurred (ExpiredToken) when calling the AssumeRole operation: The security token is expired\n", CredentialsExpired},
		{"An error occurred (AccessDenied) when calling the AssumeRole operation: User: arn:aws:sts::210987654321:x is not authorized\n", Credentials},
		{"Could not connect to the endpoint URL: \"https://sts.us-east-1.amazonaws.com/\"\n", Unreachable},
		{`starting aws: exec: "aws": executable file not found in $PATH`, NoTunnelCommand},
		{"", TunnelCommand},
	} {
		err := New(Config{}).CommandError(test.said)
		if err.Detail != test.want || strings.Contains(err.Error(), "210987654321") || strings.Contains(err.Error(), "arn:") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q becomes %v, want %s", test.said, err, test.want)
		}
		if err.Sentence() == "" {
			t.Errorf("%s is told as %q", err.Detail, err.Sentence())
		}
	}
}

func TestTunnelDurationIsAWSs(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "3600", 0: "3600", time.Millisecond: "1", time.Minute: "60", time.Hour: "3600", 25 * time.Hour: "3600",
	} {
		if got := seconds(d); got != want {
			t.Errorf("%s is %s s, want %s", d, got, want)
		}
	}
}

// The exact request, as the AWS CLI makes it. X-Amz-Expires is under the
// signature: the SDK does not add it.
func TestPresign(t *testing.T) {
	c := New(Config{Now: func() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }})
	got, err := c.presign(t.Context(), aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "secret", SessionToken: "to/ken"}, goldenRoute, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	const want = "wss://eice-0123456789abcdef0.0a1b2c3d.ec2-instance-connect-endpoint.us-east-1.amazonaws.com/openTunnel" +
		"?X-Amz-Algorithm=AWS4-HMAC-SHA256" +
		"&X-Amz-Credential=AKIDEXAMPLE%2F20261123%2Fus-east-1%2Fec2-instance-connect%2Faws4_request" +
		"&X-Amz-Date=20261123T120000Z" +
		"&X-Amz-Expires=60" +
		"&X-Amz-Security-Token=to%2Fken" +
		"&X-Amz-SignedHeaders=host" +
		"&instanceConnectEndpointId=eice-0123456789abcdef0" +
		"&maxTunnelDuration=3600" +
		"&privateIpAddress=10.0.0.5" +
		"&remotePort=22" +
		"&X-Amz-Signature=62e1b97c07df3da92462a0c54c923046a850dccaddd2b601fa78f83e7f18b55e"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestTunnelCarriesBytes(t *testing.T) {
	w := newWorld(t, nil)
	conn := w.open(t, time.Hour)
	sent := make([]byte, 3<<20+17)
	if _, err := rand.Read(sent); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := conn.Write(sent); n != len(sent) || err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
	})
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if !bytes.Equal(got, sent) {
		t.Error("what came back differs")
	}
	if n := w.play.Tunnels(); n != 1 {
		t.Errorf("%d tunnels are open", n)
	}
}

// The end of the instance's connection is the end of the file; ours ends the
// tunnel, and wakes who reads.
func TestTunnelEnds(t *testing.T) {
	accepted := make(chan net.Conn)
	w := newWorld(t, func(w *world, _ *Config) {
		w.play.PutInstance(awsplay.Instance{
			ID: instanceID, PrivateIP: privateIP, Target: listen(t, func(conn net.Conn) { accepted <- conn }),
		})
	})
	theirs := w.open(t, time.Hour)
	instance := <-accepted
	if _, err := io.WriteString(instance, "the last words"); err != nil {
		t.Fatal(err)
	}
	_ = instance.Close()
	if got, err := io.ReadAll(theirs); string(got) != "the last words" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}

	ours := w.open(t, time.Hour)
	instance = <-accepted
	defer instance.Close()
	read := make(chan error, 1)
	go func() {
		_, err := ours.Read(make([]byte, 1))
		read <- err
	}()
	if err := errors.Join(ours.Close(), ours.Close()); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the reader got %v", err)
	}
	if _, err := ours.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a later write got %v", err)
	}
	if _, err := io.ReadAll(instance); err != nil {
		t.Errorf("the instance's connection ended with %v", err)
	}
	eventually(t, "no tunnel is open", func() bool { return w.play.Tunnels() == 0 })
}

func TestTunnelCutInFlood(t *testing.T) {
	w := newWorld(t, nil)
	w.play.CutAfter(1 << 20)
	conn := w.open(t, time.Hour)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
				wantDetail(t, err, TunnelCut)
				return
			}
		}
	})
	_, err := io.Copy(io.Discard, conn)
	wantDetail(t, err, TunnelCut)
	wg.Wait()
}

// A goodbye to an endpoint that is silent ends all the same.
func TestCloseOfAStalledTunnel(t *testing.T) {
	w := newWorld(t, nil)
	conn := w.open(t, time.Hour)
	w.play.Stall()
	read := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		read <- err
	}()
	closed := make(chan error, 1)
	go func() { closed <- conn.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Close waits")
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the reader got %v", err)
	}
}

func TestTunnelExpires(t *testing.T) {
	w := newWorld(t, nil)
	conn := w.open(t, time.Second)
	_, err := io.Copy(io.Discard, conn)
	wantDetail(t, err, TunnelExpired)
}

func TestDeadlineEndsTheTunnel(t *testing.T) {
	w := newWorld(t, nil)
	conn := w.open(t, time.Hour)
	if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 1))
	wantDetail(t, err, TunnelCut)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestEndpointHasSoManyTunnels(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) {
		w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, MaxTunnels: 2})
	})
	first := w.open(t, time.Hour)
	w.open(t, time.Hour)
	route := w.locate(t)
	_, _, err := w.client.OpenTunnel(t.Context(), route, time.Hour)
	wantDetail(t, err, TunnelQuota)
	_ = first.Close()
	eventually(t, "a place is free", func() bool { return w.play.Tunnels() == 1 })
	w.open(t, time.Hour)
}

// Credentials that end do not end a tunnel.
func TestTunnelOutlivesCredentials(t *testing.T) {
	w := newWorld(t, nil)
	conn := w.open(t, time.Hour)
	w.expire()
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	_, _, err := w.client.OpenTunnel(t.Context(), w.locate(t), time.Hour)
	wantDetail(t, err, CredentialsExpired)
}

// The context bounds the opening alone.
func TestTunnelOutlivesItsContext(t *testing.T) {
	w := newWorld(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	conn, _, err := w.client.OpenTunnel(ctx, w.locate(t), time.Hour)
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// A tunnel's signed request goes only to the name that it was signed for.
func TestTunnelGoesToItsEndpoint(t *testing.T) {
	w := newWorld(t, nil)
	route := w.locate(t)
	other := w.play.PutEndpoint(awsplay.Endpoint{ID: "eice-00000000000000002"})
	route.EndpointDNS = other.DNSName
	_, _, err := w.client.OpenTunnel(t.Context(), route, time.Hour)
	wantDetail(t, err, TunnelRefused)
	if !strings.Contains(err.Error(), "InvalidParameter") {
		t.Errorf("got %v", err)
	}
}
