package instance

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/molecule-ai/termgw/internal/redact"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// This file tells what an account does instead of the gateway's command: sshd runs that by the account's login shell,
// which reads files of its own first, or runs another command in its place.

// accountFault is the failure of an account that did not run the gateway's command. What it printed goes to operators
// alone. It is final if the session has ended, or waits behind a prompt: else the instance may be slow.
func (r *request) accountFault(did string, printed []byte, cause ...error) error {
	said := shorten(string(printed))
	words := "nothing"
	if said != "" {
		words = fmt.Sprintf("%q", said)
	}
	f := failed("account", errors.Join(append([]error{
		fmt.Errorf("the account %s did not run the gateway's command: %s, and printed %s", r.to.user, did, words),
	}, cause...)...))
	f.Sentence = fmt.Sprintf(sentences["account"], r.to.user)
	f.Fix = fixes["account"]
	for _, known := range accountFixes {
		if known.words.MatchString(did + " " + said) {
			f.Fix = known.fix
			break
		}
	}
	f.Fix = strings.ReplaceAll(f.Fix, "USER", r.to.user)
	f.Final = len(cause) == 0 || prompt.MatchString(said)
	return f
}

// prompt matches output that ends as what waits for input does.
var prompt = regexp.MustCompile(`[$#%>:?❯»]$`)

// accountFixes tell an operator what to do, by what an account printed or sshd refused.
var accountFixes = []struct {
	words *regexp.Regexp
	fix   string
}{
	{regexp.MustCompile(`(?i)password (has )?expired|password change required|(change|current).{0,20} password`), "The password of the account USER has expired, so sshd runs passwd. An account that nobody logs in to by password needs no such date: `sudo chage -d \"$(date +%F)\" -M -1 USER`."},
	{regexp.MustCompile(`(?i)not available|nologin`), "The account USER has no login shell: `sudo usermod -s /bin/bash USER`."},
	{regexp.MustCompile(`(?i)no terminal|PTY allocation request failed`), "Allow the account USER a terminal: PermitTTY yes in sshd's configuration, and no no-pty or restrict in authorized_keys."},
}

// escapes are control sequences of terminals (ECMA-48).
var escapes = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])`)

// scrub returns a program's output on one line, without secrets and control characters.
func scrub(s string) string {
	return runner.OneLine(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, redact.Secrets(escapes.ReplaceAllString(strings.ToValidUTF8(s, "?"), ""))))
}
