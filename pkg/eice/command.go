package eice

import (
	"errors"
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
		// Not HTTP_PROXY, which the CLI's tunnel takes before HTTPS_PROXY.
		"HTTPS_PROXY", "NO_PROXY", "https_proxy", "no_proxy",
	}, name)
}

// CommandError is what the CLI's words mean, of which no more than their end is
// needed. An endpoint's refusal stands in them as it came. Without words, nothing
// came through the tunnel in time: the CLI waits for good when it cannot verify or
// find the endpoint.
func (c *Client) CommandError(said string) *Error {
	const closed = "Websocket Closure Reason:"
	if at := strings.LastIndex(said, `{"ErrorCode"`); at >= 0 {
		answer, _, _ := strings.Cut(said[at:], "\n")
		if r := parseRefusal([]byte(answer)); r.code != noJSON {
			return &Error{c.meaning(openTunnel, r), scrub(errors.New(openTunnel.name + ": " + r.code + ": " + r.message))}
		}
	}
	detail := TunnelCommand
	switch {
	case said == "":
		said = "the AWS CLI says nothing, and nothing came through its tunnel"
	case strings.Contains(strings.ToLower(said), strings.ToLower(closed+" Unable to connect to target")):
		detail = TargetUnreachable
	case strings.Contains(said, closed), strings.Contains(said, "AWS_ERROR_HTTP_CONNECTION_CLOSED"), strings.Contains(said, "AWS_IO_SOCKET_CLOSED"):
		detail = TunnelCut
	}
	return &Error{detail, scrub(errors.New(said))}
}

// bound is a duration that AWS takes for a tunnel, in whole seconds.
func bound(d time.Duration) time.Duration {
	if d <= 0 || d > MaxTunnel {
		return MaxTunnel
	}
	return max(d.Truncate(time.Second), time.Second)
}

func seconds(d time.Duration) string { return strconv.Itoa(int(bound(d) / time.Second)) }
