package docs

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// source is what the pages are held to.
type source struct {
	variables     map[string]bool
	configuration map[string]string // those of serve, with their defaults
	metrics       map[string]bool
	series        map[string]bool // metrics, and a histogram's with their suffixes
	schema        map[string]bool // what is in the schema termgw, and what else begins like it
	strings       map[string]bool // literals of the program
	outcomes      map[string]outcome
	codes         map[string]bool // literals that the gateway sends as codes
	details       map[string]bool // steps that can fail, as clients are told
	claims        map[string]bool // of tickets
	commands      *command
	targets       map[string]bool // of make
}

// outcome is an end of the gateway's table, by its code.
type outcome struct {
	close int // 0: there is no close frame
	retry bool
}

// command is termgw, or a subcommand.
type command struct {
	commands map[string]*command
	flags    map[string]bool
}

type structs map[string]*ast.StructType

// readSource reads the source once: with the race detector it takes a second.
func readSource(t *testing.T) *source {
	t.Helper()
	s, err := sourceOnce()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var sourceOnce = sync.OnceValues(loadSource)

func loadSource() (*source, error) {
	s := &source{
		variables: map[string]bool{}, configuration: map[string]string{}, metrics: map[string]bool{}, series: map[string]bool{},
		strings: map[string]bool{}, outcomes: map[string]outcome{}, codes: map[string]bool{}, details: map[string]bool{},
		claims: map[string]bool{}, schema: map[string]bool{"v1": true, "ticket": true, "schema_migrations": true, "code": true, "detail": true, "socket": true}, targets: map[string]bool{},
	}
	types := structs{}
	for _, dir := range []string{"cmd", "pkg", "internal"} {
		err := filepath.WalkDir("../"+dir, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err == nil {
				s.read(file, types, strings.HasPrefix(path, "../cmd/termgw/"))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for literal := range s.strings {
		if regexp.MustCompile(`^TERMGW_[A-Z0-9_]+$`).MatchString(literal) {
			s.variables[literal] = true // read apart from the configuration, by a client or by tests
		}
	}
	environment := types["environment"]
	if environment == nil || types["cli"] == nil {
		return nil, errors.New("cmd/termgw has no struct environment or no struct cli")
	}
	for _, field := range environment.Fields.List {
		name, tags := field.Names[0].Name, tagsOf(field)
		if tags.Get("split_words") == "true" {
			name = separated(name, "_")
		}
		name = "TERMGW_" + strings.ToUpper(name)
		s.variables[name], s.configuration[name] = true, tags.Get("default")
	}
	if err := s.readOutcomes(); err != nil {
		return nil, err
	}
	s.commands = types.command("cli")
	migrations, _ := filepath.Glob("../pkg/store/migrations/*.sql")
	files, err := filepath.Glob("../deploy/*/termgw.*") // files of that name are no tables
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		for part := range strings.SplitSeq(filepath.Base(name), ".") {
			s.schema[part] = true
		}
	}
	for _, name := range append(migrations, "../Makefile") {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for _, m := range regexp.MustCompile(`CREATE (?:TABLE|FUNCTION) termgw\.(\w+)`).FindAllStringSubmatch(string(text), -1) {
			s.schema[m[1]] = true
		}
		for _, m := range regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllStringSubmatch(string(text), -1) {
			s.targets[m[1]] = true
		}
	}
	return s, nil
}

// readOutcomes reads the golden file that a test of the router holds to the table.
func (s *source) readOutcomes() error {
	text, err := os.ReadFile("../pkg/router/testdata/outcomes.golden")
	for _, m := range regexp.MustCompile(`(?m)^(\w+)\t(\d+)\t\d+\t(true|false)\t`).FindAllStringSubmatch(string(text), -1) {
		n, _ := strconv.Atoi(m[2])
		s.outcomes[m[1]] = outcome{close: n, retry: m[3] == "true"}
	}
	return err
}

func (s *source) read(file *ast.File, types structs, isCommand bool) {
	ast.Inspect(file, func(node ast.Node) bool {
		switch n := node.(type) {
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				s.strings[text] = true
			}
		case *ast.TypeSpec:
			st, ok := n.Type.(*ast.StructType)
			if ok && isCommand {
				types[n.Name.Name] = st
			}
			if ok && n.Name.Name == "wireClaims" {
				for _, field := range st.Fields.List {
					claim, _, _ := strings.Cut(tagsOf(field).Get("json"), ",")
					s.claims[claim] = true
				}
			}
		case *ast.CompositeLit:
			s.readLiteral(file, n)
		case *ast.CallExpr: // of a function that makes a runner.Failure of a step
			if of, ok := n.Fun.(*ast.Ident); ok && (of.Name == "failed" || of.Name == "malformed") && stringOf(n.Args[0]) != "" {
				s.details[stringOf(n.Args[0])] = true
			}
		case *ast.ValueSpec:
			if of, ok := n.Type.(*ast.Ident); ok && of.Name == "Detail" && len(n.Values) == 1 {
				s.details[stringOf(n.Values[0])] = true
			}
		}
		return true
	})
}

// readLiteral takes a metric's options (Name), a code, or the step of a runner.Failure.
func (s *source) readLiteral(file *ast.File, literal *ast.CompositeLit) {
	values := map[string]ast.Expr{}
	for _, element := range literal.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok {
			if key, ok := pair.Key.(*ast.Ident); ok {
				values[key.Name] = pair.Value
			}
		}
	}
	if step := stringOf(values["Step"]); step != "" && file.Name.Name != "shellplace" { // for tests
		s.details[step] = true
	}
	if name := stringOf(values["Name"]); strings.HasPrefix(name, "termgw_") {
		s.metrics[name], s.series[name] = true, true
		if kind, ok := literal.Type.(*ast.SelectorExpr); ok && kind.Sel.Name == "HistogramOpts" {
			for _, end := range []string{"_bucket", "_sum", "_count"} {
				s.series[name+end] = true
			}
		}
	}
	if code := stringOf(values["code"]) + stringOf(values["Code"]); code != "" && (file.Name.Name == "router" || file.Name.Name == "bridge") {
		s.codes[code] = true
	}
}

func stringOf(e ast.Expr) string {
	if literal, ok := e.(*ast.BasicLit); ok && literal.Kind == token.STRING {
		text, _ := strconv.Unquote(literal.Value)
		return text
	}
	return ""
}

// command is what kong makes of a struct.
func (types structs) command(name string) *command {
	c := &command{commands: map[string]*command{}, flags: map[string]bool{"help": true}}
	for _, field := range types[name].Fields.List {
		tags := tagsOf(field)
		of, _ := field.Type.(*ast.Ident)
		_, isCommand := tags.Lookup("cmd")
		_, isArgument := tags.Lookup("arg")
		switch {
		case len(field.Names) == 0: // embedded
			for flag := range types.command(of.Name).flags {
				c.flags[flag] = true
			}
		case isCommand:
			c.commands[separated(field.Names[0].Name, "-")] = types.command(of.Name)
		case isArgument:
		case tags.Get("name") != "":
			c.flags[tags.Get("name")] = true
		default:
			c.flags[separated(field.Names[0].Name, "-")] = true
		}
	}
	return c
}

func tagsOf(field *ast.Field) reflect.StructTag {
	if field.Tag == nil {
		return ""
	}
	text, _ := strconv.Unquote(field.Tag.Value)
	return reflect.StructTag(text)
}

// separated writes MaxSession as max-session, and EICETunnel as eice-tunnel.
func separated(name, by string) string {
	acronym := regexp.MustCompile(`([A-Z]+)([A-Z][^A-Z])`)
	end := regexp.MustCompile(`([a-z0-9])([A-Z])`)
	name = acronym.ReplaceAllString(name, "${1}"+by+"${2}")
	return strings.ToLower(end.ReplaceAllString(name, "${1}"+by+"${2}"))
}
