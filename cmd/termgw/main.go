// Command termgw is a terminal gateway: it carries a browser's WebSocket to the
// shell of a workspace's container. This package holds its subcommands and its
// configuration, the only code that reads the environment, and wires the
// packages under pkg together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/alecthomas/kong"

	"github.com/molecule-ai/termgw/internal/gateway"
	"github.com/molecule-ai/termgw/pkg/runner"
)

type cli struct {
	Serve    ServeCmd    `cmd:"" help:"Run the gateway, as its environment says; 'termgw serve --help' lists the variables."`
	Demo     DemoCmd     `cmd:"" help:"Run everything in one process on this machine and open a shell in the browser."`
	Migrate  MigrateCmd  `cmd:"" help:"Create or update the gateway's own schema in Postgres (TERMGW_DATABASE_URL)."`
	Ticket   TicketCmd   `cmd:"" help:"Make a signing key; mint and check tickets by hand."`
	Connect  ConnectCmd  `cmd:"" help:"Open a terminal of a gateway in this terminal."`
	Sessions SessionsCmd `cmd:"" help:"List the sessions of all replicas, and cut them."`
	Doctor   DoctorCmd   `cmd:"" help:"Walk the path to a workspace, step by step, and say what is wrong with it."`
	Version  VersionCmd  `cmd:"" help:"Print the version."`
}

// stdio is what a command reads and writes.
type stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// exitStatus is an error that only sets the exit status: what there was to say
// was said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	// What a session holds for hours is 10 KiB of heap; half as much again while
	// it opens is enough. GOGC, if it is set, decides instead.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	os.Exit(runProcess(runner.Timing{}))
}

// runProcess runs the command of this process's arguments, and returns its exit status.
func runProcess(timing runner.Timing) int {
	// Never undone: a second signal must not end the process in mid-teardown.
	ctx, _ := signal.NotifyContext(context.Background(), gateway.EndSignals()...)
	return run(ctx, os.Args[1:], &stdio{os.Stdin, os.Stdout, os.Stderr}, timing)
}

func run(ctx context.Context, args []string, std *stdio, timing runner.Timing) int {
	var c cli
	status := -1
	parser, err := kong.New(&c,
		kong.Name("termgw"),
		kong.Description("A terminal gateway: browser to workspace, by a signed ticket and a WebSocket."),
		kong.ShortUsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Writers(std.Out, std.Err),
		kong.Exit(func(code int) { status = code }),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(std, timing),
	)
	if err != nil {
		panic(err) // the structs above are wrong
	}
	command, err := parser.Parse(args)
	if status >= 0 {
		return status // --help was answered
	}
	if err != nil {
		parser.FatalIfErrorf(err)
		return 2
	}
	err = command.Run()
	var quiet exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &quiet):
		return int(quiet)
	default:
		_, _ = fmt.Fprintf(std.Err, "termgw: %v\n", err)
		return 1
	}
}
