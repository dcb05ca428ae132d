package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/molecule-ai/termgw/internal/demo"
	"github.com/molecule-ai/termgw/internal/gateway"
	"github.com/molecule-ai/termgw/internal/logline"
	"github.com/molecule-ai/termgw/pkg/router"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/docker"
	"github.com/molecule-ai/termgw/pkg/runner/host"
	"github.com/molecule-ai/termgw/pkg/store"
)

// DemoCmd runs a gateway with a store, a ticket key and a small platform of its own.
type DemoCmd struct {
	Listen string `default:"127.0.0.1:8022" placeholder:"ADDR" help:"Loopback address to listen on; port 0 picks a free one (${default})."`
	Shell  string `placeholder:"COMMAND" help:"What 'This machine' runs, by sh -c (your login shell)."`
	JSON   bool   `name:"json" help:"Print one JSON line with the addresses, for programs."`
}

// Help describes the shells, and the secrets that open them.
func (DemoCmd) Help() string {
	return `One process with a store, a key and a small platform page. Its workspaces are a shell of this
machine, as you, and every running container if a Docker engine answers (DOCKER_HOST).

Whoever has the printed address has a shell as you: it is served on loopback only, and each address
carries a secret. The page's is good for one browser; a new one is printed when it was used.

A shell waits a minute for its person: cut the network or reload the page, and it goes on.`
}

// Run serves the demo until a signal ends the process.
func (c *DemoCmd) Run(ctx context.Context, std *stdio, timing runner.Timing) (err error) {
	listener, err := listenLoopback(c.Listen)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }() // a second time after gateway.Run
	containers, err := docker.Open(docker.Config{Shells: []string{"/bin/bash", "/bin/sh"}, KeepDetached: true, Timing: timing})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, containers.Close()) }()
	log := logline.New(std.Err, "text", slog.LevelInfo)
	p, err := demo.New(listener.Addr().String(), containers, log)
	if err != nil {
		return err
	}
	env, home := shellEnvironment()
	shell := host.New(host.Config{KeepDetached: true, Command: cmp.Or(c.Shell, loginShell()), Dir: home, Env: env, Timing: timing})
	endpoint, remove, err := writeEndpoint(p.TicketsURL())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if c.JSON {
		err = json.NewEncoder(std.Out).Encode(map[string]string{"page": p.PageURL(), "terminal": p.TerminalURL(), "tickets": p.TicketsURL()})
	} else {
		p.Used = func(url string) {
			_, _ = fmt.Fprintf(std.Out, "\nThe address was used. For another browser:\n  %s\n", url)
		}
		err = greet(std.Out, p, endpoint)
	}
	if err != nil {
		return err
	}
	return gateway.Run(ctx, gateway.Config{
		Config: router.Config{
			Verifier: p.Verifier, Store: store.NewMemory(store.MemoryConfig{Lookup: p.Lookup}),
			Places: runner.Places{{Name: "local", Column: demo.HostColumn, Kind: shell}, {Name: "local", Kind: containers}}, Docker: containers.Ping,
			PingInterval: 25 * time.Second, IdleTimeout: 30 * time.Minute, MaxSession: 8 * time.Hour, Resume: demo.Resume,
			Replica: "demo", Log: log,
		},
		Listener: listener, Front: p.Handler,
	})
}

func greet(w io.Writer, p *demo.Platform, endpoint string) error {
	page := "The page is not in this binary. With Node 20 or newer: make web build"
	if p.Page != nil {
		page = "Open in a browser:\n  " + p.PageURL()
	}
	_, err := fmt.Fprintf(w, "%s\n\nOr in a terminal:\n  %s connect --ticket-endpoint %s %s\n\nCtrl-C ends the demo and every shell in it.\n",
		page, os.Args[0], endpoint, p.TerminalURL())
	return err
}

// writeEndpoint writes the ticket endpoint's URL, which has a secret, to a file that only
// this user can read: every user could read a command line. The caller calls remove.
func writeEndpoint(url string) (path string, remove func() error, err error) {
	dir, err := os.MkdirTemp("", "termgw-demo-")
	if err != nil {
		return "", nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	path = filepath.Join(dir, "tickets")
	if err := os.WriteFile(path, []byte(url+"\n"), 0o600); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return path, remove, nil
}

// listenLoopback listens at a loopback address, and refuses any other address: a client
// that reaches the demo and has the secret gets a shell as the demo's user.
func listenLoopback(address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("--listen %s: the demo opens shells of this machine, so it listens on loopback only, like 127.0.0.1:8022", address)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return listener, nil
}

func loginShell() string {
	for _, shell := range []string{os.Getenv("SHELL"), "/bin/bash"} {
		if filepath.IsAbs(shell) && !strings.ContainsAny(shell, "' \t\n") {
			if info, err := os.Stat(shell); err == nil && info.Mode()&0o111 != 0 {
				return "exec " + shell
			}
		}
	}
	return "exec /bin/sh"
}
