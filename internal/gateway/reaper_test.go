package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
)

// reaperStore notes which sessions were ended, and when heartbeats came.
type reaperStore struct {
	mu        sync.Mutex
	ended     []string
	abandoned []store.Abandoned
	beats     []time.Duration // since began
	began     time.Time
	away      func(since time.Duration) bool // the database
}

func (s *reaperStore) Heartbeat(context.Context, string, []string) error {
	since := time.Since(s.began)
	s.beats = append(s.beats, since)
	if s.away(since) {
		return errors.New("no database")
	}
	return nil
}

func (s *reaperStore) Abandoned(_ context.Context, _ time.Duration, leaveOut []string) ([]store.Abandoned, error) {
	return slices.DeleteFunc(slices.Clone(s.abandoned), func(a store.Abandoned) bool {
		return slices.Contains(leaveOut, a.Workspace.ID)
	}), nil
}

func (*reaperStore) CloseAbandoned(context.Context, string, time.Duration) error {
	return nil
}

func (*reaperStore) Purge(context.Context) error { return nil }

func (s *reaperStore) Finish(_ context.Context, id string, end store.End) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = append(s.ended, id+" "+end.Reason)
	return nil
}

// reaping answers by the session's id.
type reaping struct {
	runner.Kind
	looked atomic.Int64
}

func (r *reaping) Reap(ctx context.Context, t runner.Target) error {
	r.looked.Add(1)
	switch t.Session {
	case "elsewhere":
		return fmt.Errorf("%w: looked for ws-1", runner.ErrUnknown)
	case "hangs":
		<-ctx.Done()
		return ctx.Err()
	case "failing":
		return errors.New("the engine does not answer")
	}
	return nil
}

func TestReaperEndsOnlyWhatIsOver(t *testing.T) {
	t.Parallel()
	var s reaperStore
	r := &reaper{store: &s, places: runner.Places{{Name: "local", Kind: &reaping{}}}, replica: "r", waiting: func() []string { return nil }, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, id := range []string{"elsewhere", "failing", "here"} {
		r.end(t.Context(), store.Abandoned{SessionID: id, Workspace: store.Workspace{ID: "of-" + id}})
	}
	if !slices.Equal(s.ended, []string{"here replica_lost"}) {
		t.Errorf("ended %q", s.ended)
	}
}

// A host that is gone leaves its sessions to be looked for by all others, on whose engines they are not.
func TestReaperLeavesAloneWhatIsElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var (
			s      reaperStore
			docker reaping
		)
		for range 100 {
			s.abandoned = append(s.abandoned, store.Abandoned{SessionID: "elsewhere", Workspace: store.Workspace{ID: "away"}})
		}
		r := &reaper{store: &s, places: runner.Places{{Name: "local", Kind: &docker}}, replica: "r", waiting: func() []string { return nil }, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		ctx, cancel := context.WithTimeout(t.Context(), 10*lookAgain)
		defer cancel()
		if err := r.reap(ctx); err != nil {
			t.Fatal(err)
		}
		if n := docker.looked.Load(); n < 10 || n > 11 {
			t.Errorf("looked for %d times in %v", n, 10*lookAgain)
		}
		// Others are looked for meanwhile.
		s.abandoned = append(s.abandoned, store.Abandoned{SessionID: "here", Workspace: store.Workspace{ID: "mine"}})
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.reap(ctx); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.ended, []string{"here replica_lost"}) {
			t.Errorf("ended %q", s.ended)
		}
	})
}

// A container whose sweeps hang keeps no other workspace's sessions waiting, and is not asked again meanwhile.
func TestReaperWaitsForNoWorkspace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var (
			s      reaperStore
			docker reaping
		)
		for n := range 100 {
			s.abandoned = append(s.abandoned, store.Abandoned{SessionID: "hangs", Workspace: store.Workspace{ID: fmt.Sprint("bad", n%10)}})
		}
		s.abandoned = append(s.abandoned, store.Abandoned{SessionID: "here", Workspace: store.Workspace{ID: "good"}})
		r := &reaper{store: &s, places: runner.Places{{Name: "local", Kind: &docker}}, replica: "r", waiting: func() []string { return nil }, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.reap(ctx) }()
		time.Sleep(3*beatEvery + time.Second)
		synctest.Wait()
		s.mu.Lock()
		ended := len(s.ended)
		s.mu.Unlock()
		if n := docker.looked.Load(); ended != 4 || n != 10+4 { // "here" stays listed
			t.Errorf("%d sessions of the good workspace were ended, and %d asked for", ended, n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestBeatsAgainSoonAfterAFault(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := reaperStore{began: time.Now(), away: func(since time.Duration) bool {
			return since > 15*time.Second && since < 23500*time.Millisecond || since == 44*time.Second
		}}
		failed := 0
		r := &reaper{
			store: &s, replica: "r", waiting: func() []string { return nil }, log: slog.New(slog.NewTextHandler(&log, nil)),
			beatFailed: func() { failed++ },
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := r.beat(ctx); err != nil {
			t.Fatal(err)
		}
		var want []time.Duration
		for _, s := range []time.Duration{0, 10, 20, 21, 22, 23, 24, 34, 44, 45, 55} {
			want = append(want, s*time.Second)
		}
		if !slices.Equal(s.beats, want) {
			t.Errorf("beats at %v, want %v", s.beats, want)
		}
		if n := strings.Count(log.String(), "not noted as live"); n != 2 {
			t.Errorf("two faults are logged %d times:\n%s", n, &log)
		}
		if failed != 5 {
			t.Errorf("five failures are counted as %d", failed)
		}
	})
}
