package main

import (
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/molecule-ai/termgw/pkg/store"
)

// TestKilledGateway: no engine ends a shell when its client goes, so the next gateway does, and spares who lives.
func TestKilledGateway(t *testing.T) {
	t.Parallel()
	const sessions, containers = 48, 4
	p := newPlatform(t)
	var boxes []*box
	for i := range containers {
		p.workspace(t, "ws"+strconv.Itoa(i), "")
		boxes = append(boxes, newBox(t, env.Docker(t), "ws"+strconv.Itoa(i)))
	}
	killed := p.serve(t)
	var opening sync.WaitGroup
	for i := range containers {
		opening.Go(func() {
			for range sessions / containers {
				c := killed.open(t, "ws"+strconv.Itoa(i), dialing{})
				c.run(t, "sleep 1001 & env -i sleep 1002 & nohup sleep 2001 >/dev/null 2>&1 & true")
			}
		})
	}
	opening.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, b := range boxes { // before it runs, nohup does not ignore the hang-up yet
		eventually(t, "all that is told to stay is there", func() bool {
			n := 0
			for _, command := range b.commands(t) {
				if command == "sleep 2001" {
					n++
				}
			}
			return n == sessions/containers
		})
	}
	killed.signal(t, os.Kill)
	killed.wait(t)
	for _, b := range boxes {
		if n := len(b.commands(t)); n < 3*sessions/containers {
			t.Fatalf("%d processes live without their gateway: there is nothing to reap", n)
		}
	}
	p.exec(t, "UPDATE termgw.sessions SET process = NULL, last_seen_at = now() - interval '5 minutes'")
	// Sessions that are not this engine's to find: of a container elsewhere, of an instance, and one that nobody looks for.
	for id, row := range map[string][2]string{"elsewhere": {"", "5 minutes"}, "instance": {"i-1", "15 minutes"}, "old": {"", "25 hours"}} {
		p.exec(t, `INSERT INTO termgw.sessions (id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr, last_seen_at)
			VALUES ($1, 'away', 'ann', '', $1, 'rw', $2, 'lost', '', now() - $3::interval)`, id, row[0], row[1])
	}

	next := p.serve(t)
	mine := next.open(t, "ws0", dialing{})
	id := mine.message(t, "ready").Session
	open := func() (ids []string) {
		// As if of another replica that is slow, but not as slow as a dead one.
		p.exec(t, "UPDATE termgw.sessions SET replica = 'slow', last_seen_at = now() - interval '50 seconds' WHERE id = $1", id)
		rows, err := p.db.QueryContext(t.Context(), "SELECT id FROM termgw.sessions WHERE ended_at IS NULL ORDER BY id")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	want := []string{id, "elsewhere"}
	slices.Sort(want)
	eventually(t, "all sessions but the live one, and one elsewhere, are over", func() bool {
		return slices.Equal(open(), want)
	})
	for i, b := range boxes {
		stays := slices.Repeat([]string{"sleep 2001"}, sessions/containers)
		if i == 0 {
			stays = append(stays, "/bin/bash")
		}
		b.empty(t, stays...)
	}
	if got := mine.run(t, "echo $((6*7))"); got != "42\r\n" {
		t.Errorf("the live session answers %q", got)
	}
	for outcome, want := range map[string]float64{"killed": 3 * sessions, "kept": sessions, "left": 0} {
		if got := next.metric(t, `termgw_orphans_total{outcome="`+outcome+`"}`); got != want {
			t.Errorf("%v are %s, want %v", got, outcome, want)
		}
	}
	var lines int
	for _, line := range next.logLines() {
		if line["msg"] == "abandoned session ended" && line["session"] != "" {
			lines++
			if line["killed"] != 3.0 {
				t.Logf("of one session: %v", line)
			}
		}
	}
	if lines != sessions {
		t.Errorf("%d lines tell of %d sessions", lines, sessions)
	}
	var reasons string
	err := p.db.QueryRowContext(t.Context(), `SELECT string_agg(DISTINCT end_reason, ' ') FROM termgw.sessions WHERE ended_at IS NOT NULL`).Scan(&reasons)
	if err != nil || reasons != store.ReasonLost {
		t.Errorf("ended with %q, %v", reasons, err)
	}
}
