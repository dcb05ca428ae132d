package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// end is a row of the table in codes.ts.
type end struct {
	close int
	retry string
}

// own reports whether the end is one that only the client sees: 1006 is in no close frame (RFC 6455, 7.4.1).
func (e end) own() bool { return e.close == 0 || e.close == 1006 }

// readClient reads the table in codes.ts, every row of which begins with its close code and whether to retry.
func readClient(t *testing.T) map[string]end {
	t.Helper()
	text, err := os.ReadFile("../web/client/codes.ts")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\nconst table = {\n")
	table, _, _ = strings.Cut(table, "\n} as const")
	ends := map[string]end{}
	for _, m := range regexp.MustCompile(`(\w+): \{\s*close: (\d+),\s*retry: "(\w+)"`).FindAllStringSubmatch(table, -1) {
		n, _ := strconv.Atoi(m[2])
		ends[m[1]] = end{n, m[3]}
	}
	if rows := strings.Count(table, "title:"); len(ends) == 0 || len(ends) != rows {
		t.Fatalf("web/client/codes.ts is not read as it is written: %d rows, %d of them understood", rows, len(ends))
	}
	return ends
}

// TestClientKnowsEveryEnd compares the client's table with the gateway's, in both directions.
func TestClientKnowsEveryEnd(t *testing.T) {
	outcomes, client := readSource(t).outcomes, readClient(t)
	for code, o := range outcomes {
		known, ok := client[code]
		switch {
		case o.close == 0: // no client is told
		case !ok:
			t.Errorf("the gateway closes with %d %s (pkg/router/errors.go): give it a row in web/client/codes.ts, and one in web/test/codes.test.ts", o.close, code)
		case known.close != o.close:
			t.Errorf("%s closes with %d at the gateway (pkg/router/errors.go), with %d in web/client/codes.ts", code, o.close, known.close)
		case (known.retry != "never") != o.retry:
			t.Errorf("%s: retry is %t at the gateway (pkg/router/errors.go), %q in web/client/codes.ts", code, o.retry, known.retry)
		}
	}
	for code, e := range client {
		if !e.own() && outcomes[code].close == 0 {
			t.Errorf("the gateway never closes with %d %s: take it out of web/client/codes.ts, or give it close 0 there if the client ends the session itself", e.close, code)
		}
	}
}

// TestOneTableOfEnds: every code that the gateway sends, and every close code, is in the table in pkg/router/errors.go.
func TestOneTableOfEnds(t *testing.T) {
	src := readSource(t)
	for code := range src.codes {
		if _, ok := src.outcomes[code]; !ok {
			t.Errorf("the gateway sends %s, which is not in pkg/router/testdata/outcomes.golden: give it a row in pkg/router/errors.go, then go test ./pkg/router -update", code)
		}
	}
	numbered := regexp.MustCompile(`\b(Close|Refuse|farewell|closing)\((\d+|websocket\.Status[A-Z]\w*)`)
	for _, dir := range []string{"../pkg/bridge/*.go", "../pkg/router/*.go"} {
		files, _ := filepath.Glob(dir)
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if call := numbered.Find(text); call != nil && !strings.HasSuffix(name, "_test.go") {
				t.Errorf("%s: %s, …) has a close code of its own: take it from the table in pkg/router/errors.go", name, call)
			}
		}
	}
}
