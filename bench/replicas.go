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

// goBenchmark is one of the project's own Go benchmarks, of what needs a Postgres, a
// Docker engine and nginx, which the tests know how to start: they measure the gateway
// built from the sources beside this program.
type goBenchmark struct {
	figure, pkg, name string
	times, shortTimes int
	flag              string // empty: none
	count, shortCount int    // for the flag
}

// replicas measures what replicas share: redemptions, revocations and restarts.
func (b *bench) replicas(ctx context.Context) error {
	return b.goBenchmarks(ctx, "replicas", []goBenchmark{
		{"redeem", "pkg/store", "BenchmarkArrivals", 10_000, 1500, "", 0, 0},
		{"revoke", "cmd/termgw", "BenchmarkRevoke", 300, 20, "live", 1000, 60},
		{"rolling", "cmd/termgw", "BenchmarkRollingRestart", 1, 1, "live", 300, 60},
	})
}

// resume measures shells that wait for their persons.
func (b *bench) resume(ctx context.Context) error {
	return b.goBenchmarks(ctx, "resume", []goBenchmark{
		{"cuts", "cmd/termgw", "BenchmarkCuts", 1, 1, "cuts", 1000, 100},
		{"nginx_cuts", "cmd/termgw", "BenchmarkCutsBehindNginx", 1, 1, "cuts", 1000, 100},
		{"takeover", "cmd/termgw", "BenchmarkTakeover", 100, 30, "", 0, 0},
		{"hop", "cmd/termgw", "BenchmarkHop", 30, 5, "", 0, 0},
		{"waiting", "cmd/termgw", "BenchmarkWaiting", 1, 1, "waiting", 1000, 1000},
	})
}

func (b *bench) goBenchmarks(ctx context.Context, what string, list []goBenchmark) error {
	root, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		b.report.note("no figures of %s: they need the go command", what)
		return nil
	}
	if _, err := os.Stat(filepath.Join(root, "cmd", "termgw")); err != nil {
		b.report.note("no figures of %s: they need the sources, beside the working directory", what)
		return nil //nolint:nilerr // said
	}
	for _, m := range list {
		args := []string{"test", "-run", "^$", "-bench", "^" + m.name + "$", "-timeout", "15m", "-benchtime", fmt.Sprintf("%dx", b.size(m.times, m.shortTimes))}
		if m.flag != "" {
			args = append(args, "-"+m.flag, strconv.Itoa(b.size(m.count, m.shortCount)))
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

// quotients divides two figures, round by round.
func quotients(a, b []float64) (q []float64) {
	for i := range min(len(a), len(b)) {
		q = append(q, a[i]/b[i])
	}
	return q
}

// replicaTargets are those of the parts replicas and resume.
func (r *report) replicaTargets() []verdict {
	of := func(figure string) []float64 { return r.Rounds[figure][gateway] }
	return []verdict{
		atMost("a redemption at 500 a second, p99: at most 5,000 µs", 5000, of("redeem_redeem-p99-µs")),
		atMost("the gateway's own part in it, CPU: at most 300 µs", 300, of("redeem_cpu-µs")),
		atMost("a revocation's commit to the closed socket, p99: at most 250 ms", 250, of("revoke_close-p99-ms")),
		atMost("a rolling restart, a new shell after the notice's time: at most 2,000 ms", 2000, of("rolling_late-max-ms")),
		atMost("a stream under cuts of its line, bytes lost or twice: 0", 0, of("cuts_bytes-lost-or-twice")),
		atMost("the same, three replicas behind nginx: 0", 0, of("nginx_cuts_bytes-lost-or-twice")),
		atMost("a half-open connection taken over, beyond a round trip, p50: at most 20 ms", 20, of("takeover_beyond-p50-ms")),
		atMost("a key through another replica, to one without, p50: at most 300 µs more", 300, of("hop_more-p50-µs")),
		atMost("memory of a session that waits, to an idle one's: at most 1.1", 1.1, quotients(of("waiting_waiting-kib"), of("waiting_idle-kib"))),
	}
}
