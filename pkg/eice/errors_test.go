package eice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

// The steps of the path, for the tables.
func (w *world) step(ctx context.Context, step string) error {
	route, err := w.client.Locate(ctx, Instance{ID: instanceID})
	if step == "locate" || err != nil {
		return err
	}
	if step == "push" {
		_, err := w.client.PushKey(ctx, route, "ec2-user", publicKey)
		return err
	}
	conn, _, err := w.client.OpenTunnel(ctx, route, time.Hour)
	if step == "tunnel" || err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return err
	}
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1))
	return err
}

// denied is a refusal with all that AWS puts into one.
func denied(code string) awsplay.Fault {
	return awsplay.Fault{Status: http.StatusForbidden, Code: code, Message: "User: arn:aws:sts::" + accountID +
		":assumed-role/gateway/i-1 (" + keys.AccessKeyID + ") is not authorized, see https://console.aws.amazon.com/x?X-Amz-Signature=abc " +
		"for " + publicKey + ". Encoded authorization failure message: " + strings.Repeat("Zm9v", 200)}
}

func answered(status int, code string) awsplay.Fault {
	return awsplay.Fault{Status: status, Code: code, Message: "Account " + accountID + " says no."}
}

func TestFaults(t *testing.T) {
	fail := func(op awsplay.Op, f awsplay.Fault) func(*world, *Config) {
		return func(w *world, _ *Config) { w.play.Fail(op, f) }
	}
	instance := func(i awsplay.Instance) func(*world, *Config) {
		i.ID = instanceID
		return func(w *world, _ *Config) { w.play.PutInstance(i) }
	}
	endpoint := func(e awsplay.Endpoint) func(*world, *Config) {
		e.ID = endpointID
		return func(w *world, _ *Config) { w.play.PutEndpoint(e) }
	}
	clock := func(d time.Duration) func(*world, *Config) {
		return func(w *world, _ *Config) { w.ahead.Store(int64(d)) }
	}
	const page = `<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><head><title>Sign in</title></head><body/></html>`
	const instances, endpoints, push, tunnel = awsplay.DescribeInstances, awsplay.DescribeEndpoints, awsplay.SendSSHPublicKey, awsplay.OpenTunnel
	for name, test := range map[string]struct {
		step   string // "late": with the change only after the instance was found
		change func(*world, *Config)
		want   Detail
	}{
		"stopped":         {"locate", instance(awsplay.Instance{State: "stopped", PrivateIP: privateIP}), InstanceStopped},
		"stopping":        {"locate", instance(awsplay.Instance{State: "stopping", PrivateIP: privateIP}), InstanceStopping},
		"pending":         {"locate", instance(awsplay.Instance{State: "pending"}), InstancePending},
		"shutting down":   {"locate", instance(awsplay.Instance{State: "shutting-down"}), InstanceShuttingDown},
		"terminated":      {"locate", instance(awsplay.Instance{State: "terminated"}), InstanceTerminated},
		"unknown":         {"locate", fail(instances, answered(400, "InvalidInstanceID.NotFound")), InstanceUnknown},
		"no address":      {"locate", instance(awsplay.Instance{}), InstanceNoAddress},
		"IPv6 only":       {"locate", instance(awsplay.Instance{IPv6: "2001:db8::5"}), EndpointAddress},
		"a hostile state": {"locate", instance(awsplay.Instance{State: "\x1b[2J", PrivateIP: privateIP}), Answer},
		"loopback":        {"locate", instance(awsplay.Instance{PrivateIP: "127.0.0.1"}), Answer},
		"metadata":        {"locate", instance(awsplay.Instance{PrivateIP: "169.254.169.254"}), Answer},
		"a name":          {"locate", instance(awsplay.Instance{PrivateIP: "localhost"}), Answer},
		"an option":       {"locate", instance(awsplay.Instance{PrivateIP: "-oProxyCommand=x"}), Answer},

		"no endpoint":              {"locate", endpoint(awsplay.Endpoint{VPC: "vpc-2"}), EndpointNone},
		"an endpoint that failed":  {"locate", endpoint(awsplay.Endpoint{State: "create-failed"}), EndpointNone},
		"an endpoint being made":   {"locate", endpoint(awsplay.Endpoint{State: "create-in-progress"}), EndpointCreating},
		"an endpoint being ended":  {"locate", endpoint(awsplay.Endpoint{State: "delete-in-progress"}), EndpointNone},
		"a foreign name":           {"locate", endpoint(awsplay.Endpoint{DNSName: "eice-1.example.com"}), Answer},
		"a name that looks near":   {"locate", endpoint(awsplay.Endpoint{DNSName: "eice-1.amazonaws.com.example.com"}), Answer},
		"a name with a port":       {"locate", endpoint(awsplay.Endpoint{DNSName: "eice-1.amazonaws.com:22"}), Answer},
		"a name with a user":       {"locate", endpoint(awsplay.Endpoint{DNSName: "x@eice-1.amazonaws.com"}), Answer},
		"the wanted one not there": {"locate", func(_ *world, c *Config) { c.EndpointID = "eice-0123456789abcdef9" }, EndpointUnknown},
		"the wanted one not ready": {"locate", func(w *world, c *Config) {
			w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, State: "delete-complete"})
			c.EndpointID = endpointID
		}, EndpointUnknown},
		"no FIPS name": {"locate", func(w *world, c *Config) {
			w.play.PutEndpoint(awsplay.Endpoint{ID: endpointID, NoFIPS: true})
			c.AWS.ConfigSources = []any{fipsAsked{}}
		}, EndpointFIPS},

		"instances denied":        {"locate", fail(instances, denied("UnauthorizedOperation")), IAMInstances},
		"endpoints denied":        {"locate", fail(endpoints, denied("UnauthorizedOperation")), IAMEndpoints},
		"key denied":              {"push", fail(push, denied("AccessDeniedException")), IAMKey},
		"key denied by AuthError": {"push", fail(push, denied("AuthException")), IAMKey},
		"another OS user":         {"push", instance(awsplay.Instance{PrivateIP: privateIP, OSUsers: []string{"ubuntu"}}), IAMKey},
		"tunnel denied":           {"tunnel", fail(tunnel, denied("AccessDeniedException")), IAMTunnel},

		"instances throttled": {"locate", fail(instances, answered(503, "RequestLimitExceeded")), Throttled},
		"endpoints throttled": {"locate", fail(endpoints, answered(503, "RequestLimitExceeded")), Throttled},
		"key throttled":       {"push", fail(push, answered(400, "ThrottlingException")), Throttled},
		"tunnel throttled":    {"tunnel", fail(tunnel, answered(429, "ThrottlingException")), Throttled},

		"key for a stopped one":  {"push", fail(push, answered(400, "EC2InstanceStateInvalidException")), InstanceNotReady},
		"key for nobody":         {"push", fail(push, answered(404, "EC2InstanceNotFoundException")), InstanceUnknown},
		"key refused":            {"push", fail(push, answered(400, "InvalidArgsException")), KeyRefused},
		"key for a wrong type":   {"push", fail(push, answered(400, "EC2InstanceTypeInvalidException")), KeyRefused},
		"key with no success":    {"push", fail(push, awsplay.Fault{Status: 200, Body: `{"Success":false}`}), KeyRefused},
		"tunnel refused":         {"tunnel", fail(tunnel, answered(400, "InvalidParameter")), TunnelRefused},
		"tunnel refused by HTML": {"tunnel", fail(tunnel, awsplay.Fault{Status: 403, Body: "<html>" + publicKey}), Answer},
		"tunnel not upgraded":    {"tunnel", fail(tunnel, awsplay.Fault{Status: 200, Body: "{}"}), Answer},
		"tunnel redirected":      {"tunnel", fail(tunnel, awsplay.Fault{Status: 302, Body: "{}"}), Answer},
		"quota":                  {"tunnel", fail(tunnel, answered(429, "ServiceQuotaExceededException")), TunnelQuota},
		"another word for quota": {"tunnel", fail(tunnel, answered(400, "ConnectionLimitExceeded")), TunnelQuota},
		"security group":         {"read", fail(tunnel, awsplay.Fault{CloseReason: "Unable to connect to target"}), TargetUnreachable},
		"sshd not there":         {"read", instance(awsplay.Instance{PrivateIP: privateIP, Target: "127.0.0.1:1"}), TargetUnreachable},
		"another reason":         {"read", fail(tunnel, awsplay.Fault{CloseReason: "arn:aws:x " + accountID}), TunnelCut},

		"clock behind":             {"locate", clock(10 * time.Minute), Clock},
		"clock ahead":              {"locate", clock(-10 * time.Minute), Clock},
		"clock behind at the key":  {"late push", func(w *world, _ *Config) { w.ahead.Store(int64(10 * time.Minute)) }, Clock},
		"clock ahead at the key":   {"late push", func(w *world, _ *Config) { w.ahead.Store(int64(-10 * time.Minute)) }, Clock},
		"clock behind at a tunnel": {"late tunnel", func(w *world, _ *Config) { w.ahead.Store(int64(10 * time.Minute)) }, Clock},
		"clock ahead at a tunnel":  {"late tunnel", func(w *world, _ *Config) { w.ahead.Store(int64(-10 * time.Minute)) }, Clock},

		"expired credentials":              {"locate", func(w *world, _ *Config) { w.expire() }, CredentialsExpired},
		"expired credentials at the key":   {"late push", func(w *world, _ *Config) { w.expire() }, CredentialsExpired},
		"expired credentials at a tunnel":  {"late tunnel", func(w *world, _ *Config) { w.expire() }, CredentialsExpired},
		"unknown credentials":              {"locate", func(w *world, _ *Config) { w.rekey() }, Credentials},
		"unknown credentials at the key":   {"late push", func(w *world, _ *Config) { w.rekey() }, Credentials},
		"unknown credentials at a tunnel":  {"late tunnel", func(w *world, _ *Config) { w.rekey() }, Credentials},
		"no credentials":                   {"locate", func(_ *world, c *Config) { c.AWS.Credentials = nil }, Credentials},
		"credentials that cannot be had":   {"locate", func(_ *world, c *Config) { c.AWS.Credentials = noCredentials }, Credentials},
		"credentials gone, asked for late": {"tunnel", func(_ *world, c *Config) { c.AWS.Credentials = lateCredentials() }, Credentials},

		"no region":         {"locate", func(_ *world, c *Config) { c.AWS.Region = "" }, Region},
		"a hostile region":  {"locate", func(_ *world, c *Config) { c.AWS.Region = "us-east-1.example.com/" }, Region},
		"untrusted":         {"locate", func(w *world, c *Config) { c.AWS.HTTPClient = httpClient(w.play, nil) }, Unreachable},
		"untrusted tunnel":  {"late tunnel", func(w *world, c *Config) { c.AWS.HTTPClient = httpClient(w.play, nil) }, Unreachable},
		"no server":         {"locate", func(w *world, _ *Config) { _ = w.play.Close() }, Unreachable},
		"no tunnel server":  {"late tunnel", func(w *world, _ *Config) { _ = w.play.Close() }, Unreachable},
		"instances hang":    {"locate", fail(instances, awsplay.Fault{Hang: true}), Unreachable},
		"key hangs":         {"push", fail(push, awsplay.Fault{Hang: true}), Unreachable},
		"tunnel hangs":      {"tunnel", fail(tunnel, awsplay.Fault{Hang: true}), Unreachable},
		"broken XML":        {"locate", fail(instances, awsplay.Fault{Status: 200, Body: "<Describe"}), Answer},
		"broken XML again":  {"locate", fail(endpoints, awsplay.Fault{Status: 200, Body: "<Describe"}), Answer},
		"a proxy's page":    {"locate", fail(instances, awsplay.Fault{Status: 200, Body: page}), Answer},
		"its second page":   {"locate", fail(endpoints, awsplay.Fault{Status: 200, Body: page}), Answer},
		"nothing at all":    {"locate", fail(instances, awsplay.Fault{Status: 200, Body: " "}), Answer},
		"nothing, later":    {"locate", fail(endpoints, awsplay.Fault{Status: 200, Body: " "}), Answer},
		"another answer":    {"locate", fail(endpoints, awsplay.Fault{Status: 200, Body: "<DescribeInstancesResponse/>"}), Answer},
		"an empty answer":   {"locate", fail(instances, awsplay.Fault{Status: 200, Body: "<DescribeInstancesResponse/>"}), InstanceUnknown},
		"a server's error":  {"locate", fail(instances, answered(500, "InternalError")), Fault},
		"a tunnel's error":  {"tunnel", fail(tunnel, answered(500, "InternalError")), Fault},
		"a code of no kind": {"locate", fail(instances, answered(400, "arn:aws:"+accountID)), Account},

		"a region not enabled":     {"locate", fail(instances, answered(401, "OptInRequired")), Account},
		"an account blocked":       {"locate", fail(endpoints, answered(403, "Blocked")), Account},
		"an account not verified":  {"locate", fail(instances, answered(400, "PendingVerification")), Account},
		"a key's account disabled": {"push", fail(push, answered(403, "AccountDisabled")), Account},
		"a tunnel's region":        {"tunnel", fail(tunnel, answered(403, "OptInRequired")), Account},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			var route Route
			step, late := strings.CutPrefix(test.step, "late ")
			if late {
				route = w.locate(t)
			}
			test.change(w, &w.config)
			w.client = newPatient(w.config)
			if test.want == Unreachable { // what hangs is waited for
				w.client.stepTime = stepTime
			}
			if late {
				w.client.remember(route)
			}
			began := time.Now()
			err := w.step(t.Context(), step)
			wantDetail(t, err, test.want)
			if refused, ok := errors.AsType[*Error](err); ok && strings.Contains(err.Error(), "(request ") != (refused.Request != "") {
				t.Errorf("%q is of request %q", err, refused.Request)
			}
			if took := time.Since(began); took > patience {
				t.Errorf("told after %s", took)
			}
			if kept := w.client.kept(); kept != 0 && test.want != TunnelCut {
				t.Error("a route that failed is believed on")
			}
		})
	}
}

func (w *world) expire() {
	expired := keys
	expired.Expired = true
	w.play.SetCredentials(expired)
}

func (w *world) rekey() {
	w.play.SetCredentials(awsplay.Credentials{AccessKeyID: "AKIAOTHEROTHEROTHER0", SecretAccessKey: "x"})
}

func (c *Client) kept() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.routes)
}

var noCredentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
	return aws.Credentials{}, fmt.Errorf("asking https://sts.amazonaws.com/?X-Amz-Security-Token=%s for arn:aws:iam::%s:role/x: %w",
		keys.SessionToken, accountID, io.ErrUnexpectedEOF)
})

// lateCredentials are there for one request of the SDK's, after the client's.
func lateCredentials() aws.CredentialsProvider {
	asked := 0
	return aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		if asked++; asked > 3 {
			return noCredentials(ctx)
		}
		return aws.Credentials{AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey, SessionToken: keys.SessionToken}, nil
	})
}

// fipsAsked is an SDK configuration that asks for FIPS.
type fipsAsked struct{}

func (fipsAsked) GetUseFIPSEndpoint(context.Context) (aws.FIPSEndpointState, bool, error) {
	return aws.FIPSEndpointStateEnabled, true, nil
}

// What no later try mends by itself is final, so that an open tab does not ask AWS for ever.
func TestClasses(t *testing.T) {
	passing := []Detail{
		InstancePending, InstanceNotReady, EndpointCreating, CredentialsExpired, Throttled, Unreachable, Fault, Answer, TunnelRefused,
		TunnelQuota, TunnelCommand, TargetUnreachable, TunnelCut, TunnelExpired,
	}
	final := []Detail{
		InstanceID, InstanceUnknown, InstanceStopping, InstanceStopped, InstanceShuttingDown, InstanceTerminated, InstanceNoAddress,
		Region, Role, SourceIdentity, OSUser, EndpointID, EndpointNone, EndpointUnknown, EndpointFIPS, EndpointAddress,
		IAMRole, IAMInstances, IAMEndpoints, IAMKey, IAMTunnel, Account, Credentials, Clock, KeyRefused, NoTunnelCommand,
	}
	if len(passing)+len(final) != len(details) {
		t.Errorf("%d details are classed here, of %d", len(passing)+len(final), len(details))
	}
	for _, detail := range append(final, passing...) {
		if _, ok := details[detail]; !ok {
			t.Errorf("%s has no sentence", detail)
		}
		if got, want := (&Error{Detail: detail}).Final(), slices.Contains(final, detail); got != want {
			t.Errorf("%s is final: %t, want %t", detail, got, want)
		}
	}
}

func TestEachDetailHasASentence(t *testing.T) {
	seen := map[string]Detail{}
	for detail, told := range details {
		sentence := told.sentence
		if other, ok := seen[sentence]; ok {
			t.Errorf("%s and %s say the same", detail, other)
		}
		seen[sentence] = detail
		if !strings.HasSuffix(sentence, ".") {
			t.Errorf("%s: %q", detail, sentence)
		}
	}
}

func TestBadInputAsksNobody(t *testing.T) {
	w := newWorld(t, nil)
	for _, id := range []string{"", "i-", "i-0123456", "i-0123456789abcdef01", "i-0123456G", "I-0123456789abcdef0", "i-01234567\n", "-oProxyCommand", "i-01234567;reboot"} {
		_, err := w.client.Locate(t.Context(), Instance{ID: id})
		wantDetail(t, err, InstanceID)
	}
	_, err := w.client.Locate(t.Context(), Instance{ID: instanceID, Region: "us-east-1@evil.example"})
	wantDetail(t, err, Region)
	for _, user := range []string{"", "-l", "a b", "a;b", "a\n", "ü", "a/b", "$(x)", "%h", strings.Repeat("a", 33)} {
		_, err := w.client.PushKey(t.Context(), Route{Instance: Instance{ID: instanceID, Region: "us-east-1"}}, user, publicKey)
		wantDetail(t, err, OSUser)
	}
	for _, user := range []string{"ec2-user", "ubuntu", "_svc", "first.last", "A1"} {
		if !ValidOSUser(user) {
			t.Errorf("%q is refused", user)
		}
	}
	_, err = w.client.PushKey(t.Context(), Route{}, "ec2-user", publicKey+"\n"+publicKey)
	wantDetail(t, err, KeyRefused)
	for _, op := range []awsplay.Op{awsplay.DescribeInstances, awsplay.DescribeEndpoints, awsplay.SendSSHPublicKey, awsplay.OpenTunnel} {
		if n := w.play.Calls(op); n != 0 {
			t.Errorf("%s was called %d times", op, n)
		}
	}
}

func TestThrottlingIsRetried(t *testing.T) {
	w := newWorld(t, nil)
	f := answered(503, "RequestLimitExceeded")
	f.Times = attempts - 1
	w.play.Fail(awsplay.DescribeInstances, f)
	w.locate(t)
	if n := w.play.Calls(awsplay.DescribeInstances); n != attempts {
		t.Errorf("%d calls, want %d", n, attempts)
	}
	// The SDK has no part in this one.
	f = answered(http.StatusTooManyRequests, "ThrottlingException")
	f.Times = attempts - 1
	w.play.Fail(awsplay.OpenTunnel, f)
	w.open(t, 0)
	if n := w.play.Calls(awsplay.OpenTunnel); n != attempts {
		t.Errorf("%d calls for a tunnel, want %d", n, attempts)
	}
	f.Times = 0
	w.play.Fail(awsplay.OpenTunnel, f)
	if _, _, err := w.client.OpenTunnel(t.Context(), w.locate(t), 0); err == nil {
		t.Error("a tunnel although AWS never stops to throttle")
	} else {
		wantDetail(t, err, Throttled)
	}
	if n := w.play.Calls(awsplay.OpenTunnel); n != 2*attempts {
		t.Errorf("%d calls in all, want %d", n, 2*attempts)
	}
	// A quota does not pass in a second.
	w.play.Fail(awsplay.OpenTunnel, answered(http.StatusTooManyRequests, "ServiceQuotaExceededException"))
	_, _, err := w.client.OpenTunnel(t.Context(), w.locate(t), 0)
	wantDetail(t, err, TunnelQuota)
	if n := w.play.Calls(awsplay.OpenTunnel); n != 2*attempts+1 {
		t.Errorf("%d calls in all, want %d", n, 2*attempts+1)
	}
}

// A context's end is told from a fault, for whoever cancelled.
func TestCancelled(t *testing.T) {
	w := newWorld(t, nil)
	route := w.locate(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := w.client.OpenTunnel(ctx, route, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("OpenTunnel: %v", err)
	}
	if _, err := w.client.PushKey(ctx, route, "ec2-user", publicKey); !errors.Is(err, context.Canceled) {
		t.Errorf("PushKey: %v", err)
	}
}

func FuzzScrub(f *testing.F) {
	f.Add(denied("x").Message)
	f.Add("x:///arn:://")
	f.Add("a\x00\x1b[2J\u009b31m\xff" + strings.Repeat("é", 500))
	f.Fuzz(func(t *testing.T, text string) {
		got := scrubText(text)
		if len(got) > maxErrorText+len("…") || !utf8.ValidString(got) {
			t.Errorf("%d bytes: %q", len(got), got)
		}
		if forbidden.MatchString(got) && !strings.Contains(forbidden.FindString(got), "AKIA") && !strings.Contains(forbidden.FindString(got), "AAAAC3") {
			t.Errorf("%q shows %q", got, forbidden.FindString(got))
		}
		for _, r := range got {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				t.Errorf("%q has a control character", got)
			}
		}
	})
}

func FuzzRefusal(f *testing.F) {
	f.Add([]byte(`{"ErrorCode":"AccessDeniedException","Message":"x"}`), 403, "Mon, 23 Nov 2026 12:00:00 GMT")
	f.Add([]byte(`{"ErrorCode":1}`), 429, "")
	f.Add([]byte(`[`), -1, "never")
	c := New(Config{})
	f.Fuzz(func(t *testing.T, body []byte, status int, date string) {
		r := parseRefusal(body)
		r.status, r.date = status, date
		if err := c.refused(openTunnel, r); err.Sentence() == "" || strings.ContainsAny(err.Error(), "\r\n\x1b") {
			t.Errorf("%q", err)
		}
	})
}
