package session

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// samples are what terminals send by themselves, and what a person does by keys, mouse and paste. The page's test
// (web/test/answers.test.ts) reads them too.
var samples = func() (s struct{ Answers, Person map[string]string }) {
	data, err := os.ReadFile("testdata/answers.json")
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		panic(err)
	}
	// No browser's terminal writes C1 control characters.
	s.Answers["8 bits, in UTF-8"] = "\u009b24;80R\u009d11;rgb:0/0/0\u009c"
	s.Answers["8 bits"] = "\x9b24;80R"
	return s
}()

func TestAnswersAreNobodysInput(t *testing.T) {
	for name, p := range samples.Answers {
		var a answers
		if a.typed([]byte(p), true) || a.state != answerGround {
			t.Errorf("%s: %q counts as a person's", name, p)
		}
		// From a terminal that is read in pieces. A first piece of one or two bytes is as a key is.
		for i := 3; i < len(p); i++ {
			var a answers
			if a.typed([]byte(p[:i]), true) || a.typed([]byte(p[i:]), true) {
				t.Errorf("%s, in two messages: %q, %q counts as a person's", name, p[:i], p[i:])
			}
		}
		// Behind another answer no piece is too short to be known.
		behind := "\x1b[0n" + p
		for i := 4; i < len(behind); i++ {
			var a answers
			if a.typed([]byte(behind[:i]), true) || a.typed([]byte(behind[i:]), true) && i > 4 {
				t.Errorf("%s, in two messages: %q, %q counts as a person's", name, behind[:i], behind[i:])
			}
		}
	}
}

func TestWhatAPersonDoesIsInput(t *testing.T) {
	for name, p := range samples.Person {
		var a answers
		if !a.typed([]byte(p), true) {
			t.Errorf("%s: %q does not count as a person's", name, p)
		}
		if a != (answers{}) {
			t.Errorf("%s: %q is not over with its message: %+v", name, p, a)
		}
		for i := 1; i < len(p); i++ {
			var a answers
			first, second := a.typed([]byte(p[:i]), false), a.typed([]byte(p[i:]), true)
			if !first && !second {
				t.Errorf("%s, in two parts: %q, %q does not count", name, p[:i], p[i:])
			}
		}
	}
}

// A person who types what begins like an answer, key by key, is seen at each key; and nothing that was begun swallows what follows.
func TestNothingSwallowsKeys(t *testing.T) {
	var a answers
	for _, key := range []string{"\x1b", "P", "0", "$", "r", "x", "\x1b", "]", "5", "2", ";", "\x1b", "[", "6", "n"} {
		if !a.typed([]byte(key), true) {
			t.Errorf("%q does not count", key)
		}
	}
	for _, begun := range []string{"\x1b[24;", "\x1b]52;c;aGVs", "\x1bP1$r", "\x1b_Gi=1", "\x1b[0n\x1b", "\x1b[0n\x1b]"} {
		var a answers
		if a.typed([]byte(begun), true) {
			t.Errorf("%q counts before it is known what it is", begun)
		}
		if !a.typed([]byte("\r"), true) {
			t.Errorf("Enter does not count after %q", begun)
		}
	}
}

// oracle is the same grammar as a regular expression, for a whole message. A byte is a rune of it.
var oracle = func() *regexp.Regexp {
	const (
		csi  = `(?:\x1b\[|\x{9b}|\x{c2}\x{9b})`
		text = `(?:[ -~\x{80}-\x{c1}\x{c3}-\x{ff}]|\x{c2}+[ -~\x{80}-\x{9b}\x{9d}-\x{c1}\x{c3}-\x{ff}])*(?:\x{c2}*(?:\x07|\x1b\\)|\x{c2}+\x{9c})`
	)
	return regexp.MustCompile(`^(?s:` + strings.Join([]string{
		csi + `[?>=][0-9:;]*[ -/]?[@-~]`,
		csi + `(?:[0-9]+;|;+[0-9])[0-9;]*R`,
		csi + `[:;]*[0-9][0-9:;]*(?:[ntxm]|\$y|"w|\*[q{])`,
		csi + `[IO]`,
		`(?:\x1bP|\x{90}|\x{c2}\x{90})[ -?]+[@-~]` + text,
		`(?:\x1b\]|\x{9d}|\x{c2}\x{9d})(?:[0-9]+;|[lL])` + text,
		`(?:\x1b_|\x{9f}|\x{c2}\x{9f})G` + text,
		`\x1b/Z`,
	}, "|") + `)+$`)
}()

func FuzzAnswers(f *testing.F) {
	for _, seeds := range []map[string]string{samples.Answers, samples.Person} {
		for _, p := range seeds {
			f.Add([]byte(p), 3)
		}
	}
	f.Add([]byte(samples.Answers["clipboard"]+samples.Answers["8 bits"]+samples.Answers["title"]), 9)
	f.Fuzz(func(t *testing.T, p []byte, split int) {
		if len(p) == 0 {
			return
		}
		split = min(max(0, split), len(p))
		runes := make([]rune, len(p))
		for i, c := range p {
			runes[i] = rune(c)
		}
		complete := oracle.MatchString(string(runes))

		var a answers
		typed := a.typed(p, true)
		if want := complete; want != (!typed && a.state == answerGround) {
			t.Errorf("%q: typed %t, state %d, answers %t", p, typed, a.state, complete)
		}
		if !a.typed([]byte("\r"), true) {
			t.Errorf("Enter does not count after %q", p)
		}

		var parts answers
		first := parts.typed(p[:split], false)
		if second := parts.typed(p[split:], true); (first || second) != typed {
			t.Errorf("%q: typed %t; in parts of %d bytes and the rest: %t, %t", p, typed, split, first, second)
		}

		var messages answers
		counts := []bool{messages.typed(p[:split], true), messages.typed(p[split:], true)}
		if complete && split > 2 && slices.Contains(counts, true) {
			t.Errorf("%q are answers; in messages of %d bytes and the rest they count: %t", p, split, counts)
		}
	})
}
