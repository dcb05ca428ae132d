package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestReadWorkspacesFile(t *testing.T) {
	t.Parallel()
	all := `[{"id":"a.B_c-1","name":"n","instance_id":"i","container":"c","region":"r","os_user":"u","host_key":"k","remote_target":"host",
		"role_arn":"a","endpoint_id":"e","source_identity":"true"},
		{"id":"2","name":null,"instance_id":null,"container":null,"region":null,"os_user":null,"host_key":null,"remote_target":null}]`
	want := []Workspace{
		of("a.B_c-1", "name", "n", "instance_id", "i", "container", "c", "region", "r", "os_user", "u", "host_key", "k", "remote_target", "host",
			"role_arn", "a", "endpoint_id", "e", "source_identity", "true"),
		of("2"),
	}
	long := strings.Repeat("x", 129)
	for _, tt := range []struct {
		name, content string
		want          []Workspace
		faults        []string
	}{
		{name: "all fields", content: all, want: want},
		{
			name: "true and false", content: `[{"id":"1","docker_sudo":true,"source_identity":false},{"id":"2","docker_sudo":"t"},{"id":"3","docker_sudo":null}]`,
			want: []Workspace{of("1", "docker_sudo", "true", "source_identity", "false"), of("2", "docker_sudo", "t"), of("3")},
		},
		{name: "no workspace", content: `[]`, want: []Workspace{}},
		{name: "empty", content: ``, faults: []string{"JSON array"}},
		{name: "null", content: `null`, faults: []string{"not null"}},
		{name: "object", content: `{"id":"a"}`, faults: []string{"JSON array"}},
		{name: "not objects", content: `["a"]`, faults: []string{"JSON array"}},
		{name: "more", content: `[] []`, faults: []string{"nothing after it"}},
		{name: "cut", content: `[{"id":"a"}`, faults: []string{"JSON array"}},
		{name: "null entry", content: `[null]`, faults: []string{"entry 1"}},
		{name: "null id", content: `[{"id":null}]`, faults: []string{"the id is not"}},
		{
			name: "every fault",
			content: `[{"id":"a","nme":"x","ID":"b"},{"id":"a"},{"id":"a b"},{"name":"x"},{"id":7,"region":[]},
				{"id":"` + long + `"},{"id":".."},{"id":"c","remote_target":"vm"}]`,
			faults: []string{
				`entry 1 (id "a"): unknown field "ID"`, `entry 1 (id "a"): unknown field "nme"`, `entry 2 (id "a"): the same id as entry 1`,
				`entry 3 (id "a b"): the id is not`, `entry 4 (id ""): the id is not`, `entry 5 (id ""): field "id" is not a string`,
				`entry 5 (id ""): field "region" is not a string`, `entry 6`, `entry 7 (id ".."): the id is not`, `"vm", want container or host`,
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "workspaces.json")
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadWorkspacesFile(path)
			if len(tt.faults) == 0 {
				if err != nil || !slices.EqualFunc(got, tt.want, same) {
					t.Fatalf("got %+v, %v, want %+v", got, err, tt.want)
				}
				return
			}
			if err == nil || got != nil {
				t.Fatalf("got %+v, %v, want an error", got, err)
			}
			for _, fault := range append(tt.faults, path) {
				if !strings.Contains(err.Error(), fault) {
					t.Errorf("%v\ndoes not name %q", err, fault)
				}
			}
		})
	}
}

func TestReadWorkspacesFileThatIsNotThere(t *testing.T) {
	t.Parallel()
	if _, err := ReadWorkspacesFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
