package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The recorded events are those of `go test -json`, without their times and with shorter paths.
const (
	failed = `
{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestPass"}
{"Action":"output","Package":"m/a","Test":"TestPass","Output":"=== RUN   TestPass\n"}
{"Action":"output","Package":"m/a","Test":"TestPass","Output":"    a_test.go:3: hello\n"}
{"Action":"output","Package":"m/a","Test":"TestPass","Output":"--- PASS: TestPass (3.00s)\n"}
{"Action":"pass","Package":"m/a","Test":"TestPass","Elapsed":3}
{"Action":"run","Package":"m/a","Test":"TestFail"}
{"Action":"output","Package":"m/a","Test":"TestFail","Output":"=== RUN   TestFail\n"}
{"Action":"output","Package":"m/a","Test":"TestFail","Output":"time=1 level=INFO msg=x\n"}
{"Action":"output","Package":"m/a","Test":"TestFail","Output":"    a_test.go:4: got 1\n"}
{"Action":"output","Package":"m/a","Test":"TestFail","Output":"        want 2\n"}
{"Action":"output","Package":"m/a","Test":"TestFail","Output":"--- FAIL: TestFail (0.00s)\n"}
{"Action":"fail","Package":"m/a","Test":"TestFail","Elapsed":0}
{"Action":"run","Package":"m/a","Test":"TestSkip"}
{"Action":"output","Package":"m/a","Test":"TestSkip","Output":"    a_test.go:6: needs an engine:\n"}
{"Action":"output","Package":"m/a","Test":"TestSkip","Output":"        run as root\n"}
{"Action":"output","Package":"m/a","Test":"TestSkip","Output":"--- SKIP: TestSkip (0.00s)\n"}
{"Action":"skip","Package":"m/a","Test":"TestSkip","Elapsed":0}
{"Action":"output","Package":"m/a","Output":"FAIL\n"}
{"Action":"output","Package":"m/a","Output":"FAIL\tm/a\t3.057s\n"}
{"Action":"fail","Package":"m/a","Elapsed":3.058}
`
	failedSubtests = `
{"Action":"run","Package":"m/a","Test":"TestSub"}
{"Action":"run","Package":"m/a","Test":"TestSub/it's_x"}
{"Action":"output","Package":"m/a","Test":"TestSub/it's_x","Output":"=== PAUSE TestSub/it's_x\n"}
{"Action":"pause","Package":"m/a","Test":"TestSub/it's_x"}
{"Action":"run","Package":"m/a","Test":"TestSub/y"}
{"Action":"pass","Package":"m/a","Test":"TestSub/y","Elapsed":0.05}
{"Action":"cont","Package":"m/a","Test":"TestSub/it's_x"}
{"Action":"output","Package":"m/a","Test":"TestSub/it's_x","Output":"    a_test.go:5: x is bad\n"}
{"Action":"output","Package":"m/a","Test":"TestSub/it's_x","Output":"    --- FAIL: TestSub/it's_x (0.00s)\n"}
{"Action":"fail","Package":"m/a","Test":"TestSub/it's_x","Elapsed":0}
{"Action":"output","Package":"m/a","Test":"TestSub","Output":"--- FAIL: TestSub (0.00s)\n"}
{"Action":"fail","Package":"m/a","Test":"TestSub","Elapsed":0}
{"Action":"output","Package":"m/a","Output":"FAIL\n"}
{"Action":"fail","Package":"m/a","Elapsed":0.1}
`
	panicked = `
{"Action":"run","Package":"m/b","Test":"TestPanic"}
{"Action":"output","Package":"m/b","Test":"TestPanic","Output":"--- FAIL: TestPanic (0.00s)\n"}
{"Action":"output","Package":"m/b","Test":"TestPanic","Output":"panic: assignment to entry in nil map [recovered, repanicked]\n"}
{"Action":"output","Package":"m/b","Test":"TestPanic","Output":"goroutine 8 [running]:\n"}
{"Action":"fail","Package":"m/b","Test":"TestPanic","Elapsed":0}
{"Action":"output","Package":"m/b","Output":"FAIL\tm/b\t0.004s\n"}
{"Action":"fail","Package":"m/b","Elapsed":0.004}
`
	// The output of a crash is that of the test that printed last.
	timedOut = `
{"Action":"run","Package":"m/d","Test":"TestHang"}
{"Action":"run","Package":"m/d","Test":"TestFast"}
{"Action":"pass","Package":"m/d","Test":"TestFast","Elapsed":0}
{"Action":"output","Package":"m/d","Test":"TestFast","Output":"panic: test timed out after 2s\n"}
{"Action":"output","Package":"m/d","Test":"TestFast","Output":"\trunning tests:\n"}
{"Action":"output","Package":"m/d","Test":"TestFast","Output":"\t\tTestHang (2s)\n"}
{"Action":"output","Package":"m/d","Output":"FAIL\tm/d\t2.006s\n"}
{"Action":"fail","Package":"m/d","Elapsed":2.006}
`
	notBuilt = `
{"ImportPath":"m/c [m/c.test]","Action":"build-output","Output":"# m/c [m/c.test]\n"}
{"ImportPath":"m/c [m/c.test]","Action":"build-output","Output":"c/c_test.go:3:27: undefined: undefined\n"}
{"ImportPath":"m/c [m/c.test]","Action":"build-fail"}
{"Action":"start","Package":"m/c"}
{"Action":"output","Package":"m/c","Output":"FAIL\tm/c [build failed]\n"}
{"Action":"fail","Package":"m/c","Elapsed":0,"FailedBuild":"m/c [m/c.test]"}
`
	leaked = `
{"Action":"run","Package":"m/e","Test":"TestFine"}
{"Action":"pass","Package":"m/e","Test":"TestFine","Elapsed":0}
{"Action":"output","Package":"m/e","Output":"PASS\n"}
{"Action":"output","Package":"m/e","Output":"testenv: found unexpected goroutines:\n"}
{"Action":"output","Package":"m/e","Output":"FAIL\tm/e\t0.003s\n"}
{"Action":"fail","Package":"m/e","Elapsed":0.003}
`
	cached = `
{"Action":"run","Package":"m/f","Test":"TestOK"}
{"Action":"pass","Package":"m/f","Test":"TestOK","Elapsed":5}
{"Action":"output","Package":"m/f","Output":"PASS\n"}
{"Action":"output","Package":"m/f","Output":"ok  \tm/f\t(cached)\n"}
{"Action":"pass","Package":"m/f","Elapsed":0}
`
	noTests = `
{"Action":"output","Package":"m/g","Output":"?   \tm/g\t[no test files]\n"}
{"Action":"skip","Package":"m/g","Elapsed":0}
`
	running = `
{"Time":"2026-11-29T23:00:10Z","Action":"start","Package":"m/h"}
{"Time":"2026-11-29T23:00:10Z","Action":"run","Package":"m/h","Test":"TestDone"}
{"Time":"2026-11-29T23:00:11Z","Action":"pass","Package":"m/h","Test":"TestDone","Elapsed":1}
{"Time":"2026-11-29T23:00:11Z","Action":"run","Package":"m/h","Test":"TestLong"}
{"Time":"2026-11-29T23:00:12Z","Action":"run","Package":"m/h","Test":"TestLong/sub"}
{"Time":"2026-11-29T23:00:15Z","Action":"run","Package":"m/h","Test":"TestShort"}
{"Time":"2026-11-29T23:00:20Z","Action":"start","Package":"m/i"}
`
)

// told is what a run of these events prints, and how it exits when go has exited with this status.
func told(t *testing.T, events string, status int, args ...string) (out string, exit int) {
	t.Helper()
	var b strings.Builder
	r := newReport(&b, time.Now)
	r.verbose = hasFlag(args, "v")
	r.play(events)
	exit = r.end(status, repeat{
		args: args, goCommand: "go", root: "/r", required: true, dir: "/r/bench", module: "m", moduleDir: "/r/bench",
	})
	return b.String(), exit
}

func (r *report) play(events string) {
	for line := range strings.Lines(events) {
		if line != "\n" {
			r.line([]byte(line))
		}
	}
}

func TestReport(t *testing.T) {
	const again = "    cd bench && TERMGW_TEST_REQUIRE=1 go test -race"
	for _, c := range []struct {
		name, events string
		status, exit int
		want         []string
		last         string
	}{
		{"failed test", failed, 1, 1, []string{
			"FAIL    m/a 3.1 s  1 passed, 1 failed, 1 skipped\n    skipped, needs an engine: run as root: TestSkip\n" +
				"--- FAIL: TestFail (0.0 s)\ntime=1 level=INFO msg=x\n    a_test.go:4: got 1\n        want 2\n\n",
			"The slowest tests:\n     3.0 s  m/a TestPass\n",
			"\nFAIL m/a\n--- FAIL: TestFail (0.0 s)\n    a_test.go:4: got 1\n        want 2\n\n",
			again + " -run '^TestFail$' ./a\n",
		}, "go: 1 passed, 1 failed, 1 skipped"},
		{"failed subtest", failedSubtests, 1, 1, []string{
			"\nFAIL m/a\n--- FAIL: TestSub/it's_x (0.0 s)\n    a_test.go:5: x is bad\n\n",
			again + ` -run '^TestSub$/^it'\''s_x$' ./a` + "\n",
		}, "go: 1 passed, 2 failed, 0 skipped"},
		{"panic", panicked, 1, 1, []string{
			"\nFAIL m/b\n--- FAIL: TestPanic (0.0 s)\npanic: assignment to entry in nil map [recovered, repanicked]\ngoroutine 8 [running]:\n\n",
			again + " ./b\n",
		}, "go: 0 passed, 1 failed, 0 skipped"},
		{"timeout", timedOut, 1, 1, []string{
			"\nFAIL m/d\n--- FAIL: TestHang (did not end)\npanic: test timed out after 2s\n\trunning tests:\n\t\tTestHang (2s)\n\n",
			"The slowest packages:\n     2.0 s  m/d\n",
			again + " ./d\n",
		}, "go: 1 passed, 1 failed, 0 skipped"},
		{"failed build", notBuilt + leaked, 1, 1, []string{
			"FAIL    m/c 0.0 s  not built\n# m/c [m/c.test]\nc/c_test.go:3:27: undefined: undefined\n",
			"\nFAIL m/c\n# m/c [m/c.test]\nc/c_test.go:3:27: undefined: undefined\n\n",
			"\nFAIL m/e\ntestenv: found unexpected goroutines:\n\n",
			again + " ./c ./e\n",
		}, "go: 1 passed, 2 failed, 0 skipped"},
		{"cached", cached + noTests, 0, 0, []string{
			"ok      m/f (cached)  1 passed\nskipped m/g no test files\n\ngo: ",
		}, "go: 1 passed, 0 failed, 0 skipped"},
		{"interrupted", cached + running, 130, 130, []string{
			"FAIL    m/h 0.0 s  1 passed, 3 failed\n--- FAIL: TestLong/sub (did not end)\n",
			"the run ended before the package\n",
			again + " ./h ./i\n",
		}, "go: 2 passed, 4 failed, 0 skipped"},
		{"killed without a package", "go: downloading m v1\ngo: killed\n", 137, 137, []string{"go: killed\n"}, "go: 0 passed, 1 failed, 0 skipped"},
		{"nothing to test", noTests, 0, 1, []string{"no test has run\n"}, "go: 0 passed, 1 failed, 0 skipped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, exit := told(t, c.events, c.status, "-race", "-run=.", "./...")
			if exit != c.exit {
				t.Errorf("exit status %d, want %d", exit, c.exit)
			}
			narrow := regexp.MustCompile(` {30,}`).ReplaceAllString(out, " ")
			for _, want := range c.want {
				if !strings.Contains(narrow, want) {
					t.Errorf("no\n%s", want)
				}
			}
			if strings.Contains(out, "downloading") {
				t.Error("a download is printed")
			}
			if !strings.HasSuffix(out, "\n"+c.last+"\n") {
				t.Errorf("the last line is not %q", c.last)
			}
			if t.Failed() {
				t.Logf("printed:\n%s", out)
			}
		})
	}
}

func TestVerbose(t *testing.T) {
	const want = "    TestPass\n    a_test.go:3: hello\n"
	if out, _ := told(t, failed, 1, "-v"); !strings.Contains(out, want) {
		t.Errorf("with -v, no\n%s\nin\n%s", want, out)
	}
	if out, _ := told(t, failed, 1); strings.Contains(out, "hello") {
		t.Errorf("without -v, a passed test's output is printed:\n%s", out)
	}
}

func TestProgress(t *testing.T) {
	now := time.Date(2026, 11, 29, 23, 0, 10, 0, time.UTC)
	var b strings.Builder
	r := newReport(&b, func() time.Time { return now })
	now = now.Add(quiet - 1)
	r.progress()
	if b.Len() > 0 {
		t.Errorf("printed before its time: %s", &b)
	}
	now = now.Add(1)
	r.progress()
	r.progress() // it was quiet until now
	r.play(running)
	now = now.Add(time.Minute)
	r.progress()
	const want = "... 0:15: building\n... 1:15: m/h 1 ended, TestLong/sub runs for 1:13; m/i 0 ended\n"
	if b.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", &b, want)
	}
}

func TestSavedOutput(t *testing.T) {
	var b strings.Builder
	r := newReport(&b, time.Now)
	r.saved = filepath.Join(t.TempDir(), "output")
	r.play(failed)
	path := filepath.Join(r.saved, "m-a.txt")
	if !strings.Contains(b.String(), path) {
		t.Errorf("%s is not named in\n%s", path, &b)
	}
	if saved, err := os.ReadFile(path); err != nil || !strings.Contains(string(saved), "a_test.go:3: hello\n") {
		t.Errorf("saved: %v\n%s", err, saved)
	}
}

func TestSelection(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{"TestA", "TestB"}, `^(TestA|TestB)$`},
		{[]string{"TestA/x", "TestB", "TestA/y.z/#01"}, `^TestA$/^x$|^TestB$|^TestA$/^y\.z$/^#01$`},
		{[]string{"TestA/x", "TestA/y"}, `^TestA$/^(x|y)$`},
		{[]string{"TestA", "TestA/x"}, `^TestA$`},
	} {
		var tests []*test
		for _, name := range c.names {
			tests = append(tests, &test{name: name})
		}
		if got := selection(tests); got != c.want {
			t.Errorf("%q are selected by %s, want %s", c.names, got, c.want)
		}
	}
}

func TestFlags(t *testing.T) {
	got := fmt.Sprint(flags([]string{"-race", "--timeout", "40m", "-run", "X", "-tags=image", "./...", "-count", "1", "./pkg"}))
	if want := "[-race --timeout 40m -tags=image -count 1]"; got != want {
		t.Errorf("flags: %s, want %s", got, want)
	}
}
