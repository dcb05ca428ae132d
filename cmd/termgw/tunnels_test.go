package main

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/molecule-ai/termgw/pkg/store"
)

// The gauge has the tunnels of this replica, by endpoint.
func TestTunnelsAreCounted(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := countTunnels(store.NewMemory(store.MemoryConfig{}), reg)
	wantOpen := func(endpoint string, want float64) {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "termgw_eice_tunnels" && m.GetLabel()[0].GetValue() == endpoint {
					if got := m.GetGauge().GetValue(); got != want {
						t.Errorf("%s has %v tunnels, want %v", endpoint, got, want)
					}
					return
				}
			}
		}
		t.Errorf("%s is not counted", endpoint)
	}
	acquire := func(endpoint string) string {
		t.Helper()
		lease, err := c.AcquireTunnel(t.Context(), endpoint, "i-1", "replica", 2)
		if err != nil {
			t.Fatal(err)
		}
		return lease
	}
	first, second := acquire("eice-1"), acquire("eice-1")
	acquire("eice-2")
	if _, err := c.AcquireTunnel(t.Context(), "eice-1", "i-1", "replica", 2); !errors.Is(err, store.ErrLimit) {
		t.Errorf("a third: %v", err)
	}
	wantOpen("eice-1", 2)
	wantOpen("eice-2", 1)
	for _, lease := range []string{first, second} {
		if err := c.ReleaseTunnel(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
	}
	wantOpen("eice-1", 0)
	wantOpen("eice-2", 1)
}
