package session

import (
	"sync"
	"time"
)

// alarm calls a function once, some time later, in a goroutine that is counted in wg
// until the function calls wg.Done. Its methods are called with the lock held that the
// function takes first.
type alarm struct {
	wg    *sync.WaitGroup
	call  func() // clears set
	timer *time.Timer
	set   bool // the call is to come
}

// ring has the function called after d, whatever was set before.
func (a *alarm) ring(d time.Duration) {
	switch {
	case a.timer == nil:
		a.wg.Add(1)
		a.timer = time.AfterFunc(d, a.call)
	case !a.set:
		a.wg.Add(1)
		a.timer.Reset(d)
	case a.timer.Stop(): // else the call waits for the lock
		a.timer.Reset(d)
	}
	a.set = true
}

// stop prevents the call, unless the call waits for the lock already.
func (a *alarm) stop() {
	if a.set && a.timer.Stop() {
		a.set = false
		a.wg.Done()
	}
}
