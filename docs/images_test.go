package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// base is where a Dockerfile names an image that is not one of its stages: FROM, COPY --from, and the ARG that is one.
	base   = regexp.MustCompile(`(?m)^(?:FROM|COPY --from=\S+|ARG \w*IMAGE=)\S*.*$`)
	image  = regexp.MustCompile(`(?m)^\s*(?:- )?image: +(.+?)\s*(?:#.*)?$`)
	pinned = regexp.MustCompile(`^[a-z0-9][a-z0-9./_-]*:[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}$`)
)

// TestImagesArePinned finds images of others that a tag alone names.
// TestActionsArePinned: who can move an action's tag could run what they like in a release.
func TestActionsArePinned(t *testing.T) {
	action := regexp.MustCompile(`^[\w-]+(/[\w-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	files, err := filepath.Glob("../.github/workflows/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatal("no workflows: ", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, used := range regexp.MustCompile(`(?m)uses: (.+)$`).FindAllStringSubmatch(string(text), -1) {
			if own := strings.HasPrefix(used[1], "./.github/workflows/"); own {
				if _, err := os.Stat("../" + used[1]); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			} else if !action.MatchString(used[1]) {
				t.Errorf("%s: %s is not pinned by its commit", file, used[1])
			}
		}
	}
}

func TestImagesArePinned(t *testing.T) {
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	stages := map[string]bool{}
	arguments := map[string]bool{}
	found := 0
	for _, line := range base.FindAllString(string(dockerfile), -1) {
		words := strings.Fields(line)
		words = slices.DeleteFunc(words, func(word string) bool { return word == "--platform=${BUILDPLATFORM}" })
		name := words[1]
		switch words[0] {
		case "ARG":
			variable, value, _ := strings.Cut(name, "=")
			if variable == "BUILDPLATFORM" { // no image
				continue
			}
			arguments["${"+variable+"}"] = true
			found++
			if !pinned.MatchString(value) {
				t.Errorf("Dockerfile: %s is not pinned by tag and digest", name)
			}
		case "COPY":
			if from := strings.TrimPrefix(name, "--from="); !stages[from] {
				t.Errorf("Dockerfile: %s is no stage", from)
			}
		case "FROM":
			if !arguments[name] && !stages[name] {
				t.Errorf("Dockerfile: %s is neither a stage nor an argument that is pinned", name)
			}
			if len(words) == 4 {
				stages[words[3]] = true
			}
		}
	}
	if found == 0 {
		t.Error("no image found in the Dockerfile")
	}

	own := map[string]bool{
		"termgw": true, "*image": true, "&image ${TERMGW_IMAGE:-termgw:local}": true,
		`{{ include "termgw.image" . }}`: true, // the chart's
	}
	found = 0
	err = filepath.WalkDir("../deploy", func(path string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range image.FindAllStringSubmatch(string(text), -1) {
			if own[m[1]] {
				continue
			}
			found++
			if !pinned.MatchString(m[1]) {
				t.Errorf("%s: %s is not pinned by tag and digest", path, m[1])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 {
		t.Error("no image found in deploy/")
	}
}
