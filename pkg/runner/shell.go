package runner

import (
	"path"
	"regexp"
)

// TerminalEnv is what every shell is told of its terminal, as environment
// variables.
var TerminalEnv = []string{"TERM=xterm-256color", "COLORTERM=truecolor", "TERM_PROGRAM=termgw"}

// OpeningPrelude is what a container's shell does first before it becomes the
// person's, in POSIX sh: the terminal erases whole characters of UTF-8 (IUTF8,
// termios(3)), and programs write them, unless the container says otherwise. It
// takes the size's words of stty, or none.
const OpeningPrelude = `opening() { ` +
	`[ -z "$BASH_VERSION" ] || command set +p; ` + // an exported SHELLOPTS would hand ShellCommand's -p on
	`[ -n "$LANG$LC_ALL$LC_CTYPE" ] || { LANG=C.UTF-8; export LANG; }; ` +
	// At the container's limit of processes stty cannot be started, and bash would try for 15 s.
	`for d in /sys/fs/cgroup/pids /sys/fs/cgroup; do ` +
	`read -r most <$d/pids.max && read -r used <$d/pids.current || continue; ` +
	`case $most$used in *[!0-9]*) ;; *) [ $((most - used)) -gt 1 ] || return 0 ;; esac; done; ` +
	`stty "$@" iutf8 || [ $# = 0 ] || stty "$@"; } 2>/dev/null; opening`

// ShellCommand is the command line that has a shell of a container run a script
// with arguments, not steered by the environment of the container's image: bash
// would read BASH_ENV first, and take functions and options from it (bash(1), -p).
// A shell that the script becomes has that environment.
func ShellCommand(shell, script string, args ...string) []string {
	argv := []string{shell, "-c", script}
	if path.Base(shell) == "bash" {
		argv = []string{shell, "-p", "-c", script}
	}
	return append(argv, args...)
}

var (
	exhausted = regexp.MustCompile(`(?i)temporarily unavailable|cannot allocate memory|cannot fork|pthread_create`)
	missing   = regexp.MustCompile(`(?i)no such file|not found|permission denied|exec format|not a directory|is a directory`)
)

// NoShell reports whether an exec has ended because its program is not there, or is
// none, by its exit code and what was said. The engine's exit codes are the same when
// the container may start no further process, or has no memory left.
func NoShell(code int, said string) bool {
	return (code == 126 || code == 127) && !exhausted.MatchString(said)
}

// ShellMissing reports whether engines and kernels say this of a program that is not
// there, or is none: no retry mends that.
func ShellMissing(said string) bool { return missing.MatchString(said) }
