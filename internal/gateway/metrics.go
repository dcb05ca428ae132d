package gateway

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
)

// The metrics of the process and its parts. Those of requests and sessions are the router's.

func buildInfo(reg prometheus.Registerer, version string) {
	promauto.With(reg).NewGaugeVec(prometheus.GaugeOpts{
		Name: "termgw_build_info", Help: "1; the labels say which program runs.",
	}, []string{"version", "goversion"}).WithLabelValues(version, runtime.Version()).Set(1)
}

func keysAge(reg prometheus.Registerer, age func() time.Duration) {
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "termgw_ticket_keys_age_seconds", Help: "How long ago the ticket keys were last read from their file or URL.",
	}, func() float64 { return age().Seconds() })
}

func sessionsLimit(reg prometheus.Registerer, limit int) {
	promauto.With(reg).NewGauge(prometheus.GaugeOpts{
		Name: "termgw_sessions_limit", Help: "Terminals that this replica takes at once.",
	}).Set(float64(limit))
}

// storeMetrics registers the metrics of a shared store.
func storeMetrics(reg prometheus.Registerer, shared interface {
	OrdersAge() time.Duration
	Unwritten() int
	PoolStats() store.PoolStats
},
) {
	with := promauto.With(reg)
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "termgw_orders_age_seconds", Help: "How long ago the orders to cut sessions were last read.",
	}, func() float64 { return shared.OrdersAge().Seconds() })
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "termgw_unwritten_ends", Help: "Ends of sessions that the database has not taken yet. They are lost with the process.",
	}, func() float64 { return float64(shared.Unwritten()) })
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "termgw_store_connections_open", Help: "Open connections of the pool to the database.",
	}, func() float64 { return float64(shared.PoolStats().Open) })
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "termgw_store_connections_in_use", Help: "Connections of the pool that a call has at this moment.",
	}, func() float64 { return float64(shared.PoolStats().InUse) })
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "termgw_store_connections_limit", Help: "Connections that the pool may have.",
	}, func() float64 { return float64(shared.PoolStats().Limit) })
	with.NewCounterFunc(prometheus.CounterOpts{
		Name: "termgw_store_waits_total", Help: "Calls that found all connections of the pool in use.",
	}, func() float64 { return float64(shared.PoolStats().Waits) })
	with.NewCounterFunc(prometheus.CounterOpts{
		Name: "termgw_store_wait_seconds_total", Help: "Time that calls have waited for a connection of the pool.",
	}, func() float64 { return shared.PoolStats().Waited.Seconds() })
}

func heartbeatFailures(reg prometheus.Registerer) prometheus.Counter {
	return promauto.With(reg).NewCounter(prometheus.CounterOpts{
		Name: "termgw_heartbeat_failures_total", Help: "Heartbeats of this replica that the database did not take.",
	})
}

// orphanCounter returns a function that adds the report of a sweep to termgw_orphans_total.
func orphanCounter(reg prometheus.Registerer) func(runner.Swept) {
	orphans := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "termgw_orphans_total",
		Help: "Processes that a shell left behind: killed, kept because they were told to stay, or left, which should never move.",
	}, []string{"outcome"})
	killed, kept, left := orphans.WithLabelValues("killed"), orphans.WithLabelValues("kept"), orphans.WithLabelValues("left")
	return func(s runner.Swept) {
		killed.Add(float64(s.Killed))
		kept.Add(float64(s.Kept))
		left.Add(float64(s.Left))
	}
}
