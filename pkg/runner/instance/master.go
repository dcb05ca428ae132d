package instance

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// This file tells a connection that cannot open sessions any more: its ssh is stopped or hangs, its control socket is
// gone, or its tunnel is silent. Terminals that are open on it may go on.

// answerTime bounds the wait for a connection's ssh, which answers within milliseconds.
const answerTime = 2 * time.Second

// answers reports whether the connection's ssh takes requests for sessions. It greets whoever connects to its control
// socket before anything is asked (OpenSSH's PROTOCOL.mux, section 1), and needs nothing of the instance for that.
func (c *connection) answers() bool {
	conn, err := net.DialTimeout("unix", c.control, answerTime)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(answerTime))
	n, _ := conn.Read(make([]byte, 1))
	return n > 0
}

// watchOpening returns the context for the opening of a session. The context ends with the cause errGone if the session
// is not open after Timing.Silent and the connection cannot open it, so that the terminal opens over another one. The
// caller calls stop when the opening is over.
func (c *connection) watchOpening(ctx context.Context) (opening context.Context, stop func()) {
	silent := c.listen()
	opening, giveUp := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		timer := time.NewTimer(c.kind.cfg.Timing.Silent)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-opening.Done():
			return
		}
		if silent() || !c.answers() {
			giveUp(fmt.Errorf("%w: it opens no session", errGone))
		}
	})
	return opening, func() {
		giveUp(nil)
		watch.Wait()
	}
}
