package runner

import (
	"context"
	"time"
)

// Observer is told that a step of a start has begun at a time. It returns the context of the step, and
// the function that is called with the step's end.
type Observer func(ctx context.Context, step string, began time.Time) (inner context.Context, ended func(at time.Time, err error))

type observerKey struct{}

// WithObserver returns the context of a start whose steps are observed.
func WithObserver(ctx context.Context, o Observer) context.Context {
	return context.WithValue(ctx, observerKey{}, o)
}

// BeginStep tells the observer of a start that a step begins, and end that it has ended. Nothing
// happens where nobody observes.
func BeginStep(ctx context.Context, step string) (inner context.Context, end func(error)) {
	o, ok := ctx.Value(observerKey{}).(Observer)
	if !ok {
		return ctx, func(error) {}
	}
	inner, ended := o(ctx, step, time.Now())
	return inner, func(err error) { ended(time.Now(), err) }
}

// StepOver tells the observer of a start of a step that is over.
func StepOver(ctx context.Context, step string, began, ended time.Time, err error) {
	if o, ok := ctx.Value(observerKey{}).(Observer); ok {
		_, end := o(ctx, step, began)
		end(ended, err)
	}
}
