package store

import (
	"testing"
	"time"
)

// A call that has to wait for a connection is counted, with its time, until there is one.
func TestPoolStats(t *testing.T) {
	t.Parallel()
	p, err := OpenPostgres(PostgresConfig{URL: env.Postgres(t).NewDatabase(t), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	if s := p.PoolStats(); s != (PoolStats{Limit: 1}) {
		t.Errorf("at the start: %+v", s)
	}
	answer := func() error { return p.one(t.Context(), "SELECT 1", nil) }
	if err := answer(); err != nil {
		t.Fatal(err)
	}
	if s := p.PoolStats(); s != (PoolStats{Open: 1, Limit: 1}) {
		t.Errorf("after a call: %+v", s)
	}
	p.conns <- struct{}{} // another call has the connection
	done := make(chan error)
	go func() { done <- answer() }()
	for deadline := time.Now().Add(time.Minute); p.PoolStats().Waits == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the call did not wait within a minute")
		}
	}
	if s := p.PoolStats(); s.InUse != 1 || s.Waited != 0 {
		t.Errorf("while it waits: %+v", s)
	}
	p.release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := p.PoolStats(); s.Waits != 1 || s.Waited <= 0 || s.InUse != 0 {
		t.Errorf("after it has waited: %+v", s)
	}
}
