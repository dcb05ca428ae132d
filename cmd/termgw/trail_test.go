package main

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

// A session on an instance is found from a line of sshd's log and from an event of CloudTrail, by the queries that the docs
// give; and so is one whose shell did not start.
func TestRemoteTrail(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	aws := p.newCloud(t, env.Docker(t))
	instance := p.onInstance(t, aws, "ws")
	newBox(t, env.Docker(t), "ws")
	g := p.serve(t, aws.environ(t, "TERMGW_LOG_LEVEL=info")...)
	c := g.open(t, "ws", dialing{})
	id := c.message(t, "ready").Session
	shared := g.open(t, "ws", dialing{}).message(t, "ready").Session

	var row sessionJSON
	for _, s := range p.listed(t) {
		if s.Session == id {
			row = s
		}
	}
	trail := row.Trail
	want := map[string]string{
		"instance": instance, "os_user": aws.sshd.User, "endpoint": "eice-0123456789abcdef0", "container": "ws-ws",
		"host_key_accepted": p.hostKeys(t)[0].Fingerprint,
	}
	for name, value := range want {
		if trail[name] != value {
			t.Errorf("%s is %q, want %q, in %v", name, trail[name], value, trail)
		}
	}
	var lease string
	if err := p.db.QueryRowContext(t.Context(), "SELECT id FROM termgw.tunnels").Scan(&lease); err != nil || trail["tunnel"] != lease {
		t.Errorf("%v: tunnel %q, want %q", err, trail["tunnel"], lease)
	}
	accepted := regexp.MustCompile(`(?m)^Accepted publickey for (\S+) from .* (SHA256:\S+)\r?$`).FindStringSubmatch(aws.sshd.Log(t))
	if accepted == nil || accepted[1] != trail["os_user"] || accepted[2] != trail["key"] {
		t.Fatalf("sshd has logged\n%s\nnot the key of %v", aws.sshd.Log(t), trail)
	}
	answered := map[awsplay.Op]string{}
	for _, r := range aws.Requests() {
		answered[r.Op] = r.ID
	}
	for name, op := range map[string]awsplay.Op{
		"request_instance": awsplay.DescribeInstances, "request_endpoint": awsplay.DescribeEndpoints,
		"request_key": awsplay.SendSSHPublicKey, "request_tunnel": awsplay.OpenTunnel,
	} {
		if trail[name] == "" || trail[name] != answered[op] {
			t.Errorf("%s is %q, AWS has %q", name, trail[name], answered[op])
		}
	}
	line := g.logLine(t, "session started", id)
	if logged, _ := json.Marshal(line["trail"]); !sameJSON(t, logged, trail) {
		t.Errorf("the log has %s, the row %v", logged, trail)
	}

	// A shell that does not start has been at sshd and at AWS all the same.
	p.workspace(t, "no-container", instance)
	refused := g.dial(t, "no-container", p.ticket(t, "no-container"), dialing{})
	if code := refused.closed(t); code != 4404 {
		t.Errorf("closed with %d", code)
	}
	var failed string
	for _, s := range p.listed(t, "--all") {
		if s.Reason == "container_not_running" && s.Trail["key"] == trail["key"] && s.Trail["tunnel"] == lease {
			failed = s.Session
		}
	}
	if failed == "" || !sameTrail(g.logLine(t, "session ended", failed)["trail"], trail, "key", "tunnel", "request_tunnel") {
		t.Errorf("of the shell that did not start: %q, %+v", failed, p.listed(t, "--all"))
	}

	// Of what AWS refuses, CloudTrail has the request, and of what it answered before.
	refusing := p.onInstance(t, aws, "refused")
	aws.Fail(awsplay.SendSSHPublicKey, awsplay.Fault{Status: 403, Code: "AccessDeniedException", Message: "no"})
	code := g.dial(t, "refused", p.ticket(t, "refused"), dialing{}).closed(t)
	aws.Heal()
	for _, s := range p.listed(t, "--all") {
		if s.Workspace != "refused" {
			continue
		}
		err, _ := g.logLine(t, "session ended", s.Session)["err"].(string)
		if s.Trail["instance"] != refusing || s.Trail["request_instance"] == "" || s.Trail["request_key"] != "" ||
			s.Trail["request_refused"] == "" || !strings.Contains(err, s.Trail["request_refused"]) {
			t.Errorf("closed with %d, the trail of what AWS refused is %v, the log says %q", code, s.Trail, err)
		}
	}

	_, section, _ := strings.Cut(readFile(t, "../../docs/operations.md"), "\n## Join a person with sshd's log and CloudTrail\n")
	section, _, _ = strings.Cut(section, "\n## ")
	queries := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(section, -1)
	if len(queries) != 3 {
		t.Fatalf("%d queries", len(queries))
	}
	fill := strings.NewReplacer("SHA256:FINGERPRINT", trail["key"], "REQUEST_ID", trail["request_key"], "ann@example.com", row.Subject)
	for _, query := range queries {
		filled := fill.Replace(query[1])
		rows, err := p.db.QueryContext(t.Context(), filled)
		if err != nil {
			t.Fatalf("%v: %s", err, filled)
		}
		var found []string
		for rows.Next() {
			columns, err := rows.Columns()
			if err != nil {
				t.Fatal(err)
			}
			var session string
			into := []any{&session}
			for range columns[1:] {
				into = append(into, new(any))
			}
			if err := rows.Scan(into...); err != nil {
				t.Fatal(err)
			}
			found = append(found, session)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(found, id) || !slices.Contains(found, shared) || filled == query[1] {
			t.Errorf("finds %q, not %s and %s:\n%s", found, id, shared, filled)
		}
	}
}

// logLine returns the line of a session in the gateway's log, once it is there.
func (g *served) logLine(tb testing.TB, msg, session string) (found map[string]any) {
	tb.Helper()
	eventually(tb, "the log has "+msg, func() bool {
		for text := range strings.Lines(g.log.String()) {
			var line map[string]any
			if json.Unmarshal([]byte(text), &line) == nil && line["msg"] == msg && line["session"] == session {
				found = line
			}
		}
		return found != nil
	})
	return found
}

func sameJSON(tb testing.TB, object []byte, want map[string]string) bool {
	tb.Helper()
	wanted, err := json.Marshal(want)
	if err != nil {
		tb.Fatal(err)
	}
	return string(object) == string(wanted)
}

// sameTrail reports whether a line's trail has the values of these names.
func sameTrail(logged any, want map[string]string, names ...string) bool {
	trail, ok := logged.(map[string]any)
	return ok && !slices.ContainsFunc(names, func(name string) bool { return trail[name] != want[name] })
}
