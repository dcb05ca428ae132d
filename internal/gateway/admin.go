package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// admin serves what is for operators alone. There is no password; the
// check of the Host header keeps a browser's pages from reading the answers.
type admin struct {
	mux       *http.ServeMux
	ownNames  []string   // lower case
	recording sync.Mutex // held while a profile or a trace is recorded
}

// AdminHeader is in the admin listener's answers about health, so that they are not taken for those of the terminals' listener.
const AdminHeader = "Termgw-Admin"

// metricsHandler returns the handler of the admin listener: /metrics, and the probes of health, for which
// the terminals' listener may want a certificate or a PROXY header that a prober does not have.
func metricsHandler(reg *prometheus.Registry, health http.Handler, listen string) http.Handler {
	a := newAdmin(listen)
	// Exemplars are part of OpenMetrics alone, which Prometheus asks for.
	a.mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	marked := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(AdminHeader, "true")
		health.ServeHTTP(w, r)
	})
	a.mux.Handle("GET /healthz", marked)
	a.mux.Handle("GET /readyz", marked)
	return a
}

// pprofHandler returns the handler of Go's profiles.
func pprofHandler(listen string) http.Handler {
	a := newAdmin(listen)
	a.mux.HandleFunc("GET /debug/pprof/", a.bounded(pprof.Index, false))
	a.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	a.mux.HandleFunc("GET /debug/pprof/profile", a.bounded(pprof.Profile, true))
	a.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	a.mux.HandleFunc("GET /debug/pprof/trace", a.bounded(pprof.Trace, true))
	return a
}

// newAdmin returns an admin that serves nothing yet. The host in listen becomes one of the own names.
func newAdmin(listen string) *admin {
	a := &admin{mux: http.NewServeMux()}
	machine, _ := os.Hostname() // empty after an error
	for _, name := range []string{hostOf(listen), machine} {
		if name != "" {
			a.ownNames = append(a.ownNames, strings.ToLower(name))
		}
	}
	return a
}

func (a *admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch site := r.Header.Get("Sec-Fetch-Site"); {
	case !a.knows(hostOf(r.Host)):
		http.Error(w, "The admin port answers to an IP address, localhost, its machine's name, the host of its TERMGW_…_LISTEN, "+
			"and names that only a private network has: without a dot, or under .svc, .cluster.local, .internal or .localhost.", http.StatusMisdirectedRequest)
	case site != "" && site != "none" && site != "same-origin", len(r.Header["Origin"]) > 0:
		http.Error(w, "The admin port is for no other page.", http.StatusForbidden)
	default:
		a.mux.ServeHTTP(w, r)
	}
}

// knows reports whether a Host is an address, or a name that no page from the internet
// can have. If a page's name leads first to the page's server and then to this one (DNS
// rebinding), the page has this server's origin, and could read every answer. A name
// without a dot, or with one of these ends, cannot be registered (RFC 6761, ICANN's
// .internal; .svc and .cluster.local are Kubernetes's), so Prometheus may use a
// service's name. Other names under .local may belong to a neighbour in the browser's
// network (RFC 6762).
func (a *admin) knows(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, name := range a.ownNames {
		if host == name {
			return true
		}
	}
	for _, end := range []string{".svc", ".cluster.local", ".internal", ".localhost"} {
		if strings.HasSuffix(host, end) {
			return true
		}
	}
	return host != "" && !strings.Contains(host, ".")
}

// hostOf returns an address's host, without brackets. The address may have a port.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return strings.Trim(address, "[]")
}

// longestRecording bounds the time of a profile or a trace, in seconds: both slow every
// terminal, and a trace takes some 10 MB a second.
const longestRecording = 60

// bounded allows one recording at a time, of longestRecording at most. A request with
// the parameter seconds records; with always, a request without it records, too.
func (a *admin) bounded(next http.HandlerFunc, always bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		asked := r.FormValue("seconds")
		if asked == "" && !always {
			next(w, r)
			return
		}
		if n, err := strconv.ParseFloat(asked, 64); asked != "" && (err != nil || !(n > 0 && n <= longestRecording)) {
			http.Error(w, fmt.Sprintf("seconds must be a number above 0, and %d at most.", longestRecording), http.StatusBadRequest)
			return
		}
		if !a.recording.TryLock() {
			w.Header().Set("Retry-After", "10")
			http.Error(w, "Another profile or trace is being taken. Try again when it is done.", http.StatusTooManyRequests)
			return
		}
		defer a.recording.Unlock()
		next(w, r)
	}
}
