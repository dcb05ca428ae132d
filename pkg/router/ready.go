package router

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// readyTimeout bounds the checks of /readyz.
	readyTimeout = 2 * time.Second
	// checkEvery is the interval at which CheckParts asks the parts, also when nobody calls /readyz.
	checkEvery = 5 * time.Second
	// readyAge is how long an answer of the parts is kept: anybody may call /readyz, and must not load the database and
	// the engine with it.
	readyAge = time.Second
	// sameFault is how long another error of a part that already failed is not logged: the error of a broken connection
	// has the local port, which differs at each try.
	sameFault = time.Minute
)

// The problems that /readyz names. The errors themselves, which have addresses and
// names, are for the log alone: anybody may call /readyz.
const (
	noStore    = "No terminal is opened: the database does not answer, or refuses what a terminal needs. Check that it runs and takes writes, that this gateway reaches it, TERMGW_DATABASE_URL and TERMGW_WORKSPACE_QUERY, and that 'termgw migrate' was run. The gateway's log has the error."
	noKeys     = "No terminal is opened: this replica has no key to verify tickets with. Check that TERMGW_TICKET_JWKS leads to a JWK Set with a key in it, and that this gateway reaches it. The gateway's log has the error."
	noRevoking = "Revocations are not read, so nobody who is revoked would be cut: this replica takes no new terminals. Check that the database answers and that the gateway's role may read termgw.revocations. The gateway's log has the error."
	noDocker   = "The Docker engine does not answer, so no terminal is opened in its containers. Check that it runs, and DOCKER_HOST. This does not make the gateway unready."
	notWatched = "Revocations do not arrive at once, but within five seconds while the database answers. Check that no connection pooler in transaction mode is before the database: LISTEN needs a connection of its own. This does not make the gateway unready."
	isDraining = "This replica was told to end and takes no new terminals. Others take over; there is nothing to do."
)

// deciding are the parts that a gateway needs to open terminals and to cut them.
var deciding = []string{"store", "keys", "orders"}

// ready answers /readyz: 200 while the deciding parts are ok and the replica does not drain, else 503. Docker does not
// decide, since a gateway for remote workspaces has no engine. Whether revocations arrive at once does not decide
// either: without a listener they are polled for.
func (rt *Router) ready(w http.ResponseWriter, _ *http.Request) {
	states, problems := rt.askParts()
	draining := rt.live.isDraining() // asked each time, however old the parts' answers are
	status, word := http.StatusOK, "ready"
	if draining || slices.ContainsFunc(deciding, func(part string) bool { return states[part] == "unavailable" }) {
		status, word = http.StatusServiceUnavailable, "unavailable"
	}
	if draining {
		problems = append([]string{isDraining}, problems...)
	}
	body := map[string]any{"status": word, "draining": draining, "sessions": rt.live.count()}
	for part, state := range states {
		body[part] = state
	}
	if problems != nil {
		body["problems"] = problems
	}
	writeJSON(w, status, "application/json", body)
}

// parts has the last answers of the parts behind the gateway, and their last faults.
type parts struct {
	now func() time.Time

	mu       sync.Mutex // held while the parts are asked: concurrent calls share the answer
	answered time.Time
	states   map[string]string // "ok" or "unavailable"; read-only once returned
	problems []string
	faults   map[string]told
}

// told is the fault that was last logged of a part that is not ok.
type told struct {
	text string
	at   time.Time
}

// askParts returns the states of all parts, by name, at most readyAge old.
func (rt *Router) askParts() (states map[string]string, problems []string) {
	p := &rt.parts
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.states != nil && p.now().Sub(p.answered) < readyAge {
		return p.states, p.problems
	}
	// Several callers share the answer: a caller that leaves must not cancel it.
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	states = map[string]string{}
	answer := func(part string, err error, problem string) {
		p.tell(rt.Log, part, err)
		states[part] = "ok"
		gauge := rt.Metrics.ready.WithLabelValues(part)
		gauge.Set(1)
		if err != nil {
			states[part] = "unavailable"
			gauge.Set(0)
			problems = append(problems, problem)
		}
	}
	var docker error
	var asking sync.WaitGroup
	if rt.Docker != nil {
		asking.Go(func() { docker = rt.Docker(ctx) }) // at the same time: a database that hangs takes all of readyTimeout
	}
	answer("store", rt.Store.Ping(ctx), noStore)
	asking.Wait()
	if rt.Docker != nil {
		answer("docker", docker, noDocker)
	}
	if rt.Keys != nil {
		answer("keys", rt.Keys(), noKeys)
	}
	if rt.Orders != nil {
		answer("orders", rt.Orders(), noRevoking)
	}
	if rt.Watching != nil {
		answer("revocations", rt.Watching(), notWatched)
	}
	p.states, p.problems, p.answered = states, problems, p.now()
	return states, problems
}

// doubt drops the kept answer: a terminal has just found that a part is away, and /readyz
// must not deny that. If the parts are being asked now, their answer is recent enough.
func (p *parts) doubt() {
	if p.mu.TryLock() {
		p.states = nil
		p.mu.Unlock()
	}
}

// tell logs a part's fault when it begins, changes or ends, and not at every probe, which
// comes every few seconds; a gateway may be meant to have no Docker. The lock is held.
func (p *parts) tell(log *slog.Logger, part string, err error) {
	was, known := p.faults[part]
	switch {
	case err == nil && known:
		delete(p.faults, part)
		log.Info("ready again", "part", part)
	case err != nil && (!known || was.text != err.Error() && p.now().Sub(was.at) >= sameFault):
		if p.faults == nil {
			p.faults = map[string]told{}
		}
		p.faults[part] = told{err.Error(), p.now()}
		log.Warn("not ready", "part", part, "err", err)
	}
}

// CheckParts asks the parts at once and then every checkEvery, until ctx ends, so that termgw_ready and the log tell of an
// outage that no probe looks for. A scrape waits for no part: a database that hangs would make it miss its time. The error
// is always nil.
func (rt *Router) CheckParts(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		rt.askParts()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Describe makes the router the collector of termgw_sessions_waiting.
func (rt *Router) Describe(descs chan<- *prometheus.Desc) { rt.Metrics.waiting.Describe(descs) }

// Collect counts the sessions that wait.
func (rt *Router) Collect(metrics chan<- prometheus.Metric) {
	rt.Metrics.waiting.Set(float64(len(rt.Waiting())))
	rt.Metrics.waiting.Collect(metrics)
}
