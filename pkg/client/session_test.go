package client

import (
	"testing"
	"time"
)

// A shell that was taken by a try of the session's own, which came late, is taken back once.
func TestTakenByAnOwnTry(t *testing.T) {
	s := &Session{}
	taken := &Error{Code: "taken_over"}
	for n, c := range []struct {
		failed time.Time
		e      *Error
		want   bool
	}{
		{time.Time{}, taken, false},
		{time.Now(), &Error{Code: "session_revoked"}, false},
		{time.Now().Add(-lateFor), taken, false},
		{time.Now(), taken, true},
	} {
		s.failedAt = c.failed
		if got := s.byOwnTry(c.e); got != c.want {
			t.Errorf("%d: %t", n, got)
		}
		if s.byOwnTry(c.e) {
			t.Errorf("%d: twice", n)
		}
	}
}
