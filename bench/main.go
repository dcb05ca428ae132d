// Command bench is termgw's load generator: it measures a built termgw, the
// peers that it finds on PATH and a bare pty, in one run, in turns, by one
// client, with shells of this machine and of a container. It prints a table and
// the project's targets, and writes all figures as JSON.
//
// It shares no code with the gateway, and works on loopback only. Everything
// that it starts ends with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	// Two things it starts itself as: a child that prints a known stream, and a
	// client of floods.
	switch {
	case len(args) == 2 && args[0] == "stream":
		return writeStream(os.Stdout, args[1])
	case len(args) == 1 && args[0] == "flood":
		return floodMain(ctx)
	}
	return measure(ctx, args)
}

// bench is one run.
type bench struct {
	short    bool
	dir      string // of logs
	sessions []int
	pattern  []byte
	programs []*program
	servers  []*server // of programs, running child
	report   *report

	engine    *docker   // nil: no part has asked for a container yet
	noEngine  bool      // there can be none, as a note says
	contained []*server // of programs, whose sessions are shells in a container
}

// part is one thing to measure.
type part struct {
	name string
	run  func(*bench, context.Context) error
}

var parts = []part{
	{"echo", func(b *bench, ctx context.Context) error { return b.echo(ctx, b.servers, false) }},
	{"floods", func(b *bench, ctx context.Context) error { return b.echo(ctx, b.servers, true) }},
	{"bulk", (*bench).bulk},
	{"interrupt", (*bench).interrupt},
	{"connect", (*bench).connect},
	{"rate", (*bench).rate},
	{"ends", (*bench).ends},
	{"container", (*bench).container},
	{"idle", (*bench).idle},
	{"replicas", (*bench).replicas},
	{"resume", (*bench).resume},
	{"remote", (*bench).remote},
	{"slow", (*bench).slow},
}

// longest bounds a run, whatever hangs.
const longest = 30 * time.Minute

func measure(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	short := flags.Bool("short", false, "a minute's worth: fewer rounds, fewer sessions")
	only := flags.String("parts", partNames(), "what to measure")
	path := flags.String("termgw", "../bin/termgw", "the program to measure")
	out := flags.String("out", "out", "directory for the JSON")
	counts := flags.String("sessions", "", "idle sessions to hold (100,1000,5000; 100,500 if short)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *counts == "" {
		*counts = map[bool]string{false: "100,1000,5000", true: "100,500"}[*short]
	}
	b := &bench{short: *short, pattern: pattern()}
	if b.sessions, err = parseCounts(*counts); err != nil {
		return fmt.Errorf("-sessions: %w", err)
	}
	chosen := strings.Split(*only, ",")
	for _, name := range chosen {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("-parts: there is no %q in %s", name, partNames())
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, longest, errors.New("the run took too long"))
	defer cancel()

	descriptors, err := raiseDescriptors()
	if err != nil {
		return fmt.Errorf("raising the limit of descriptors: %w", err)
	}
	if b.programs, err = programs(ctx, *path); err != nil {
		return err
	}
	b.report = &report{Started: time.Now(), Args: args, Machine: thisMachine(), Versions: map[string]string{}, sessions: b.sessions}
	b.report.Machine.Descriptors = descriptors
	for _, p := range b.programs {
		b.report.programs = append(b.report.programs, p.name)
		b.report.Versions[p.name] = p.version
	}
	if len(b.programs) == 2 {
		b.report.note("no peer is on PATH: install ttyd for the ratios to it")
	}
	if err := b.runParts(ctx, chosen); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return b.publish(*out)
}

func (b *bench) runParts(ctx context.Context, chosen []string) (err error) {
	if b.dir, err = os.MkdirTemp("", "termgw-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.servers, err = launchAll(ctx, b.dir, b.programs, child); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, stopAll(b.servers), stopAll(b.contained))
		if b.engine != nil {
			err = errors.Join(err, b.engine.stop())
		}
	}()
	for _, p := range parts {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		start := time.Now()
		fmt.Fprintf(os.Stderr, "%s …", p.name)
		err := p.run(b, ctx)
		fmt.Fprintf(os.Stderr, " %.0f s\n", time.Since(start).Seconds())
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (b *bench) publish(dir string) error {
	r := b.report
	r.Seconds = time.Since(r.Started).Seconds()
	r.Targets = r.judge()
	path, err := r.write(dir)
	if err != nil {
		return err
	}
	m := r.Machine
	fmt.Printf("\n%s, %d cores, %d MiB, Linux %s, %s; load before: %s\n\n%s\n", m.CPU, m.Cores, m.MemoryMiB, m.Kernel, m.Go, m.Load, r.table())
	for _, v := range r.Targets {
		fmt.Println(v)
	}
	for _, n := range r.Notes {
		fmt.Println("note:", n)
	}
	fmt.Printf("\n%.0f s, written to %s\n", r.Seconds, path)
	return nil
}

// size picks how much of something to do.
func (b *bench) size(full, short int) int {
	if b.short {
		return short
	}
	return full
}

// rotated starts each round with another program.
func rotated(all []*server, round int) []*server {
	n := round % len(all)
	return slices.Concat(all[n:], all[:n])
}

func partNames() string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return strings.Join(names, ",")
}

func parseCounts(list string) ([]int, error) {
	var counts []int
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no number of sessions", s)
		}
		counts = append(counts, n)
	}
	slices.Sort(counts)
	return slices.Compact(counts), nil
}
