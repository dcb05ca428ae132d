package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is a line of `go test -json` (go doc cmd/test2json) or `go build -json` (go help buildjson).
type event struct {
	Time        time.Time
	Action      string
	Package     string
	Test        string
	Elapsed     float64 // seconds
	Output      string
	ImportPath  string // of a build
	FailedBuild string // the ImportPath of the build that failed the package
}

// report turns events into output for a person.
type report struct {
	out     io.Writer
	now     func() time.Time
	verbose bool   // print the output of passed tests too
	saved   string // the folder for the whole output of failed packages; empty: not saved

	began, printed time.Time
	packages       map[string]*testedPackage
	builds         map[string]*strings.Builder // by ImportPath
	passed, failed int
	skipped        int
}

// testedPackage is a package whose tests run or have ended.
type testedPackage struct {
	name            string
	tests           map[string]*test
	running         map[string]*test // without tests that wait in t.Parallel
	output          strings.Builder  // of the package and its tests
	file            string           // with the output, once saved
	said            []string         // the package's own output, and a crash's
	crashed         bool             // the lines that follow are a panic's or a signal's
	cached          bool
	result          string // pass, fail or skip; empty while it runs
	elapsed         float64
	build           string // the ImportPath of the build that failed
	passed, skipped int
	failed          int
}

// test is a test or a subtest.
type test struct {
	name    string
	began   time.Time
	said    []string
	result  string
	elapsed float64
}

func newReport(out io.Writer, now func() time.Time) *report {
	return &report{
		out: out, now: now, began: now(), printed: now(),
		packages: map[string]*testedPackage{}, builds: map[string]*strings.Builder{},
	}
}

func (r *report) printf(format string, args ...any) {
	fmt.Fprintf(r.out, format, args...)
	r.printed = r.now()
}

// line takes a line that go printed. A line that is no event is go's own message, about a wrong argument say.
func (r *report) line(line []byte) {
	if bytes.HasPrefix(line, []byte("go: downloading ")) {
		return // progress reports building: a module's first test run would begin with a hundred of these lines
	}
	var e event
	if !bytes.HasPrefix(line, []byte("{")) || json.Unmarshal(line, &e) != nil {
		r.printf("%s", line)
		return
	}
	switch {
	case e.Action == "build-output":
		if r.builds[e.ImportPath] == nil {
			r.builds[e.ImportPath] = &strings.Builder{}
		}
		r.builds[e.ImportPath].WriteString(e.Output)
	case e.Package != "":
		p := r.packages[e.Package]
		if p == nil {
			p = &testedPackage{name: e.Package, tests: map[string]*test{}, running: map[string]*test{}}
			r.packages[e.Package] = p
		}
		p.event(e)
		if p.result != "" {
			r.packageEnded(p)
		}
	}
}

func (p *testedPackage) event(e event) {
	var t *test
	if e.Test != "" {
		if t = p.tests[e.Test]; t == nil {
			t = &test{name: e.Test, began: e.Time}
			p.tests[e.Test] = t
		}
	}
	switch e.Action {
	case "output":
		p.print(t, e.Output)
	case "run", "cont":
		if t != nil {
			t.began, p.running[t.name], p.crashed = e.Time, t, false
		}
	case "pause":
		delete(p.running, e.Test)
	case "pass", "fail", "skip":
		if t == nil {
			p.end(e)
			return
		}
		t.result, t.elapsed = e.Action, e.Elapsed
		delete(p.running, t.name)
		p.crashed = p.crashed && e.Action == "fail"
		switch e.Action {
		case "pass":
			p.passed++
		case "fail":
			p.failed++
		case "skip":
			p.skipped++
		}
	}
}

var (
	// frame matches the lines that only mark where a test's output begins and ends.
	frame = regexp.MustCompile(`^ *(=== [A-Z]+ |--- (PASS|FAIL|SKIP): )|^(PASS|FAIL)\n$|^(ok  |FAIL|\?   )\t`)
	// crash matches the first line of a crash, which test2json ascribes to the test that printed last.
	crash  = regexp.MustCompile(`^(panic: |fatal error: |SIGQUIT: |signal: |WARNING: DATA RACE|\*\*\* Test killed)`)
	isLog  = regexp.MustCompile(` level=(DEBUG|INFO|WARN|ERROR) `)
	source = regexp.MustCompile(`^ *[^ ]+\.go:\d+: `)
)

// print keeps a line that test t printed, or the package if t is nil.
func (p *testedPackage) print(t *test, line string) {
	p.output.WriteString(line)
	p.cached = p.cached || t == nil && strings.HasSuffix(line, "\t(cached)\n")
	p.crashed = (p.crashed || crash.MatchString(line)) && line != "FAIL\n"
	switch {
	case frame.MatchString(line):
	case t == nil || p.crashed:
		p.said = append(p.said, line)
	default:
		t.said = append(t.said, line)
	}
}

// end takes the result of the package. A test that was still running has failed: the process ended first.
func (p *testedPackage) end(e event) {
	p.result, p.elapsed, p.build = e.Action, e.Elapsed, e.FailedBuild
	if e.Action != "fail" {
		return
	}
	p.failed += len(p.running)
	if p.failed == 0 {
		p.failed = 1 // no test failed, but a build, or a leak was found at the end
		p.crashed = true
	}
}

// wholly reports whether the package failed as a whole: some of its tests may not have run.
func (p *testedPackage) wholly() bool { return p.crashed || len(p.running) > 0 }

// failures returns the failed tests in the order in which they began, without silent tests with a failed subtest.
func (p *testedPackage) failures() []*test {
	var failed []*test
	for _, t := range p.tests {
		if p.hasFailed(t) && (len(t.said) > 0 || !p.subtestFailed(t)) {
			failed = append(failed, t)
		}
	}
	slices.SortFunc(failed, func(a, b *test) int {
		return cmp.Or(a.began.Compare(b.began), cmp.Compare(a.name, b.name))
	})
	return failed
}

// hasFailed reports whether a test failed. The package has ended.
func (p *testedPackage) hasFailed(t *test) bool {
	return t.result == "fail" || p.running[t.name] != nil
}

func (p *testedPackage) subtestFailed(t *test) bool {
	for name, sub := range p.tests {
		if p.hasFailed(sub) && strings.HasPrefix(name, t.name+"/") {
			return true
		}
	}
	return false
}

// packageEnded prints the package's line, and below it the reasons of skipped tests and the output of failed tests.
func (r *report) packageEnded(p *testedPackage) {
	r.passed, r.failed, r.skipped = r.passed+p.passed, r.failed+p.failed, r.skipped+p.skipped
	what := map[string]string{"pass": "ok", "fail": "FAIL", "skip": "skipped"}[p.result]
	took := seconds(p.elapsed)
	if p.cached {
		took = "(cached)"
	}
	counts := []string{fmt.Sprintf("%d passed", p.passed)}
	switch {
	case p.build != "":
		counts = []string{"not built"}
	case p.result == "skip" && len(p.tests) == 0:
		counts, took = []string{"no test files"}, ""
	}
	if p.failed > 0 && p.build == "" {
		counts = append(counts, fmt.Sprintf("%d failed", p.failed))
	}
	if p.skipped > 0 {
		counts = append(counts, fmt.Sprintf("%d skipped", p.skipped))
	}
	r.printf("%-7s %-58s %8s  %s\n", what, p.name, took, strings.Join(counts, ", "))
	skipped := map[string][]string{} // names by their reason
	for _, name := range slices.Sorted(maps.Keys(p.tests)) {
		switch t := p.tests[name]; {
		case t.result == "skip":
			skipped[t.reason()] = append(skipped[t.reason()], name)
		case t.result == "pass" && r.verbose && len(t.said) > 0:
			r.printf("    %s\n%s", name, strings.Join(t.said, ""))
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(skipped)) {
		r.printf("    skipped, %s: %s\n", reason, strings.Join(skipped[reason], ", "))
	}
	if p.result == "fail" {
		r.save(p)
		r.printFailures(p, func(string) bool { return true })
		r.printf("\n")
	}
}

// reason returns the last text that a skipped test printed, without the place in the source.
func (t *test) reason() string {
	var words []string
	for _, line := range t.said {
		if at := source.FindString(line); at != "" {
			words, line = nil, strings.TrimPrefix(line, at)
		}
		words = append(words, strings.Fields(line)...)
	}
	return strings.Join(words, " ")
}

// printFailures prints the lines of the failed tests and of the package that wanted accepts.
func (r *report) printFailures(p *testedPackage, wanted func(line string) bool) {
	lines := func(said []string) {
		for _, line := range said {
			if wanted(line) {
				r.printf("%s", line)
			}
		}
	}
	for _, t := range p.failures() {
		took := "did not end"
		if t.result != "" {
			took = seconds(t.elapsed)
		}
		r.printf("--- FAIL: %s (%s)\n", t.name, took)
		lines(t.said)
	}
	lines(p.said)
	if build := r.builds[p.build]; p.build != "" && build != nil {
		r.printf("%s", build)
	}
	if p.file != "" {
		r.printf("everything that it printed: %s\n", p.file)
	}
}

// save writes a package's whole output to a file, over that of an earlier run.
func (r *report) save(p *testedPackage) {
	if r.saved == "" || p.output.Len() == 0 || p.build != "" {
		return
	}
	path := filepath.Join(r.saved, strings.ReplaceAll(p.name, "/", "-")+".txt")
	err := os.MkdirAll(r.saved, 0o750)
	if err == nil {
		err = os.WriteFile(path, []byte(p.output.String()), 0o600)
	}
	if err != nil {
		r.printf("gotest: saving the output: %v\n", err)
		return
	}
	p.file = path
}

// progress prints the packages that run, if nothing was printed for a while.
func (r *report) progress() {
	now := r.now()
	if now.Sub(r.printed) < quiet {
		return
	}
	var running []string
	for _, name := range slices.Sorted(maps.Keys(r.packages)) {
		if p := r.packages[name]; p.result == "" {
			running = append(running, p.state(now))
		}
	}
	if len(running) == 0 {
		running = []string{"building"}
	}
	r.printf("... %s: %s\n", clock(now.Sub(r.began)), strings.Join(running, "; "))
}

// state returns the number of ended tests and the longest running test, apart from tests that wait for subtests.
func (p *testedPackage) state(now time.Time) string {
	s := fmt.Sprintf("%s %d ended", p.name, p.passed+p.failed+p.skipped)
	var longest *test
	for name, t := range p.running {
		waits := false
		for other := range p.running {
			waits = waits || strings.HasPrefix(other, name+"/")
		}
		if !waits && (longest == nil || cmp.Or(t.began.Compare(longest.began), cmp.Compare(t.name, longest.name)) < 0) {
			longest = t
		}
	}
	if longest != nil {
		s += fmt.Sprintf(", %s runs for %s", longest.name, clock(now.Sub(longest.began)))
	}
	return s
}

// end prints the summary of a run, which go ended with status, and returns the exit status.
func (r *report) end(status int, again repeat) int {
	for _, name := range slices.Sorted(maps.Keys(r.packages)) {
		if p := r.packages[name]; p.result == "" {
			p.said = append(p.said, "the run ended before the package\n")
			p.event(event{Action: "fail"})
			p.crashed = true
			r.packageEnded(p)
		}
	}
	if status == 0 && r.passed+r.failed+r.skipped == 0 {
		r.printf("gotest: no test has run\n")
		status = 1
	}
	if status == 0 && r.failed > 0 {
		status = 1
	}
	if status != 0 && r.failed == 0 {
		r.failed = 1 // go itself
	}
	r.printSlow()
	var failed []*testedPackage
	for _, name := range slices.Sorted(maps.Keys(r.packages)) {
		if p := r.packages[name]; p.result == "fail" {
			failed = append(failed, p)
			r.printf("\nFAIL %s\n", name)
			r.printFailures(p, func(line string) bool { return !isLog.MatchString(line) })
		}
	}
	if commands := again.commands(failed); len(commands) > 0 {
		r.printf("\nWhat failed, again:\n")
		for _, command := range commands {
			r.printf("    %s\n", command)
		}
	}
	r.printf("\ngo: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return status
}

// slow is a test or a package that took a second or more.
type slow struct {
	elapsed float64
	name    string
}

// printSlow lists the slowest tests and packages. A test's time is its own, without its subtests'.
func (r *report) printSlow() {
	var tests, packages []slow
	for _, p := range r.packages {
		if p.cached {
			continue
		}
		packages = append(packages, slow{p.elapsed, p.name})
		own := map[string]float64{}
		for name, t := range p.tests {
			own[name] += t.elapsed
			if i := strings.LastIndexByte(name, '/'); i > 0 {
				own[name[:i]] -= t.elapsed
			}
		}
		for name, elapsed := range own {
			tests = append(tests, slow{elapsed, p.name + " " + name})
		}
	}
	r.printSlowest("tests", tests, 10)
	r.printSlowest("packages", packages, 5)
}

func (r *report) printSlowest(what string, all []slow, most int) {
	all = slices.DeleteFunc(all, func(s slow) bool { return s.elapsed < 1 })
	slices.SortFunc(all, func(a, b slow) int {
		return cmp.Or(cmp.Compare(b.elapsed, a.elapsed), cmp.Compare(a.name, b.name))
	})
	if len(all) == 0 {
		return
	}
	r.printf("\nThe slowest %s:\n", what)
	for _, s := range all[:min(most, len(all))] {
		r.printf("%10s  %s\n", seconds(s.elapsed), s.name)
	}
}

func seconds(s float64) string { return fmt.Sprintf("%.1f s", s) }

// clock formats a duration as m:ss.
func clock(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
