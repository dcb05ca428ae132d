package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Several gateways, one database, a real nginx before them: what one of them does, another must know.

// ticketOf mints a ticket of a person.
func (p *platform) ticketOf(tb testing.TB, workspace, subject string) string {
	tb.Helper()
	return p.ticket(tb, workspace, func(c *ticket.Claims) { c.Subject = subject })
}

// spread calls do with each of the first n numbers, some at once: each shell costs the engine 50 ms of a core.
func spread(tb testing.TB, n, atOnce int, do func(i int)) {
	tb.Helper()
	var (
		next    atomic.Int64
		workers sync.WaitGroup
	)
	for range atOnce {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && !tb.Failed(); i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	workers.Wait()
	if tb.Failed() {
		tb.FailNow()
	}
}

// first is the first message of a type, if one has come.
func (c *tty) first(typ string) (m message, at int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at = slices.IndexFunc(c.messages, func(m message) bool { return m.Type == typ })
	if at >= 0 {
		m = c.messages[at]
	}
	return m, at
}

// answer waits for the first message, which says whether the ticket was good: long, for many may want a shell at once.
func (c *tty) answer(tb testing.TB) message {
	tb.Helper()
	for timeout := time.After(patience); ; {
		c.mu.Lock()
		messages := slices.Clone(c.messages)
		c.mu.Unlock()
		if len(messages) > 0 {
			return messages[0]
		}
		select {
		case <-c.changed:
		case <-c.done:
			c.mu.Lock()
			messages, ended := slices.Clone(c.messages), c.ended
			c.mu.Unlock()
			if len(messages) == 0 {
				tb.Fatalf("no answer before %v", ended)
			}
		case <-timeout:
			tb.Fatal("no answer")
		}
	}
}

// awaitEnd waits for the end of a session that a gateway ends together with many.
func (c *tty) awaitEnd(tb testing.TB) websocket.StatusCode {
	tb.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		tb.Error("not closed")
	}
	return c.closed(tb)
}

// countTerminals counts the terminals that the engine opens in some containers from now on. What sweeps a terminal's end
// is an exec, too.
func countTerminals(tb testing.TB, engine *testenv.Docker, boxes []*box) (opened func() int) {
	tb.Helper()
	ids := make(client.Filters)
	for _, b := range boxes {
		ids.Add("container", b.id)
	}
	ctx, cancel := context.WithCancel(tb.Context())
	events := engine.Client(tb).Events(ctx, client.EventsListOptions{Filters: ids})
	var (
		n     atomic.Int64
		count sync.WaitGroup
	)
	count.Go(func() {
		for {
			select {
			case event := <-events.Messages:
				if action := string(event.Action); strings.HasPrefix(action, "exec_create") && !strings.Contains(action, "termgw-sweep") {
					n.Add(1)
				}
			case err := <-events.Err:
				if ctx.Err() == nil {
					tb.Errorf("the engine's events: %v", err)
				}
				return
			}
		}
	})
	tb.Cleanup(func() {
		cancel()
		count.Wait()
	})
	return func() int { return int(n.Load()) }
}

// leave closes all terminals, and waits until their shells are gone and their ends are written: some at a time, for the
// end of a shell costs as much as its start.
func (s *site) leave(tb testing.TB) {
	tb.Helper()
	spread(tb, len(s.seats), 8, func(i int) {
		s.seats[i].close(tb)
		s.lastRowOf(tb, s.seats[i].session)
	})
	s.seats = nil
	s.checkShells(tb)
}

// query reads one row.
func (p *platform) query(tb testing.TB, query string, into ...any) {
	tb.Helper()
	if err := p.db.QueryRowContext(tb.Context(), query).Scan(into...); err != nil {
		tb.Fatal(err)
	}
}

// site is three gateways at work, and who has a terminal there. Its parts are played one after the other, on the same
// terminals: opening them is what takes the time.
type site struct {
	*platform
	*replicas
	boxes    []*box // of the workspaces ws0 to ws9
	far      *box   // on the instance
	instance string
	seats    []*seat
	lost     []*seat // of the gateway that was killed
	visitors atomic.Int64
}

const (
	perSubject = 8
	workspaces = 10  // a shell's end looks at all processes of its container
	tickets    = 200 // so that a gateway that drains has more terminals than end at once
)

func TestReplicas(t *testing.T) {
	s := newSite(t)
	aws := s.newCloud(t, env.Docker(t))
	s.instance, s.far = s.onInstance(t, aws, "far"), newBox(t, env.Docker(t), "far")
	s.serve(t, append(aws.environ(t), "DOCKER_HOST="+env.Docker(t).Host, "TERMGW_SHELLS=/bin/sh", fmt.Sprint("TERMGW_MAX_SESSIONS_PER_SUBJECT=", perSubject))...)
	// No subtests: what one opens, the next goes on with.
	for _, part := range []struct {
		name string
		play func(*site, testing.TB)
	}{
		{"one is killed", (*site).kill},
		{fmt.Sprint(tickets, " tickets, each shown to all three at once"), (*site).showEverywhere},
		{"orders cut all that they name, and nobody else", (*site).revoke},
		{"what the killed one had is ended by others", (*site).outlive},
		{"all three restart in turn", func(s *site, tb testing.TB) { s.roll(tb) }},
	} {
		began := time.Now()
		part.play(s, t)
		if t.Failed() {
			t.Fatalf("this went wrong: %s", part.name)
		}
		t.Logf("%s: %s", part.name, time.Since(began).Round(time.Second))
	}
}

func newSite(tb testing.TB) *site {
	tb.Helper()
	s := &site{platform: newPlatform(tb)}
	for i := range workspaces {
		s.workspace(tb, fmt.Sprint("ws", i), "")
		s.boxes = append(s.boxes, newBox(tb, env.Docker(tb), fmt.Sprint("ws", i)))
	}
	return s
}

// serve starts the gateways.
func (s *site) serve(tb testing.TB, environ ...string) {
	tb.Helper()
	s.replicas = s.serveReplicas(tb, 3, append(environ, "TERMGW_DRAIN_TIMEOUT=3s")...)
	tb.Cleanup(func() {
		for _, g := range s.gateways {
			if log := g.log.String(); tb.Failed() {
				tb.Logf("%s ends its log:\n%s", g.address, log[max(0, len(log)-4<<10):])
			}
		}
	})
}

// open opens a terminal through nginx.
func (s *site) open(tb testing.TB, front *served, workspace, subject string, client int) *seat {
	tb.Helper()
	c := front.dial(tb, workspace, s.ticketOf(tb, workspace, subject), from(client))
	return seated(c, c.answer(tb), subject)
}

// seated is a client that was let in.
func seated(c *tty, ready message, subject string) *seat {
	return &seat{tty: c, session: ready.Session, workspace: ready.Workspace, subject: subject}
}

func (s *site) kill(tb testing.TB) {
	for i := range perSubject {
		seat := s.open(tb, s.each[2], "ws0", "lost", i)
		seat.run(tb, "sleep 1001 & true")
		s.lost = append(s.lost, seat)
	}
	s.gateways[2].signal(tb, os.Kill)
	s.gateways[2].wait(tb)
	for i := range 3 { // the dead one's turn at nginx is one of these
		if m := s.any.dial(tb, "ws0", s.ticketOf(tb, "ws0", "lost"), from(i)).answer(tb); m.Code != "too_many_sessions" {
			tb.Errorf("told %+v while the dead one's sessions count", m)
		}
	}
	s.restart(tb, 2)
}

func (s *site) showEverywhere(tb testing.TB) {
	opened := countTerminals(tb, env.Docker(tb), s.boxes)
	var mu sync.Mutex
	spread(tb, tickets, 8, func(i int) {
		workspace, subject := fmt.Sprint("ws", i%workspaces), fmt.Sprint("person", i%(tickets/5))
		raw := s.ticketOf(tb, workspace, subject)
		var (
			three [3]*tty
			told  [3]message
			dials sync.WaitGroup
			start = make(chan struct{})
		)
		for j, front := range s.each {
			dials.Go(func() {
				<-start
				three[j] = front.dial(tb, workspace, raw, from(i))
				told[j] = three[j].answer(tb)
			})
		}
		close(start)
		dials.Wait()
		won := 0
		for j, m := range told {
			switch {
			case m.Type == "ready":
				won++
				mu.Lock()
				s.seats = append(s.seats, seated(three[j], m, subject))
				mu.Unlock()
			case m.Code != "ticket_used" || three[j].closed(tb) != 4409:
				tb.Errorf("told %+v", m)
			}
		}
		if won != 1 {
			tb.Errorf("a ticket opened %d terminals", won)
		}
	})
	eventually(tb, "the engine tells of all", func() bool { return opened() >= tickets })
	s.checkShells(tb)
	if n := opened(); n != tickets {
		tb.Errorf("the engine opened %d terminals", n)
	}
	var rows, spent int
	s.query(tb, "SELECT count(*), count(DISTINCT jti) FROM termgw.sessions WHERE subject LIKE 'person%'", &rows, &spent)
	if rows != tickets || spent != tickets {
		tb.Errorf("the audit trail has %d rows of %d tickets", rows, spent)
	}
	var refused float64
	for _, g := range s.gateways {
		refused += g.metric(tb, fmt.Sprintf(rejections, "ticket_used"))
	}
	if refused != 2*tickets {
		tb.Errorf("%v refusals", refused)
	}
}

// checkShells waits until the shells that live are those of who has a seat, besides what the killed gateway has left.
func (s *site) checkShells(tb testing.TB) {
	tb.Helper()
	var want []string
	for _, seat := range s.seats {
		want = append(want, seat.session)
	}
	slices.Sort(want)
	boxes := s.boxes
	if s.far != nil {
		boxes = append(slices.Clone(boxes), s.far)
	}
	eventually(tb, fmt.Sprintf("%d shells live, of %d who have a terminal", len(s.shells(tb, boxes)), len(want)), func() bool {
		return slices.Equal(s.shells(tb, boxes), want)
	})
}

// shells are the sessions that something lives of, sorted.
func (s *site) shells(tb testing.TB, boxes []*box) (sessions []string) {
	tb.Helper()
	for _, b := range boxes {
		for _, p := range b.processes(tb) {
			_, id, marked := strings.Cut(p.environ, "TERMGW_SESSION=")
			id, _, _ = strings.Cut(id, "\x00")
			if marked && !slices.ContainsFunc(s.lost, func(seat *seat) bool { return seat.session == id }) {
				sessions = append(sessions, id)
			}
		}
	}
	slices.Sort(sessions)
	return slices.Compact(sessions)
}

func (s *site) revoke(tb testing.TB) {
	var mu sync.Mutex
	spread(tb, 10, 2, func(i int) {
		seat := s.open(tb, s.any, "far", fmt.Sprint("away", i), i)
		seat.instance = s.instance
		mu.Lock()
		defer mu.Unlock()
		s.seats = append(s.seats, seat)
	})
	sessions := []string{s.seats[3].session, s.seats[tickets/2].session, s.seats[tickets-1].session}
	named := func(seat *seat) bool {
		return slices.Contains([]string{"ws1", "ws3", "ws5"}, seat.workspace) || strings.HasPrefix(seat.subject, "person2") ||
			seat.instance != "" || slices.Contains(sessions, seat.session)
	}
	s.exec(tb, "INSERT INTO termgw.revocations (workspace_id) VALUES ('ws1'), ('ws3'), ('ws5')")
	s.exec(tb, "INSERT INTO termgw.revocations (subject) SELECT DISTINCT subject FROM termgw.sessions WHERE subject LIKE 'person2%'")
	s.exec(tb, "INSERT INTO termgw.revocations (instance_id) VALUES ($1)", s.instance)
	s.exec(tb, "INSERT INTO termgw.revocations (session_id) VALUES ($1), ($2), ($3)", sessions[0], sessions[1], sessions[2])
	var cut []string
	s.seats = slices.DeleteFunc(s.seats, func(seat *seat) bool {
		if !named(seat) {
			return false
		}
		cut = append(cut, seat.session)
		if code, m := seat.awaitEnd(tb), seat.message(tb, "error"); code != 4423 || m.Code != "revoked" {
			tb.Errorf("%s of %s: closed with %d, told %+v", seat.subject, seat.workspace, code, m)
		}
		return true
	})
	for _, seat := range s.seats {
		seat.control(tb, `{"type":"ping","id":1}`)
	}
	for _, seat := range s.seats {
		seat.message(tb, "pong")
	}
	var listed string
	s.query(tb, "SELECT string_agg(id, ' ') FROM termgw.sessions WHERE end_reason = 'revoked'", &listed)
	written := strings.Fields(listed)
	slices.Sort(cut)
	slices.Sort(written)
	if !slices.Equal(cut, written) {
		tb.Errorf("%d sessions were cut, the audit trail has %d", len(cut), len(written))
	}
	s.checkShells(tb)
}

func (s *site) outlive(tb testing.TB) {
	// As if more time had passed. What the others must have themselves for long enough, to believe that one is dead, is the
	// database.
	s.exec(tb, "UPDATE termgw.sessions SET process = NULL, last_seen_at = last_seen_at - interval '1 minute' WHERE subject = 'lost'")
	var again *seat
	eventually(tb, "the dead one's sessions count no more", func() bool {
		c := s.any.dial(tb, "ws0", s.ticketOf(tb, "ws0", "lost"), from(0))
		switch m := c.answer(tb); {
		case m.Type == "ready":
			again = seated(c, m, "lost")
		case m.Code != "too_many_sessions":
			tb.Fatalf("told %+v", m)
		}
		return again != nil
	})
	again.close(tb)
	s.lastRowOf(tb, again.session)
	eventually(tb, "they are over", func() bool {
		var live int
		s.query(tb, "SELECT count(*) FROM termgw.sessions WHERE subject = 'lost' AND ended_at IS NULL", &live)
		return live == 0
	})
	for _, seat := range s.lost {
		if r := s.lastRowOf(tb, seat.session); r.reason != store.ReasonLost || r.exitCode.Valid {
			tb.Errorf("its row says %+v", r)
		}
	}
	s.lost = nil
	s.checkShells(tb)
	s.nothingLeft(tb)
}

var orphaned = regexp.MustCompile(`"left":[1-9]`)

// nothingLeft checks what the gateways have said of the ends of shells.
func (s *site) nothingLeft(tb testing.TB) {
	tb.Helper()
	for _, g := range s.gateways {
		if log := g.log.String(); orphaned.MatchString(log) {
			tb.Errorf("processes were left:\n%s", log)
		}
	}
}

// move is one client's way from a gateway that drains to another.
type move struct {
	told, sent, back time.Time // when it was to be closed, when it was, and the next shell's first byte
	dials            int
}

// late is how long after the time of its notice the client had a shell again.
func (m move) late() time.Duration { return m.back.Sub(m.told) }

// down is how long it had none.
func (m move) down() time.Duration { return m.back.Sub(m.sent) }

func (s *site) roll(tb testing.TB) (moves []move) {
	var (
		clients sync.WaitGroup
		stop    = make(chan struct{})
		mu      sync.Mutex
	)
	for i, seat := range s.seats {
		clients.Go(func() {
			for {
				m, moved := s.followed(tb, seat, i, stop)
				if !moved {
					return
				}
				mu.Lock()
				moves = append(moves, m)
				mu.Unlock()
			}
		})
	}
	for i := range s.gateways {
		g := s.gateways[i]
		g.signal(tb, syscall.SIGTERM)
		if status := s.ended(tb, g); status != 0 {
			tb.Errorf("exit status %d\n%s", status, g.log.String())
		}
		s.nothingLeft(tb)
		s.restart(tb, i)
	}
	eventually(tb, "all have a terminal again", func() bool {
		var live int
		s.query(tb, "SELECT count(*) FROM termgw.sessions WHERE ended_at IS NULL", &live)
		return live == len(s.seats)
	})
	close(stop)
	clients.Wait()
	if tb.Failed() {
		return moves
	}
	var late, down time.Duration
	dials := 0
	for _, m := range moves {
		late, down, dials = max(late, m.late()), max(down, m.down()), dials+m.dials
	}
	tb.Logf("%d moves, %d dials: a shell %s after the time of the notice at most, %s without one", len(moves), dials, late, down)
	if len(moves) < len(s.seats) {
		tb.Errorf("%d moves of %d clients over three restarts", len(moves), len(s.seats))
	}
	s.leave(tb)
	var drained int
	s.query(tb, "SELECT count(*) FROM termgw.sessions WHERE end_reason = 'draining'", &drained)
	if drained < len(moves) {
		var all string
		s.query(tb, "SELECT string_agg(x, ', ') FROM (SELECT concat_ws(' ', end_reason, exit_code IS NULL, count(*)) AS x FROM termgw.sessions GROUP BY end_reason, exit_code IS NULL) a", &all)
		tb.Errorf("%d sessions were drained for %d moves: %s", drained, len(moves), all)
	}
	s.nothingLeft(tb)
	return moves
}

// ended waits for a gateway that has many terminals to end.
func (s *site) ended(tb testing.TB, g *served) int {
	tb.Helper()
	select {
	case <-g.exited:
	case <-time.After(patience): // which is more than router.DrainTeardown
		tb.Error("the gateway has not ended")
	}
	return g.wait(tb)
}

var noticeTime = regexp.MustCompile(` in (\d+) seconds?\.`)

// noticed is the time that a notice leaves.
func noticed(tb testing.TB, notice message) time.Duration {
	found := noticeTime.FindStringSubmatch(notice.Message)
	if found == nil {
		tb.Errorf("the notice says %+v", notice)
		return 0
	}
	seconds, _ := strconv.Atoi(found[1]) // digits
	return time.Duration(seconds) * time.Second
}

// followed waits until the client is sent away, and has it dial again, with fresh tickets, until it has a shell.
func (s *site) followed(tb testing.TB, seat *seat, i int, stop <-chan struct{}) (m move, moved bool) {
	for over := false; !over; {
		select {
		case <-stop:
			return m, false
		case <-seat.changed:
		case <-seat.done:
			over = true
		}
		if notice, at := seat.first("notice"); at >= 0 && m.told.IsZero() {
			m.told = time.Now().Add(noticed(tb, notice))
		}
	}
	m.sent = time.Now()
	notice, before := seat.first("notice")
	_, after := seat.first("error")
	if code := seat.closed(tb); code != 1012 || before < 0 || before > after || notice.Code != "draining" {
		tb.Errorf("closed with %d, told %+v", code, seat.messages)
		return m, false
	}
	for deadline := m.sent.Add(patience); ; {
		m.dials++
		c, _, err := s.any.tryDial(tb, seat.workspace, s.ticketOf(tb, seat.workspace, seat.subject), from(i))
		var told message
		if err == nil {
			told = c.answer(tb)
		}
		if told.Type == "ready" {
			c.wait(tb, "a prompt", func() bool { return len(c.output) > 0 })
			m.back = time.Now()
			seat.tty, seat.session = c, told.Session
			return m, true
		}
		// From one that drains, too: nginx does not know.
		if err == nil && !told.Retryable || time.Now().After(deadline) {
			tb.Errorf("no new terminal: %v, told %+v", err, told)
			return m, false
		}
	}
}

// A database that goes and comes back while people come and go on three gateways: who has a terminal keeps it, who wants one
// is told to wait, and the ends of all that were open are written, each once.
func TestPostgresRestartsUnderLoad(t *testing.T) {
	cluster := testenv.StartPostgres(t)
	p := &platform{}
	p.makeKey(t)
	p.useDatabase(t, cluster.URL)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	var gateways []*served
	for range 3 {
		gateways = append(gateways, p.serve(t, "TERMGW_LOG_LEVEL=info"))
	}
	p.exec(t, `CREATE TABLE ends (id text, reason text)`)
	p.exec(t, `CREATE FUNCTION note_end() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO ends VALUES (NEW.id, NEW.end_reason); RETURN NULL; END $$`)
	p.exec(t, `CREATE TRIGGER note_end AFTER UPDATE ON termgw.sessions FOR EACH ROW
		WHEN ((NEW.ended_at, NEW.end_reason, NEW.exit_code) IS DISTINCT FROM (OLD.ended_at, OLD.end_reason, OLD.exit_code))
		EXECUTE FUNCTION note_end()`)
	want := map[string]string{} // reasons, by session
	var staying, closing, exiting []*tty
	for i := range 18 {
		c := gateways[i%3].open(t, "ws", dialing{})
		reason, kind := "client_closed", []*[]*tty{&staying, &closing, &exiting}[i/3%3]
		if kind == &exiting {
			reason = "exit"
		}
		*kind = append(*kind, c)
		want[c.message(t, "ready").Session] = reason
	}

	// The load: each gateway has clients that open a terminal, close it and come again.
	var (
		clients         sync.WaitGroup
		mu              sync.Mutex
		opened, refused [3]int
		stop            = make(chan struct{})
	)
	came := func(count *[3]int, more int) func() bool {
		mu.Lock()
		defer mu.Unlock()
		from := *count
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return count[0] >= from[0]+more && count[1] >= from[1]+more && count[2] >= from[2]+more
		}
	}
	for i := range 6 {
		g, at := gateways[i%3], i%3
		clients.Go(func() {
			pace := time.NewTicker(50 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-stop:
					return
				case <-pace.C:
				}
				c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
				m := c.answer(t)
				switch {
				case m.Type == "ready":
					c.close(t)
				case m.Code != "store_unavailable" || c.closed(t) != 4503 || !m.Retryable:
					t.Errorf("told %+v", m)
					return
				}
				mu.Lock()
				if m.Type == "ready" {
					opened[at]++
					want[m.Session] = "client_closed"
				} else {
					refused[at]++
				}
				mu.Unlock()
			}
		})
	}
	eventually(t, "all three are busy", came(&opened, 2))
	gone := came(&refused, 3)
	cluster.Stop(t)
	eventually(t, "all three refuse", gone)
	for i, c := range closing {
		c.close(t)
		exiting[i].send(t, "exit 7\r")
	}
	for _, c := range exiting {
		if code, m := c.awaitEnd(t), c.message(t, "exit"); code != websocket.StatusNormalClosure || m.Code != 7.0 {
			t.Errorf("closed with %d, told %+v", code, m)
		}
	}
	for _, c := range staying {
		if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
			t.Errorf("an open session answers %q", got)
		}
	}
	back := came(&opened, 3)
	cluster.Start(t)
	eventually(t, "all three open terminals again", back)
	close(stop)
	clients.Wait()
	for _, c := range staying {
		if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
			t.Errorf("an open session answers %q", got)
		}
		c.close(t)
	}
	// A terminal whose redemption was answered to nobody has a row without an end, which is not one of these.
	ended := map[string]string{}
	eventually(t, "all ends are written", func() bool {
		clear(ended)
		rows, err := p.db.QueryContext(t.Context(), "SELECT id, string_agg(reason, ' ') FROM ends GROUP BY id")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id, reasons string
			if err := rows.Scan(&id, &reasons); err != nil {
				t.Fatal(err)
			}
			ended[id] = reasons
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return len(ended) >= len(want)
	})
	if !maps.Equal(ended, want) {
		t.Errorf("%d ends were written, want these %d, once:\ngot  %v\nwant %v", len(ended), len(want), ended, want)
	}
	t.Logf("opened %v, refused %v", opened, refused)
	container.empty(t)
}

// A client behind nginx whose network goes silent looks alive to nginx for as long as it likes: the gateway's pings find
// it, and nobody else.
func TestHalfOpenClients(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	r := p.serveReplicas(t, 2, "TERMGW_PING_INTERVAL="+shortPing.String())
	network := startLine(t, r.any.address)
	far := &served{platform: p, address: network.address}
	const each = 12
	var halves, whole [each]*tty
	spread(t, each, 4, func(i int) {
		halves[i] = far.dial(t, "ws", p.ticketOf(t, "ws", "half"), from(i))
		whole[i] = r.any.dial(t, "ws", p.ticketOf(t, "ws", "whole"), from(i))
		halves[i].run(t, "sleep 1001 & true")
		whole[i].run(t, "true")
	})
	for _, g := range r.gateways {
		if n := g.metric(t, `termgw_sessions_active{target="local"}`); n == 0 {
			t.Error("a gateway has none of them")
		}
	}
	close(network.silent)
	eventually(t, "the half-open are found", func() bool {
		var lost, others int
		p.query(t, "SELECT count(*) FILTER (WHERE subject = 'half' AND end_reason = 'client_lost'), count(*) FILTER (WHERE subject = 'whole' AND ended_at IS NOT NULL) FROM termgw.sessions", &lost, &others)
		if others > 0 {
			t.Fatalf("%d that are well were ended", others)
		}
		return lost == each
	})
	eventually(t, "their shells are gone", func() bool { return len(container.commands(t)) == each })
	for _, c := range halves {
		select {
		case <-c.done:
			t.Error("the line is not silent: its client heard of the end")
		default:
		}
	}
	for _, c := range whole {
		if got := c.run(t, "echo $((6*7))"); got != "42\r\n" {
			t.Errorf("a client that is well gets %q", got)
		}
		c.close(t)
	}
	container.empty(t)
	for _, g := range r.gateways {
		if n := g.metric(t, orphansLeft); n != 0 {
			t.Errorf("%v processes were left", n)
		}
	}
}
