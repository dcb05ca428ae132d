package docs

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/pkg/store"
)

// TestLists compares the tables that are complete lists with the source, in both directions.
func TestLists(t *testing.T) {
	all, src := pages(t), readSource(t)
	withoutClose := map[string]bool{store.ReasonLost: true}
	for code, o := range src.outcomes {
		if o.close == 0 {
			withoutClose[code] = true
		}
	}
	for _, list := range []struct {
		page, section, source string
		want                  []string
	}{
		{"docs/canvas.md", "## What happens after an end", "web/client/codes.ts", names(readClient(t))},
		{"docs/operations.md", "## Codes", "pkg/router/errors.go", names(withoutClose)},
		{"docs/operations.md", "## Configuration", "cmd/termgw/config.go", names(src.configuration)},
		{"docs/operations.md", "## Metrics", "pkg or cmd", names(src.metrics)},
		{"docs/tickets.md", "## Claims", "pkg/ticket/ticket.go", names(src.claims)},
	} {
		listed := all[list.page].table(list.section)
		for _, name := range list.want {
			if _, ok := listed[name]; !ok {
				t.Errorf("%s is in %s: give it a row in %s, %q", name, list.source, list.page, list.section)
			}
			delete(listed, name)
		}
		for name := range listed {
			t.Errorf("%s is not in %s: take it out of %s, %q", name, list.source, list.page, list.section)
		}
	}
}

func names[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func TestDefaults(t *testing.T) {
	operations := pages(t)["docs/operations.md"]
	listed := operations.table("## Configuration")
	for name, value := range readSource(t).configuration {
		if told, ok := listed[name]; ok && strings.Trim(told, "`") != value {
			t.Errorf("docs/operations.md has %s as the default of %s; in cmd/termgw/config.go it is %q", told, name, value)
		}
	}
	if !strings.Contains(operations.text, "\n"+store.DefaultWorkspaceQuery+"\n") {
		t.Errorf("docs/operations.md does not have the default of TERMGW_WORKSPACE_QUERY: %s", store.DefaultWorkspaceQuery)
	}
}

// TestEveryStepHasAFix: an operator finds every step that can fail, with its fix.
func TestEveryStepHasAFix(t *testing.T) {
	codes, details := pages(t)["docs/infra/workspace-terminal.md"].codes(), readSource(t).details
	for detail := range details {
		if !slices.Contains(codes, detail) {
			t.Errorf("docs/infra/workspace-terminal.md does not have the detail %s", detail)
		}
	}
	if len(details) < 40 {
		t.Errorf("the source is not read as it is written: %d details", len(details))
	}
}

func TestEveryCommandIsShown(t *testing.T) {
	var text strings.Builder
	for _, p := range pages(t) {
		text.WriteString(p.text)
	}
	var look func(words string, c *command)
	look = func(words string, c *command) {
		for name, sub := range c.commands {
			look(words+" "+name, sub)
		}
		if len(c.commands) == 0 && !strings.Contains(text.String(), words) {
			t.Errorf("no page shows %q", words)
		}
	}
	look("termgw", readSource(t).commands)
}

// TestDeployedVariables looks for variables in deploy that do not exist. The tests in deploy/test look at the metrics there.
func TestDeployedVariables(t *testing.T) {
	src := readSource(t)
	ownOfCompose := regexp.MustCompile(`\$\{TERMGW_\w+`)
	err := filepath.WalkDir("../deploy", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) == ".go" {
			return err
		}
		text, err := os.ReadFile(path)
		p := &page{text: ownOfCompose.ReplaceAllString(string(text), "")}
		for _, fault := range checkNamed("variables").faults(p, nil, src) {
			t.Errorf("%s: %s", path, fault)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
