package deploy

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// policy is an IAM policy's grammar, as far as ours go.
type policy struct {
	Version   string
	Statement []struct {
		Sid       string
		Effect    string
		Principal map[string]string
		Action    oneOrMore
		Resource  oneOrMore
		Condition map[string]map[string]oneOrMore
	}
}

// oneOrMore is a string, or a list of them.
type oneOrMore []string

func (l *oneOrMore) UnmarshalJSON(raw []byte) error {
	if raw[0] == '"' {
		*l = make([]string, 1)
		return json.Unmarshal(raw, &(*l)[0])
	}
	return json.Unmarshal(raw, (*[]string)(l))
}

func readPolicy(t *testing.T, text string) (p policy) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	return p
}

func TestIAM(t *testing.T) {
	files := map[string]policy{}
	for _, name := range []string{"policy.json", "trust-policy.json", "endpoint-policy.json"} {
		p := readPolicy(t, read(t, "deploy/iam/"+name))
		files[name] = p
		if p.Version != "2012-10-17" || len(p.Statement) == 0 {
			t.Errorf("%s has version %q and %d statements", name, p.Version, len(p.Statement))
		}
		trust := name == "trust-policy.json"
		for _, s := range p.Statement {
			if s.Sid == "" || s.Effect != "Allow" || len(s.Action) == 0 || trust != (len(s.Principal) > 0) || trust != (len(s.Resource) == 0) {
				t.Errorf("%s has the statement %+v", name, s)
			}
			for _, action := range s.Action {
				if !regexp.MustCompile(`^[a-z0-9-]+:[A-Za-z]+$`).MatchString(action) {
					t.Errorf("%s allows %s", name, action)
				}
			}
		}
	}

	t.Run("the gateway's is the page's", func(t *testing.T) {
		page := read(t, "docs/infra/workspace-terminal.md")
		// In a step of the list; a block of its own is another role's.
		blocks := regexp.MustCompile("(?ms)^   ```json\n(.*?)```").FindAllStringSubmatch(page, -1)
		if len(blocks) != 1 {
			t.Fatalf("the steps of the page have %d blocks of JSON", len(blocks))
		}
		if shown := readPolicy(t, blocks[0][1]); !reflect.DeepEqual(shown, files["policy.json"]) {
			t.Errorf("the page has\n%+v\nthe file\n%+v", shown, files["policy.json"])
		}
	})
	t.Run("the role is for the gateway's ServiceAccount alone", func(t *testing.T) {
		account := render(t, "deploy/kubernetes/base").account
		want := "system:serviceaccount:" + account.Namespace + ":" + account.Name
		found := false
		for _, s := range files["trust-policy.json"].Statement {
			for key, value := range s.Condition["StringEquals"] {
				if strings.HasSuffix(key, ":sub") {
					found = reflect.DeepEqual(value, oneOrMore{want})
				}
			}
		}
		if !found {
			t.Errorf("%s is not who it trusts: %+v", want, files["trust-policy.json"])
		}
	})
}
