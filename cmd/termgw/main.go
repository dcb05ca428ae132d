// Command termgw is a terminal gateway: it carries a browser's WebSocket to the
// shell of a workspace's container. This package holds the subcommands, their flags
// and their output, and the configuration, the only code that reads the environment.
// The running process is internal/gateway.
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
	Hostkeys HostkeysCmd `cmd:"" help:"List the host keys of instances that gateways keep, and forget them."`
	Doctor   DoctorCmd   `cmd:"" help:"Walk the path to a workspace, step by step, and say what is wrong with it."`
	Version  VersionCmd  `cmd:"" help:"Print the version."`
}

// stdio holds the standard files of a command.
type stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// exitStatus is an error that sets the exit status and prints nothing: the command
// has printed the cause.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	// A session holds 10 KiB of heap for hours and needs little more while it opens, so
	// garbage of half the heap's size is enough. GOGC takes precedence.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	os.Exit(runProcess(runner.Timing{}, nil))
}

// runProcess runs the command in this process's arguments, and returns the exit status.
// The given places come before the places that the gateway opens itself.
func runProcess(timing runner.Timing, places runner.Places) int {
	// The signals stay caught: a second signal must not end the process in its teardown.
	ctx, _ := signal.NotifyContext(context.Background(), gateway.EndSignals()...)
	return run(ctx, os.Args[1:], &stdio{os.Stdin, os.Stdout, os.Stderr}, timing, places)
}

func run(ctx context.Context, args []string, std *stdio, timing runner.Timing, places runner.Places) int {
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
		kong.Bind(std, timing, places),
	)
	if err != nil {
		panic(err) // the structs above are wrong
	}
	command, err := parser.Parse(args)
	if status >= 0 { // after --help
		return status
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
