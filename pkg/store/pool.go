package store

import (
	"sync/atomic"
	"time"
)

// PoolStats is the state of the pool of connections. Watch's own connection is not in it.
type PoolStats struct {
	Open, InUse, Limit int           // connections
	Waits              int64         // calls that found all connections in use
	Waited             time.Duration // their time until one was free, or until they gave up
}

// PoolStats returns the state of the pool at this moment, and the waits since the store was opened.
func (p *Postgres) PoolStats() PoolStats {
	return PoolStats{
		Open: p.db.Stats().OpenConnections, InUse: len(p.conns), Limit: cap(p.conns),
		Waits: p.waits.number.Load(), Waited: time.Duration(p.waits.time.Load()),
	}
}

// waits counts the waits for a connection.
type waits struct{ number, time atomic.Int64 }

// began counts a wait; the function that it returns adds the time since then.
func (w *waits) began() (over func()) {
	w.number.Add(1)
	start := time.Now()
	return func() { w.time.Add(int64(time.Since(start))) }
}
