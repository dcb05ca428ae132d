package router

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// noTarget is the target of requests that were refused before their workspace was known.
const noTarget = "none"

// Metrics are the metrics of a Router, made by NewMetrics.
type Metrics struct {
	active       *prometheus.GaugeVec
	total        *prometheus.CounterVec
	duration     prometheus.Histogram
	startSeconds *prometheus.HistogramVec
	in, out      prometheus.Counter // bytes
	rejections   *prometheus.CounterVec
	backlog      prometheus.Gauge
	rttSeconds   prometheus.Histogram
	storeSeconds *prometheus.HistogramVec
	draining     prometheus.Gauge
	revocation   prometheus.Histogram
	resumes      *prometheus.CounterVec
	ready        *prometheus.GaugeVec // set whenever the parts are asked
	waiting      prometheus.Gauge     // collected by Router.Collect
}

// NewMetrics registers the router's metrics, except termgw_sessions_waiting: the Router is its collector.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "termgw_bytes_total", Help: "Terminal bytes: in to shells, out of them.",
	}, []string{"direction"})
	m := &Metrics{
		in: bytes.WithLabelValues("in"), out: bytes.WithLabelValues("out"),
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "termgw_sessions_active", Help: "Terminals that are open now.",
		}, []string{"target"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "termgw_sessions_total", Help: "Requests for a terminal that are over, by the code of their end.",
		}, []string{"target", "code"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "termgw_session_duration_seconds", Help: "How long terminals were open.",
			Buckets: []float64{1, 10, 60, 300, 900, 1800, 3600, 4 * 3600, 8 * 3600},
		}),
		startSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "termgw_session_start_seconds", Help: "From the request to the running shell.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15},
		}, []string{"target"}),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "termgw_ticket_rejections_total", Help: "Tickets that were refused.",
		}, []string{"code"}),
		backlog: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "termgw_backlog_bytes", Help: "Output sent to clients and not yet acknowledged as rendered.",
		}),
		rttSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "termgw_client_rtt_seconds", Help: "Round trips of WebSocket pings.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		storeSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "termgw_store_seconds", Help: "Time that the store took.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5},
		}, []string{"op"}),
		draining: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "termgw_draining", Help: "1 while this replica is going away.",
		}),
		revocation: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "termgw_revocation_seconds", Help: "From a revocation's row to the end of a session that it cuts here: the shell is gone, and its client is told.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		resumes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "termgw_resumes_total", Help: "Requests to come back to a session: resumed, taken over from a connection that was still thought open, gone, or refused.",
		}, []string{"outcome"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "termgw_sessions_waiting", Help: "Terminals that wait for their persons, of those that are open now.",
		}),
		ready: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "termgw_ready", Help: "1 while a part is as it should be. Of them, store, keys and orders decide /readyz.",
		}, []string{"part"}),
	}
	reg.MustRegister(m.active, m.total, m.duration, m.startSeconds, bytes, m.rejections, m.backlog, m.rttSeconds, m.storeSeconds, m.draining, m.revocation, m.resumes, m.ready)
	return m
}

// rejected are the errors of tickets that termgw_ticket_rejections_total counts.
var rejected = []error{errNoTicket, ticket.ErrExpired, ticket.ErrInvalid, errMismatch, store.ErrUsed, store.ErrRevoked}

// begin makes the series of every target and code: a counter that began with its first event would hide that event, since
// rate and increase see no step from nothing to 1.
func (m *Metrics) begin(places runner.Places) {
	targets := []string{noTarget}
	for _, place := range places {
		targets = append(targets, place.Name)
		m.active.WithLabelValues(place.Name)
		m.startSeconds.WithLabelValues(place.Name)
	}
	for _, o := range append([]outcome{exited, backendFailed}, outcomes...) {
		for _, target := range targets {
			m.total.WithLabelValues(target, o.code)
		}
	}
	for _, err := range rejected {
		m.rejections.WithLabelValues(outcomeOf(err).code)
	}
	for _, op := range []string{"redeem", "resume", "unreached", "trace", "finish"} {
		m.storeSeconds.WithLabelValues(op)
	}
	for _, outcome := range []string{resumeDone, resumeTaken, resumeGone, resumeRefused, resumePassed} {
		m.resumes.WithLabelValues(outcome)
	}
}

// started counts a session that has its shell. The trace is the observation's exemplar; empty: it has none.
func (m *Metrics) started(target string, took time.Duration, traceID string) {
	m.active.WithLabelValues(target).Inc()
	seconds := m.startSeconds.WithLabelValues(target)
	if with, ok := seconds.(prometheus.ExemplarObserver); ok && traceID != "" {
		with.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": traceID})
		return
	}
	seconds.Observe(took.Seconds())
}

func (m *Metrics) ended(target, code string, lasted time.Duration) {
	m.over(target, code)
	m.duration.Observe(lasted.Seconds())
}

// left undoes started. It is no part of ended, so that it is called also after a panic.
func (m *Metrics) left(target string) { m.active.WithLabelValues(target).Dec() }

func (m *Metrics) over(target, code string) { m.total.WithLabelValues(target, code).Inc() }

func (m *Metrics) revoked(after time.Duration) { m.revocation.Observe(after.Seconds()) }

func (m *Metrics) rtt(d time.Duration) { m.rttSeconds.Observe(d.Seconds()) }

// carried counts terminal bytes.
func (m *Metrics) carried(in, out int) {
	if in > 0 {
		m.in.Add(float64(in))
	}
	if out > 0 {
		m.out.Add(float64(out))
	}
}

func (m *Metrics) backlogged(delta int) { m.backlog.Add(float64(delta)) }

func (m *Metrics) timeStore(op string, start time.Time) {
	m.storeSeconds.WithLabelValues(op).Observe(time.Since(start).Seconds())
}
