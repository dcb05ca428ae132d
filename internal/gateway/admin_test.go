package gateway

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// The host of TERMGW_ADMIN_LISTEN may be any name.
func TestAdminOwnName(t *testing.T) {
	handler := metricsHandler(prometheus.NewRegistry(), http.NotFoundHandler(), "Metrics.Corp.Example:9090")
	for host, want := range map[string]int{
		"metrics.corp.example:9090": http.StatusOK, "METRICS.corp.example.": http.StatusOK, "corp.example:9090": http.StatusMisdirectedRequest,
	} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if handler.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%s: %d, want %d", host, w.Code, want)
		}
	}
}
