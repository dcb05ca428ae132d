package store

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

const (
	// finishWait bounds Finish, whose caller keeps a client waiting.
	finishWait = 2 * time.Second
	// The pause between two tries of Run.
	outboxMinPause = 100 * time.Millisecond
	outboxMaxPause = 5 * time.Second
	// maxUnwritten is how many ends may wait before no more sessions are opened: what cannot be recorded is not begun.
	maxUnwritten = 10_000
)

// The first end stays, whoever writes it; but nobody has seen the end of a lost session. The end was $6 seconds ago:
// the clocks of gateway and database may differ, their seconds do not.
const finishSQL = `UPDATE termgw.sessions s
SET ended_at = e.t, end_reason = $2, exit_code = $3, bytes_in = $4, bytes_out = $5, trail = COALESCE($7::jsonb, trail),
  last_seen_at = CASE $2 WHEN '` + ReasonLost + `' THEN ` + lastSignSQL + ` ELSE greatest(last_seen_at, e.t) END,
  waiting = $8, holder_url = CASE WHEN $8 OR $2 = '` + ReasonLost + `' THEN holder_url ELSE '' END,
  holder_key = CASE WHEN $8 OR $2 = '` + ReasonLost + `' THEN holder_key ELSE '' END
FROM (SELECT now() - make_interval(secs => $6) AS t) e
WHERE id = $1 AND (ended_at IS NULL OR end_reason = '` + ReasonLost + `' AND $2 <> '` + ReasonLost + `')`

// outbox holds the ends that could not be written. With the database away no sessions are opened, so it holds no more than
// were live then; should the database take redemptions but no ends, maxUnwritten and the live ones bound it. An end takes
// less than 500 bytes, and 1 KiB with a trail.
type outbox struct {
	mu   sync.Mutex
	ends map[string]ended // by session
	wake chan struct{}    // of capacity 1
}

type ended struct {
	End
	at time.Time
}

func newOutbox() *outbox {
	return &outbox{ends: map[string]ended{}, wake: make(chan struct{}, 1)}
}

// add keeps the first end of a session.
func (o *outbox) add(id string, e ended) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.ends[id]; !ok {
		o.ends[id] = e
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) remove(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.ends, id)
}

// settle has an end that is not written yet wait for nobody.
func (o *outbox) settle(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.ends[id]; ok {
		e.Waits = false
		o.ends[id] = e
	}
}

func (o *outbox) has(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.ends[id]
	return ok
}

func (o *outbox) size() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.ends)
}

// any returns one that waits.
func (o *outbox) any() (id string, e ended, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, e := range o.ends {
		return id, e, true
	}
	return "", ended{}, false
}

// Finish writes a session's end, or keeps it for Run and Flush if the database does not take it within two seconds; while
// others are kept it does not even try. Both are success: the end of a session that was opened here is lost only with the
// process. The end of another's session is not kept: the error says that it was not written.
//
// The first end stays, except that ReasonLost gives way to any other; a session that has one already, or is not there any
// more, is no error, so that a caller may repeat a call whose outcome it did not hear.
func (p *Postgres) Finish(ctx context.Context, sessionID string, e End) error {
	end := ended{e, p.now()}
	mine := p.sessions.close(sessionID)
	if p.outbox.has(sessionID) {
		return nil
	}
	if mine && p.outbox.size() > 0 {
		p.outbox.add(sessionID, end)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, finishWait)
	defer cancel()
	err := p.writeEnd(ctx, sessionID, end)
	if err != nil && mine {
		p.outbox.add(sessionID, end)
		return nil
	}
	return unavailable("recording a session's end", err)
}

// writeEnd writes an end. One that the database does not take as it is, is written without what the instance or the
// container has told; one that it does not take so either is dropped with a line in the log. So no end holds up the others.
func (p *Postgres) writeEnd(ctx context.Context, id string, e ended) error {
	age := max(0, p.now().Sub(e.at).Seconds())
	trail, err := trailJSON(e.Trail)
	if err != nil {
		return err
	}
	var code any
	if e.ExitCode != nil && *e.ExitCode == int(int32(*e.ExitCode)) { //nolint:gosec // it is compared
		code = int64(*e.ExitCode)
	}
	if err = p.one(ctx, finishSQL, []any{text(id), text(e.Reason), code, e.BytesIn, e.BytesOut, age, trail, e.Waits}); !ofRow(err) {
		return err
	}
	p.log.Warn("the database does not take a session's end: it is recorded without exit code, bytes and trail", "session", id, "err", err)
	if err = p.one(ctx, finishSQL, []any{text(id), text(e.Reason), nil, int64(0), int64(0), age, nil, e.Waits}); !ofRow(err) {
		return err
	}
	p.log.Error("the database does not take a session's end: it is not recorded", "session", id, "reason", e.Reason, "err", err)
	return nil
}

const traceSQL = `UPDATE termgw.sessions SET trail = $2::jsonb WHERE id = $1`

// Trace records what others' logs know a session by, once its shell has started: names and values, none of them a secret.
func (p *Postgres) Trace(ctx context.Context, sessionID string, trail map[string]string) error {
	const op = "recording a session's trail"
	j, err := trailJSON(trail)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return unavailable(op, p.one(ctx, traceSQL, []any{text(sessionID), j}))
}

// trailJSON returns an object for the column trail; nil: the trail is empty.
func trailJSON(trail map[string]string) (any, error) {
	if len(trail) == 0 {
		return nil, nil
	}
	clean := make(map[string]string, len(trail))
	for name, value := range trail {
		clean[text(name)] = text(value)
	}
	j, err := json.Marshal(clean)
	return string(j), err
}

// Unwritten is how many ends Finish has kept that are not written yet.
func (p *Postgres) Unwritten() int { return p.outbox.size() }

// Flush writes every end that Finish has kept, until one cannot be written or the context is done. Run and Flush may run
// at once: what is written twice stays as it was.
func (p *Postgres) Flush(ctx context.Context) error {
	const op = "recording the ends of sessions"
	for {
		id, end, ok := p.outbox.any()
		if !ok {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		if err := p.writeEnd(ctx, id, end); err != nil {
			return unavailable(op, err)
		}
		p.outbox.remove(id)
	}
}

// Run writes the ends that Finish keeps, as soon as the database takes them, until the context is done. It always returns
// nil. What is kept then is for a last Flush.
func (p *Postgres) Run(ctx context.Context) error {
	pause := outboxMinPause
	for {
		var again <-chan time.Time
		if err := p.Flush(ctx); err == nil {
			pause = outboxMinPause
		} else {
			again = time.After(pause)
			pause = min(2*pause, outboxMaxPause)
		}
		wake := p.outbox.wake
		if again != nil {
			wake = nil // more to write does not bring the database back
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-again:
		}
	}
}
