package gateway

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
)

const (
	// beatEvery is the interval of a replica's heartbeats; each covers all of its sessions.
	beatEvery = store.DefaultDeadAfter / 3
	// silence is the time without a heartbeat after which a replica's shells are ended: six intervals.
	silence = 2 * store.DefaultDeadAfter
	// lookFor bounds the search for a session's shell. Only a gateway on the engine of the container finds the shell, and
	// that gateway may be down for a while.
	lookFor = 24 * time.Hour
	// beatAgain is the pause before a failed heartbeat is repeated. It is short: when the database is back, no live replica
	// should count as dead.
	beatAgain = time.Second
	// reapAtOnce bounds the sessions of one workspace that are reaped at the same time.
	reapAtOnce = 4
	// purgeEvery is the interval at which a replica tries to remove old rows; one replica at a time succeeds.
	purgeEvery = 10 * time.Minute
	// lookAgain is the time for which a workspace is skipped when its kind of place knew nothing of the session: most likely
	// the container is on another host.
	lookAgain = 3 * time.Minute
)

// reaper sends this replica's heartbeats, and ends the sessions of replicas that send none: a killed gateway leaves its
// shells behind, and no engine ends them.
//
// A session is ended under two conditions. First, its process has sent no heartbeat for a minute, by the database's clock; a
// replica that is slow, or misses five heartbeats in a row, keeps its sessions. Second, the workspace's kind of place finds
// the session: in a container of this gateway's engine by the marker, a random id that is never used again, so no other
// process can be hit. While the database was away all replicas were silent: the store lists no session until this
// process's own heartbeats have been steady for so long that every live replica has sent a heartbeat. A live replica that
// reaches no database for a minute, while another on the same engine does, looks like a dead replica and loses its terminals.
//
// A row is closed when runner.Kind's Reap reports that the session is over: this engine has the container and no process of
// the session is left there; or the container prevents the end, which the kind tries a few times and counts; or an instance
// has had the time to end its shells by itself. If the kind knows nothing, the workspace is skipped for some minutes. A row
// that no replica could close is closed after a day.
type reaper struct {
	store interface {
		Heartbeat(ctx context.Context, replica string, waiting []string) error
		Abandoned(ctx context.Context, silence time.Duration, leaveOut []string) ([]store.Abandoned, error)
		CloseAbandoned(ctx context.Context, reason string, silence time.Duration) error
		Finish(ctx context.Context, sessionID string, end store.End) error
		Purge(context.Context) error
	}
	places  runner.Places
	replica string
	waiting func() []string // the ids of the sessions that wait for their persons
	log     *slog.Logger

	beatFailed func() // counts a failed heartbeat

	skipped sync.Map // skipped, by the workspace's id
	busy    sync.Map // ids of the workspaces whose sessions are being ended
	ending  sync.WaitGroup
}

// beat sends heartbeats until ctx ends. A fault that lasts is logged once. beat has a goroutine of its own, since reap may
// take longer than silence.
func (r *reaper) beat(ctx context.Context) error {
	failed := false
	for {
		err := r.store.Heartbeat(ctx, r.replica, r.waiting())
		wait := beatEvery
		if err != nil {
			wait = beatAgain
			r.beatFailed()
			if !failed {
				r.log.Warn("sessions were not noted as live", "err", err)
			}
		}
		failed = err != nil
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// reap ends abandoned sessions until ctx ends. It waits for no workspace, whose container may be slow. The first session of a
// workspace is ended before the others, so that a container on another engine is looked for once.
func (r *reaper) reap(ctx context.Context) error {
	defer r.ending.Wait()
	return every(ctx, beatEvery, func() {
		abandoned, err := r.store.Abandoned(ctx, silence, r.skip(time.Now()))
		if err == nil {
			err = r.store.CloseAbandoned(ctx, store.ReasonLost, lookFor)
		}
		if err != nil {
			r.log.Warn("abandoned sessions were not looked for", "err", err)
		}
		workspaces := map[string][]store.Abandoned{}
		for _, a := range abandoned {
			workspaces[a.Workspace.ID] = append(workspaces[a.Workspace.ID], a)
		}
		for workspace, sessions := range workspaces {
			if _, busy := r.busy.LoadOrStore(workspace, true); busy {
				continue
			}
			r.ending.Go(func() {
				defer r.busy.Delete(workspace)
				r.end(ctx, sessions[0])
				var group errgroup.Group
				group.SetLimit(reapAtOnce)
				for _, a := range sessions[1:] {
					group.Go(func() error {
						r.end(ctx, a)
						return nil
					})
				}
				_ = group.Wait() // nothing in it fails
			})
		}
	})
}

func (r *reaper) end(ctx context.Context, a store.Abandoned) {
	place := r.places.Of(a.Workspace.Attributes)
	if s, ok := r.skipped.Load(a.Workspace.ID); ok && s.(skipped).place == place.Name { // by the workspace's first session
		return
	}
	skip := func() { r.skipped.Store(a.Workspace.ID, skipped{place.Name, time.Now().Add(lookAgain)}) }
	log := r.log.With("session", a.SessionID, "workspace", a.Workspace.ID)
	if a.Err != nil {
		skip()
		log.Warn("an abandoned session was not ended", "err", a.Err)
		return
	}
	err := place.Kind.Reap(ctx, runner.Target{
		Session: a.SessionID, WorkspaceID: a.Workspace.ID, Attributes: a.Workspace.Attributes, Silent: a.Silent, Log: log,
	})
	switch {
	case errors.Is(err, runner.ErrUnknown):
		skip()
		return
	case err == nil:
		if err = r.store.Finish(ctx, a.SessionID, store.End{Reason: store.ReasonLost}); err == nil {
			log.Info("session ended", "code", store.ReasonLost, "target", place.Name)
		}
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("an abandoned session was not ended", "err", err)
	}
}

// skipped is a workspace that is skipped, because its place knew nothing of a session.
type skipped struct {
	place string
	until time.Time
}

// purge removes old rows of the audit trail, at once and then every purgeEvery, until ctx ends.
func (r *reaper) purge(ctx context.Context) error {
	return every(ctx, purgeEvery, func() {
		if err := r.store.Purge(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("old rows were not purged", "err", err)
		}
	})
}

// skip returns the ids of the workspaces that are skipped at this time, and forgets the others.
func (r *reaper) skip(now time.Time) (workspaces []string) {
	r.skipped.Range(func(workspace, s any) bool {
		if now.Before(s.(skipped).until) {
			workspaces = append(workspaces, workspace.(string))
		} else {
			r.skipped.CompareAndDelete(workspace, s)
		}
		return true
	})
	return workspaces
}

// every calls do at once and then at each interval, until ctx ends.
func every(ctx context.Context, interval time.Duration, do func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		do()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
