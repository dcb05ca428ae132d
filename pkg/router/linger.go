package router

import (
	"net/netip"
	"slices"
	"sync"
)

const (
	// lingeringPerSubject and lingeringPerAddress bound the lingering connections of one person, and of one address
	// while the person is not known. A client answers within a round trip, so more linger only if a client never answers.
	lingeringPerSubject = 8
	lingeringPerAddress = 32
)

// lingering are the connections on which a close frame was sent, and the client has not answered it. Each has no slot
// any more, but a descriptor, for seconds or, while much output is still on its way, for minutes.
type lingering struct {
	mu sync.Mutex
	of map[holder][]*connection // oldest first
}

// holder is a person, or an address, for whom lingering connections are counted.
type holder struct {
	subject string
	network netip.Prefix
}

type connection struct{ drop func() }

// add takes a connection in, and returns the function that takes it out again. If the holder then has too many, drop
// of the oldest connection is called: its client has had the longest time to answer.
func (l *lingering) add(h holder, drop func()) (over func()) {
	most := lingeringPerSubject
	if h.subject == "" {
		most = lingeringPerAddress
	}
	c := &connection{drop}
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.of[h]
	for ; len(all) >= most; all = all[1:] {
		all[0].drop()
	}
	l.of[h] = append(slices.Clip(all), c)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		all := slices.DeleteFunc(l.of[h], func(other *connection) bool { return other == c })
		if l.of[h] = all; len(all) == 0 {
			delete(l.of, h)
		}
	}
}
