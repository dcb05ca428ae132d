package main

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// repeat makes the commands that run failed tests again, for a shell at the root of the repository.
type repeat struct {
	args      []string // of the run
	goCommand string
	root      string
	required  bool // TERMGW_TEST_REQUIRE is 1

	dir, module, moduleDir string // of the run; empty: locate asks go
}

// commands returns one command for all packages that failed as a whole, and one for each other failed package.
func (c repeat) commands(failed []*testedPackage) []string {
	if len(failed) == 0 {
		return nil
	}
	if c.moduleDir == "" {
		c.locate()
	}
	var commands, whole []string
	for _, p := range failed {
		if p.wholly() {
			whole = append(whole, c.path(p.name))
		} else {
			commands = append(commands, c.command("-run", selection(p.failures()), c.path(p.name)))
		}
	}
	if len(whole) > 0 {
		commands = append(commands, c.command(whole...))
	}
	return commands
}

// locate asks go for the module. Without an answer the commands name packages by import path, which works as well.
func (c *repeat) locate() {
	c.dir, _ = filepath.Abs(".")
	out, err := exec.Command(c.goCommand, "list", "-m", "-f", "{{.Path}}\n{{.Dir}}").Output()
	if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); err == nil && len(lines) == 2 {
		c.module, c.moduleDir = lines[0], lines[1]
	}
}

// path returns a package's path, relative to the run's directory.
func (c repeat) path(name string) string {
	below, ok := strings.CutPrefix(name+"/", c.module+"/")
	if c.module == "" || !ok {
		return name
	}
	path, err := filepath.Rel(c.dir, filepath.Join(c.moduleDir, below))
	switch {
	case err != nil:
		return name
	case path == "." || strings.HasPrefix(path, ".."):
		return path
	}
	return "./" + path
}

func (c repeat) command(args ...string) string {
	words := []string{c.goCommand, "test"}
	for _, arg := range slices.Concat(flags(c.args), args) {
		words = append(words, quote(arg))
	}
	if c.required {
		words = slices.Insert(words, 0, "TERMGW_TEST_REQUIRE=1")
	}
	if dir, err := filepath.Rel(c.root, c.dir); err == nil && dir != "." {
		words = slices.Insert(words, 0, "cd", quote(dir), "&&")
	}
	return strings.Join(words, " ")
}

// alone lists the flags of go test that take no value in the next argument.
var alone = []string{
	"a", "artifacts", "asan", "benchmem", "c", "cover", "failfast", "fullpath", "linkshared", "modcacherw", "msan", "n", "race", "short",
	"trimpath", "v", "work", "x",
}

// flags returns the flags among the arguments of `go test`, except -run and -skip.
func flags(args []string) []string {
	var found []string
	for i := 0; i < len(args); i++ {
		name, isFlag := strings.CutPrefix(args[i], "-")
		if !isFlag {
			continue
		}
		name, _, joined := strings.Cut(strings.TrimPrefix(name, "-"), "=")
		words := args[i : i+1]
		if !joined && !slices.Contains(alone, name) && i+1 < len(args) {
			words = args[i : i+2]
			i++
		}
		if name != "run" && name != "skip" {
			found = append(found, words...)
		}
	}
	return found
}

func hasFlag(args []string, name string) bool { return slices.Contains(flags(args), "-"+name) }

// selection returns the value of -run that selects these tests and no others. Its alternatives are separated by bars,
// and the elements of a subtest's name by slashes; both stand outside brackets.
func selection(tests []*test) string {
	names := map[string][]string{} // the last elements of names, by the elements before
	var parents []string
	for _, t := range tests {
		// A test runs its subtests: they need not be named.
		if slices.ContainsFunc(tests, func(other *test) bool { return strings.HasPrefix(t.name, other.name+"/") }) {
			continue
		}
		i := strings.LastIndexByte(t.name, '/') + 1
		parent, name := t.name[:i], t.name[i:]
		if names[parent] == nil {
			parents = append(parents, parent)
		}
		names[parent] = append(names[parent], regexp.QuoteMeta(name))
	}
	var alternatives []string
	for _, parent := range parents {
		var pattern strings.Builder
		for _, element := range strings.Split(strings.TrimSuffix(parent, "/"), "/") {
			if element != "" {
				pattern.WriteString("^" + regexp.QuoteMeta(element) + "$/")
			}
		}
		last := strings.Join(names[parent], "|")
		if len(names[parent]) > 1 {
			last = "(" + last + ")"
		}
		alternatives = append(alternatives, pattern.String()+"^"+last+"$")
	}
	return strings.Join(alternatives, "|")
}

var plain = regexp.MustCompile(`^[A-Za-z0-9_./:=,@%+-]+$`)

// quote returns an argument as one word of a shell.
func quote(arg string) string {
	if plain.MatchString(arg) {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}
