package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/store"
)

func TestHostkeysRefusals(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	bare := env.Postgres(t).NewDatabase(t)
	for _, test := range []struct {
		name    string
		environ []string
		args    []string
		status  int
		says    string
	}{
		{"no instance", nil, []string{"forget"}, 2, "instance-id"},
		{"an unset variable", nil, []string{"forget", "i-1", ""}, 1, "empty"},
		{"an unknown instance", nil, []string{"forget", "i-1", "i-1"}, 1, "no host key is kept for i-1; "},
		{"no database", []string{"TERMGW_DATABASE_URL="}, []string{"list"}, 1, "host keys are kept in the database"},
		{"no database to forget in", []string{"TERMGW_DATABASE_URL="}, []string{"forget", "i-1"}, 1, "host keys are kept in the database"},
		{"no schema", []string{"TERMGW_DATABASE_URL=" + bare}, []string{"list"}, 1, "termgw migrate"},
		{"no schema to forget in", []string{"TERMGW_DATABASE_URL=" + bare}, []string{"forget", "i-1"}, 1, "termgw migrate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, out, said := p.operate(t, test.environ, append([]string{"hostkeys"}, test.args...)...)
			if status != test.status || !strings.Contains(out+said, test.says) {
				t.Errorf("exit status %d:\n%s%s", status, out, said)
			}
		})
	}
	status, out, said := p.operate(t, nil, "hostkeys", "list")
	if status != 0 || out != "no host keys\n" {
		t.Errorf("exit status %d:\n%s%s", status, out, said)
	}
}

// A row that is no key, or an id that an operator's terminal would obey, hides no other and is shown as it is.
func TestHostkeysTable(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 1, 2, 3, 4, 5, 600, time.FixedZone("", 3600))
	list := []store.KeptHostKey{
		{InstanceID: "i-1", Line: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUwSLuvlcpyY4dF5UkAIjJQJqaf8pWcHHMvYGkY9qWp", Since: since},
		{InstanceID: "i\x1b[2J", Line: "", Since: since},
		{InstanceID: "i-3", Line: "no \x1b[2J key", Since: since},
	}
	var table, lines bytes.Buffer
	if err := hostKeysTable(&table, list); err != nil {
		t.Fatal(err)
	}
	want := `INSTANCE  TYPE         FINGERPRINT                                         SINCE
i-1       ssh-ed25519  SHA256:FINGERPRINT                                  2026-01-02T02:04:05Z
`
	_, fingerprint := describeKey(list[0].Line)
	want = strings.ReplaceAll(want, "SHA256:FINGERPRINT                                ", fingerprint)
	if !strings.HasPrefix(table.String(), want) || strings.Contains(table.String(), "\x1b") || strings.Count(table.String(), "\n") != 4 {
		t.Errorf("got:\n%s\nwant it to begin:\n%s", table.String(), want)
	}
	if err := hostKeysJSON(&lines, list[:2]); err != nil {
		t.Fatal(err)
	}
	objects := `{"instance":"i-1","type":"ssh-ed25519","fingerprint":"` + fingerprint + `","since":"2026-01-02T02:04:05.0000006Z"}
{"instance":"i\u001b[2J","type":"","fingerprint":"","since":"2026-01-02T02:04:05.0000006Z"}
`
	if lines.String() != objects {
		t.Errorf("got  %s\nwant %s", lines.String(), objects)
	}
}
