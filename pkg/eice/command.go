package eice

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Command returns the AWS CLI command that opens a tunnel over the same route, for ssh's ProxyCommand. argv holds no
// secret, and no character that is special to a shell or among ssh's % tokens. Endpoint id, DNS name and address
// together spare the CLI its own Describe calls. The CLI finds credentials as the gateway does, so env is the part of
// Config.Environ that the CLI reads, without any TERMGW_ variable. maxDuration is that of OpenTunnel.
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

// cliReads reports whether the AWS CLI needs a variable: the SDK's own, the sources of credentials, and the variables
// for the program's path, files, roots and proxy.
func cliReads(name string) bool {
	return strings.HasPrefix(name, "AWS_") || slices.Contains([]string{
		"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR",
		// Without HTTP_PROXY, which the CLI's tunnel prefers to HTTPS_PROXY.
		"HTTPS_PROXY", "NO_PROXY", "https_proxy", "no_proxy",
	}, name)
}

// CommandError returns the error that the AWS CLI's output describes; the end of the output is enough. An endpoint's
// refusal stands in the output unchanged. No output means that nothing came through the tunnel in time: the CLI waits
// for good when it cannot find or verify the endpoint.
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

// bound returns the nearest duration that AWS accepts for a tunnel, in whole seconds; 0 and less is MaxTunnel.
func bound(d time.Duration) time.Duration {
	if d <= 0 || d > MaxTunnel {
		return MaxTunnel
	}
	return max(d.Truncate(time.Second), time.Second)
}

func seconds(d time.Duration) string { return strconv.Itoa(int(bound(d) / time.Second)) }
