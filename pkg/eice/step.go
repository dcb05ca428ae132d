package eice

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/middleware"
)

// step returns the context of Locate, PushKey or OpenTunnel, which bounds the step and keeps AWS's last refusal in it.
func (c *Client) step(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithValue(ctx, refusalsKey{}, new(refusals)), c.stepTime)
}

// refusals keeps the last refusal of a step. The SDK returns a retried call that ran out of time as a context's error, and
// drops what AWS has said before.
type refusals struct {
	mu    sync.Mutex
	last  refusal
	tried string // the operation
}

type refusalsKey struct{}

// keep remembers a refusal of the context's step.
func keep(ctx context.Context, tried string, r refusal) {
	if kept, ok := ctx.Value(refusalsKey{}).(*refusals); ok {
		kept.mu.Lock()
		defer kept.mu.Unlock()
		kept.last, kept.tried = r, tried
	}
}

// lastRefusal returns the last refusal of the context's step, if there was one.
func lastRefusal(ctx context.Context) (r refusal, tried string, ok bool) {
	kept, ok := ctx.Value(refusalsKey{}).(*refusals)
	if !ok {
		return refusal{}, "", false
	}
	kept.mu.Lock()
	defer kept.mu.Unlock()
	return kept.last, kept.tried, kept.tried != ""
}

// KeepRefusals is an option for the calls of an aws.Config (APIOptions): a step of Client whose time runs out between
// retries then tells what AWS said to them. New adds the option to its own calls. The providers of Config.AWS's
// credentials have it if the configuration was loaded with it.
func KeepRefusals(stack *middleware.Stack) error {
	const id = "keepRefusals"
	if _, ok := stack.Finalize.Get(id); ok {
		return nil
	}
	try := func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
		out, metadata, err := next.HandleFinalize(ctx, in)
		if r, ok := refusalOf(err); ok {
			keep(ctx, stack.ID(), r)
		}
		return out, metadata, err
	}
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc(id, try), (*retry.Attempt)(nil).ID(), middleware.After)
}

const (
	attempts   = 4
	maxBackoff = time.Second
)

// backoff returns the wait before the try that follows the given number of tries: a quarter of maxBackoff, then the double,
// less a jitter. Two calls that are both tried four times fit in stepTime.
func backoff(tries int) time.Duration {
	wait := maxBackoff
	if tries < 3 {
		wait = maxBackoff >> (3 - max(tries, 1))
	}
	return wait/2 + rand.N(wait/2) //nolint:gosec // it spreads a load and hides nothing
}

// newInstance are the codes with which a part of AWS tells that it does not know an instance, or its state, yet: that it
// was created or started has not come to all parts for some seconds (EC2 API, "Eventual consistency").
var newInstance = retry.RetryableErrorCode{Codes: map[string]struct{}{
	"InvalidInstanceID.NotFound": {}, "EC2InstanceNotFoundException": {}, "EC2InstanceStateInvalidException": {},
}}

// newRetryer returns the retryer of the SDK's calls. A new instance is asked for again, for some 4 s.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = attempts
		o.Retryables = append(slices.Clip(o.Retryables), newInstance)
		o.Backoff = retry.BackoffDelayerFunc(func(tries int, err error) (time.Duration, error) {
			if newInstance.IsErrorRetryable(err) == aws.TrueTernary {
				return maxBackoff + backoff(attempts)/2, nil
			}
			return backoff(tries), nil
		})
	})
}

// sleep reports whether the context outlives the wait.
func sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
