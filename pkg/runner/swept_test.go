package runner_test

import (
	"testing"

	"github.com/molecule-ai/termgw/pkg/runner"
)

func TestReadSwept(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]runner.Swept{"0 0 0": {}, "1 2 3": {Killed: 1, Kept: 2, Left: 3}, "9999999 0 0": {Killed: 9999999}} {
		if got, ok := runner.ReadSwept(line); !ok || got != want {
			t.Errorf("%q: %+v, %t", line, got, ok)
		}
	}
	// A count that falls would end the gateway: Prometheus panics.
	for _, line := range []string{"", "-1 0 0", "0 -1 0", "0 0 -1", "+1 0 0", "1 0", "1 0 0 0", "1 0 0 ", "12345678 0 0", "0x1 0 0", "1\n0 0", "a 0 0"} {
		if got, ok := runner.ReadSwept(line); ok {
			t.Errorf("%q is read as %+v", line, got)
		}
	}
}
