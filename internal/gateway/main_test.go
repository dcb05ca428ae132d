package gateway

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what a busy machine does late.
const patience = 3 * time.Minute

// eventually waits until ok.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for timeout := time.After(patience); !ok(); {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-timeout:
			tb.Fatalf("not so after %s: %s", patience, what)
		}
	}
}
