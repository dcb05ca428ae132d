package runner

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// Trail is what a session is known by in the logs of others, by name: an instance's
// sshd, CloudTrail, a Docker engine. A kind writes the trail while Start runs, also if
// Start fails then; the gateway puts it into the log and the audit trail.
//
// The names, below, are the columns of the docs' queries; a Tunnels has names of its own
// besides. No value is a secret.
type Trail map[string]string

// Names in a Trail.
const (
	TrailInstance   = "instance"          // the instance's id
	TrailOSUser     = "os_user"           // the account on the instance
	TrailKey        = "key"               // fingerprint of the login key, as sshd logs it
	TrailKeyRefused = "key_refused"       // of a key of another type, which the instance did not take before
	TrailHostKey    = "host_key_accepted" // fingerprint of a host key that nobody knew before
	TrailTunnel     = "tunnel"            // the tunnel's id in termgw.tunnels
	TrailContainer  = "container"         // a container's id; on an instance it may be the name
	TrailExec       = "exec"              // id of the exec, as in the engine's events
	TrailEngine     = "engine"            // the engine's address
	TrailHost       = "host"              // name of the machine
	TrailPID        = "pid"               // the shell's, on that machine
)

const (
	trailNames  = 32  // in a Trail at most
	trailLength = 256 // bytes of a name or value
)

// Set notes a value, which may come from anywhere: it is cut after 256 bytes, and a
// character that a terminal does not show becomes '?'. An empty value is not noted. A nil
// Trail takes nothing.
func (t Trail) Set(name, value string) {
	if t == nil || value == "" || len(name) > trailLength {
		return
	}
	if _, ok := t[name]; !ok && len(t) >= trailNames {
		return
	}
	value = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(value[:min(len(value), trailLength)], "?"))
	t[name] = value
}

// Add notes all of another trail. A value that another has the name of already, from an
// earlier try, gets the name with _2 at its end, then _3.
func (t Trail) Add(more Trail) {
	for _, name := range slices.Sorted(maps.Keys(more)) {
		own := name
		for n := 2; t[own] != "" && t[own] != more[name]; n++ {
			own = fmt.Sprintf("%s_%d", name, n)
		}
		t.Set(own, more[name])
	}
}

// LogValue returns the trail as a group, in the order of names.
func (t Trail) LogValue() slog.Value {
	var group []slog.Attr
	for _, name := range slices.Sorted(maps.Keys(t)) {
		group = append(group, slog.String(name, t[name]))
	}
	return slog.GroupValue(group...)
}
