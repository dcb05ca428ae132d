package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/molecule-ai/termgw/internal/gateway"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// ServeCmd runs the gateway.
type ServeCmd struct{}

// Help lists the environment variables.
func (ServeCmd) Help() string {
	var b strings.Builder
	if err := environmentUsage(&b); err != nil {
		panic(err) // the template is wrong
	}
	return b.String()
}

// Run serves until a signal ends the process.
func (ServeCmd) Run(ctx context.Context, std *stdio, timing runner.Timing, places runner.Places) error {
	sockets, err := activation.ListenersWithNames() // before the environment is passed on
	if err != nil {
		return fmt.Errorf("taking the sockets of systemd: %w", err)
	}
	cfg := loadConfig(std.Err)
	warnOfUnknown(cfg.Log, os.Environ())
	cfg.Sockets = sockets
	cfg.Version, cfg.Timing, cfg.Places = version, timing, places
	return gateway.Run(ctx, cfg)
}

// MigrateCmd brings the schema up to date.
type MigrateCmd struct{}

// Run applies the missing migrations and prints their names.
func (MigrateCmd) Run(ctx context.Context, std *stdio) error {
	database, err := databaseOf("")
	if err != nil {
		return err
	}
	applied, err := database.Migrate(ctx, func() { _, _ = fmt.Fprintln(std.Err, "waiting for another migration") })
	for _, name := range applied {
		_, _ = fmt.Fprintf(std.Out, "applied %s\n", name)
	}
	if err == nil && len(applied) == 0 {
		_, err = fmt.Fprintln(std.Out, "the schema is up to date")
	}
	return err
}
