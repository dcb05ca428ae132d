package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/client"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// What it costs to come back to a shell, in figures: benchmarks that the load generator in bench runs.

var (
	cutsTried    = flag.Int("cuts", 60, "cuts in a benchmark; 50 KB are printed and 5 KB typed for each")
	waitingShell = flag.Int("waiting", 60, "sessions that wait in a benchmark")
)

// long is a stream with -cuts cuts.
func long(cut func(*cable, int)) stream {
	return stream{cuts: *cutsTried, lines: *cutsTried * 6600, typing: *cutsTried * 5000, cut: cut}
}

// BenchmarkCuts cuts the line to one gateway, in four ways, under a stream that goes both ways.
func BenchmarkCuts(b *testing.B) {
	for b.Loop() {
		p := newPlatform(b)
		cutFigures(b, p.cuts(b, "ws", p.serve(b, "TERMGW_RESUME=1h", "TERMGW_LOG_LEVEL=info").address, long(cutsOf)))
	}
}

// BenchmarkCutsBehindNginx is BenchmarkCuts with three gateways behind nginx, which every fifth cut is a reload of.
func BenchmarkCutsBehindNginx(b *testing.B) {
	for b.Loop() {
		p := newPlatform(b)
		gateways, addresses := p.serveThree(b)
		nginx, fronts := nginxBefore(b, addresses, "user root; worker_processes 1; worker_shutdown_timeout 10ms;")
		b.Cleanup(func() {
			nginx.signal(b, syscall.SIGTERM) // to the master, which ends its workers
			nginx.wait(b)
		})
		cutFigures(b, p.cuts(b, "ws", fronts[0], long(func(line *cable, n int) {
			if n%5 == 4 {
				nginx.signal(b, syscall.SIGHUP)
			} else {
				cutsOf(line, n)
			}
		})))
		passed := 0.0
		for _, g := range gateways {
			passed += g.metric(b, `termgw_resumes_total{outcome="passed_on"}`)
		}
		b.ReportMetric(passed, "passed-on")
	}
}

// serveThree starts three gateways that pass connections on to each other.
func (p *platform) serveThree(tb testing.TB) (gateways []*served, addresses []string) {
	tb.Helper()
	for range 3 {
		address := ownHost() + ":8080"
		gateways = append(gateways, p.serve(tb, "TERMGW_RESUME=1h", "TERMGW_LOG_LEVEL=info", "TERMGW_LISTEN="+address, "TERMGW_ADVERTISE_URL=http://"+address))
		addresses = append(addresses, address)
	}
	return gateways, addresses
}

func cutFigures(b *testing.B, away []time.Duration) {
	b.Helper()
	if b.Failed() || len(away) == 0 {
		b.FailNow() // a byte was lost, or came twice
	}
	figures(b, "away", away)
	b.ReportMetric(float64(len(away)), "cuts")
	b.ReportMetric(0, "bytes-lost-or-twice")
}

// shells gives the platform a workspace "ws" of shells of this machine, and returns the environment of its gateways: an
// engine's work is no part of what is measured.
func (p *platform) shells(tb testing.TB) (dir string, environ []string) {
	tb.Helper()
	dir = tb.TempDir()
	p.exec(tb, "ALTER TABLE workspaces ADD COLUMN shell_dir text")
	p.workspace(tb, "ws", "")
	p.exec(tb, "UPDATE workspaces SET shell_dir = $1", dir)
	return dir, []string{
		"TERMGW_WORKSPACE_QUERY=SELECT id, instance_id, name, shell_dir FROM workspaces WHERE id = $1",
		"DOCKER_HOST=unix://" + filepath.Join(tb.TempDir(), "none.sock"), "TERMGW_RESUME=1h", "TERMGW_LOG_LEVEL=info",
	}
}

// connect opens a terminal, or comes back to a session.
func (p *platform) connect(tb testing.TB, address, session string, output int64) *client.Conn {
	tb.Helper()
	c, err := client.Dial(tb.Context(), client.Config{
		URL: "ws://" + address + "/workspaces/ws/terminal", Resume: session, Output: output,
		Ticket: p.ticket(tb, "ws", func(c *ticket.Claims) { c.Resume = time.Hour }),
	})
	if err != nil {
		tb.Fatal(err)
	}
	if got := c.Ready(); session != "" && (!got.Resumed || got.Session != session) {
		tb.Fatalf("not resumed: %+v", got)
	}
	return c
}

// reads reads until the output ends with a text.
func reads(tb testing.TB, c *client.Conn, text string) {
	tb.Helper()
	var got []byte
	buf := make([]byte, 4096)
	for !bytes.HasSuffix(got, []byte(text)) {
		n, err := c.Read(buf)
		if err != nil {
			tb.Fatalf("after %q: %v", got, err)
		}
		got = append(got, buf[:n]...)
	}
}

// BenchmarkTakeover has a person come back by another connection while the first is thought open, over a line with a round
// trip of 50 ms. A TCP connection is made before the line's delay, so what is measured is the request and its answer, ready.
func BenchmarkTakeover(b *testing.B) {
	p := newPlatform(b)
	_, environ := p.shells(b)
	g := p.serve(b, environ...)
	line := newCable(b, g.address, 25*time.Millisecond)
	address := line.Addr().String()
	c := p.connect(b, address, "", 0)
	reads(b, c, "$ ")
	session := c.Ready().Session
	var took, beyond, roundTrips []time.Duration
	for b.Loop() {
		b.StopTimer()
		line.cut(halfOpen)
		output := c.Output()
		raw := p.ticket(b, "ws", func(c *ticket.Claims) { c.Resume = time.Hour })
		_ = c.Close()
		var err error
		b.StartTimer()
		began := time.Now()
		c, err = client.Dial(b.Context(), client.Config{URL: "ws://" + address + "/workspaces/ws/terminal", Resume: session, Output: output, Ticket: raw})
		ready := time.Since(began)
		b.StopTimer()
		if err != nil || !c.Ready().Resumed {
			b.Fatalf("not resumed: %v, %+v", err, c)
		}
		roundTrip := time.Hour
		for range 3 {
			one, err := c.Ping(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			roundTrip = min(roundTrip, one)
		}
		took, beyond, roundTrips = append(took, ready), append(beyond, ready-roundTrip), append(roundTrips, roundTrip)
		b.StartTimer()
	}
	if n := g.metric(b, `termgw_resumes_total{outcome="taken_over"}`); int(n) < len(took)*9/10 {
		b.Errorf("%v of %d were taken over", n, len(took))
	}
	figures(b, "takeover", took)
	figures(b, "beyond", beyond)
	figures(b, "rtt", roundTrips)
	_ = c.Close()
}

// BenchmarkHop compares keys of a session that was resumed through another replica with those of one that was resumed
// directly, a hundred of each in turn, and reports what a connection that is passed on costs the replica that passes it on.
func BenchmarkHop(b *testing.B) {
	const keys, hops = 100, 200
	p := newPlatform(b)
	_, environ := p.shells(b)
	var gateways []*served
	for range 2 {
		address := ownHost() + ":8080"
		gateways = append(gateways, p.serve(b, append(environ, "TERMGW_LISTEN="+address, "TERMGW_ADVERTISE_URL=http://"+address)...))
	}
	holder, asked := gateways[0], gateways[1]
	open := func(through *served) *client.Conn {
		c := p.connect(b, holder.address, "", 0)
		reads(b, c, "$ ")
		if _, err := c.Write([]byte("stty raw -echo; printf '\\101\\102'; exec cat\n")); err != nil {
			b.Fatal(err)
		}
		reads(b, c, "AB")
		session, output := c.Ready().Session, c.Output()
		next := p.connect(b, through.address, session, output)
		_ = c.Close() // taken over
		return next
	}
	direct, hop := open(holder), open(asked)
	echo := func(c *client.Conn) time.Duration {
		began := time.Now()
		if _, err := c.Write([]byte("x")); err != nil {
			b.Fatal(err)
		}
		reads(b, c, "x")
		return time.Since(began)
	}
	var took [2][]time.Duration
	for b.Loop() {
		for i, c := range []*client.Conn{direct, hop} {
			for range keys {
				time.Sleep(2 * time.Millisecond) // as typed: after the acknowledgement of the last
				took[i] = append(took[i], echo(c))
			}
		}
	}
	micro := func(all []time.Duration, share float64) float64 {
		slices.Sort(all)
		return float64(all[int(share*float64(len(all)-1))].Nanoseconds()) / 1e3
	}
	for i, name := range []string{"direct", "hop"} {
		b.ReportMetric(micro(took[i], .5), name+"-p50-µs")
		b.ReportMetric(micro(took[i], .99), name+"-p99-µs")
	}
	b.ReportMetric(micro(took[1], .5)-micro(took[0], .5), "more-p50-µs")

	before := rest(b, asked)
	conns := []*client.Conn{direct, hop}
	for range hops {
		conns = append(conns, open(asked))
	}
	b.ReportMetric(float64(rest(b, asked)-before)/hops, "hop-kib")
	for _, c := range conns {
		_ = c.Close()
	}
}

// BenchmarkWaiting holds -waiting sessions that are idle, then has all of them wait for their persons, then has each print
// 64 KiB.
func BenchmarkWaiting(b *testing.B) {
	const printed = 64 << 10
	p := newPlatform(b)
	dir, environ := p.shells(b)
	if err := unix.Mkfifo(filepath.Join(dir, "go"), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), bytes.Repeat([]byte("x"), printed), 0o600); err != nil {
		b.Fatal(err)
	}
	n := *waitingShell
	for b.Loop() {
		g := p.serve(b, environ...)
		line := newCable(b, g.address, 0)
		conns := make([]*client.Conn, n)
		open := func(i int) {
			c := p.connect(b, line.Addr().String(), "", 0)
			reads(b, c, "$ ")
			if _, err := c.Write([]byte("read x <go; cat text\n")); err != nil {
				b.Fatal(err)
			}
			reads(b, c, "read x <go; cat text\r\n")
			conns[i] = c
			go func() { _, _ = c.Read(make([]byte, 100)) }() // acknowledges, and returns at the end
		}
		warm := p.connect(b, g.address, "", 0) // what the first session loads is no session's
		_ = warm.Close()
		empty := rest(b, g)
		spread(b, n, 8, open)
		idle := rest(b, g)
		line.cut(byReset)
		eventually(b, "all wait", func() bool { return g.metric(b, "termgw_sessions_waiting") == float64(n) })
		waiting := rest(b, g)
		out := g.metric(b, `termgw_bytes_total{direction="out"}`)
		live := g.live(b)
		starts, err := os.OpenFile(filepath.Join(dir, "go"), os.O_WRONLY, 0)
		if err != nil {
			b.Fatal(err)
		}
		_ = starts.Close()
		eventually(b, "all have printed", func() bool {
			return g.metric(b, `termgw_bytes_total{direction="out"}`) >= out+float64(n*printed)
		})
		full := rest(b, g)
		b.ReportMetric((g.live(b)-live)/1024/float64(n), "printed-live-kib")
		for name, kib := range map[string]int64{"idle": idle - empty, "waiting": waiting - empty, "printed": full - waiting} {
			b.ReportMetric(float64(kib)/float64(n), name+"-kib")
		}
		g.signal(b, os.Kill) // the kernel hangs the shells up: a thousand sweeps are no part of this
		g.wait(b)
		for _, c := range conns {
			_ = c.Close()
		}
	}
}

// live returns the bytes of heap and stacks that are in use. The process also has memory that is free and not given back yet.
func (g *served) live(tb testing.TB) float64 {
	tb.Helper()
	return g.metric(tb, "go_memstats_heap_inuse_bytes") + g.metric(tb, "go_memstats_stack_inuse_bytes")
}

// rest collects a gateway's garbage, lets it come to rest, and returns its memory (PSS) in KiB.
func rest(tb testing.TB, g *served) int64 {
	tb.Helper()
	for range 2 {
		g.get(tb, g.said("serving profiles"), "/debug/pprof/heap?gc=1")
		time.Sleep(2 * time.Second)
	}
	for line := range strings.Lines(procFile(tb, g.cmd.Process.Pid, "smaps_rollup")) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return kib
		}
	}
	tb.Fatal("no Pss")
	return 0
}
