package session

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

func TestALimitIsToldOnceAtEachLead(t *testing.T) {
	start := time.Unix(1e9, 0)
	type step struct {
		at     time.Duration
		notice time.Duration // 0: none
		ended  bool
		next   time.Duration
	}
	for _, c := range []struct {
		life  time.Duration
		steps []step
	}{
		{5 * time.Minute, []step{
			{0, 0, false, 4 * time.Minute},
			{3 * time.Minute, 0, false, 4 * time.Minute},
			{4 * time.Minute, time.Minute, false, 290 * time.Second},
			{241 * time.Second, 0, false, 290 * time.Second},
			{290 * time.Second, 10 * time.Second, false, 5 * time.Minute},
			{299 * time.Second, 0, false, 5 * time.Minute},
			{5 * time.Minute, 0, true, 0},
		}},
		// A timer that comes late tells the last of what it missed.
		{5 * time.Minute, []step{{295 * time.Second, 5 * time.Second, false, 5 * time.Minute}, {6 * time.Minute, 0, true, 0}}},
		{time.Minute, []step{{0, 0, false, 50 * time.Second}, {50 * time.Second, 10 * time.Second, false, time.Minute}}},
		{10 * time.Second, []step{{0, 0, false, 5 * time.Second}, {5 * time.Second, 5 * time.Second, false, 10 * time.Second}}},
		{time.Nanosecond, []step{{0, 0, false, time.Nanosecond}, {time.Nanosecond, 0, true, 0}}},
	} {
		l := limit{code: "c", message: "%s left", warn: noticeLeads, life: c.life}
		for round := range 2 { // a restart tells everything again
			begin := start.Add(time.Duration(round) * time.Hour)
			l.restart(begin)
			for _, s := range c.steps {
				notice, ended, next := l.due(begin.Add(s.at))
				if ended != s.ended || !ended && !next.Equal(begin.Add(s.next)) {
					t.Errorf("%s at %s: ended %t, next %s", c.life, s.at, ended, next.Sub(begin))
				}
				switch {
				case (notice == nil) != (s.notice == 0):
					t.Errorf("%s at %s: notice %+v", c.life, s.at, notice)
				case notice != nil && (notice.Left != s.notice || notice.Message != inSeconds(s.notice)+" left"):
					t.Errorf("%s at %s: notice %+v", c.life, s.at, notice)
				}
			}
		}
	}
}

// quietTerm is a terminal whose connection is silent since a time.
type quietTerm struct {
	*pipe
	limit time.Duration

	mu     sync.Mutex
	since  time.Time // zero: the connection is not silent
	lost   bool
	onLost func()
}

func (q *quietTerm) Silence() terminal.Silence {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.since.IsZero() {
		return terminal.Silence{Limit: q.limit}
	}
	return terminal.Silence{Lasts: time.Since(q.since), Limit: q.limit, Lost: q.lost}
}

func (q *quietTerm) OnLost(do func()) { q.onLost = do }

func (q *quietTerm) speak(speaks bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.since = time.Now(); speaks {
		q.since, q.lost = time.Time{}, false
	}
}

// lose loses the connection.
func (q *quietTerm) lose() {
	q.mu.Lock()
	q.since, q.lost = time.Now(), true
	q.mu.Unlock()
	q.onLost()
}

// toldOwner is an owner that keeps the notices.
type toldOwner struct {
	owner
	told chan Notice
}

func (o *toldOwner) Notice(n Notice) { o.told <- n }

// A silence is told once it lasts, and its end is.
func TestSilenceIsTold(t *testing.T) {
	for _, c := range []struct{ limit, told time.Duration }{{82 * time.Second, 15 * time.Second}, {10 * time.Second, 5 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			term := &quietTerm{pipe: newPipe(), limit: c.limit}
			s := New(term, Options{})
			o := &toldOwner{told: make(chan Notice, 10)}
			s.Attach(o, 0, false)
			var running sync.WaitGroup
			running.Go(func() { s.Run(t.Context()) })
			wants := func(codes ...string) []Notice {
				t.Helper()
				synctest.Wait()
				var got []Notice
				var gotCodes []string
				for len(o.told) > 0 {
					n := <-o.told
					got, gotCodes = append(got, n), append(gotCodes, n.Code)
				}
				if !slices.Equal(gotCodes, codes) {
					t.Errorf("told %q, want %q", gotCodes, codes)
				}
				return got
			}
			time.Sleep(time.Hour)
			wants()
			for range 2 {
				term.speak(false)
				time.Sleep(c.told - time.Second)
				wants()
				term.speak(true) // a short one
				time.Sleep(time.Second)
				term.speak(false)
				time.Sleep(c.told)
				for _, n := range wants("reconnecting") {
					if n.Left > c.limit-c.told || n.Left < c.limit-c.told-c.told || n.Message == "" {
						t.Errorf("told %+v", n)
					}
				}
				time.Sleep(c.told / 2)
				wants()
				term.speak(true)
				time.Sleep(time.Second)
				wants("reconnected")
			}
			// Of a connection that is lost nobody waits to hear.
			term.lose()
			time.Sleep(lostLead / 2)
			term.speak(true) // another was there at once
			time.Sleep(time.Hour)
			wants()
			term.lose()
			time.Sleep(lostLead)
			wants("reconnecting")
			term.speak(true)
			time.Sleep(time.Second)
			wants("reconnected")
			term.quit(0)
			running.Wait()
			s.Join()
		})
	}
}

var _ terminal.Silent = (*quietTerm)(nil)
