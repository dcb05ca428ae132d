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
	// readyTimeout bounds what /readyz asks.
	readyTimeout = 2 * time.Second
	// readyAge is how old an answer of the parts may be. Anybody may ask /readyz, and the database and the engine have
	// better to do.
	readyAge = time.Second
	// sameFault is how long other words for what is wrong with a part are no news: a broken connection's have its port,
	// which is another at each try.
	sameFault = time.Minute
)

// What /readyz says of what is wrong. Whose addresses and names are in the error
// itself is for the log alone: anybody may ask.
const (
	noStore    = "No terminal is opened: the database does not answer, or refuses what a terminal needs. Check that it runs and takes writes, that this gateway reaches it, TERMGW_DATABASE_URL and TERMGW_WORKSPACE_QUERY, and that 'termgw migrate' was run. The gateway's log has the error."
	noKeys     = "No terminal is opened: this replica has no key to verify tickets with. Check that TERMGW_TICKET_JWKS leads to a JWK Set with a key in it, and that this gateway reaches it. The gateway's log has the error."
	noOrders   = "Revocations are not read, so nobody who is revoked would be cut: this replica takes no new terminals. Check that the database answers and that the gateway's role may read termgw.revocations. The gateway's log has the error."
	noDocker   = "The Docker engine does not answer, so no terminal is opened in its containers. Check that it runs, and DOCKER_HOST. This does not make the gateway unready."
	notWatched = "Revocations do not arrive at once, but within five seconds while the database answers. Check that no connection pooler in transaction mode is before the database: LISTEN needs a connection of its own. This does not make the gateway unready."
	isDraining = "This replica was told to end and takes no new terminals. Others take over; there is nothing to do."
)

// deciding are the parts without which no terminal is opened, or nobody could be cut.
var deciding = []string{"store", "keys", "orders"}

// ready answers 200 while the store answers, there are keys for tickets, orders are read and the replica takes sessions.
// Docker is told but does not decide: a gateway for remote workspaces has none.
// Nor does how revocations arrive: without a listener they are polled for.
func (rt *Router) ready(w http.ResponseWriter, _ *http.Request) {
	states, problems := rt.askParts()
	draining := rt.live.isDraining() // of now, however old the rest is
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

// parts is what the parts behind the gateway answered, and what was last found wrong with them.
type parts struct {
	now func() time.Time

	mu       sync.Mutex // held while they are asked: who asks meanwhile is given the same answer
	answered time.Time
	states   map[string]string // "ok" or "unavailable"; not changed once it is answered
	problems []string
	faults   map[string]told
}

// told is what was last logged of a part that is not ok.
type told struct {
	text string
	at   time.Time
}

// askParts asks every part, or knows the answer.
func (rt *Router) askParts() (states map[string]string, problems []string) {
	p := &rt.parts
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.states != nil && p.now().Sub(p.answered) < readyAge {
		return p.states, p.problems
	}
	// The answer is everybody's: it must not be spoilt by one who leaves.
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	states = map[string]string{}
	answer := func(part string, err error, problem string) {
		p.tell(rt.Log, part, err)
		states[part] = "ok"
		if err != nil {
			states[part] = "unavailable"
			problems = append(problems, problem)
		}
	}
	var docker error
	var asking sync.WaitGroup
	if rt.Docker != nil {
		asking.Go(func() { docker = rt.Docker(ctx) }) // a database that hangs must not take its time
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
		answer("orders", rt.Orders(), noOrders)
	}
	if rt.Watching != nil {
		answer("revocations", rt.Watching(), notWatched)
	}
	p.states, p.problems, p.answered = states, problems, p.now()
	return states, problems
}

// doubt forgets the answer: a terminal has just found a part away, and /readyz
// must not deny it. If the parts are being asked, that is recent enough.
func (p *parts) doubt() {
	if p.mu.TryLock() {
		p.states = nil
		p.mu.Unlock()
	}
}

// tell logs what is new: a probe asks every few seconds, and a gateway without
// Docker is meant to be so. The lock is held.
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

// Describe and Collect make the router a metric: termgw_ready, as /readyz tells.
func (rt *Router) Describe(descs chan<- *prometheus.Desc) { rt.Metrics.ready.Describe(descs) }

// Collect asks the parts, or knows the answer.
func (rt *Router) Collect(metrics chan<- prometheus.Metric) {
	states, _ := rt.askParts()
	for part, state := range states {
		value := 0.0
		if state == "ok" {
			value = 1
		}
		rt.Metrics.ready.WithLabelValues(part).Set(value)
	}
	rt.Metrics.ready.Collect(metrics)
}
