package runner

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
)

// What stands in a trail comes from AWS, an instance and an engine: it is bounded, and shows as it is.
func TestTrailIsBounded(t *testing.T) {
	t.Parallel()
	trail := Trail{}
	trail.Set("escape", "a\x1b[2J\nb\u202e\xff\x00c")
	trail.Set("long", strings.Repeat("é", 300))
	trail.Set("empty", "")
	if got := trail["escape"]; got != "a?[2J?b???c" {
		t.Errorf("got %q", got)
	}
	if got := trail["long"]; len(got) != trailLength || strings.Trim(got, "é") != "" {
		t.Errorf("got %d bytes, %q", len(got), got)
	}
	if _, ok := trail["empty"]; ok {
		t.Error("an empty value is noted")
	}
	more := Trail{}
	for n := range 100 {
		more[fmt.Sprintf("name-%02d", n)] = "x"
	}
	trail.Add(more)
	if len(trail) != trailNames {
		t.Errorf("%d names", len(trail))
	}
	trail.Set("escape", "another") // of a name that is there
	if trail["escape"] != "another" {
		t.Errorf("got %q", trail["escape"])
	}
	again := Trail{"tunnel": "a", "region": "r"}
	for _, tunnel := range []string{"b", "a", "c", "b", "c"} {
		again.Add(Trail{"tunnel": tunnel, "region": "r"})
	}
	if want := (Trail{"tunnel": "a", "tunnel_2": "b", "tunnel_3": "c", "region": "r"}); !maps.Equal(again, want) {
		t.Errorf("after several tries %v, want %v", again, want)
	}
	Trail(nil).Set("name", "x")
	Trail(nil).Add(trail)
}

func TestTrailIsOneGroupOfALine(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "trail", Trail{"tunnel": "T1", "key": "SHA256:abc"})
	if want := `"trail":{"key":"SHA256:abc","tunnel":"T1"}`; !strings.Contains(out.String(), want) {
		t.Errorf("got %s, want %s in it", out.String(), want)
	}
}
