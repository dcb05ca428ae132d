package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/store"
)

// The build sets these variables (-ldflags "-X main.version=…"). The date is the commit's: with the time of the build, no
// two builds would be the same program.
var (
	version      = "dev"
	commit, date string
)

// VersionCmd prints the version.
type VersionCmd struct{}

// Run prints the program's version, and the versions of what it shares with others: the schema in the database after
// `termgw migrate`, and the protocol that clients speak.
func (VersionCmd) Run(std *stdio) error {
	commit, date := built()
	_, err := fmt.Fprintf(std.Out, "termgw %s (commit %s, %s, %s %s/%s)\nschema %s\nprotocol %s\n",
		version, commit, date, runtime.Version(), runtime.GOOS, runtime.GOARCH, store.SchemaVersion(), bridge.Subprotocol)
	return err
}

// built returns the commit and its date. After a plain `go build` or `go install` they are from Go's build information, if any.
func built() (string, string) {
	noted := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			noted[s.Key] = s.Value
		}
	}
	return cmp.Or(commit, noted["vcs.revision"], "unknown"), cmp.Or(date, noted["vcs.time"], "date unknown")
}
