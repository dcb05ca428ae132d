package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// checks find what a page says and the source does not.
var checks = []check{
	{"links", brokenLinks},
	{"paths", missingPaths},
	{"variables", unknownNames(regexp.MustCompile(`\bTERMGW_[A-Z0-9_]*[A-Z0-9]`), 0, func(s *source) map[string]bool { return s.variables })},
	{"metrics", unknownNames(regexp.MustCompile(`\btermgw_[a-z0-9_]*[a-z0-9]`), 0, func(s *source) map[string]bool { return s.series })},
	{"schema", unknownNames(regexp.MustCompile(`\btermgw\.([a-z_0-9]+)`), 1, func(s *source) map[string]bool { return s.schema })},
	{"commands", unknownCommands},
	{"make", unknownTargets},
	{"tests", missingTests},
	{"codes", wrongCodes},
	{"snippets", changedSnippets},
	{"log lines", unknownLogLines},
}

type check struct {
	name   string
	faults func(p *page, all map[string]*page, s *source) []string
}

func checkNamed(name string) check {
	return checks[slices.IndexFunc(checks, func(c check) bool { return c.name == name })]
}

var link = regexp.MustCompile(`\]\(([^()\s]+)\)`)

func brokenLinks(p *page, all map[string]*page, _ *source) (faults []string) {
	for _, m := range link.FindAllStringSubmatch(p.prose, -1) {
		if strings.HasPrefix(m[1], "https://") {
			continue
		}
		file, anchor, _ := strings.Cut(m[1], "#")
		target := p.path
		if file != "" {
			target = filepath.Join(filepath.Dir(p.path), file)
		}
		if _, err := os.Stat(filepath.Join("..", target)); err != nil && all[target] == nil {
			faults = append(faults, fmt.Sprintf("%s leads nowhere", m[1]))
		} else if anchor != "" && (all[target] == nil || !all[target].anchors[anchor]) {
			faults = append(faults, fmt.Sprintf("%s: %s has no such heading", m[1], target))
		}
	}
	return faults
}

var ownPath = regexp.MustCompile(`^(cmd|pkg|internal|web|docs|bench|scripts|deploy|tools)/[\w./*-]+$`)

// missingPaths looks for what is written as a path from the repository's root; build results are not there yet.
func missingPaths(p *page, _ map[string]*page, _ *source) (faults []string) {
	for _, path := range p.spans {
		if !ownPath.MatchString(path) || strings.HasPrefix(path, "bench/out") || strings.HasPrefix(path, "web/dist") {
			continue
		}
		if found, err := filepath.Glob(filepath.Join("..", path)); err != nil || len(found) == 0 {
			faults = append(faults, fmt.Sprintf("there is no %s", path))
		}
	}
	return faults
}

// unknownNames looks for words of one form that are none of the source's.
func unknownNames(form *regexp.Regexp, group int, known func(*source) map[string]bool) func(*page, map[string]*page, *source) []string {
	return func(p *page, _ map[string]*page, s *source) (faults []string) {
		for _, m := range form.FindAllStringSubmatch(p.text, -1) {
			if !known(s)[m[group]] {
				faults = append(faults, fmt.Sprintf("there is no %s", m[0]))
			}
		}
		return faults
	}
}

// invocation is termgw where a command stands, before other words.
var invocation = regexp.MustCompile(`(?:^\s*|[(|;&]\s*|=\S*\s+|\)\s+|bin/)termgw +([^\n]*)`)

func unknownCommands(p *page, _ map[string]*page, s *source) (faults []string) {
	lines := slices.Clone(p.spans)
	for _, b := range p.blocks {
		if b.indented || b.language == "sh" {
			for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
				line, _, _ = strings.Cut(line, " #")
				lines = append(lines, line)
			}
		}
	}
	for _, line := range lines {
		for m := invocation.FindStringSubmatch(line); m != nil; m = invocation.FindStringSubmatch(" " + m[1]) {
			if !strings.HasPrefix(m[1], "/") { // where the program is copied to
				faults = append(faults, s.commands.faults(m[1])...)
			}
		}
	}
	return faults
}

// faults follows words as far as they are subcommands, and looks at the flags up to the command's end.
func (c *command) faults(words string) (faults []string) {
	for word := range strings.FieldsSeq(words) {
		ends := strings.ContainsAny(word, ";|&<>)")
		word = strings.Trim(word, `;|&<>)"',.`)
		flag, isFlag := strings.CutPrefix(word, "--")
		flag, _, _ = strings.Cut(flag, "=")
		switch {
		case isFlag && !c.flags[flag]:
			faults = append(faults, fmt.Sprintf("there is no flag --%s in %q", flag, words))
		case isFlag, word == "", word == "…":
		case c.commands[word] != nil:
			c = c.commands[word]
		case len(c.commands) > 0:
			return append(faults, fmt.Sprintf("there is no command %q in %q", word, "termgw "+words))
		}
		if ends {
			break
		}
	}
	return faults
}

var making = regexp.MustCompile(`^make ([a-z-]+)`)

func unknownTargets(p *page, _ map[string]*page, s *source) (faults []string) {
	lines := slices.Clone(p.spans)
	for _, b := range p.blocks {
		for line := range strings.Lines(b.text) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	for _, line := range lines {
		if m := making.FindStringSubmatch(line); m != nil && !s.targets[m[1]] {
			faults = append(faults, fmt.Sprintf("there is no make %s", m[1]))
		}
	}
	return faults
}

var running = regexp.MustCompile(`-run '?(Test\w+)'? \./([\w/]+)`)

// missingTests looks for the tests that a page runs, by name and package.
func missingTests(p *page, _ map[string]*page, _ *source) (faults []string) {
	for _, m := range running.FindAllStringSubmatch(p.text, -1) {
		files, _ := filepath.Glob(filepath.Join("..", m[2], "*_test.go"))
		if !slices.ContainsFunc(files, func(name string) bool {
			text, err := os.ReadFile(name)
			return err == nil && strings.Contains(string(text), "\nfunc "+m[1]+"(t ")
		}) {
			faults = append(faults, fmt.Sprintf("there is no test %s in %s", m[1], m[2]))
		}
	}
	return faults
}

var (
	closeCode = regexp.MustCompile(`(?:^|[^\d,.])(4[45]\d\d|1000|1009|1012|1013)\b`)
	codePair  = regexp.MustCompile("`(\\w+)` \\((\\d{4})\\)|\\b(\\d{4}) \\(`(\\w+)`\\)")
)

// wrongCodes compares close codes, pairs of a code and its close code, and rows of tables that have both. What is
// measured has numbers of its own.
func wrongCodes(p *page, _ map[string]*page, s *source) (faults []string) {
	if p.path == "docs/performance.md" {
		return nil
	}
	known := map[string]bool{}
	for _, o := range s.outcomes {
		known[strconv.Itoa(o.close)] = true
	}
	for _, m := range closeCode.FindAllStringSubmatch(p.text, -1) {
		if !known[m[1]] {
			faults = append(faults, fmt.Sprintf("%s is no close code", m[1]))
		}
	}
	for _, m := range codePair.FindAllStringSubmatch(strings.ReplaceAll(p.text, "\n", " "), -1) {
		code, number := m[1]+m[4], m[2]+m[3]
		if o, ok := s.outcomes[code]; ok && strconv.Itoa(o.close) != number {
			faults = append(faults, fmt.Sprintf("%s closes with %d, not %s", code, o.close, number))
		}
	}
	for _, row := range p.rows {
		var told, right []string
		for _, m := range closeCode.FindAllStringSubmatch(row, -1) {
			told = append(told, m[1])
		}
		for _, m := range span.FindAllStringSubmatch(row, -1) {
			if o := s.outcomes[m[1]]; o.close != 0 {
				right = append(right, strconv.Itoa(o.close))
			}
		}
		if len(told) > 0 && len(right) > 0 && !slices.Equal(set(told), set(right)) {
			faults = append(faults, fmt.Sprintf("the close codes are %s in %q", strings.Join(set(right), ", "), row))
		}
	}
	return faults
}

func set(words []string) []string { return slices.Compact(slices.Sorted(slices.Values(words))) }

// changedSnippets compares a block that names a file with that file, of which it may be a part.
func changedSnippets(p *page, _ map[string]*page, _ *source) (faults []string) {
	for _, b := range p.blocks {
		if b.file == "" {
			continue
		}
		text, err := os.ReadFile(filepath.Join("..", filepath.Dir(p.path), b.file))
		if err != nil || !strings.Contains("\n"+string(text), "\n"+b.text) || strings.TrimSpace(b.text) == "" {
			faults = append(faults, fmt.Sprintf("the code is not that of %s", b.file))
		}
	}
	return faults
}

var selected = regexp.MustCompile(`\.msg == "([^"]+)"`)

// unknownLogLines looks at the table below the heading Log lines, and at what queries select.
func unknownLogLines(p *page, _ map[string]*page, s *source) (faults []string) {
	lines := names(p.table("## Log lines"))
	for _, m := range selected.FindAllStringSubmatch(p.text, -1) {
		lines = append(lines, m[1])
	}
	for _, line := range lines {
		if !s.strings[line] {
			faults = append(faults, fmt.Sprintf("nothing logs %q", line))
		}
	}
	return faults
}
