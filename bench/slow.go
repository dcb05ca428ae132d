package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// slowAddress is where a slow way to the played endpoint begins.
	slowAddress = "127.77.0.2:443"
	// slowDelay is what each byte takes one way, beyond the time of those before it.
	slowDelay = 10 * time.Millisecond
	// slowQueue is how many bytes wait in the slow way; more wait before it.
	slowQueue = 64 << 10
)

// slowSpeeds are the speeds of tunnels, MB/s.
var slowSpeeds = []float64{0.2, 1, 5}

// slowWay passes connections on, each direction of each at one speed.
type slowWay struct {
	listener net.Listener
	rate     atomic.Int64 // bytes a second
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

func newSlowWay() (*slowWay, error) {
	l, err := net.Listen("tcp", slowAddress)
	if err != nil {
		return nil, err
	}
	w := &slowWay{listener: l}
	w.wg.Go(w.serve)
	return w, nil
}

func (w *slowWay) stop() error {
	err := w.listener.Close()
	w.mu.Lock()
	for _, c := range w.conns {
		_ = c.Close() // or the other side has
	}
	w.mu.Unlock()
	w.wg.Wait()
	return err
}

func (w *slowWay) serve() {
	for {
		near, err := w.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", awsAddress)
		if err != nil {
			_ = near.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, near, far)
		w.mu.Unlock()
		w.wg.Go(func() { w.pass(near, far) })
		w.wg.Go(func() { w.pass(far, near) })
	}
}

// pass passes the bytes of one direction on.
func (w *slowWay) pass(to, from net.Conn) {
	type piece struct {
		p   []byte
		due time.Time
	}
	const size = 1500
	queue := make(chan piece, slowQueue/size)
	var writing sync.WaitGroup
	writing.Go(func() {
		for x := range queue {
			time.Sleep(time.Until(x.due))
			if _, err := to.Write(x.p); err != nil {
				_ = from.Close()
			}
		}
		_ = to.Close()
	})
	var free time.Time // when the way has passed all that came
	for {
		p := make([]byte, size)
		n, err := from.Read(p)
		if err != nil {
			break
		}
		if now := time.Now(); free.Before(now) {
			free = now
		}
		free = free.Add(time.Duration(float64(n) / float64(w.rate.Load()) * float64(time.Second)))
		// The queue is full once it holds what has not passed yet.
		time.Sleep(time.Until(free) - time.Duration(float64(slowQueue)/float64(w.rate.Load())*float64(time.Second)))
		queue <- piece{p[:n], free.Add(slowDelay)}
	}
	close(queue)
	writing.Wait()
}

// slow measures one person's keys beside another's flood on the same instance, by tunnels of known speeds.
func (b *bench) slow(ctx context.Context) (err error) {
	program := slices.IndexFunc(b.servers, func(s *server) bool { return s.name == gateway })
	path, err := filepath.Abs(b.servers[program].cmd.Path)
	if err != nil {
		return err
	}
	e, err := newRemoteEnv(ctx, b.dir, path, nil)
	if why := missing(""); errors.As(err, &why) {
		b.report.note("no slow tunnels: %s", why)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	way, err := newSlowWay()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, way.stop()) }()
	hosts, err := os.ReadFile(e.hosts)
	if err != nil {
		return err
	}
	slow, _, _ := strings.Cut(slowAddress, ":")
	e.hosts = e.path("slow-hosts")
	if err := os.WriteFile(e.hosts, []byte(slow+" "+e.endpoint+"\n"+strings.ReplaceAll(string(hosts), " "+e.endpoint, "")), 0o644); err != nil { //nolint:gosec // names
		return err
	}
	r := &remoteRun{env: e, report: &report{}, short: b.short}
	for range b.size(3, 1) {
		for _, speed := range slowSpeeds {
			way.rate.Store(int64(speed * 1e6))
			if err := r.slowRound(ctx, speed); err != nil {
				return fmt.Errorf("a tunnel of %g MB/s: %w", speed, err)
			}
		}
	}
	for figure, columns := range r.report.Rounds {
		for column, rounds := range columns {
			for _, value := range rounds {
				b.report.add(figure, column, value)
			}
		}
	}
	fmt.Printf("\n%s\n", r.slowTable())
	for _, v := range r.judgeSlow() {
		fmt.Println(v)
		b.report.note("slow tunnels: %s", v)
	}
	return nil
}

func slowKey(figure string, speed float64) string { return fmt.Sprintf("slow_%s_%g", figure, speed) }

// slowRound measures on one connection: B opens and types, A floods, B types, C opens, A types Ctrl-C.
func (r *remoteRun) slowRound(ctx context.Context, speed float64) (err error) {
	g, err := r.env.gateway(ctx, native)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	add := func(figure string, value float64) { r.report.add(slowKey(figure, speed), native, value) }
	open := func(figure string) (session, error) {
		t, err := g.ticket(ctx, "host0")
		if err != nil {
			return nil, err
		}
		start := time.Now()
		s, err := t.open(ctx)
		if err != nil {
			return nil, err
		}
		err = await(s, "$ ")
		if figure != "" {
			add(figure, float64(time.Since(start).Microseconds())/1e3)
		}
		return s, err
	}
	type1 := func(figure string, s session) error {
		took, err := keystrokes(ctx, s, 100)
		for _, us := range took {
			add(figure, us/1e3)
		}
		return err
	}
	b, err := open("")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	second, err := open("open_quiet")
	if err != nil {
		return err
	}
	if err := errors.Join(second.Close(), r.raw(b)); err != nil {
		return err
	}
	if err := type1("key_quiet", b); err != nil {
		return err
	}
	a, err := open("")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	if _, err := io.WriteString(a, shell+"\n"); err != nil {
		return err
	}
	if err := await(a, prompt); err != nil {
		return err
	}
	if _, err := io.WriteString(a, "yes\n"); err != nil {
		return err
	}
	flood := startFlood(a)
	defer flood.wait()
	if err := rest(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	began, before := time.Now(), flood.got.Load()
	if err := type1("key_flood", b); err != nil {
		return err
	}
	if err := rest(ctx, 2*time.Second); err != nil {
		return err
	}
	add("bulk", float64(flood.got.Load()-before)/time.Since(began).Seconds()/(speed*1e6))
	c, err := open("open_flood")
	if err != nil {
		return err
	}
	if err := c.Close(); err != nil {
		return err
	}
	flood.typed.Store(true)
	start := time.Now()
	if _, err := a.Write([]byte{3}); err != nil {
		return err
	}
	flood.wait()
	add("ctrl_c", float64(time.Since(start).Microseconds())/1e3)
	return flood.err
}

// raw has a terminal echo each byte.
func (r *remoteRun) raw(s session) error {
	if _, err := io.WriteString(s, "stty raw -echo; printf 'E%dE' 42; exec cat\n"); err != nil {
		return err
	}
	return await(s, "E42E")
}

// flooding reads a flood as fast as it comes, until a prompt follows Ctrl-C.
type flooding struct {
	got   atomic.Int64
	typed atomic.Bool
	wg    sync.WaitGroup
	err   error
}

func startFlood(s session) *flooding {
	f := &flooding{}
	f.wg.Go(func() {
		var find finder
		p := make([]byte, ackEvery)
		for {
			n, err := s.Read(p)
			if err == nil {
				f.got.Add(int64(n))
				err = s.rendered(n, !s.pending())
			}
			if err != nil {
				f.err = err
				return
			}
			if find.find(p[:n]) >= 0 && f.typed.Load() {
				return
			}
		}
	})
	return f
}

func (f *flooding) wait() { f.wg.Wait() }

func (r *remoteRun) slowTable() string {
	lines := [][]string{{"speed of the tunnel, MB/s", "key quiet p50 / p99, ms", "beside a flood p50 / p99, ms", "opening quiet, ms", "beside a flood, ms", "Ctrl-C in the flood, ms", "the flood, of the tunnel's speed"}}
	for _, speed := range slowSpeeds {
		cell := func(figure, format string, ps ...float64) string {
			rounds := r.report.Rounds[slowKey(figure, speed)][native]
			var cells []string
			for _, p := range ps {
				if len(rounds) > 0 {
					cells = append(cells, fmt.Sprintf(format, percentile(rounds, p)))
				}
			}
			return strings.Join(cells, " / ")
		}
		lines = append(lines, []string{
			fmt.Sprintf("%g", speed), cell("key_quiet", "%.0f", 50, 99), cell("key_flood", "%.0f", 50, 99),
			cell("open_quiet", "%.0f", 50), cell("open_flood", "%.0f", 50), cell("ctrl_c", "%.0f", 50), cell("bulk", "%.2f", 50),
		})
	}
	return align(lines)
}

// judgeSlow holds the figures against the targets of slow tunnels.
func (r *remoteRun) judgeSlow() (all []verdict) {
	for _, speed := range slowSpeeds {
		of := func(figure string) []float64 { return r.report.Rounds[slowKey(figure, speed)][native] }
		var ratio []float64
		if quiet, beside := of("key_quiet"), of("key_flood"); len(quiet) > 0 && len(beside) > 0 {
			ratio = []float64{percentile(beside, 50) / percentile(quiet, 50)}
		}
		all = append(all,
			atMost(fmt.Sprintf("%g MB/s: a key beside a flood, to quiet: at most 3", speed), 3, ratio),
			atMost(fmt.Sprintf("%g MB/s: Ctrl-C in the flood, ms: at most 340", speed), 340, of("ctrl_c")),
			atLeast(fmt.Sprintf("%g MB/s: the flood, of the tunnel's speed: at least 0.9", speed), 0.9, of("bulk")),
		)
	}
	return all
}
