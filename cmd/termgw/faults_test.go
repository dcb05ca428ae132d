package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/awsplay"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// What people and operators see of a part that breaks: TestFaults breaks each part while terminals are open and visitors come, under
// a real Prometheus with the rules of deploy/prometheus. With -faults it writes the table of docs/operations.md, and the series by
// which promtool tests the rules.

var faultTime = flag.Duration("faults", 0, "how long TestFaults leaves a part broken, for the table of faults; 0: a moment, and no table")

// Of the short form; the long form has its own beside them.
const (
	faultMoment = 3 * time.Second
	faultSeats  = 4 // terminals that are open when the part breaks
)

// fault is a row of the table.
type fault struct {
	name string
	// arrange sets the scene, and returns what breaks the part and what mends it; mends may be nil. Where breaks comes to the
	// end of the fault by itself, breaks has lasted as long as the fault.
	arrange func(t *testing.T, d *drill) (breaks, mends func())
	// lasts bounds the time that the part stays broken. 0: as long as -faults says.
	lasts time.Duration
	// lost is how many of faultSeats end.
	lost int
	// refused: visitors are refused meanwhile. Where the part hangs, visitors of the short form are let in at its end.
	refused, hangs bool
	// unready: a replica is not ready meanwhile.
	unready bool
	// firing are the alerts that must fire in the long form; pending those that must begin to in the short one.
	firing, pending []string
	// recorded has the series written for promtool.
	recorded bool
}

var faults = []fault{
	{
		name: "the database is stopped", arrange: databaseStopped, refused: true, unready: true, recorded: true,
		firing: []string{"TermgwNotReady", "TermgwOrdersNotRead", "TermgwStoreUnavailable"}, pending: []string{"TermgwStoreUnavailable"},
	},
	{name: "a process of the database is killed; it recovers by itself", arrange: databaseKilled},
	{
		name: "the database hangs (SIGSTOP)", arrange: databaseHangs, refused: true, hangs: true,
		firing: []string{"TermgwNotReady", "TermgwOrdersNotRead", "TermgwStoreUnavailable"},
	},
	{name: "the database fails over: the primary is stopped, its standby is promoted 10 s later", arrange: databaseFailsOver, lasts: 10 * time.Second, refused: true},
	{name: "the database's disk is full, and the database gives up", arrange: diskIsFull, refused: true, unready: true, firing: []string{"TermgwNotReady", "TermgwOrdersNotRead", "TermgwStoreUnavailable"}},
	{name: "the pooler before the database is restarted", arrange: poolerRestarts, lasts: 5 * time.Second, refused: true},
	{
		name: "the Docker engine is stopped, and its containers with it", arrange: engineStopped, lost: faultSeats, refused: true, recorded: true,
		firing: []string{"TermgwBackendFailing", "TermgwDockerUnavailable"},
	},
	{name: "the Docker engine hangs (SIGSTOP)", arrange: engineHangs, refused: true, hangs: true, firing: []string{"TermgwBackendFailing", "TermgwDockerUnavailable"}},
	{name: "the keys' URL refuses connections; one of two replicas starts meanwhile", arrange: keysRefused, unready: true, firing: []string{"TermgwNoKeys"}, recorded: true},
	{name: "the keys' URL answers garbage; one of two replicas starts meanwhile", arrange: keysGarbage, unready: true, firing: []string{"TermgwNoKeys"}},
	{name: "nginx is reloaded; it ends old connections after 5 s (`worker_shutdown_timeout`)", arrange: proxyReloaded, lasts: 10 * time.Second, lost: faultSeats},
	{name: "one of three replicas is killed (SIGKILL), and started again at the end", arrange: replicaKilled, unready: true, lost: 1, firing: []string{"TermgwDown"}},
	{name: "one of three replicas hangs (SIGSTOP)", arrange: replicaHangs, lasts: 10 * time.Second},
	{name: "one of three replicas is drained (3 s) and started again", arrange: replicaDrained, unready: true, lasts: time.Second, lost: 1},
	{name: "AWS's endpoint stalls: tunnels go silent, new ones are not answered", arrange: endpointStalls, lost: faultSeats, refused: true, firing: []string{"TermgwBackendFailing"}},
	{name: "AWS denies every call", arrange: awsDenies, refused: true, firing: []string{"TermgwBackendFailing"}},
	{name: "the platform's clock is two minutes ahead of the gateway's", arrange: clockAhead, refused: true},
}

func TestFaults(t *testing.T) {
	t.Parallel()
	testenv.Needs(t, "prometheus", "prometheus")
	env.Docker(t) // or the test is skipped: most faults need it
	watch := startPrometheus(t)
	rows := make([]outcome, len(faults))
	t.Run("all", func(t *testing.T) {
		for i, f := range faults {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				d := &drill{fault: f, prometheus: watch, place: fmt.Sprint("fault", i), visit: fmt.Sprint("fault", i)}
				rows[i] = d.run(t)
			})
		}
	})
	played := slices.DeleteFunc(slices.Clone(rows), func(o outcome) bool { return o.began.IsZero() })
	for _, row := range played {
		t.Log(row.line())
	}
	if *faultTime > 0 && !t.Failed() && len(played) == len(rows) { // -run may choose some
		writeFaults(t, rows)
		writeOutages(t, rows)
	}
}

// drill plays one fault.
type drill struct {
	fault
	*prometheus
	place    string // the workspace of the terminals that are open
	visit    string // the workspace that visitors come to
	platform *platform
	fronts   []*served        // where terminals are opened, in turn
	replicas func() []*served // all that run, or are to
	seats    []*tty           // the terminals that are open when it breaks

	mu      sync.Mutex
	ahead   time.Duration // of the platform's clock
	opened  int
	refused map[string]int // visits, by their code
}

// outcome is what the table says of a fault.
type outcome struct {
	fault
	broken, ready time.Duration
	felt          bool // a replica was not ready, or a visitor was refused
	lost          int
	opened        int
	refused       map[string]int
	alerts        []string
	began, mended time.Time
	outage        string // the recorded series, as a test for promtool
}

// seatsEnd waits until the terminals that were open have ended. Visitors have others.
func (d *drill) seatsEnd(t *testing.T) {
	t.Helper()
	for _, c := range d.seats {
		eventually(t, "a terminal that was open has ended", func() bool {
			select {
			case <-c.done:
				return true
			default:
				return false
			}
		})
	}
}

func (d *drill) run(t *testing.T) (o outcome) {
	o.fault, d.refused = d.fault, map[string]int{}
	breaks, mends := d.arrange(t, d)
	for i := range faultSeats {
		c := d.fronts[i%len(d.fronts)].dial(t, d.place, d.platform.ticket(t, d.place), from(i))
		c.message(t, "ready")
		c.run(t, "true")
		d.seats = append(d.seats, c)
	}
	d.scrape(t, d.name, d.replicas())
	t.Cleanup(func() { d.forget(t, d.name) }) // a gateway that the test has ended is no outage
	every, lasts := faultMoment/6, cmp.Or(min(d.lasts, faultMoment), faultMoment)
	if *faultTime > 0 {
		every, lasts = 5*time.Second, cmp.Or(d.lasts, *faultTime)
		time.Sleep(time.Minute) // what rate and increase compare with
	}

	ctx, stop := context.WithCancel(t.Context())
	var watchers, visits sync.WaitGroup
	unready := make(chan struct{}, 1) // has a value once a replica was not ready
	for _, g := range d.replicas() {
		watchers.Go(func() { g.watchReady(ctx, unready) })
	}
	o.began = time.Now()
	broken := make(chan struct{})
	visits.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := 0; ; n++ {
			visits.Go(func() { d.come(t, n) })
			select {
			case <-tick.C:
			case <-broken:
				return
			}
		}
	})
	breaks()
	if mends != nil {
		time.Sleep(time.Until(o.began.Add(lasts))) // the length of a fault, not a wait for something
	}
	eventually(t, "the fault is felt", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return (len(unready) > 0 || !d.unready) && (len(d.refused) > 0 || !d.refuses())
	})
	close(broken)
	o.broken, o.mended = time.Since(o.began), time.Now()
	if mends != nil {
		mends()
		d.scrape(t, d.name, d.replicas()) // a replica that was started again has its metrics at another address
	}
	eventually(t, "ready again", func() bool {
		for _, g := range d.replicas() {
			if !g.isReady(t.Context()) {
				return false
			}
		}
		return d.enter(t, 0) == "ready"
	})
	o.ready = time.Since(o.mended)
	stop()
	watchers.Wait()
	visits.Wait()
	o.felt = len(unready) > 0 || len(d.refused) > 0
	for _, c := range d.seats {
		if !c.lives() {
			o.lost++
		}
	}
	o.opened, o.refused = d.opened, d.refused
	d.check(t, &o)
	return o
}

// refuses reports whether visitors must be refused.
func (d *drill) refuses() bool { return d.fault.refused && (*faultTime > 0 || !d.hangs) }

// check compares what a fault has done with what it must do.
func (d *drill) check(t *testing.T, o *outcome) {
	t.Helper()
	if (d.lost < faultSeats) != (o.lost < faultSeats) || (d.lost == 0) != (o.lost == 0) {
		t.Errorf("%d of %d terminals are lost, want %d", o.lost, faultSeats, d.lost)
	}
	if *faultTime == 0 {
		for _, name := range d.pending {
			eventually(t, name+" was pending", func() bool { return slices.Contains(d.alerts(t, d.name, "pending"), name) })
		}
		return
	}
	after := settled
	if d.recorded {
		after = outageOver
	}
	time.Sleep(time.Until(o.mended.Add(after)))
	o.alerts = d.alerts(t, d.name, "firing")
	for _, name := range d.firing {
		if !slices.Contains(o.alerts, name) {
			t.Errorf("%s did not fire, but %q", name, o.alerts)
		}
	}
	if d.recorded {
		o.outage = d.outage(t, *o)
	}
}

// settled is when an alert of a short fault would have fired after it: the rates look back for two minutes, and three must be so.
const settled = 4 * time.Minute

// come lets a visitor come, and counts how it went.
func (d *drill) come(t *testing.T, n int) {
	t.Helper()
	code := d.enter(t, n)
	d.mu.Lock()
	defer d.mu.Unlock()
	if code == "ready" {
		d.opened++
	} else {
		d.refused[code]++
	}
}

// visitTime is how long a visitor waits for an answer.
const visitTime = 20 * time.Second

// enter opens a terminal, and returns "ready" or the code of the refusal.
func (d *drill) enter(t *testing.T, n int) (code string) {
	t.Helper()
	raw := d.platform.ticket(t, d.visit, func(c *ticket.Claims) {
		d.mu.Lock()
		defer d.mu.Unlock()
		c.IssuedAt = time.Now().Add(d.ahead)
		c.Expires = c.IssuedAt.Add(ticketLife)
	})
	c, _, err := d.fronts[n%len(d.fronts)].tryDial(t, d.visit, raw, from(n))
	if err != nil {
		return "no answer"
	}
	defer c.drop()
	for timeout := time.After(visitTime); ; {
		c.mu.Lock()
		messages := slices.Clone(c.messages)
		c.mu.Unlock()
		if len(messages) > 0 {
			if messages[0].Type == "ready" {
				_ = c.ws.Close(websocket.StatusNormalClosure, "")
				return "ready"
			}
			return fmt.Sprint(messages[0].Code)
		}
		select {
		case <-c.changed:
		case <-c.done:
			return "no answer"
		case <-timeout:
			return "no answer"
		}
	}
}

// lives reports whether a terminal answers what is typed.
func (c *tty) lives() bool {
	if c.trySend(websocket.MessageBinary, "echo $((6*7))\r") != nil {
		return false
	}
	for timeout := time.After(patience); ; {
		c.mu.Lock()
		answered := strings.Contains(string(c.output), "42")
		c.mu.Unlock()
		select {
		case <-c.done:
			return false
		default:
		}
		if answered {
			return true
		}
		select {
		case <-c.changed:
		case <-c.done:
		case <-timeout:
			return false
		}
	}
}

// isReady asks /readyz.
func (g *served) isReady(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.address+"/readyz", nil)
	if err != nil {
		return false
	}
	r.Close = true
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// watchReady notes that a gateway was not ready, as a balancer finds it.
func (g *served) watchReady(ctx context.Context, unready chan<- struct{}) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		if !g.isReady(ctx) && ctx.Err() == nil {
			select {
			case unready <- struct{}{}:
			default:
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// line is the row of the table.
func (o outcome) line() string {
	refused, codes, came := 0, slices.Sorted(maps.Keys(o.refused)), o.opened
	for _, n := range o.refused {
		refused, came = refused+n, came+n
	}
	told := fmt.Sprintf("%d of %d", refused, came)
	if refused > 0 {
		for i, code := range codes {
			if codes[i] = "`" + code + "`"; code == "no answer" {
				codes[i] = code
			}
		}
		told += ": " + strings.Join(codes, ", ")
	}
	ready := "was ready all the time"
	if o.felt {
		ready = fmt.Sprintf("%.1f s", o.ready.Seconds())
	}
	alerts := make([]string, 0, len(o.alerts))
	for _, name := range o.alerts {
		alerts = append(alerts, fmt.Sprintf("[%s](#%s)", name, strings.ToLower(name)))
	}
	return fmt.Sprintf("| %s | %s | %d of %d | %s | %s | %s |", o.name, roughly(o.broken), o.lost, faultSeats, told, ready, cmp.Or(strings.Join(alerts, ", "), "none"))
}

// roughly writes a time as a person does.
func roughly(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}

// asDeployed has the gateways of the long form give up a start when the program does; as in other tests, those of the short form allow
// for a busy machine.
func asDeployed() []string {
	environ := []string{"TERMGW_LOG_LEVEL=info"}
	if *faultTime > 0 {
		environ = append(environ, asProgram+"=0s")
	}
	return environ
}

// local sets the scene with a container and a gateway for it.
func (d *drill) local(t *testing.T, p *platform, environ ...string) {
	t.Helper()
	p.workspace(t, d.place, "")
	newBox(t, env.Docker(t), d.place)
	d.platform = p
	d.alone(p.serve(t, append(environ, asDeployed()...)...))
}

// alone has one gateway, without a proxy.
func (d *drill) alone(g *served) {
	d.fronts = []*served{g}
	d.replicas = func() []*served { return d.fronts }
}

// onDatabase is local with a database server of the fault's own.
func (d *drill) onDatabase(t *testing.T, server *testenv.Postgres) {
	t.Helper()
	p := &platform{}
	p.makeKey(t)
	p.useDatabase(t, server.NewDatabase(t))
	d.local(t, p)
}

func databaseStopped(t *testing.T, d *drill) (breaks, mends func()) {
	server := testenv.StartPostgres(t)
	d.onDatabase(t, server)
	return func() { server.Stop(t) }, func() { server.Start(t) }
}

func databaseKilled(t *testing.T, d *drill) (breaks, mends func()) {
	server := testenv.StartPostgres(t)
	d.onDatabase(t, server)
	return func() { server.Crash(t) }, nil
}

func databaseHangs(t *testing.T, d *drill) (breaks, mends func()) {
	server := testenv.StartPostgres(t)
	d.onDatabase(t, server)
	return func() { server.Suspend(t) }, func() { server.Resume(t) }
}

func databaseFailsOver(t *testing.T, d *drill) (breaks, mends func()) {
	server := testenv.StartPostgres(t)
	p := &platform{}
	p.makeKey(t)
	p.useDatabase(t, server.NewDatabase(t))
	standby := server.StartStandby(t)
	primary, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	second, err := url.Parse(standby.URL)
	if err != nil {
		t.Fatal(err)
	}
	hosts := primary.Host + "," + second.Host
	p.url = strings.Replace(p.url, primary.Host, hosts, 1) + "&target_session_attrs=read-write"
	d.local(t, p)
	return func() { server.Stop(t) }, func() { standby.Promote(t) }
}

func diskIsFull(t *testing.T, d *drill) (breaks, mends func()) {
	server := testenv.StartPostgresOnDisk(t, 200)
	d.onDatabase(t, server)
	var makeRoom func()
	return func() { makeRoom = server.FillDisk(t) }, func() { makeRoom() }
}

func poolerRestarts(t *testing.T, d *drill) (breaks, mends func()) {
	server := testenv.StartPostgres(t)
	p := &platform{}
	p.makeKey(t)
	p.useDatabase(t, server.NewDatabase(t))
	pooler := server.StartPgBouncer(t, "transaction")
	p.url = pooler.Before(t, p.url)
	d.local(t, p)
	return func() { pooler.Stop(t) }, func() { pooler.Start(t) }
}

// onEngine is local with an engine of the fault's own.
func (d *drill) onEngine(t *testing.T) (engine *testenv.Docker, container *box) {
	t.Helper()
	engine = testenv.StartDocker(t)
	d.platform = newPlatform(t)
	d.platform.workspace(t, d.place, "")
	container = newBox(t, engine, d.place)
	d.alone(d.platform.serve(t, append([]string{"DOCKER_HOST=" + engine.Host}, asDeployed()...)...))
	return engine, container
}

func engineStopped(t *testing.T, d *drill) (breaks, mends func()) {
	engine, container := d.onEngine(t)
	return func() { engine.Stop(t) }, func() {
		engine.Start(t)
		container.restart(t)
	}
}

func engineHangs(t *testing.T, d *drill) (breaks, mends func()) {
	engine, _ := d.onEngine(t)
	return func() { engine.Suspend(t) }, func() { engine.Resume(t) }
}

// onKeys has a replica that has its keys from a URL, and one that starts when the URL is broken.
func (d *drill) onKeys(t *testing.T, broken http.HandlerFunc) (breaks, mends func()) {
	t.Helper()
	p := newPlatform(t)
	keys := newKeyServer(t, keySetOf(t, p.key))
	environ := "TERMGW_TICKET_JWKS=http://" + keys.address + "/jwks.json"
	d.local(t, p, environ)
	second := &served{platform: p, address: freeAddress(t), admin: freeAddress(t)}
	d.replicas = func() []*served { return []*served{d.fronts[0], second} }
	return func() {
		keys.set(t, broken)
		p.launch(t, nil, append([]string{environ, "TERMGW_LISTEN=" + second.address, "TERMGW_ADMIN_LISTEN=" + second.admin}, asDeployed()...)...)
	}, func() { keys.set(t, keySetOf(t, p.key)) }
}

func keysRefused(t *testing.T, d *drill) (breaks, mends func()) {
	return d.onKeys(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}

func keysGarbage(t *testing.T, d *drill) (breaks, mends func()) {
	return d.onKeys(t, serveText("<html>It works!</html>"))
}

// threeReplicas has three replicas behind nginx.
func (d *drill) threeReplicas(t *testing.T) *replicas {
	t.Helper()
	p := newPlatform(t)
	p.workspace(t, d.place, "")
	newBox(t, env.Docker(t), d.place)
	r := p.serveReplicas(t, 3, append([]string{"TERMGW_DRAIN_TIMEOUT=3s"}, asDeployed()...)...)
	d.platform, d.fronts = p, []*served{r.any}
	d.replicas = func() []*served { return slices.Clone(r.gateways) }
	return r
}

func proxyReloaded(t *testing.T, d *drill) (breaks, mends func()) {
	p := newPlatform(t)
	d.local(t, p, "TERMGW_TRUSTED_PROXIES=127.0.0.1")
	g := d.fronts[0]
	nginx, fronts := nginxBefore(t, []string{g.address}, "user root; worker_processes 1; worker_shutdown_timeout 5s;")
	t.Cleanup(func() {
		nginx.signal(t, syscall.SIGTERM) // its worker does not end with it when it is killed
		<-nginx.exited
	})
	d.fronts = []*served{{platform: p, address: fronts[0]}}
	d.replicas = func() []*served { return []*served{g} }
	return func() {
		nginx.signal(t, syscall.SIGHUP)
		if *faultTime == 0 {
			d.seatsEnd(t) // the old worker ends its connections
		}
	}, func() {}
}

func replicaKilled(t *testing.T, d *drill) (breaks, mends func()) {
	r := d.threeReplicas(t)
	return func() {
		r.gateways[2].signal(t, os.Kill)
		r.gateways[2].wait(t)
	}, func() { r.restart(t, 2) }
}

func replicaHangs(t *testing.T, d *drill) (breaks, mends func()) {
	r := d.threeReplicas(t)
	t.Cleanup(func() { r.gateways[2].signal(t, syscall.SIGCONT) })
	return func() { r.gateways[2].signal(t, syscall.SIGSTOP) }, func() { r.gateways[2].signal(t, syscall.SIGCONT) }
}

func replicaDrained(t *testing.T, d *drill) (breaks, mends func()) {
	r := d.threeReplicas(t)
	return func() {
		r.gateways[2].signal(t, syscall.SIGTERM)
		if status := r.gateways[2].wait(t); status != 0 {
			t.Errorf("exit status %d\n%s", status, r.gateways[2].log.String())
		}
	}, func() { r.restart(t, 2) }
}

// onInstances has terminals on an instance, and visitors to another, to which no tunnel is open.
func (d *drill) onInstances(t *testing.T) *cloud {
	t.Helper()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	d.visit = d.place + "v"
	for _, workspace := range []string{d.place, d.visit} {
		p.onInstance(t, aws, workspace)
		newBox(t, env.Docker(t), workspace)
	}
	d.platform = p
	d.alone(p.serve(t, append(aws.environ(t), asDeployed()...)...))
	return aws
}

var awsCalls = []awsplay.Op{awsplay.DescribeInstances, awsplay.DescribeEndpoints, awsplay.SendSSHPublicKey, awsplay.OpenTunnel}

func endpointStalls(t *testing.T, d *drill) (breaks, mends func()) {
	aws := d.onInstances(t)
	return func() {
		aws.Stall()
		aws.Fail(awsplay.OpenTunnel, awsplay.Fault{Hang: true})
		if *faultTime == 0 {
			d.seatsEnd(t) // when the lease is over
		}
	}, aws.Heal
}

func awsDenies(t *testing.T, d *drill) (breaks, mends func()) {
	aws := d.onInstances(t)
	return func() {
		for _, op := range awsCalls {
			aws.Fail(op, awsplay.Fault{Status: http.StatusForbidden, Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation."})
		}
	}, aws.Heal
}

// clockAhead plays a clock by the times in the tickets: this machine's clock stays as it is, and no namespace has one of its own.
func clockAhead(t *testing.T, d *drill) (breaks, mends func()) {
	p := newPlatform(t)
	d.local(t, p)
	set := func(ahead time.Duration) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ahead = ahead
	}
	return func() { set(2 * time.Minute) }, func() { set(0) }
}

// restart starts a container again, whose engine has been stopped.
func (b *box) restart(t *testing.T) {
	t.Helper()
	if _, err := b.engine.Client(t).ContainerStart(t.Context(), b.id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
}
