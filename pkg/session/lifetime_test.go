package session

import (
	"testing"
	"time"
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
