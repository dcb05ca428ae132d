package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// played is a runner whose phases are functions of this shell script; the path of one of the test's folders is its
// variable dir.
func played(t *testing.T, table, script string) (*runner, *strings.Builder) {
	t.Helper()
	phases, err := parse(table)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	return &runner{
		title: "check", last: "tests", phases: phases, most: 3, logs: t.TempDir(), out: &out,
		command: []string{"sh", "-c", script + "\n\"$1\"", "sh"}, again: "make ",
		env:   append(os.Environ(), "dir="+t.TempDir()),
		every: time.Hour, grace: time.Minute,
	}, &out
}

func wantInOrder(t *testing.T, out string, want ...string) {
	t.Helper()
	rest := out
	for _, w := range want {
		_, after, found := strings.Cut(rest, w)
		if !found {
			t.Fatalf("no %q, or before what is before it, in\n%s", w, out)
		}
		rest = after
	}
}

func TestAllWell(t *testing.T) {
	r, out := played(t, "web:\nbuild: web\ntests:\nlint: web", `
		web() { touch $dir/web; }
		build() { ls $dir/web; }
		tests() { echo "go: 1 passed, 0 failed, 0 skipped"; }
		lint() { ls $dir/web; }`)
	if status := r.run(nil); status != 0 {
		t.Errorf("exit status %d", status)
	}
	wantInOrder(t, out.String(), "--- web starts", "--- build starts", "\n==> check: 0:0", "0:00  web", "0:00  build", "\n==> tests\n")
	if !strings.HasSuffix(out.String(), "\ngo: 1 passed, 0 failed, 0 skipped\n") {
		t.Errorf("the last phase is not the last of\n%s", out)
	}
}

func TestFailedPhase(t *testing.T) {
	r, out := played(t, "web:\nbuild: web\nimage: build\nother:\ntests: other", `
		web() { echo all went; echo wrong; return 3; }
		other() { echo did other; }
		tests() { echo did tests; }`)
	if status := r.run(nil); status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantInOrder(t, out.String(),
		"--- build is not run: it needs web\n", "--- image is not run: it needs build\n",
		"0:00  web: FAILED (exit status 3)\n", "         build: not run\n", "0:00  other\n", "0:00  tests\n",
		"\n==> tests\ndid tests\n", "\n==> web failed", "\nall went\nwrong\nagain: make web\n")
}

// TestAtTheSameTime has phases that end only when the other one runs, and a third that must wait.
func TestAtTheSameTime(t *testing.T) {
	meet := `meet() { touch $dir/$1; until [ -e $dir/$2 ]; do sleep 0.01; done; touch $dir/met; }
		a() { meet a b; }
		b() { meet b a; }
		c() { ls $dir/met; }`
	r, out := played(t, "a:\nb:\nc:", meet)
	r.most = 2
	if status := r.run(nil); status != 0 {
		t.Errorf("exit status %d\n%s", status, out)
	}
	wantInOrder(t, out.String(), "--- a starts\n--- b starts\n", "ok after", "--- c starts")
}

func TestInterrupt(t *testing.T) {
	for _, c := range []struct {
		name, phase string
		grace       time.Duration
		said        string
	}{
		{"a child of the phase ends it", "sleep 600 & echo runs; wait", time.Minute, "FAILED (signal: interrupt)"},
		{"a phase that does not listen", "trap '' INT; echo runs; while :; do sleep 1; done", 10 * time.Millisecond, "FAILED (signal: killed)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, out := played(t, "web:\nbuild: web", "web() { "+c.phase+"; }")
			r.grace = c.grace
			signals := make(chan os.Signal, 1)
			go func() {
				for log := r.logs + "/web.txt"; ; time.Sleep(time.Millisecond) {
					if said, err := os.ReadFile(log); err == nil && len(said) > 0 {
						signals <- syscall.SIGINT
						return
					}
				}
			}()
			if status := r.run(signals); status != 130 {
				t.Errorf("exit status %d\n%s", status, out)
			}
			wantInOrder(t, out.String(), "check: interrupt: what runs is ended", c.said, "web: FAILED", "build: not run")
		})
	}
}

func TestProgress(t *testing.T) {
	r, out := played(t, "tests:", `tests() { echo one; echo "two of 3"; sleep 1; }`)
	r.every = 100 * time.Millisecond
	r.run(nil)
	wantInOrder(t, out.String(), "... 0:00: tests for 0:00\n", "    tests: two of 3\n")
}

func TestTable(t *testing.T) {
	for _, table := range []string{"", "\n", "web", "web:\nweb:", "build: web\nweb:", ": web"} {
		if _, err := parse(table); err == nil {
			t.Errorf("no error of the table %q", table)
		}
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		lines int
		want  string
	}{{1, "c\n"}, {2, "b\nc\n"}, {9, "a\nb\nc\n"}} {
		if got := tail([]byte("a\nb\nc\n"), c.lines); string(got) != c.want {
			t.Errorf("the last %d lines are %q", c.lines, got)
		}
	}
}
