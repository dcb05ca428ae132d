package store

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Behind PgBouncer, which gives each of the gateways' transactions to any of four connections, and in transaction mode
// knows nothing of what belongs to one of them: prepared statements, LISTEN, locks of a session.
func TestBehindPgBouncer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		mode    string
		listens bool
	}{{"session", true}, {"transaction", false}, {"statement", false}} {
		t.Run(tt.mode, func(t *testing.T) {
			t.Parallel()
			pg := env.Postgres(t)
			direct := pg.NewDatabase(t)
			pooler := pg.StartPgBouncer(t, tt.mode)
			dsn := pooler.Before(t, direct)
			migrated := dsn
			if tt.mode == "statement" {
				if _, err := Migrate(t.Context(), dsn, nil); err == nil {
					t.Error("migrated without transactions")
				}
				migrated = direct
			}
			var (
				migrations sync.WaitGroup
				total      atomic.Int64
			)
			for range 3 {
				migrations.Go(func() {
					applied, err := Migrate(t.Context(), migrated, nil)
					if err != nil {
						t.Errorf("migrate: %v", err)
					}
					total.Add(int64(len(applied)))
				})
			}
			migrations.Wait()
			if applied, err := Migrate(t.Context(), migrated, nil); err != nil || len(applied) != 0 || total.Load() == 0 {
				t.Errorf("migrate once more: %v, %v, after %d", applied, err, total.Load())
			}
			execSQL(t, direct, textWorkspaces)

			var c clock
			first := open(t, PostgresConfig{URL: dsn, Now: c.now, MaxConns: 1})
			cuts := watch(t, first)
			stores := []*Postgres{first, open(t, PostgresConfig{URL: dsn, MaxConns: 1})}
			if tt.mode != "session" { // in which a client keeps a connection, and there are four
				stores = append(stores, open(t, PostgresConfig{URL: dsn, MaxConns: 5, Limits: Limits{PerWorkspace: 1000}}), open(t, PostgresConfig{URL: dsn}))
			}
			// Different statements of different clients, mixed on the same connections.
			var clients sync.WaitGroup
			for n, p := range stores {
				for worker := range 3 {
					clients.Go(func() {
						for i := range 20 {
							id := fmt.Sprint("s", n, "-", worker, "-", i)
							endpoint := "eice-" + id
							if _, err := p.Redeem(t.Context(), claims(id, "ws-local"), session(id)); err != nil {
								t.Errorf("redeem: %v", err)
							}
							lease, err := p.AcquireTunnel(t.Context(), endpoint, "i-1", "gw", 1)
							if err != nil {
								t.Errorf("acquire: %v", err)
							}
							if err := p.Heartbeat(t.Context(), "gw-1", nil); err != nil {
								t.Errorf("heartbeat: %v", err)
							}
							if list, err := p.Sessions(t.Context(), SessionFilter{SessionID: id}); err != nil || len(list) != 1 || list[0].ID != id {
								t.Errorf("sessions: %v, %v", list, err)
							}
							if kept, err := p.KeepHostKey(t.Context(), id, "key "+id); err != nil || kept != "key "+id {
								t.Errorf("host key of %s: %q, %v", id, kept, err)
							}
							if err := p.ReleaseTunnel(t.Context(), lease); err != nil {
								t.Errorf("release: %v", err)
							}
							if err := p.Ping(t.Context()); err != nil {
								t.Errorf("ping: %v", err)
							}
							if i%2 == 0 {
								if err := p.Finish(t.Context(), id, End{Reason: "exit"}); err != nil {
									t.Errorf("finish: %v", err)
								}
							}
						}
					})
				}
			}
			clients.Wait()
			until(t, func() bool { return first.Reading() == nil })
			if tt.listens {
				until(t, func() bool { return first.Watching() == nil })
			} else {
				until(t, func() bool {
					c.advance(watchPoll)
					err := first.Watching()
					return err != nil && strings.Contains(err.Error(), "pooler")
				})
			}
			execSQL(t, direct, `INSERT INTO termgw.revocations (session_id) VALUES ('s0-0-1')`)
			wantCut(t, cuts, "s0-0-1")
			if err := first.Watching(); (err == nil) != tt.listens {
				t.Errorf("watching: %v", err)
			}
		})
	}
}
