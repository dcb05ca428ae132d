package runner

import (
	"context"
	"errors"
	"fmt"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Kind is a kind of place in which a workspace can live. Its methods may be called at the same time.
type Kind interface {
	// Start opens a terminal. The context bounds the start alone. What goes wrong is
	// a *Failure where a person or an operator can do something about it.
	Start(context.Context, Target, terminal.Size) (terminal.Terminal, error)
	// Reap ends what is left of a session whose gateway is gone. Without an error the
	// session is over; ErrUnknown says that this gateway can know nothing of it now.
	Reap(context.Context, Target) error
	// Steps are those of the way to a shell, for an operator who asks why none opens.
	// The last ones open it: open does so once, and returns the same error then.
	Steps(target Target, open func(context.Context) error) []Step
}

// ErrUnknown is the error of a Reap that found no place to look at, or looks too
// early: another gateway, or this one later, may know more.
var ErrUnknown = errors.New("nothing is known of the session here")

// Step is one step of the way to a shell.
type Step struct {
	Name string
	// Run returns what it found, for an operator. The caller tells the Fix of a
	// *Failure, or its Sentence, and Fix where the error has neither.
	Run func(context.Context) (found string, err error)
	Fix string
	// Apart reports that the next step does not need this one.
	Apart bool
}

// Place is a kind with the rows that are of it.
type Place struct {
	Name   string // of the kind, outside: the label of metrics, `target` of ready
	Column string // rows whose column of this name is not empty are of this kind; empty: all rows
	Kind   Kind
}

// Places are all kinds of place. A row is of the first that takes it.
type Places []Place

// Of returns the place of a row with these columns.
func (p Places) Of(columns map[string]string) Place {
	for _, place := range p {
		if place.Column == "" || columns[place.Column] != "" {
			return place
		}
	}
	return Place{Name: "none", Kind: Absent("none", errors.New("no kind of place takes the row"))}
}

// Columns are the columns by which rows are told apart.
func (p Places) Columns() (columns []string) {
	for _, place := range p {
		if place.Column != "" {
			columns = append(columns, place.Column)
		}
	}
	return columns
}

// ErrAbsent is the cause of a failure that the gateway is not set up for the
// workspace's kind of place.
var ErrAbsent = errors.New("this gateway is not set up for the workspace's kind of place")

// Absent is a kind that could not be opened, with the step that its failures name.
func Absent(step string, err error) Kind {
	return absent{&Failure{Step: step, Err: fmt.Errorf("%w: %w", ErrAbsent, err)}}
}

type absent struct{ err error }

func (a absent) Start(context.Context, Target, terminal.Size) (terminal.Terminal, error) {
	return nil, a.err
}

func (a absent) Reap(context.Context, Target) error { return fmt.Errorf("%w: %w", ErrUnknown, a.err) }

func (a absent) Steps(Target, func(context.Context) error) []Step {
	return []Step{{Name: "place", Run: func(context.Context) (string, error) { return "", a.err }, Fix: "Put right what the cause names, and start the gateway again."}}
}

// StepOf returns the step that an error's Failure names; empty: none does.
func StepOf(err error) string {
	var failed *Failure
	if errors.As(err, &failed) {
		return failed.Step
	}
	return ""
}
