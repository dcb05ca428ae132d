package logline

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The limits of lines of one kind that a stranger can cause. A hundred at once is a proxy's restart in a company; ten
// lines a second are 30 kB at most, by the length of a line's texts.
const (
	linesPerSecond = 10
	linesAtOnce    = 100
	countEvery     = 10 * time.Second
)

// Bound bounds the lines of each kind: 100 at once, then 10 a second. Further lines are only counted, and one line
// every 10 s has their number.
type Bound struct {
	log *slog.Logger

	mu    sync.Mutex
	kinds map[string]*kind
}

type kind struct {
	lines   *rate.Limiter
	skipped int
	count   *time.Timer // runs while skipped > 0
}

// NewBound returns a Bound that logs the number of skipped lines to log.
func NewBound(log *slog.Logger) *Bound { return &Bound{log: log, kinds: map[string]*kind{}} }

// Do calls line, which writes one line, unless the bound of its kind is reached. name is the kind; the caller has a
// fixed number of kinds.
func (b *Bound) Do(name string, line func()) {
	if b.take(name) {
		line()
	}
}

func (b *Bound) take(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.kinds[name]
	if k == nil {
		k = &kind{lines: rate.NewLimiter(linesPerSecond, linesAtOnce)}
		b.kinds[name] = k
	}
	if k.lines.Allow() {
		return true
	}
	if k.skipped++; k.skipped == 1 {
		k.count = time.AfterFunc(countEvery, func() { b.tell(name, k) })
	}
	return false
}

func (b *Bound) tell(name string, k *kind) {
	b.mu.Lock()
	n := k.skipped
	k.skipped = 0
	b.mu.Unlock()
	if n > 0 {
		b.log.Warn("more of the same was not logged", "code", name, "lines", n)
	}
}

// Flush logs the numbers of skipped lines at once. It is called when the process ends.
func (b *Bound) Flush() {
	b.mu.Lock()
	left := map[string]*kind{}
	for name, k := range b.kinds {
		if k.skipped > 0 {
			k.count.Stop()
			left[name] = k
		}
	}
	b.mu.Unlock()
	for name, k := range left {
		b.tell(name, k)
	}
}
