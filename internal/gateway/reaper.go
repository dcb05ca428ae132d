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
	// beatEvery is how often a replica says that its sessions are live.
	beatEvery = store.DefaultDeadAfter / 3
	// silence is how long it may miss that before its shells are ended: six times.
	silence = 2 * store.DefaultDeadAfter
	// lookFor is how long a local session's shell is looked for. Only a gateway on its container's engine finds it, and
	// that may be down for a while.
	lookFor = 24 * time.Hour
	// remoteSilence is when a session on an instance is over: its shell ends by itself when the connection does.
	remoteSilence = 10 * time.Minute
	// beatAgain is how soon a heartbeat that failed is tried again: when the database is back, nobody should count as dead.
	beatAgain = time.Second
	// reapAtOnce bounds how many of a workspace's sessions are reaped at once.
	reapAtOnce = 4
	// purgeEvery is how often a replica tries to remove old rows; one gets to.
	purgeEvery = 10 * time.Minute
	// lookAgain is how long a workspace is left alone whose container did not run here: most likely it is another host's.
	lookAgain = 5 * time.Minute
)

// reaper says that this replica's sessions are live, and ends those that nobody says so of: a gateway that is killed
// leaves its shells, because no engine ends them.
//
// A session is ended when two things are true. Its row has heard no beat for a minute, by the database's own clock; one
// beat covers every row of a replica, so one that is slow, or loses five in a row, keeps all of them. And its marker, a
// random id that is never used again, is found in its workspace's container on this gateway's engine, so that nothing else
// can be hit. While the database was away all were silent: the store lists nothing until this process's own beats have been
// steady for a while, in which every live replica has sent one. A replica that lives but reaches no database for a minute,
// while another on the same engine does, loses its terminals: nobody can tell it from a dead one.
//
// A row is closed when this engine has the container and nothing of the session is left in it, or the container does not let it
// be ended, which the runner tries a few times more and counts. If the container does not
// run here it may run elsewhere, so nothing is done, and the workspace is left alone for some minutes; a row that no
// replica could close is closed after a day, when nobody looks for it any more, or after some minutes if it was on an
// instance.
type reaper struct {
	store interface {
		Heartbeat(ctx context.Context, replica string) error
		Abandoned(ctx context.Context, silence time.Duration, leaveOut []string) ([]store.Abandoned, error)
		CloseAbandoned(ctx context.Context, reason string, local, remote time.Duration) error
		Finish(ctx context.Context, sessionID string, end store.End) error
		Purge(context.Context) error
	}
	docker interface {
		Reap(context.Context, runner.Target) error
	}
	replica string
	log     *slog.Logger

	elsewhere sync.Map // until when each workspace is left alone whose container does not run here, or is not to be found out
	busy      sync.Map // the workspaces whose sessions are being ended
	ending    sync.WaitGroup
}

// beat runs apart from reap, which may take longer than silence. A fault is logged once, not at each try.
func (r *reaper) beat(ctx context.Context) error {
	failed := false
	for {
		err := r.store.Heartbeat(ctx, r.replica)
		wait := beatEvery
		if err != nil {
			wait = beatAgain
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

// reap waits for no workspace: its container may take long. A workspace's first session is ended before the others, so that
// a container which is not here is looked for once.
func (r *reaper) reap(ctx context.Context) error {
	defer r.ending.Wait()
	return every(ctx, beatEvery, func() {
		abandoned, err := r.store.Abandoned(ctx, silence, r.leaveOut(time.Now()))
		if err == nil {
			err = r.store.CloseAbandoned(ctx, store.ReasonLost, lookFor, remoteSilence)
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
	if _, elsewhere := r.elsewhere.Load(a.Workspace.ID); elsewhere { // another of its sessions has just told
		return
	}
	log := r.log.With("session", a.SessionID, "workspace", a.Workspace.ID)
	if a.Err != nil {
		r.elsewhere.Store(a.Workspace.ID, time.Now().Add(lookAgain))
		log.Warn("an abandoned session was not ended", "err", a.Err)
		return
	}
	err := r.docker.Reap(ctx, runner.Target{
		Session: a.SessionID, WorkspaceID: a.Workspace.ID, Name: a.Workspace.Name, Container: a.Workspace.Container, Log: log,
	})
	switch {
	case errors.Is(err, runner.ErrNotRunning): // here, at least
		r.elsewhere.Store(a.Workspace.ID, time.Now().Add(lookAgain))
		return
	case err == nil:
		err = r.store.Finish(ctx, a.SessionID, store.End{Reason: store.ReasonLost})
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("an abandoned session was not ended", "err", err)
	}
}

// purge removes old rows of the audit trail.
func (r *reaper) purge(ctx context.Context) error {
	return every(ctx, purgeEvery, func() {
		if err := r.store.Purge(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("old rows were not purged", "err", err)
		}
	})
}

// leaveOut lists the workspaces that are left alone at this time, and forgets the others.
func (r *reaper) leaveOut(now time.Time) (workspaces []string) {
	r.elsewhere.Range(func(workspace, until any) bool {
		if now.Before(until.(time.Time)) {
			workspaces = append(workspaces, workspace.(string))
		} else {
			r.elsewhere.CompareAndDelete(workspace, until)
		}
		return true
	})
	return workspaces
}

// every does something now and then, until ctx ends.
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
