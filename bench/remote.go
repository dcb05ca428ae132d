package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// The columns of remote figures.
const (
	bareSSH = "ssh"
	native  = "native"
	awsCLI  = "aws-cli"
	awsSSH  = "aws, ssh" // the AWS CLI's push and tunnel, and ssh: no gateway
	engine  = "docker exec"
)

// remote measures terminals on instances: termgw's two tunnels, and ssh alone to
// the same sshds.
func (b *bench) remote(ctx context.Context) (err error) {
	program := slices.IndexFunc(b.servers, func(s *server) bool { return s.name == gateway })
	path, err := filepath.Abs(b.servers[program].cmd.Path)
	if err != nil {
		return err
	}
	d, err := b.docker(ctx)
	if err != nil {
		return err
	}
	e, err := newRemoteEnv(ctx, b.dir, path, d)
	if why := missing(""); errors.As(err, &why) {
		b.report.note("no remote terminals: %s", why)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	r := &remoteRun{env: e, report: &report{}, short: b.short}
	for _, tunnel := range []string{native, awsCLI} {
		if err := r.memory(ctx, tunnel); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	for range b.size(2, 1) {
		if err := r.prompts(ctx); err != nil {
			return fmt.Errorf("prompts: %w", err)
		}
	}
	if err := r.many(ctx); err != nil {
		return fmt.Errorf("200 terminals: %w", err)
	}
	r.publish(b.report)
	return nil
}

type remoteRun struct {
	env    *remoteEnv
	report *report
	short  bool
}

// prompts takes every figure of one terminal, in turns: all in the same minute.
func (r *remoteRun) prompts(ctx context.Context) (err error) {
	gateways := map[string]*remoteGateway{}
	defer func() {
		for _, g := range gateways {
			err = errors.Join(err, g.stop())
		}
	}()
	for _, tunnel := range []string{native, awsCLI} {
		g, err := r.env.gateway(ctx, tunnel)
		if err != nil {
			return err
		}
		gateways[tunnel] = g
	}
	var open []io.Closer
	closeAll := func() {
		for _, s := range open {
			err = errors.Join(err, s.Close())
		}
		open = nil
	}
	defer closeAll()
	// timed opens a terminal, and keeps it open.
	timed := func(figure, column string, open1 func() (session, error), prompt string) (session, error) {
		start := time.Now()
		s, err := open1()
		if err != nil {
			return nil, fmt.Errorf("%s, %s: %w", figure, column, err)
		}
		open = append(open, s)
		if err := await(s, prompt); err != nil {
			return nil, fmt.Errorf("%s, %s: %w", figure, column, err)
		}
		r.report.add(figure, column, float64(time.Since(start).Microseconds())/1e3)
		return s, nil
	}
	via := func(ctx context.Context, tunnel, workspace string) (func() (session, error), error) {
		t, err := gateways[tunnel].ticket(ctx, workspace)
		return func() (session, error) { return t.open(ctx) }, err
	}
	alone := func(command string) func() (session, error) {
		return func() (session, error) { return openPty(command) }
	}
	for n := range remoteInstances {
		typists := map[string]session{}
		for _, column := range rotatedNames([]string{bareSSH, native, awsCLI, awsSSH}, n) {
			var how func() (session, error)
			switch column {
			case bareSSH:
				how = alone(r.env.ssh(n))
			case awsSSH:
				how = alone(r.env.awsSSH(n))
			default:
				if how, err = via(ctx, column, fmt.Sprint("host", n)); err != nil {
					return err
				}
			}
			if typists[column], err = timed("first", column, how, "$ "); err != nil {
				return err
			}
		}
		second, err := via(ctx, native, fmt.Sprint("host", n))
		if err != nil {
			return err
		}
		if _, err := timed("second", native, second, "$ "); err != nil {
			return err
		}
		if r.env.container != "" {
			within, err := via(ctx, native, fmt.Sprint("container", n))
			if err != nil {
				return err
			}
			if _, err := timed("container", native, within, "# "); err != nil {
				return err
			}
			if _, err := timed("container", engine, alone("exec "+r.env.path("docker-exec")), "# "); err != nil {
				return err
			}
		}
		if err := r.echo(ctx, typists, n); err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		closeAll() // or there would be more tunnels than an endpoint carries
	}
	return nil
}

func rotatedNames(names []string, n int) []string {
	n %= len(names)
	return slices.Concat(names[n:], names[:n])
}

// echo types at random intervals into terminals that were opened the same way.
func (r *remoteRun) echo(ctx context.Context, typists map[string]session, n int) error {
	for _, s := range typists {
		// What is typed is echoed, and does not hold the word.
		if _, err := io.WriteString(s, "stty raw -echo; printf 'E%dE' 42; exec cat\n"); err != nil {
			return err
		}
		if err := await(s, "E42E"); err != nil {
			return err
		}
	}
	for _, column := range rotatedNames([]string{bareSSH, native, awsCLI, awsSSH}, n) {
		took, err := keystrokes(ctx, typists[column], 100)
		if err != nil {
			return fmt.Errorf("%s: %w", column, err)
		}
		for _, us := range took {
			r.report.add("echo", column, us/1e3)
		}
	}
	return nil
}

// memory opens one terminal on each instance.
func (r *remoteRun) memory(ctx context.Context, tunnel string) (err error) {
	g, err := r.env.gateway(ctx, tunnel)
	if err != nil {
		return err
	}
	var open []session
	defer func() {
		for _, s := range open {
			err = errors.Join(err, s.Close())
		}
		err = errors.Join(err, g.stop())
	}()
	var before int64
	for n := range remoteInstances {
		t, err := g.ticket(ctx, fmt.Sprint("host", n))
		if err != nil {
			return err
		}
		s, err := t.open(ctx)
		if err != nil {
			return err
		}
		open = append(open, s)
		if err := await(s, "$ "); err != nil {
			return err
		}
		if n == 0 { // what the first one loads is no terminal's
			if err := rest(ctx, time.Second); err != nil {
				return err
			}
			before, _ = pss(g.pid())
		}
	}
	if err := rest(ctx, time.Second); err != nil {
		return err
	}
	after, programs := pss(g.pid())
	r.report.add("memory", tunnel, float64(after-before)/(remoteInstances-1)/(1<<20))
	for name, n := range programs {
		r.report.add("runs "+name, tunnel, float64(n)/remoteInstances)
	}
	return nil
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// many opens as many terminals as an endpoint can carry, and has each answer.
func (r *remoteRun) many(ctx context.Context) (err error) {
	const each = 20
	g, err := r.env.gateway(ctx, native)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	var mu sync.Mutex
	var open []session
	defer func() {
		for _, s := range open {
			_ = s.Close() // one that was lost has told so
		}
	}()
	before, _ := pss(g.pid())
	start := time.Now()
	err = inParallel(remoteInstances*each, func(n int) error {
		t, err := g.ticket(ctx, fmt.Sprint("host", n%remoteInstances))
		if err != nil {
			return err
		}
		s, err := t.open(ctx)
		if err != nil {
			return err
		}
		mu.Lock()
		open = append(open, s)
		mu.Unlock()
		return await(s, "$ ")
	})
	if err != nil {
		return fmt.Errorf("%d are open: %w", len(open), err)
	}
	r.report.add("many_seconds", native, time.Since(start).Seconds())
	if err := rest(ctx, time.Second); err != nil {
		return err
	}
	after, _ := pss(g.pid())
	r.report.add("many_memory", native, float64(after-before)/float64(len(open))/(1<<20))
	tunnels := 0
	for _, pid := range descendants(g.pid()) {
		argv, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(argv), "ProxyCommand=-") { // the ssh of a connection
			tunnels++
		}
	}
	r.report.add("many_tunnels", native, float64(tunnels))
	echoes := 0
	err = inParallel(len(open), func(n int) error {
		if _, err := fmt.Fprintf(open[n], "printf 'E%%dE' %d; exec cat\n", n); err != nil {
			return err
		}
		if err := await(open[n], fmt.Sprintf("E%dE", n)); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		echoes++
		return nil
	})
	r.report.add("many_echo", native, float64(echoes))
	if err != nil {
		r.report.note("of 200 remote terminals: %v", err)
	}
	return nil
}

// inParallel does n things, some at a time, and returns the first error.
func inParallel(n int, do func(n int) error) error {
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	queue := make(chan int)
	for range atOnce {
		wg.Go(func() {
			for i := range queue {
				if err := do(i); err != nil {
					once.Do(func() { first = err })
				}
			}
		})
	}
	for i := range n {
		queue <- i
	}
	close(queue)
	wg.Wait()
	return first
}

// publish prints the table and the targets, and puts the figures with the others.
func (r *remoteRun) publish(all *report) {
	for figure, columns := range r.report.Rounds {
		for column, rounds := range columns {
			for _, value := range rounds {
				all.add("remote_"+figure, column, value)
			}
		}
	}
	fmt.Printf("\n%s\n", r.table())
	for _, v := range r.judge() {
		fmt.Println(v)
		all.note("remote: %s", v)
	}
	all.Notes = append(all.Notes, r.report.Notes...)
}

func (r *remoteRun) table() string {
	columns := []string{bareSSH, native, awsCLI, awsSSH, engine}
	lines := [][]string{append([]string{"remote"}, columns...)}
	for _, row := range []struct {
		title, figure, format string
		percentiles           []float64
	}{
		{"first prompt p50 / p95, ms", "first", "%.0f", []float64{50, 95}},
		{"second terminal p50 / p95, ms", "second", "%.0f", []float64{50, 95}},
		{"container, on a connection that is there, p50 / p95, ms", "container", "%.0f", []float64{50, 95}},
		{"echo p50 / p99, ms", "echo", "%.2f", []float64{50, 99}},
		{"memory a terminal, a tunnel each, MiB (PSS)", "memory", "%.1f", []float64{50}},
		{"ssh processes a terminal, a tunnel each", "runs ssh", "%.1f", []float64{50}},
		{"aws processes a terminal", "runs aws", "%.1f", []float64{50}},
		{"memory a terminal, of 200 on 10 instances, MiB", "many_memory", "%.2f", []float64{50}},
		{"tunnels of 200 terminals", "many_tunnels", "%.0f", []float64{50}},
		{"of 200 terminals echo", "many_echo", "%.0f", []float64{50}},
		{"200 terminals opened in, s", "many_seconds", "%.1f", []float64{50}},
	} {
		line := []string{row.title}
		for _, column := range columns {
			var cells []string
			if rounds := r.report.Rounds[row.figure][column]; len(rounds) > 0 {
				for _, p := range row.percentiles {
					cells = append(cells, fmt.Sprintf(row.format, percentile(rounds, p)))
				}
			}
			line = append(line, strings.Join(cells, " / "))
		}
		lines = append(lines, line)
	}
	return align(lines)
}

// judge holds the figures against the targets of remote terminals.
func (r *remoteRun) judge() []verdict {
	of := func(figure, column string) []float64 { return r.report.Rounds[figure][column] }
	over := func(figure, column, otherFigure, other string, p float64, how func(a, b float64) float64) []float64 {
		a, b := of(figure, column), of(otherFigure, other)
		if len(a) == 0 || len(b) == 0 {
			return nil
		}
		return []float64{how(percentile(a, p), percentile(b, p))}
	}
	ratio := func(a, b float64) float64 { return a / b }
	more := func(a, b float64) float64 { return a - b }
	beyond := over("container", native, "second", native, 50, more)
	if cost := of("container", engine); len(beyond) > 0 && len(cost) > 0 {
		beyond[0] -= percentile(cost, 50)
	}
	return []verdict{
		atMost("first prompt, to ssh alone: at most 1.3", 1.3, over("first", native, "first", bareSSH, 50, ratio)),
		atLeast("first prompt by the AWS CLI's push and tunnel, to native: at least 8", 8, over("first", awsSSH, "first", native, 50, ratio)),
		atMost("container beyond host and docker exec, ms: at most 0", 0, beyond),
		atMost("second terminal on an instance, ms: at most 40", 40, of("second", native)),
		atMost("echo p99 beyond ssh alone, ms: at most 2", 2, over("echo", native, "echo", bareSSH, 99, more)),
		atLeast("memory by aws-cli, to native: at least 15", 15, over("memory", awsCLI, "memory", native, 50, ratio)),
		atMost("tunnel processes that stay, native: 0", 0, []float64{sum(of("runs aws", native))}),
		atMost("tunnels of 200 terminals: at most 20", 20, of("many_tunnels", native)),
		atLeast("of 200 terminals echo: 200", 200, of("many_echo", native)),
	}
}
