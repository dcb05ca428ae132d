package instance

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// This file paces the logins that an instance refuses.
//
// Since OpenSSH 9.8 sshd refuses a source address for a while after failed logins (PerSourcePenalties in sshd_config(5)), and
// behind an endpoint all terminals have one address: the tries for one wrong row would lock out everybody on that instance.
// Each try adds to a sum, which runs down with the clock; sshd refuses the address once the sum is more than 15 s. A try adds
// 5 s where sshd refuses a signature or an account, and since 10.5 where there is no such user. A key that is refused before
// ssh signs adds 1 s (monitor.c; measured with 10.0).
//
// A gateway lets one login of an account through at a time, and after a refusal none for firstPause or longer. So it adds 5 s
// in 30 s at most. Three replicas add 15 s, in the worst case all at once, and those have run down before
// their next logins. The later pauses of a minute leave room for other tries from the same address. Where many accounts of an
// instance are refused, a gateway keeps the sum of its own tries below mostPenalty.
const (
	// refusedCosts is what a refusal adds to sshd's sum at most.
	refusedCosts = 5 * time.Second
	mostPenalty  = 2 * refusedCosts
	firstPause   = 30 * time.Second
	// longPause is how long an operator who has mended the instance waits at most.
	longPause = time.Minute
	// rememberFor is as long as sshd's longest penalty, which our own tries may have caused: so long after a pause the cause
	// of the first refusal is told instead of what follows from it.
	rememberFor = 10 * time.Minute
	// mostRemembered bounds what is remembered: refusals, instances, accounts.
	mostRemembered = 10_000
)

// penalises matches the greeting of an sshd that has penalties.
var penalises = regexp.MustCompile(`^SSH-2\.0-OpenSSH_(9\.[89]|\d\d+\.)`)

// follows are the steps that may fail because logins were refused before.
var follows = []string{"ssh_penalty", "ssh_startups", "ssh_closed", "ssh_timeout"}

// account is a user of an instance.
type account struct{ instance, user string }

func (d destination) account() account { return account{d.instance, d.user} }

// gate paces logins, those of all rows and people together. An account that is refused does not hold up others.
type gate struct {
	now func() time.Time

	mu      sync.Mutex
	logins  map[account]*logins  // accounts with a login under way, or a connection
	proven  map[account]struct{} // accounts that have logged in, and were not refused since
	sums    map[string]*sum      // by instance
	mild    map[string]struct{}  // instances whose sshd has no penalties
	left    chan struct{}        // closed when a login ends, and made anew
	refused map[refusalOf]*refusal
	takes   map[string]keyType // by instance: the type of key that it has taken
}

// logins are those of one account.
type logins struct {
	trying *try // the one that the others wait for; nil: there is none
	open   int  // connections: it is known that the account can log in, and others wait for nothing
}

// sum is what an sshd has added up, as far as this gateway's logins go, and the logins that wait because of that.
type sum struct {
	over   time.Time // when it has run down
	trying int       // logins that may be refused
	fresh  []*turn   // logins of accounts that were not refused
	again  []*turn   // logins of others, which go after those
}

// turn is a login's place among those that wait.
type turn struct{ to destination }

// try is a login that others wait for.
type try struct {
	to      destination
	counted bool          // among the instance's trying
	done    chan struct{} // closed once err is set
	err     error
}

// refusalOf names what is refused: the account, or the host key together with the known ones, of the row or kept.
type refusalOf struct {
	account
	known [sha256.Size]byte // of the known host keys, the destination's hostKey here; zero: they do not matter
}

type refusal struct {
	cause *runner.Failure // of the first
	count int
	until time.Time // of the pause
}

func newGate(now func() time.Time) *gate {
	return &gate{
		now: now, logins: map[account]*logins{}, proven: map[account]struct{}{}, sums: map[string]*sum{}, mild: map[string]struct{}{},
		left: make(chan struct{}), refused: map[refusalOf]*refusal{}, takes: map[string]keyType{},
	}
}

// refusalsOf are the refusals that a login to a destination may meet.
func refusalsOf(to destination) (ofAccount, ofHostKey refusalOf) {
	return refusalOf{account: to.account()}, refusalOf{to.account(), sha256.Sum256([]byte(to.hostKey))}
}

// pass lets a login through once no other of its account is under way, and a refusal would not bring the penalty about; or
// at once if the account is known to be able to log in. While the pause after a refusal lasts, it returns the cause of that.
// The caller calls leave with the login's result, and returns what leave returns.
func (g *gate) pass(ctx context.Context, to destination) (leave func(error) error, err error) {
	own := &turn{to}
	defer g.leaveQueue(own)
	for {
		try, wait, err := g.enter(own)
		if err != nil {
			return nil, err
		}
		if wait == nil {
			return func(err error) error { return g.leave(to, try, err) }, nil
		}
		if err := wait(ctx); err != nil {
			return nil, err
		}
	}
}

// enter lets a login through: own is the one that others wait for, if they do. Or it returns what to wait for, whose error
// is the answer to this login too.
func (g *gate) enter(t *turn) (own *try, wait func(context.Context) error, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	to := t.to
	if err := g.pause(to); err != nil {
		return nil, nil, err
	}
	l := g.logins[to.account()]
	switch {
	case l != nil && l.trying != nil:
		return nil, l.trying.wait(to), nil
	case l != nil:
		return nil, nil, nil
	}
	own = &try{to: to, done: make(chan struct{})}
	_, mild := g.mild[to.instance]
	_, proven := g.proven[to.account()]
	if own.counted = !mild && !proven; own.counted {
		if wait = g.await(t); wait != nil {
			return nil, wait, nil
		}
		g.sums[to.instance].trying++
	}
	g.logins[to.account()] = &logins{trying: own}
	return own, nil, nil
}

// await returns what a login waits for so that a refusal of all that are under way would not bring the penalty about; nil:
// for nothing. The caller holds the mutex.
func (g *gate) await(t *turn) func(context.Context) error {
	s := g.sums[t.to.instance]
	if s == nil {
		s = &sum{}
		g.sums[t.to.instance] = s
	}
	queue, before := &s.fresh, 0
	if g.last(t.to) != nil {
		queue, before = &s.again, len(s.fresh)
	}
	if !slices.Contains(*queue, t) {
		*queue = append(*queue, t)
	}
	left := max(s.over.Sub(g.now()), 0)
	if before+slices.Index(*queue, t) > 0 || left+time.Duration(s.trying+1)*refusedCosts > mostPenalty {
		return waitForOthers(g.left, left)
	}
	return nil
}

// leaveQueue ends a login's wait.
func (g *gate) leaveQueue(t *turn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.sums[t.to.instance]; s != nil {
		is := func(other *turn) bool { return other == t }
		s.fresh, s.again = slices.DeleteFunc(s.fresh, is), slices.DeleteFunc(s.again, is)
	}
	g.wake()
	g.tidy(t.to.account())
}

// wake has all logins that wait for others look again. The caller holds the mutex.
func (g *gate) wake() {
	close(g.left)
	g.left = make(chan struct{})
}

// greeted notes by an sshd's greeting whether it has penalties.
func (g *gate) greeted(instance, greeting string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if penalises.MatchString(greeting) {
		delete(g.mild, instance)
		return
	}
	note(g.mild, instance, struct{}{})
	g.wake()
}

// note puts a value into a map of at most mostRemembered, in the place of any other if it is full.
func note[K comparable, V any](m map[K]V, key K, value V) {
	if _, ok := m[key]; !ok && len(m) >= mostRemembered {
		for other := range m {
			delete(m, other)
			break
		}
	}
	m[key] = value
}

// wait waits for another login of the account.
func (t *try) wait(to destination) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-t.done:
			if t.err != nil && t.to == to && !errors.Is(t.err, context.Canceled) { // nobody waited for that one any more
				return t.err
			}
			return nil
		case <-ctx.Done():
			return failed("ssh_timeout", fmt.Errorf("waiting for another login as %s: %w", to.user, context.Cause(ctx)))
		}
	}
}

// waitForOthers waits until a login has ended, or the sum has run down a little.
func waitForOthers(left <-chan struct{}, runsDown time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		var tick <-chan time.Time
		if runsDown > 0 {
			timer := time.NewTimer(min(runsDown, time.Second))
			defer timer.Stop()
			tick = timer.C
		}
		select {
		case <-left:
		case <-tick:
		case <-ctx.Done():
			f := failed("ssh_timeout", fmt.Errorf("waiting, because the instance has refused other logins: %w", context.Cause(ctx)))
			f.Sentence = "The instance has refused logins of other OS users, and more of them would have it refuse all terminals: open the terminal again in a minute, and correct os_user in the rows of the others."
			f.Fix = f.Sentence
			return f
		}
		return nil
	}
}

// paused returns the cause of the last refusal while the pause after it lasts, else nil.
func (g *gate) paused(to destination) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pause(to)
}

// pause is paused. The caller holds the mutex.
func (g *gate) pause(to destination) error {
	if r := g.last(to); r != nil {
		if left := r.until.Sub(g.now()); left > 0 {
			return r.tell(left)
		}
	}
	return nil
}

// last returns the refusal that a login to a destination meets, or nil. The caller holds the mutex.
func (g *gate) last(to destination) (last *refusal) {
	ofAccount, ofHostKey := refusalsOf(to)
	for _, of := range []refusalOf{ofAccount, ofHostKey} {
		r := g.refused[of]
		if r != nil && g.now().Before(r.until.Add(rememberFor)) && (last == nil || r.until.After(last.until)) {
			last = r
		}
	}
	return last
}

// tell returns the cause, with the time of the next try.
func (r *refusal) tell(left time.Duration) error {
	until := "until then the answer stays the same"
	if r.cause.Step == "ssh_hostkey" {
		until = "or at once when another host key is known"
	}
	told := *r.cause
	told.Fix = cmp.Or(told.Fix, told.Sentence) // of the doctor, who does not wait
	told.Sentence += fmt.Sprintf(" The gateway tries this login again in %d s; %s.", int((left+time.Second-1)/time.Second), until)
	return &told
}

// leave ends a login. One without an error has opened a connection, which is until closed is called.
func (g *gate) leave(to destination, own *try, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.logins[to.account()]
	if err == nil {
		if l == nil { // the connections that let this login through have ended
			l = &logins{}
			g.logins[to.account()] = l
		}
		l.open++
		note(g.proven, to.account(), struct{}{})
		ofAccount, ofHostKey := refusalsOf(to)
		delete(g.refused, ofAccount)
		delete(g.refused, ofHostKey)
	} else {
		err = g.told(to, err)
	}
	if own != nil {
		l.trying = nil
		own.err = err
		close(own.done)
		if own.counted {
			g.sums[to.instance].trying--
		}
	}
	g.wake()
	g.tidy(to.account())
	return err
}

// told remembers a refusal, and returns what is told of a login's error. The caller holds the mutex.
func (g *gate) told(to destination, err error) error {
	var cause *runner.Failure
	if !errors.As(err, &cause) {
		return err
	}
	last := g.last(to)
	switch {
	case slices.Contains(refusals, cause.Step):
	case last != nil && slices.Contains(follows, cause.Step):
		cause = last.cause
	default:
		return err
	}
	of, ofHostKey := refusalsOf(to)
	if cause.Step == "ssh_hostkey" {
		of = ofHostKey
	}
	pause := firstPause
	if last != nil {
		pause = longPause
		if cause.Step == "ssh_denied" && last.cause.Step == cause.Step && cause.Sentence == sentences[cause.Step] {
			again := *cause
			cause, again.Final = &again, true // sshd was not ended twice
		}
	}
	now := &refusal{cause: cause, until: g.now().Add(pause), count: 1}
	if last != nil {
		now.count += last.count
	}
	g.refused[of] = now
	if s := g.sums[to.instance]; s != nil {
		costs := time.Second // where sshd was not asked to let anybody in
		if cause.Step == "ssh_auth" || cause.Step == "ssh_denied" {
			costs = refusedCosts
			delete(g.proven, to.account())
		}
		s.over = g.now().Add(max(s.over.Sub(g.now()), 0) + costs)
	}
	g.forget()
	return now.tell(pause)
}

// closed is called at the end of a connection.
func (g *gate) closed(to destination) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.logins[to.account()].open--
	g.tidy(to.account())
}

func (g *gate) tidy(of account) {
	if l := g.logins[of]; l != nil && l.trying == nil && l.open == 0 {
		delete(g.logins, of)
	}
	if s := g.sums[of.instance]; s != nil && s.idle(g.now()) {
		delete(g.sums, of.instance)
	}
}

// idle reports whether a sum is as if it had never been.
func (s *sum) idle(now time.Time) bool {
	return s.trying == 0 && len(s.fresh)+len(s.again) == 0 && !now.Before(s.over)
}

// forget forgets refusals if too many are remembered: those that are over, and else the oldest. The caller holds the mutex.
func (g *gate) forget() {
	if len(g.sums) > mostRemembered {
		maps.DeleteFunc(g.sums, func(_ string, s *sum) bool { return s.idle(g.now()) })
	}
	if len(g.refused) <= mostRemembered {
		return
	}
	var oldest refusalOf
	for of, r := range g.refused {
		if g.now().After(r.until.Add(rememberFor)) {
			delete(g.refused, of)
		} else if o := g.refused[oldest]; o == nil || r.until.Before(o.until) {
			oldest = of
		}
	}
	if len(g.refused) > mostRemembered {
		delete(g.refused, oldest)
	}
}

// keyFor returns the type of key for a login, and whether the instance is known to take it. An sshd that has Ed25519 and takes
// no such key of a user refuses it as it refuses a wrong user: after a refusal of the account the other type has its turn.
func (g *gate) keyFor(to destination) (t keyType, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t, known = g.takes[to.instance]
	if r := g.refused[refusalOf{account: to.account()}]; !known && r != nil && r.count%2 == 1 {
		t = keyRSA
	}
	return t, known
}

// hasTaken remembers the type of key that an instance takes.
func (g *gate) hasTaken(instance string, t keyType) {
	g.mu.Lock()
	defer g.mu.Unlock()
	note(g.takes, instance, t)
}
