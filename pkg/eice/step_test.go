package eice

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

// Two calls that are both throttled three times are tried in all four times, in the time that a step has.
func TestTwoThrottledCalls(t *testing.T) {
	w := newWorld(t, nil)
	f := answered(503, "RequestLimitExceeded")
	f.Times = attempts - 1
	w.play.Fail(awsplay.DescribeInstances, f)
	w.play.Fail(awsplay.DescribeEndpoints, f)
	w.locate(t)
	longest := 2 * (maxBackoff/4 + maxBackoff/2 + maxBackoff)
	if longest >= stepTime-stepTime/4 {
		t.Errorf("the retries of two calls wait %s, of %s", longest, stepTime)
	}
	for tries := range 10 {
		if wait := backoff(tries); wait < maxBackoff/8 || wait > maxBackoff {
			t.Errorf("after %d tries the wait is %s", tries, wait)
		}
	}
}

// A step whose time runs out tells what AWS said in it, rather than that AWS was not reached.
func TestRefusalOutlivesTheTime(t *testing.T) {
	for name, refused := range map[string]struct {
		fault awsplay.Fault
		want  Detail
	}{
		"throttled":       {answered(503, "RequestLimitExceeded"), Throttled},
		"AWS's own fault": {answered(500, "InternalError"), Fault},
		"a proxy's fault": {awsplay.Fault{Status: 502, Body: "<html>bad gateway"}, Fault},
		"not known yet":   {answered(400, "InvalidInstanceID.NotFound"), InstanceUnknown},
	} {
		for _, op := range []awsplay.Op{awsplay.DescribeInstances, awsplay.DescribeEndpoints, awsplay.SendSSHPublicKey, awsplay.OpenTunnel} {
			if refused.want == InstanceUnknown && op != awsplay.DescribeInstances {
				continue
			}
			t.Run(name+" "+string(op), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, nil)
				route := w.locate(t)
				before := w.play.Calls(op)
				f := refused.fault
				f.Times, f.Then = 1, &awsplay.Fault{Hang: true}
				w.play.Fail(op, f)
				ctx, cancel := context.WithCancel(t.Context())
				failed := make(chan error, 1)
				go func() {
					var err error
					switch op {
					case awsplay.SendSSHPublicKey:
						_, err = w.client.PushKey(ctx, route, "ec2-user", publicKey)
					case awsplay.OpenTunnel:
						_, _, err = w.client.OpenTunnel(ctx, route, 0)
					default:
						step, stop := w.client.step(ctx)
						defer stop()
						_, err = w.client.locate(step, route.Instance)
					}
					failed <- err
				}()
				eventually(t, "the call is tried again", func() bool { return w.play.Calls(op) == before+2 })
				cancel() // as the end of the time does
				err := <-failed
				wantDetail(t, err, refused.want)
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%v does not tell why there was no other try", err)
				}
			})
		}
	}
}

// The time that one call of a step has used up is not the fault of the next.
func TestRefusalOfTheCallBefore(t *testing.T) {
	w := newWorld(t, nil)
	f := answered(503, "RequestLimitExceeded")
	f.Times = 1
	w.play.Fail(awsplay.DescribeInstances, f)
	w.play.Fail(awsplay.DescribeEndpoints, awsplay.Fault{Hang: true})
	ctx, cancel := w.client.step(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := w.client.locate(ctx, Instance{ID: instanceID, Region: "us-east-1"})
		failed <- err
	}()
	eventually(t, "the second call is made", func() bool { return w.play.Calls(awsplay.DescribeEndpoints) == 1 })
	cancel()
	err := <-failed
	wantDetail(t, err, Throttled)
	if !strings.Contains(err.Error(), "DescribeInstances: status 503") {
		t.Errorf("%v does not name the call", err)
	}
	// What hangs without a refusal before it is not reached.
	w.play.Heal()
	w.play.Fail(awsplay.DescribeEndpoints, awsplay.Fault{Hang: true})
	ctx, cancel = w.client.step(t.Context())
	defer cancel()
	go func() {
		_, err := w.client.locate(ctx, Instance{ID: instanceID, Region: "us-east-1"})
		failed <- err
	}()
	eventually(t, "the second call is made", func() bool { return w.play.Calls(awsplay.DescribeEndpoints) == 2 })
	cancel()
	wantDetail(t, <-failed, Unreachable)
}

// An instance that was created a moment ago is not known everywhere in AWS at once.
func TestInstanceCreatedAMomentAgo(t *testing.T) {
	w := newWorld(t, nil)
	unknown := answered(400, "InvalidInstanceID.NotFound")
	unknown.Times = attempts - 1
	w.play.Fail(awsplay.DescribeInstances, unknown)
	route := w.locate(t)
	for _, code := range []string{"EC2InstanceNotFoundException", "EC2InstanceStateInvalidException"} {
		f := answered(400, code)
		f.Times = attempts - 1
		w.play.Fail(awsplay.SendSSHPublicKey, f)
		if _, err := w.client.PushKey(t.Context(), route, "ec2-user", publicKey); err != nil {
			t.Errorf("%s: %v", code, err)
		}
	}
	// One that is not there is asked for as often, and no more.
	unknown.Times = 0
	w.play.Fail(awsplay.DescribeInstances, unknown)
	before := w.play.Calls(awsplay.DescribeInstances)
	_, err := w.client.Locate(t.Context(), Instance{ID: "i-0123456789abcdef9"})
	wantDetail(t, err, InstanceUnknown)
	if n := w.play.Calls(awsplay.DescribeInstances) - before; n != attempts {
		t.Errorf("%d calls, want %d", n, attempts)
	}
}

// credentialsFrom is a provider of the gateway's own credentials that fails.
type credentialsFrom struct {
	source aws.CredentialSource
	err    error
}

func (c credentialsFrom) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{}, c.err
}

func (c credentialsFrom) ProviderSources() []aws.CredentialSource {
	return []aws.CredentialSource{c.source}
}

// Why the gateway has no credentials decides whether they may come by themselves.
func TestOwnCredentials(t *testing.T) {
	unsent := &smithyhttp.RequestSendError{Err: errors.New("dial tcp: connection refused")}
	status := func(code int) error {
		return &smithyhttp.ResponseError{Response: &smithyhttp.Response{Response: &http.Response{StatusCode: code}}, Err: errors.New("request failed")}
	}
	for name, test := range map[string]struct {
		provider credentialsFrom
		want     Detail
	}{
		"no metadata service": {credentialsFrom{aws.CredentialSourceIMDS, unsent}, Credentials},
		"no role":             {credentialsFrom{aws.CredentialSourceIMDS, status(404)}, Credentials},
		"metadata throttled":  {credentialsFrom{aws.CredentialSourceIMDS, status(429)}, Throttled},
		"metadata broken":     {credentialsFrom{aws.CredentialSourceIMDS, status(503)}, Fault},
		"STS not reached":     {credentialsFrom{aws.CredentialSourceSTSAssumeRoleWebID, unsent}, Unreachable},
		"a profile not there": {credentialsFrom{aws.CredentialSourceProfile, errors.New("no such profile")}, Credentials},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(_ *world, c *Config) { c.AWS.Credentials = test.provider })
			_, err := w.client.Locate(t.Context(), Instance{ID: instanceID})
			wantDetail(t, err, test.want)
		})
	}
}

// The gateway's own role is assumed by the SDK's provider, whose STS is throttled or broken too.
func TestOwnRoleIsThrottled(t *testing.T) {
	for name, test := range map[string]struct {
		fault awsplay.Fault
		want  Detail
	}{
		"throttled": {answered(400, "Throttling"), Throttled},
		"broken":    {answered(503, "ServiceUnavailable"), Fault},
		"denied":    {denied("AccessDenied"), Credentials},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const role = "arn:aws:iam::" + accountID + ":role/gateway"
			w := newWorld(t, func(w *world, c *Config) {
				w.play.PutRole(awsplay.Role{ARN: role})
				own := c.AWS.Copy()
				own.APIOptions = []func(*middleware.Stack) error{KeepRefusals}
				// The provider outlives the step: its second try, which hangs, is its last.
				own.Retryer = func() aws.Retryer {
					return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts = 2 })
				}
				c.AWS.Credentials = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(sts.NewFromConfig(own), role))
			})
			f := test.fault
			f.Times = 1
			if test.want != Credentials {
				f.Then = &awsplay.Fault{Hang: true}
			}
			w.play.Fail(awsplay.AssumeRole, f)
			ctx, cancel := w.client.step(t.Context())
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := w.client.locate(ctx, Instance{ID: instanceID, Region: "us-east-1"})
				failed <- err
			}()
			if f.Then != nil {
				eventually(t, "it is tried again", func() bool { return w.play.Calls(awsplay.AssumeRole) == 2 })
				cancel()
			}
			wantDetail(t, <-failed, test.want)
		})
	}
}
