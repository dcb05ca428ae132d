package main

import (
	"regexp"
	"testing"
)

func TestVersion(t *testing.T) {
	t.Parallel()
	c := start(t, command(t, nil, "version"))
	// Tests are built without -ldflags: the commit and its date are what Go noted, or nothing.
	line := regexp.MustCompile(`^termgw dev \(commit ([0-9a-f]{40}|unknown), ([0-9T:Z-]{20}|date unknown), go1\S+ \w+/\w+\)\n$`)
	if status := c.wait(t); status != 0 || !line.MatchString(c.out.String()) {
		t.Errorf("exit status %d, %q", status, c.out.String())
	}
}
