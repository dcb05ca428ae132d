package deploy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard is what of Grafana's model the test goes by.
type dashboard struct {
	Title, UID    string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Annotations struct {
		List []struct{ Name, Expr string }
	}
	Panels []struct {
		ID          int
		Type, Title string
		GridPos     struct{ H, W, X, Y int }
		Datasource  struct{ UID string }
		Targets     []struct {
			Expr, RefID string
			Datasource  struct{ UID string }
		}
		FieldConfig struct {
			Defaults struct{ Unit string }
		}
	}
}

func TestDashboard(t *testing.T) {
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, "deploy/grafana/termgw.json")), &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" || d.SchemaVersion < 36 {
		t.Errorf("no dashboard that Grafana imports: %q, %q, %d", d.Title, d.UID, d.SchemaVersion)
	}
	known, codes := exposed(t), codes(t)
	queries := map[string]string{}

	variables := []string{"$__rate_interval"}
	for _, v := range d.Templating.List {
		variables = append(variables, "$"+v.Name)
		if v.Type != "query" {
			continue
		}
		query := v.Query.(map[string]any)["query"].(string)
		call := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(query)
		if call == nil || !slices.Contains(targetLabels, call[2]) {
			t.Errorf("variable %s asks %s", v.Name, query)
		} else {
			queries["variable "+v.Name] = call[1]
		}
	}
	for _, a := range d.Annotations.List {
		queries["annotation "+a.Name] = a.Expr
	}

	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: id %d is another's", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x > 23 {
					t.Fatalf("%s covers %q at %d,%d", p.Title, other, x, y)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != "${datasource}" {
			t.Errorf("%s has %d queries, unit %q, data source %q", p.Title, len(p.Targets), p.FieldConfig.Defaults.Unit, p.Datasource.UID)
		}
		for _, target := range p.Targets {
			queries[fmt.Sprintf("%s, %s", p.Title, target.RefID)] = target.Expr
			if target.Datasource.UID != "${datasource}" {
				t.Errorf("%s asks the data source %q", p.Title, target.Datasource.UID)
			}
		}
	}

	all := ""
	for where, expr := range queries {
		for _, used := range regexp.MustCompile(`\$\w+`).FindAllString(expr, -1) {
			if !slices.Contains(variables, used) {
				t.Errorf("%s uses %s, which is no variable", where, used)
			}
		}
		known.check(t, where, strings.ReplaceAll(expr, "$__rate_interval", "5m"), codes)
		all += expr + "\n"
	}
	// Whatever the gateway counts is to be seen somewhere.
	for name := range known {
		family := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		if strings.HasPrefix(name, "termgw_") && !strings.Contains(all, family) {
			t.Errorf("no panel shows %s", family)
		}
	}
}
