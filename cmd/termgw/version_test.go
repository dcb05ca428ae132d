package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	t.Parallel()
	c := start(t, command(t, nil, "version"))
	// Tests are built without -ldflags: the commit and its date are what Go noted, or nothing.
	line := regexp.MustCompile(`^termgw dev \(commit ([0-9a-f]{40}|unknown), ([0-9T:Z-]{20}|date unknown), go1\S+ \w+/\w+\)\nschema (\d{4}_\w+)\nprotocol termgw\.v1\n$`)
	status := c.wait(t)
	found := line.FindStringSubmatch(c.out.String())
	if status != 0 || found == nil {
		t.Fatalf("exit status %d, %q", status, c.out.String())
	}
	files, err := filepath.Glob("../../pkg/store/migrations/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal("no migrations: ", err)
	}
	if last := strings.TrimSuffix(filepath.Base(files[len(files)-1]), ".sql"); found[3] != last {
		t.Errorf("the schema is %s, the last migration %s", found[3], last)
	}
}
