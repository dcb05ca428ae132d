package bridge

import (
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen. It is never waited
// out unless the test fails.
const patience = 3 * time.Minute

// watched is state that others change and a test waits on.
type watched struct {
	mu      sync.Mutex
	changed sync.Cond
}

func (w *watched) init() { w.changed.L = &w.mu }

// until waits for ok, which is called with the lock held.
func (w *watched) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	late := false
	timer := time.AfterFunc(patience, func() {
		w.mu.Lock()
		late = true
		w.mu.Unlock()
		w.changed.Broadcast()
	})
	defer timer.Stop()
	for !ok() {
		if late {
			t.Fatalf("waited %s for: %s", patience, what)
		}
		w.changed.Wait()
	}
}

// eventually waits until ok, which nobody tells.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}

// with runs f with the lock held and tells who waits.
func (w *watched) with(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	w.changed.Broadcast()
}
