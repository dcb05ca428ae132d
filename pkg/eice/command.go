package eice

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Command is the AWS CLI as an ssh ProxyCommand over the same route: no secret
// is in argv, and the arguments have no character that a shell or ssh's %
// tokens know. The two names and the address together spare the CLI its own
// Describe calls. It finds credentials as the gateway does, so env is the part
// of Config.Environ that it reads, and never what TERMGW_ holds.
func (c *Client) Command(route Route, maxDuration time.Duration) (argv, env []string) {
	argv = []string{
		"aws", "ec2-instance-connect", "open-tunnel",
		"--region", route.Region,
		"--instance-connect-endpoint-id", route.EndpointID,
		"--instance-connect-endpoint-dns-name", route.EndpointDNS,
		"--private-ip-address", route.Address.String(),
		"--remote-port", sshPort,
		"--max-tunnel-duration", seconds(maxDuration),
	}
	for _, entry := range c.cfg.Environ {
		if name, _, ok := strings.Cut(entry, "="); ok && cliReads(name) {
			env = append(env, entry)
		}
	}
	return argv, env
}

// cliReads tells whether the AWS CLI needs a variable: the SDK's own, where
// credentials may come from, and what finds the program, its files, roots and
// proxy.
func cliReads(name string) bool {
	return strings.HasPrefix(name, "AWS_") || slices.Contains([]string{
		"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
	}, name)
}

// bound is a duration that AWS takes for a tunnel, in whole seconds.
func bound(d time.Duration) time.Duration {
	if d <= 0 || d > MaxTunnel {
		return MaxTunnel
	}
	return max(d.Truncate(time.Second), time.Second)
}

func seconds(d time.Duration) string { return strconv.Itoa(int(bound(d) / time.Second)) }
