package router

import (
	"net/netip"
	"slices"
	"sync"
)

const (
	// lingeringPerSubject and lingeringPerAddress bound the connections of one person, and of one address before it is
	// known whose they are, that were told their end and are waited for. A client answers within a round trip, so there
	// are few at once unless somebody collects them.
	lingeringPerSubject = 8
	lingeringPerAddress = 32
)

// lingering are the connections whose close frame was sent and whose client has not answered it. They have no session's
// place any more, but a descriptor each, for seconds or, where much output is still on its way, minutes.
type lingering struct {
	mu sync.Mutex
	of map[owner][]*connection // oldest first
}

// owner is who lingering connections are counted for: a person, or an address.
type owner struct {
	subject string
	network netip.Prefix
}

type connection struct{ drop func() }

// add takes a connection in, and returns what takes it out again. When its owner has as many as allowed, the oldest is
// dropped: it had its time to answer.
func (l *lingering) add(o owner, drop func()) (over func()) {
	most := lingeringPerSubject
	if o.subject == "" {
		most = lingeringPerAddress
	}
	c := &connection{drop}
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.of[o]
	for ; len(all) >= most; all = all[1:] {
		all[0].drop()
	}
	l.of[o] = append(slices.Clip(all), c)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		all := slices.DeleteFunc(l.of[o], func(other *connection) bool { return other == c })
		if l.of[o] = all; len(all) == 0 {
			delete(l.of, o)
		}
	}
}
