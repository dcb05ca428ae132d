// Package docs holds the pages. Its tests hold them to the source: what a page names must be there, by that name.
package docs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pages are all Markdown files of the repository, by their path from its root.
func pages(t *testing.T) map[string]*page {
	t.Helper()
	all := map[string]*page{}
	err := filepath.WalkDir("..", func(path string, entry os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != ".." && (strings.HasPrefix(entry.Name(), ".") || slices.Contains([]string{"node_modules", "bin", "build", "dist"}, entry.Name())):
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			all[strings.TrimPrefix(path, "../")] = parsePage(strings.TrimPrefix(path, "../"), string(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPages(t *testing.T) {
	all := pages(t)
	for _, name := range []string{
		"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/architecture.md", "docs/tickets.md",
		"docs/operations.md", "docs/security.md", "docs/canvas.md", "docs/infra/workspace-terminal.md",
	} {
		if all[name] == nil {
			t.Errorf("there is no %s", name)
		}
	}
	src := readSource(t)
	for _, check := range checks {
		t.Run(check.name, func(t *testing.T) {
			for _, p := range all {
				for _, fault := range check.faults(p, all, src) {
					t.Errorf("%s: %s", p.path, fault)
				}
			}
		})
	}
}

// TestChecks has each check find the fault that it is for, and none beside it.
func TestChecks(t *testing.T) {
	src, security := readSource(t), pages(t)["docs/security.md"]
	for _, c := range []struct{ check, text, want string }{
		{"links", "[there](security.md) [gone](nowhere.md)", "nowhere.md"},
		{"links", "[there](#a-heading)\n\n# A *heading*\n\n[gone](#another)", "#another"},
		{"links", "[there](security.md#a-stolen-ticket) [gone](security.md#a-biscuit)", "#a-biscuit"},
		{"paths", "`pkg/store/query.go` `pkg/runner/instance/ss*.go` `cmd/termgw/nothing.go`", "cmd/termgw/nothing.go"},
		{"variables", "`TERMGW_EICE_OS_USER` TERMGW_TICKET TERMGW_TEST_REQUIRE TERMGW_EICE_USER", "TERMGW_EICE_USER"},
		{"metrics", "`termgw_draining` `termgw_client_rtt_seconds_bucket` `termgw_drained`", "termgw_drained"},
		{"schema", "`termgw.over_limit` `termgw.v1` termgw.sessions.\n`termgw.session`", "termgw.session"},
		{"commands", "`termgw ticket mint` `termgw tickets`", "tickets"},
		{"commands", "```sh\nbin/termgw sessions list --all --json | grep termgw  # termgw foo\ntermgw sessions revoke --who ann\n```", "--who"},
		{"commands", "    aws iam put-role-policy --role-name termgw --policy-name termgw --x && env -u A B=c bin/termgw serve --now", "--now"},
		{"commands", "    TERMGW_TICKET=$(termgw ticket mint --key k) termgw connect URL\n    $(termgw ticket sign)", "sign"},
		{"make", "`make demo` `make tea`", "tea"},
		{"tests", "`go test -run TestPurge ./pkg/store` `go test -run TestPurged ./pkg/store`", "TestPurged"},
		{"codes", "4423, 4424", "4424"},
		{"codes", "1013 (`overloaded`), 4409 (`revoked`)", "revoked"},
		{"codes", "`draining` (1012), `draining` (1013)", "1013"},
		{"codes", "| `exit` `too_large` | 1000, 1009 |\n| `idle_timeout` | 4409 |", "idle_timeout"},
		{"snippets", "```go file=examples/ticket.ts\nimport { readFile } from \"node:fs/promises\";\n```\n```ts file=examples/ticket.ts\nlet it = be;\n```", "examples/ticket.ts"},
		{"log lines", "## Log lines\n\n| `msg` |\n|---|\n| `session ended` |\n| `session vanished` |\n", "session vanished"},
		{"log lines", "```sh\njq -c 'select(.msg == \"session ended\" or .msg == \"session stopped\")'\n```", "session stopped"},
	} {
		p := parsePage("docs/test.md", c.text)
		found := checkNamed(c.check).faults(p, map[string]*page{p.path: p, security.path: security}, src)
		if len(found) != 1 || !strings.Contains(found[0], c.want) {
			t.Errorf("%s, of %q: found %q, want one fault that names %s", c.check, c.text, found, c.want)
		}
	}
}
