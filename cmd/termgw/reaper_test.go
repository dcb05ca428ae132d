package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
)

// reaperStore notes which sessions were ended.
type reaperStore struct{ ended []string }

func (*reaperStore) Heartbeat(context.Context, string) error { return nil }

func (*reaperStore) Abandoned(context.Context, time.Duration) ([]store.Abandoned, error) {
	return nil, nil
}

func (*reaperStore) CloseAbandoned(context.Context, string, time.Duration, time.Duration) error {
	return nil
}

func (s *reaperStore) Finish(_ context.Context, id string, end store.End) error {
	s.ended = append(s.ended, id+" "+end.Reason)
	return nil
}

// reaping answers by the session's id.
type reaping struct{}

func (reaping) Reap(_ context.Context, t runner.Target) error {
	switch t.Session {
	case "elsewhere":
		return fmt.Errorf("%w: looked for ws-1", runner.ErrNotRunning)
	case "failing":
		return errors.New("the engine does not answer")
	}
	return nil
}

func TestReaperEndsOnlyWhatIsOver(t *testing.T) {
	var s reaperStore
	r := &reaper{store: &s, docker: reaping{}, replica: "r", log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, id := range []string{"elsewhere", "failing", "here"} {
		r.end(t.Context(), store.Abandoned{SessionID: id})
	}
	if !slices.Equal(s.ended, []string{"here replica_lost"}) {
		t.Errorf("ended %q", s.ended)
	}
}
