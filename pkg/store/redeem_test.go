package store

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// BenchmarkArrivals verifies and redeems tickets as they come, 500 a second, with the lookup, limits and the audit row. A
// redemption's time counts from when it was due; it is one round trip (TestOneRoundTrip). What this process itself takes
// for it, the system's part in the socket included, is its CPU time, without that of an arrival that asks for nothing: the
// rest is the database's, and the wait for it. A processor that sleeps between arrivals, a virtual one above all, costs
// each of them its waking and cold caches; cpu-awake is the same where none sleeps.
func BenchmarkArrivals(b *testing.B) {
	const (
		interval   = time.Second / 500
		workspaces = 1000
	)
	minter, verifier := tickets(b)
	p := open(b, PostgresConfig{
		URL: database(b, textWorkspaces+fmt.Sprintf(`;
			INSERT INTO workspaces SELECT 'ws' || n, 'some name', '', NULL FROM generate_series(0, %d) n`, workspaces-1)),
		Limits: Limits{PerWorkspace: 20, PerSubject: 20},
	})
	var (
		redemptions      sync.WaitGroup
		verified, waited = make([]time.Duration, 2*b.N), make([]time.Duration, 2*b.N)
		raw              = make([]string, 2*b.N)
	)
	for i := range raw { // they live for a minute
		id := fmt.Sprint("ws", i%workspaces)
		var err error
		if raw[i], err = minter.Mint(ticket.Claims{Subject: "person-" + id, WorkspaceID: id}); err != nil {
			b.Fatal(err)
		}
	}
	redeem := func(i int, due time.Time) {
		began := time.Now()
		claims, err := verifier.Verify(b.Context(), raw[i])
		verified[i] = time.Since(began)
		if err == nil {
			_, err = p.Redeem(b.Context(), claims, session(claims.ID))
		}
		waited[i] = time.Since(due)
		if err != nil {
			b.Error(err)
		}
	}
	// arrive has do called at a steady rate, and returns the CPU time of a call.
	arrive := func(n int, do func(i int, due time.Time)) time.Duration {
		before, began := cpuTime(b), time.Now()
		for i := range n {
			due := began.Add(time.Duration(i) * interval)
			<-time.After(time.Until(due))
			redemptions.Go(func() { do(i, due) })
		}
		redemptions.Wait()
		return (cpuTime(b) - before) / time.Duration(n)
	}
	cost := func(unit string, do func(i int, due time.Time)) {
		nothing := arrive(min(b.N, 1000), func(int, time.Time) {})
		b.ReportMetric(float64((arrive(b.N, do)-nothing).Nanoseconds())/1e3, unit)
	}
	b.ResetTimer()
	cost("cpu-µs", redeem)
	b.StopTimer()
	keepAwake(b)
	cost("cpu-awake-µs", func(i int, due time.Time) { redeem(b.N+i, due) })
	for name, took := range map[string][]time.Duration{"verify": verified[:b.N], "redeem": waited[:b.N]} {
		slices.Sort(took)
		for unit, share := range map[string]float64{"p50": .5, "p99": .99} {
			at := max(0, int(math.Ceil(share*float64(len(took))))-1)
			b.ReportMetric(float64(took[at].Nanoseconds())/1e3, name+"-"+unit+"-µs")
		}
	}
}

// keepAwake has a child on each processor that takes what nobody else wants.
func keepAwake(b *testing.B) {
	b.Helper()
	for range runtime.NumCPU() {
		cmd := exec.Command("sh", "-c", "while kill -0 $PPID; do :; done") // until this process ends, at the latest
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		if err := unix.SchedSetAttr(cmd.Process.Pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// tickets gives both sides of a new key.
func tickets(b *testing.B) (*ticket.Minter, *ticket.Verifier) {
	b.Helper()
	key, err := ticket.GenerateKey("EdDSA")
	if err != nil {
		b.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "jwks.json")
	if err := os.WriteFile(file, set, 0o600); err != nil {
		b.Fatal(err)
	}
	keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: file})
	if err != nil {
		b.Fatal(err)
	}
	minter, err := ticket.NewMinter(key)
	if err != nil {
		b.Fatal(err)
	}
	return minter, ticket.NewVerifier(ticket.VerifierConfig{Keys: keys})
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
