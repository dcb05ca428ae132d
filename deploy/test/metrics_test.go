package deploy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	promql "github.com/prometheus/prometheus/promql/parser"
)

// series are those that can be asked for, with their own labels.
type series map[string][]string

// targetLabels are of each series of a scraped target.
var targetLabels = []string{"job", "instance", "namespace", "pod"}

// foreign are what others than termgw expose.
var foreign = series{
	"up": nil,
}

// exposed are all series of a gateway: its own from the source, since many begin with a first terminal, and those of the
// process from one that runs.
func exposed(t *testing.T) series {
	t.Helper()
	found := maps.Clone(foreign)
	for _, dir := range []string{"cmd", "internal", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err == nil {
				found.readSource(file)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(found["termgw_sessions_total"], []string{"target", "code"}) || !slices.Contains(found["termgw_store_seconds_bucket"], "le") {
		t.Fatalf("the source is not read as it is written: %v", found)
	}

	_, _, admin := serve(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	scrape, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(string(scrape), -1) {
		name, kind := family[1], family[2]
		_, bucketed := found[name+"_bucket"]
		_, plain := found[name]
		switch own := strings.HasPrefix(name, "termgw_"); {
		case own && !plain && (kind != "histogram" || !bucketed):
			t.Errorf("the gateway exposes %s, which is not found in the source", name)
		case !own && kind != "summary" && kind != "histogram":
			found[name] = nil
		}
	}
	return found
}

// readSource takes in what a file makes by prometheus.NewGaugeVec, promauto.With(…).NewGaugeVec and so on.
func (s series) readSource(file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		maker, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !strings.HasPrefix(maker.Sel.Name, "New") {
			return true
		}
		name := ""
		switch options := call.Args[0].(type) {
		case *ast.CompositeLit: // prometheus.GaugeOpts{Name: …}
			for _, field := range options.Elts {
				if pair, ok := field.(*ast.KeyValueExpr); ok && pair.Key.(*ast.Ident).Name == "Name" {
					name = text(pair.Value)
				}
			}
		case *ast.BasicLit: // prometheus.NewDesc(name, …)
			name = text(options)
		}
		if !strings.HasPrefix(name, "termgw_") {
			return true
		}
		var own []string
		for _, argument := range call.Args[1:] {
			if list, ok := argument.(*ast.CompositeLit); ok {
				for _, label := range list.Elts {
					own = append(own, text(label))
				}
			}
		}
		if strings.HasPrefix(maker.Sel.Name, "NewHistogram") {
			s[name+"_bucket"] = append(slices.Clone(own), "le")
			s[name+"_sum"], s[name+"_count"] = own, own
		} else {
			s[name] = own
		}
		return true
	})
}

func text(e ast.Expr) string {
	if literal, ok := e.(*ast.BasicLit); ok && literal.Kind == token.STRING {
		s, _ := strconv.Unquote(literal.Value)
		return s
	}
	return ""
}

// codes are how terminals end and are refused, from the router's one table.
func codes(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, found := range regexp.MustCompile(`code: "(\w+)"`).FindAllStringSubmatch(read(t, "pkg/router/errors.go"), -1) {
		list = append(list, found[1])
	}
	if !slices.Contains(list, "backend_failed") {
		t.Fatalf("the router's codes are not read as they are written: %v", list)
	}
	return list
}

// check parses an expression, and finds a series or a label that is not there, and a code that no terminal ends with.
func (s series) check(t *testing.T, where, expr string, codes []string) {
	t.Helper()
	parsed, err := promql.NewParser(promql.Options{}).ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v:\n%s", where, err, expr)
		return
	}
	available := slices.Clone(targetLabels)
	promql.Inspect(parsed, func(node promql.Node, _ []promql.Node) error {
		selector, ok := node.(*promql.VectorSelector)
		if !ok {
			return nil
		}
		own, known := s[selector.Name]
		if !known {
			t.Errorf("%s: there is no series %s", where, selector.Name)
			return nil
		}
		available = append(available, own...)
		for _, m := range selector.LabelMatchers {
			if m.Name != "__name__" && !slices.Contains(own, m.Name) && !slices.Contains(targetLabels, m.Name) {
				t.Errorf("%s: %s has no label %s", where, selector.Name, m.Name)
			}
			if m.Name == "code" && !slices.ContainsFunc(codes, m.Matches) {
				t.Errorf("%s: there is no code %s", where, m)
			}
		}
		return nil
	})
	promql.Inspect(parsed, func(node promql.Node, _ []promql.Node) error {
		if sum, ok := node.(*promql.AggregateExpr); ok {
			for _, label := range sum.Grouping {
				if !slices.Contains(available, label) {
					t.Errorf("%s: nothing in it has a label %s", where, label)
				}
			}
		}
		return nil
	})
}
