package eice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	// roleSession is the name of the gateway's sessions of assumed roles, in CloudTrail and in conditions of trust
	// policies (sts:RoleSessionName).
	roleSession = "termgw"
	// roleTime is the life of an assumed role's credentials. Every role allows an hour, also to a caller that has assumed
	// a role itself.
	roleTime = time.Hour
	// renewBefore is how long before their end the credentials of a role are renewed.
	renewBefore = 5 * time.Minute
)

var (
	roleForm = regexp.MustCompile(`^arn:aws(-[a-z]{1,12}){0,3}:iam::[0-9]{12}:role/([!-~]{1,510}/)?[A-Za-z0-9_+=,.@-]{1,64}$`)
	// identityForm is AWS's form of a source identity (AssumeRole, SourceIdentity).
	identityForm = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{2,64}$`)
)

// assumeCall is STS's AssumeRole.
type assumeCall func(context.Context, *sts.AssumeRoleInput, ...func(*sts.Options)) (*sts.AssumeRoleOutput, error)

// AssumeRole calls f, for the SDK's provider.
func (f assumeCall) AssumeRole(ctx context.Context, in *sts.AssumeRoleInput, o ...func(*sts.Options)) (*sts.AssumeRoleOutput, error) {
	return f(ctx, in, o...)
}

// principal is whom AWS sees: the gateway itself, or the gateway in a role, for everybody or in one person's name.
type principal struct{ role, sourceIdentity string }

// assumed are the credentials of a principal in a role.
type assumed struct {
	provider aws.CredentialsProvider
	used     time.Time
	request  atomic.Pointer[string] // the id of the last AssumeRole that AWS has answered; nil: none yet
}

// roleRequest returns the id of the AssumeRole that a principal's credentials are from; "" for the gateway's own.
func (c *Client) roleRequest(who principal) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if role, ok := c.roles[who]; ok {
		if request := role.request.Load(); request != nil {
			return *request
		}
	}
	return ""
}

// provider returns the credentials of a principal, cached. region is where to ask for those of a role if the gateway's
// own configuration names no region.
func (c *Client) provider(who principal, region string) aws.CredentialsProvider {
	if who.role == "" {
		return c.cfg.AWS.Credentials
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	got, ok := c.roles[who]
	if !ok {
		maps.DeleteFunc(c.roles, func(_ principal, a *assumed) bool { return now.Sub(a.used) > roleTime })
		got = &assumed{}
		near := func(o *sts.Options) { o.Region = cmp.Or(c.cfg.AWS.Region, region) }
		call := assumeCall(func(ctx context.Context, in *sts.AssumeRoleInput, o ...func(*sts.Options)) (*sts.AssumeRoleOutput, error) {
			ctx, cancel := context.WithTimeout(ctx, c.stepTime) // the cache's context has no end, and others wait for this call
			defer cancel()
			out, err := c.assumeRole(ctx, in, append(o, near)...)
			if err == nil {
				request := requestOf(out.ResultMetadata)
				got.request.Store(&request)
			}
			return out, err
		})
		got.provider = aws.NewCredentialsCache(
			stscreds.NewAssumeRoleProvider(call, who.role, func(o *stscreds.AssumeRoleOptions) {
				o.RoleSessionName, o.Duration = roleSession, roleTime
				if who.sourceIdentity != "" {
					o.SourceIdentity = aws.String(who.sourceIdentity)
				}
			}), func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = renewBefore },
		)
		c.roles[who] = got
	}
	got.used = now
	return got.provider
}

// credentials returns a principal's credentials. It is called before each request, so that missing credentials and a
// failed request have different errors. The SDK caches credentials, so a call costs nothing until they expire.
func (c *Client) credentials(ctx context.Context, who principal, region string) (aws.Credentials, error) {
	own := c.cfg.AWS.Credentials
	if own == nil {
		return aws.Credentials{}, fault(Credentials, "no AWS credentials are configured")
	}
	got, err := own.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, c.explainOwn(ctx, err)
	}
	if who.role == "" {
		return got, nil
	}
	if got, err = c.provider(who, region).Retrieve(ctx); err != nil {
		return aws.Credentials{}, c.explain(ctx, assumeRole, err)
	}
	return got, nil
}

// explainOwn returns the Error for the gateway's own credentials, which could not be had. Where the SDK has no other source
// left than the machine's metadata service, its silence means that there are none: the machine is no instance, or has no
// role, or its metadata's hop limit leaves containers out.
func (c *Client) explainOwn(ctx context.Context, err error) *Error {
	_, unsent := errors.AsType[*smithyhttp.RequestSendError](err)
	source, ok := c.cfg.AWS.Credentials.(aws.CredentialProviderSource)
	fromMetadata := ok && slices.Contains(source.ProviderSources(), aws.CredentialSourceIMDS)
	_, answered := refusalOf(err)
	_, _, before := lastRefusal(ctx)
	if answered || before || (unsent || ctx.Err() != nil) && !fromMetadata {
		return c.explain(ctx, getCredentials, err)
	}
	return &Error{Detail: Credentials, Err: scrub(fmt.Errorf("%s: %w", getCredentials.name, err))}
}
