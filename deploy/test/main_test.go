// Package deploy holds the checks of what is in deploy/: manifests against the API's types, proxies against a gateway
// that runs, rules and dashboards against the metrics that there are. Its module is its own, so that none of what it
// needs is among the gateway's dependencies.
package deploy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	root = "../.." // of the repository
	// binary is what `make build` builds.
	binary = root + "/bin/termgw"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// decode decodes YAML as the API server does: a field that is not there, also by its case, is a fault.
func decode(t *testing.T, what string, raw []byte, into any) {
	t.Helper()
	asJSON, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	unknown, err := json.UnmarshalStrict(asJSON, into)
	if err = errors.Join(append(unknown, err)...); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// program finds what a test runs; without it the test is skipped, or fails where nothing may be.
func program(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	switch {
	case err == nil:
	case os.Getenv("TERMGW_TEST_REQUIRE") == "1":
		t.Fatal(err)
	default:
		t.Skipf("needs %s: apt-get install %s", name, pkg)
	}
	return path
}

// replace is strings.Replace of what must be there exactly once.
func replace(t *testing.T, s, old, with string) string {
	t.Helper()
	if n := strings.Count(s, old); n != 1 {
		t.Fatalf("%q is there %d times, not once", old, n)
	}
	return strings.Replace(s, old, with, 1)
}

// help is what `termgw serve --help` says.
func help(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(binary, "serve", "--help").Output()
	if err != nil {
		t.Fatalf("running %s, which make build builds: %v", binary, err)
	}
	return string(out)
}

// variables are what it lists, with their defaults.
func variables(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, line := range regexp.MustCompile(`(?m)^ +(TERMGW_[A-Z_]+)(?: = (.*))?$`).FindAllStringSubmatch(help(t), -1) {
		found[line[1]] = line[2]
	}
	if found["TERMGW_LISTEN"] == "" || len(found) < 20 {
		t.Fatalf("not the help that this test reads:\n%s", help(t))
	}
	return found
}

// longerThan is a variable's default, times so much.
func longerThan(t *testing.T, variable string, times int) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(variables(t)[variable])
	if err != nil {
		t.Fatal(err)
	}
	return d * time.Duration(times)
}

// teardown is the longest that the gateway takes after its drain timeout, as it says itself.
func teardown(t *testing.T) time.Duration {
	t.Helper()
	found := regexp.MustCompile(`or (\d+) s after the timeout at most`).FindStringSubmatch(strings.Join(strings.Fields(help(t)), " "))
	if found == nil {
		t.Fatalf("the help does not say how long the end takes:\n%s", help(t))
	}
	d, err := time.ParseDuration(found[1] + "s")
	if err != nil {
		t.Fatal(err)
	}
	return d
}
