package instance

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// This file makes the command lines for an account's login shell, which may be any: POSIX shells, csh and fish differ
// in what stands between single quotes.

//go:embed remote.sh
var remoteScript string

//go:embed keeper.sh
var keeperScript string

// Without their comments the scripts are a third shorter, on the way and to each shell that reads them.
var (
	comments    = regexp.MustCompile(`(?m)^\t*#.*\n`)
	remoteCode  = comments.ReplaceAllString(remoteScript, "")
	keeperCode  = comments.ReplaceAllString(keeperScript, "")
	sweeperCode = comments.ReplaceAllString(runner.SweepScript, "")
)

// script is a script with its arguments, of which the script is the first.
type script []string

// line returns the command line for an account's login shell.
func (s script) line() string { return shellLine(s[0], s[1:]...) }

// argv returns the command without the login shell.
func (s script) argv() []string {
	return append([]string{"/bin/sh", "-c", `eval "$1"`, "termgw"}, s...)
}

// remote returns remote.sh in a mode, with the mode's words.
func (r *request) remote(keepDetached bool, mode string, words ...string) script {
	timing := r.kind.cfg.Timing
	return slices.Concat(script{
		remoteCode, sweeperCode,
		"mode=" + mode, "target=" + r.target, "session=" + r.session, "sudo=" + strconv.FormatBool(r.sudo), "keep_detached=" + strconv.FormatBool(keepDetached),
		"grace=" + runner.Hundredths(timing.Grace), "lease=" + runner.WholeSeconds(timing.Lease), "retry=" + runner.WholeSeconds(timing.Retry),
	}, words)
}

// wordLimit is less than the longest word that a csh takes (1,020 bytes).
const wordLimit = 1000

// shellLine returns the line by which any login shell becomes a /bin/sh that runs a script with arguments, of which the
// script is the first. The words on the line are printf's: bytes that some shell would not take as they are between
// single quotes are octal.
func shellLine(script string, args ...string) string {
	var line strings.Builder
	line.WriteString(`exec /bin/sh -c 'eval "$(printf %b "$@")"' termgw`)
	add := func(text string) {
		for len(text) > 0 {
			word := 0
			line.WriteString(" '")
			for len(text) > 0 && word < wordLimit-5 {
				c := text[0]
				text = text[1:]
				if c == '\t' || c >= ' ' && c <= '~' && !strings.ContainsRune(`'!\`, rune(c)) {
					line.WriteByte(c)
					word++
					continue
				}
				escape := `\n`
				if c != '\n' {
					escape = fmt.Sprintf(`\0%03o`, c)
				}
				line.WriteString(escape)
				word += len(escape)
			}
			line.WriteByte('\'')
		}
	}
	add("set --")
	for _, arg := range append([]string{script}, args...) {
		add(" " + quote(arg))
	}
	add("\neval \"$1\"")
	return line.String()
}

// quote returns an argument as a POSIX shell reads it.
func quote(arg string) string { return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'" }
