package main

import (
	"log/slog"
	"regexp"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/kelseyhightower/envconfig"
)

// otherVariables are those of commands besides serve.
var otherVariables = []string{"TERMGW_TICKET"}

// serviceLink matches what Kubernetes sets in every container for a Service whose name begins with termgw.
var serviceLink = regexp.MustCompile(`_SERVICE_(HOST|PORT(_\w+)?)=|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?=((tcp|udp|sctp)(://.*)?$|[\d.:]+$|[0-9a-f:]+$)`)

// unknownVariables returns each variable that begins with TERMGW_ and that no command reads, with the name that is most
// like it, of environ, which is as os.Environ has it.
func unknownVariables(environ []string) (unknown [][2]string) {
	known := slices.Concat(variableNames(), otherVariables)
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, environmentPrefix+"_") || slices.Contains(known, name) || serviceLink.MatchString(variable) {
			continue
		}
		nearest, least := "", len(name)
		for _, candidate := range known {
			if n := levenshtein.ComputeDistance(strings.ToUpper(name), candidate); n < least {
				nearest, least = candidate, n
			}
		}
		unknown = append(unknown, [2]string{name, nearest})
	}
	slices.SortFunc(unknown, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return unknown
}

// variableNames returns the names of the variables of serve.
func variableNames() []string {
	var names strings.Builder
	if err := envconfig.Usagef(environmentPrefix, &environment{}, &names, "{{range .}}{{usage_key .}}\n{{end}}"); err != nil {
		panic(err) // the template is wrong
	}
	return strings.Fields(names.String())
}

// warnOfUnknown logs each unknown variable: most likely its name is mistyped, and a default holds instead of its value.
// Its value may be a secret.
func warnOfUnknown(log *slog.Logger, environ []string) {
	for _, v := range unknownVariables(environ) {
		log.Warn("a variable of the environment is none of termgw's, and is ignored: correct its name or take it out", "variable", v[0], "nearest", v[1])
	}
}
