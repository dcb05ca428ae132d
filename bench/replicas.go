package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// replicaBenchmarks are the project's own Go benchmarks of what needs a Postgres,
// a Docker engine and nginx, which the tests know how to start: they measure the
// gateway built from the sources beside this program.
var replicaBenchmarks = []struct {
	figure, pkg, name string
	times, shortTimes int
	live, shortLive   int // terminals; 0: none
}{
	{"redeem", "pkg/store", "BenchmarkArrivals", 10_000, 1500, 0, 0},
	{"revoke", "cmd/termgw", "BenchmarkRevoke", 300, 20, 1000, 60},
	{"rolling", "cmd/termgw", "BenchmarkRollingRestart", 1, 1, 300, 60},
}

// replicas measures what replicas share: redemptions, revocations and restarts.
func (b *bench) replicas(ctx context.Context) error {
	root, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		b.report.note("no figures of replicas: they need the go command")
		return nil
	}
	if _, err := os.Stat(filepath.Join(root, "cmd", "termgw")); err != nil {
		b.report.note("no figures of replicas: they need the sources, beside the working directory")
		return nil //nolint:nilerr // said
	}
	for _, m := range replicaBenchmarks {
		args := []string{"test", "-run", "^$", "-bench", "^" + m.name + "$", "-timeout", "15m", "-benchtime", fmt.Sprintf("%dx", b.size(m.times, m.shortTimes))}
		if m.live > 0 {
			args = append(args, "-live", strconv.Itoa(b.size(m.live, m.shortLive)))
		}
		cmd := exec.CommandContext(ctx, goTool, args...)
		cmd.Dir = filepath.Join(root, filepath.FromSlash(m.pkg))
		// So that the test's own children end, too.
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGINT) }
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", m.name, err, out)
		}
		found := benchmarkFigures(string(out), m.name)
		if len(found) == 0 {
			b.report.note("%s was skipped: %s", m.name, strings.Join(strings.Fields(string(out)), " "))
			continue
		}
		for unit, value := range found {
			b.report.add(m.figure+"_"+unit, gateway, value)
		}
	}
	return nil
}

var benchmarkFigure = regexp.MustCompile(`([0-9.e+]+) ([A-Za-z][^\s/]*)(?:\s|$)`)

// benchmarkFigures reads the metrics in a benchmark's line of output, but for
// those an operation, by unit.
func benchmarkFigures(output, name string) map[string]float64 {
	found := map[string]float64{}
	for line := range strings.Lines(output) {
		if !strings.HasPrefix(line, name) {
			continue
		}
		for _, m := range benchmarkFigure.FindAllStringSubmatch(line, -1) {
			if value, err := strconv.ParseFloat(m[1], 64); err == nil {
				found[m[2]] = value
			}
		}
	}
	return found
}

// replicaTargets are what the issue sets.
func (r *report) replicaTargets() []verdict {
	of := func(figure string) []float64 { return r.Rounds[figure][gateway] }
	return []verdict{
		atMost("a redemption at 500 a second, p99: at most 5,000 µs", 5000, of("redeem_redeem-p99-µs")),
		atMost("the gateway's own part in it, CPU: at most 300 µs", 300, of("redeem_cpu-µs")),
		atMost("a revocation's commit to the closed socket, p99: at most 250 ms", 250, of("revoke_close-p99-ms")),
		atMost("a rolling restart, a new shell after the notice's time: at most 2,000 ms", 2000, of("rolling_late-max-ms")),
	}
}
