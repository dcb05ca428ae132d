package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// operate runs a command for an operator, and checks that it shows no secret.
func (p *platform) operate(tb testing.TB, environ []string, args ...string) (status int, out, said string) {
	tb.Helper()
	c := start(tb, command(tb, append([]string{"TERMGW_DATABASE_URL=" + p.url}, environ...), args...))
	status = c.wait(tb)
	out, said = c.out.String(), c.log.String()
	p.checkSecrets(tb, "termgw "+strings.Join(args, " "), out+said)
	return status, out, said
}

// listed are the sessions that `sessions list --json` prints.
func (p *platform) listed(tb testing.TB, args ...string) (list []sessionJSON) {
	tb.Helper()
	status, out, said := p.operate(tb, nil, append([]string{"sessions", "list", "--json"}, args...)...)
	if status != 0 {
		tb.Fatalf("exit status %d: %s", status, said)
	}
	for line := range strings.Lines(out) {
		var s sessionJSON
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			tb.Fatalf("%v: %q", err, line)
		}
		list = append(list, s)
	}
	return list
}

// seat is a terminal that somebody has open.
type seat struct {
	*tty
	session, workspace, subject, instance string
	gateway                               *served
}

func TestSessions(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	instance := p.onInstance(t, aws, "far")
	p.workspace(t, "a", "")
	p.workspace(t, "b", "")
	containers := map[string]*box{}
	for _, workspace := range []string{"a", "b", "far"} {
		containers[workspace] = newBox(t, env.Docker(t), workspace)
	}
	environ := append(aws.environ(t), "DOCKER_HOST="+env.Docker(t).Host)
	gateways := []*served{p.serve(t, environ...), p.serve(t, environ...)}

	as := func(subject string) func(*ticket.Claims) { return func(c *ticket.Claims) { c.Subject = subject } }
	open := func(g *served, workspace, subject string) *seat {
		t.Helper()
		s := &seat{workspace: workspace, subject: subject, gateway: g, tty: g.dial(t, workspace, p.ticket(t, workspace, as(subject)), dialing{})}
		s.session = s.message(t, "ready").Session
		if workspace == "far" {
			s.instance = instance
		}
		return s
	}
	var seats []*seat // the newest first
	for _, workspace := range []string{"a", "b", "far"} {
		for _, subject := range []string{"ann", "bob"} {
			for _, g := range gateways {
				seats = slices.Insert(seats, 0, open(g, workspace, subject))
			}
		}
	}

	ids := func(match func(*seat) bool) (ids []string) {
		for _, s := range seats {
			if match(s) {
				ids = append(ids, s.session)
			}
		}
		return ids
	}
	replica := func(g *served) string {
		for _, s := range p.listed(t) {
			if slices.Contains(ids(func(s *seat) bool { return s.gateway == g }), s.Session) {
				return s.Replica
			}
		}
		return ""
	}
	if replica(gateways[0]) == replica(gateways[1]) {
		t.Errorf("both replicas are called %q", replica(gateways[0]))
	}
	for _, test := range []struct {
		args  []string
		match func(*seat) bool
	}{
		{nil, func(*seat) bool { return true }},
		{[]string{"--workspace=a"}, func(s *seat) bool { return s.workspace == "a" }},
		{[]string{"--subject=ann"}, func(s *seat) bool { return s.subject == "ann" }},
		{[]string{"--subject=ann", "--workspace=b"}, func(s *seat) bool { return s.subject == "ann" && s.workspace == "b" }},
		{[]string{"--instance=" + instance}, func(s *seat) bool { return s.instance == instance }},
		{[]string{"--session=" + seats[3].session}, func(s *seat) bool { return s == seats[3] }},
		{[]string{"--replica=" + replica(gateways[1])}, func(s *seat) bool { return s.gateway == gateways[1] }},
		{[]string{"--workspace=none"}, func(*seat) bool { return false }},
	} {
		var got []string
		for _, s := range p.listed(t, test.args...) {
			got = append(got, s.Session)
		}
		want := ids(test.match)
		if !slices.Equal(got, want) {
			t.Errorf("list %q:\ngot  %q\nwant %q", test.args, got, want)
		}
		status, table, _ := p.operate(t, nil, append([]string{"sessions", "list"}, test.args...)...)
		for _, s := range seats {
			if strings.Contains(table, s.session) != test.match(s) {
				t.Errorf("list %q shows as a table, exit status %d:\n%s", test.args, status, table)
			}
		}
	}
	newest := p.listed(t)[0]
	if newest.Workspace != "far" || newest.Subject != "bob" || newest.Mode != "rw" || newest.Target != "remote" || newest.Instance != instance ||
		newest.Client != "127.0.0.1" || time.Since(newest.Started).Abs() > time.Hour || newest.LastSeen.Before(newest.Started) || newest.Ended != nil {
		t.Errorf("the newest is %+v", newest)
	}

	// Each order cuts all that it names, on both gateways, and nobody else.
	first := seats[len(seats)-1]
	for _, test := range []struct {
		args               []string
		match              func(*seat) bool
		workspace, subject string // of whom the order names
	}{
		{[]string{"--session=" + first.session}, func(s *seat) bool { return s == first }, "", ""},
		{[]string{"--subject=bob", "--workspace=a", "--reason=left the team"}, func(s *seat) bool { return s.subject == "bob" && s.workspace == "a" }, "a", "bob"},
		{[]string{"--instance=" + instance}, func(s *seat) bool { return s.instance == instance }, "far", "ann"},
		{[]string{"--subject=ann"}, func(s *seat) bool { return s.subject == "ann" }, "a", "ann"},
		{[]string{"--workspace=b"}, func(s *seat) bool { return s.workspace == "b" }, "b", "bob"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			var old string
			if test.workspace != "" {
				old = p.ticket(t, test.workspace, as(test.subject))
			}
			cut := ids(test.match)
			slices.Sort(cut)
			status, out, said := p.operate(t, nil, append([]string{"sessions", "revoke"}, test.args...)...)
			head, rest, _ := strings.Cut(out, "\n")
			if status != 0 || !strings.Contains(head, fmt.Sprintf("cuts %d session(s)", len(cut))) || !slices.Equal(strings.Fields(rest), cut) || len(cut) == 0 {
				t.Fatalf("exit status %d, want %q cut:\n%s%s", status, cut, out, said)
			}
			given := time.Now()
			seats = slices.DeleteFunc(seats, func(s *seat) bool {
				if !test.match(s) {
					return false
				}
				if code, m := s.closed(t), s.message(t, "error"); code != 4423 || m.Code != "revoked" || !isSentence(m.Message) {
					t.Errorf("closed with %d, told %+v", code, m)
				}
				return true
			})
			for _, s := range seats {
				if got := s.run(t, "echo $((6*7))"); got != "42\r\n" {
					t.Errorf("%s in %s, who is not meant, gets %q", s.subject, s.workspace, got)
				}
			}
			for workspace, container := range containers {
				want := len(ids(func(s *seat) bool { return s.workspace == workspace }))
				eventually(t, "the shells that were cut are gone", func() bool { return container.shells(t) == want })
			}
			if old == "" {
				return
			}
			gateways[0].refused(t, test.workspace, old, 4423)
			// A ticket's time is in whole seconds.
			eventually(t, "the next second", func() bool { return time.Now().Unix() > given.Unix() })
			fresh := open(gateways[1], test.workspace, test.subject)
			fresh.close(t)
			p.lastRowOf(t, fresh.session) // or the next order would name it too
		})
	}

	ended := 0
	for _, s := range p.listed(t, "--all") {
		if s.Ended != nil && s.Reason == "revoked" {
			ended++
		}
	}
	if live := len(p.listed(t)); ended != 12 || live != 0 {
		t.Errorf("%d sessions ended as revoked, want all 12; %d are live", ended, live)
	}
	var by string
	err := p.db.QueryRowContext(t.Context(), "SELECT revoked_by FROM termgw.revocations WHERE reason = 'left the team'").Scan(&by)
	if err != nil || by != operator() {
		t.Errorf("%v: the order was given by %q", err, by)
	}
}

func TestSessionsRefusals(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	bare := env.Postgres(t).NewDatabase(t)
	for _, test := range []struct {
		name    string
		environ []string
		args    []string
		says    string
	}{
		{"nobody named", nil, []string{"revoke", "--reason=x"}, "--workspace"},
		{"an unset variable", nil, []string{"revoke", "--subject=ann", "--workspace="}, "empty"},
		{"an unset variable in a list", nil, []string{"list", "--workspace="}, "empty"},
		{"no database", []string{"TERMGW_DATABASE_URL="}, []string{"list"}, "TERMGW_DATABASE_URL is not set"},
		{"no database to revoke in", []string{"TERMGW_DATABASE_URL="}, []string{"revoke", "--subject=ann"}, "TERMGW_DATABASE_URL is not set"},
		{"no schema", []string{"TERMGW_DATABASE_URL=" + bare}, []string{"list"}, "termgw migrate"},
		{"no schema to revoke in", []string{"TERMGW_DATABASE_URL=" + bare}, []string{"revoke", "--subject=ann"}, "termgw migrate"},
		{"a malformed URL", []string{"TERMGW_DATABASE_URL=postgres://u:" + p.keepSecret("x.secretsecretsecretsecret.x") + "@h:port/"}, []string{"list"}, "TERMGW_DATABASE_URL"},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, out, said := p.operate(t, test.environ, append([]string{"sessions"}, test.args...)...)
			if status != 1 || out != "" || !strings.Contains(said, test.says) {
				t.Errorf("exit status %d:\n%s%s", status, out, said)
			}
		})
	}
	var orders int
	if err := p.db.QueryRowContext(t.Context(), "SELECT count(*) FROM termgw.revocations").Scan(&orders); err != nil || orders != 0 {
		t.Errorf("%v: %d orders were written", err, orders)
	}
}

// Names are others' choice, and an operator's terminal obeys what it is shown.
func TestSessionsTable(t *testing.T) {
	t.Parallel()
	code := 7
	began := time.Date(2026, 1, 2, 3, 4, 5, 600, time.FixedZone("", 3600))
	list := []store.Record{
		{ID: "ONE", WorkspaceID: "ws", Waiting: true, Resumes: 2, Subject: "\x1b[2J\tann\r\nlee", Mode: ticket.ReadOnly, Replica: "r\u202e1", ClientAddr: "::1", Started: began, LastSeen: began.Add(time.Second)},
		{ID: "TWO", WorkspaceID: "ws", Subject: "", Mode: ticket.ReadWrite, InstanceID: "i-1", Replica: "r2", Started: began, LastSeen: began, Ended: began.Add(time.Minute), Reason: "exit", ExitCode: &code, BytesOut: 9},
	}
	var table bytes.Buffer
	if err := sessionsTable(&table, list, true); err != nil {
		t.Fatal(err)
	}
	want := `SESSION  WORKSPACE  WHO            TARGET  REPLICA  CLIENT  SINCE                 LAST SEEN             STATE    ENDED                 WHY
ONE      ws         ?[2J ann  lee  local   r?1      ::1     2026-01-02T02:04:05Z  2026-01-02T02:04:06Z  waiting  -                     -
TWO      ws         -              i-1     r2       -       2026-01-02T02:04:05Z  2026-01-02T02:04:05Z  -        2026-01-02T02:05:05Z  exit
`
	if table.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", table.String(), want)
	}
	var lines bytes.Buffer
	if err := sessionsJSON(&lines, list[1:]); err != nil {
		t.Fatal(err)
	}
	const object = `{"session":"TWO","workspace":"ws","subject":"","mode":"rw","target":"remote","instance":"i-1","replica":"r2","client":"",` +
		`"started":"2026-01-02T02:04:05.0000006Z","last_seen":"2026-01-02T02:04:05.0000006Z","ended":"2026-01-02T02:05:05.0000006Z",` +
		`"reason":"exit","exit_code":7,"bytes_in":0,"bytes_out":9}` + "\n"
	if lines.String() != object {
		t.Errorf("got  %s\nwant %s", lines.String(), object)
	}
	lost := list[1]
	lost.Reason, lost.BytesOut = store.ReasonLost, 0
	lines.Reset()
	if err := sessionsJSON(&lines, []store.Record{list[0], lost}); err != nil || strings.Contains(lines.String(), "bytes") {
		t.Errorf("bytes that nobody knows: %s, %v", lines.String(), err)
	}
}
