package instance

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// leastSSH is the first release of OpenSSH whose client has all that this package uses.
// The proxy mode of multiplexing (channel.go) came with 7.4, IdentityAgent with 7.3,
// host keys' signatures by SHA-2 with 7.2, UpdateHostKeys with 6.8, and ProxyCommand=-,
// -F none, -E, IdentityFile=none and IgnoreUnknown with 6.3 (OpenSSH's history, by the
// first tag that has each). Terminals were opened with clients of 7.4 and 7.6.
var leastSSH = [2]int{7, 4}

// sshRelease matches what `ssh -V` prints: "OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17 …".
var sshRelease = regexp.MustCompile(`^OpenSSH_(\d{1,4})\.(\d{1,4})[^ ,]*`)

// versionTime bounds `ssh -V`.
const versionTime = 10 * time.Second

// sshVersion returns the release of an ssh, such as "OpenSSH_9.2p1". The error says that
// the program is another, or too old.
func sshVersion(program string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionTime)
	defer cancel()
	stdout, stderr, _, err := output(ctx, []string{program, "-V"})
	if err != nil {
		return "", fmt.Errorf("asking for the version of ssh: %w", err)
	}
	said := strings.TrimSpace(stdout + stderr)
	m := sshRelease.FindStringSubmatch(said)
	switch {
	case m != nil:
	case strings.HasPrefix(said, "No user exists for uid"):
		return "", fmt.Errorf("ssh runs for no user without an entry in /etc/passwd: %.100q", runner.OneLine(said))
	default:
		return "", fmt.Errorf("%s is not OpenSSH's client, of which %d.%d or later is needed: `ssh -V` says %.100q", program, leastSSH[0], leastSSH[1], runner.OneLine(said))
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < leastSSH[0] || major == leastSSH[0] && minor < leastSSH[1] {
		return "", fmt.Errorf("%s is %s, which is too old: OpenSSH's client has to be %d.%d or later", program, m[0], leastSSH[0], leastSSH[1])
	}
	return m[0], nil
}
