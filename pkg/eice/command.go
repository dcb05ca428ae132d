package eice

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Command returns the AWS CLI command that opens a tunnel over the same route, for ssh's ProxyCommand. argv holds no
// secret, and no character that is special to a shell or among ssh's % tokens. Endpoint id, DNS name and address
// together spare the CLI its own Describe calls. The CLI finds credentials as the gateway does, so env is the part of
// Config.Environ that the CLI reads, without any TERMGW_ variable. For a role, env has the role's credentials instead of
// the gateway's: the CLI cannot assume a role with a source identity. maxDuration is that of OpenTunnel. Errors are of type
// *Error.
func (c *Client) Command(ctx context.Context, route Route, maxDuration time.Duration) (argv, env []string, err error) {
	argv = []string{
		"aws", "ec2-instance-connect", "open-tunnel",
		"--region", route.Region,
		"--instance-connect-endpoint-id", route.EndpointID,
		"--instance-connect-endpoint-dns-name", route.EndpointDNS,
		"--private-ip-address", route.Address.String(),
		"--remote-port", sshPort,
		"--max-tunnel-duration", seconds(maxDuration),
	}
	own := route.Role == ""
	for _, entry := range c.cfg.Environ {
		if name, _, ok := strings.Cut(entry, "="); ok && cliReads(name) && (own || !isCredential(name)) {
			env = append(env, entry)
		}
	}
	if own {
		return argv, env, nil
	}
	ctx, cancel := c.step(ctx)
	defer cancel()
	credentials, err := c.credentials(ctx, route.principal(), route.Region)
	if err != nil {
		return nil, nil, err
	}
	// The CLI prefers them to those of a profile.
	env = append(env, "AWS_ACCESS_KEY_ID="+credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+credentials.SecretAccessKey,
		"AWS_SESSION_TOKEN="+credentials.SessionToken)
	return argv, env, nil
}

// isCredential reports whether a variable holds credentials, or leads to some.
func isCredential(name string) bool {
	return slices.Contains([]string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"}, name) ||
		strings.HasPrefix(name, "AWS_WEB_IDENTITY_") || strings.HasPrefix(name, "AWS_ROLE_") || strings.HasPrefix(name, "AWS_CONTAINER_")
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

// cliFault matches the CLI's words for a refused call of its own, which is one for credentials.
var cliFault = regexp.MustCompile(`An error occurred \((\w{1,64})\) when calling the (\w{1,64}) operation`)

// CommandError returns the error that the AWS CLI's output describes; the end of the output is enough. An endpoint's
// refusal stands in the output unchanged. No output means that nothing came through the tunnel in time: the CLI waits
// for good when it cannot find or verify the endpoint.
func (c *Client) CommandError(said string) *Error {
	const closed = "Websocket Closure Reason:"
	if at := strings.LastIndex(said, `{"ErrorCode"`); at >= 0 {
		answer, _, _ := strings.Cut(said[at:], "\n")
		if r := parseRefusal([]byte(answer)); r.code != noJSON {
			return &Error{Detail: c.meaning(openTunnel, r), Err: scrub(errors.New(openTunnel.name + ": " + r.code + ": " + r.message))}
		}
	}
	if call := cliFault.FindStringSubmatch(said); call != nil {
		return &Error{Detail: c.meaning(getCredentials, refusal{code: call[1]}), Err: scrub(errors.New(said))}
	}
	detail := TunnelCommand
	switch {
	case said == "":
		said = "the AWS CLI says nothing, and nothing came through its tunnel"
	case strings.Contains(strings.ToLower(said), strings.ToLower(closed+" Unable to connect to target")):
		detail = TargetUnreachable
	case strings.Contains(said, "executable file not found"), strings.Contains(said, "Invalid choice"):
		detail = NoTunnelCommand
	case strings.Contains(said, "Unable to locate credentials"):
		detail = Credentials
	case strings.Contains(said, "Could not connect to the endpoint URL"):
		detail = Unreachable
	case strings.Contains(said, closed), strings.Contains(said, "AWS_ERROR_HTTP_CONNECTION_CLOSED"), strings.Contains(said, "AWS_IO_SOCKET_CLOSED"):
		detail = TunnelCut
	}
	return &Error{Detail: detail, Err: scrub(errors.New(said))}
}

// bound returns the nearest duration that AWS accepts for a tunnel, in whole seconds; 0 and less is MaxTunnel.
func bound(d time.Duration) time.Duration {
	if d <= 0 || d > MaxTunnel {
		return MaxTunnel
	}
	return max(d.Truncate(time.Second), time.Second)
}

func seconds(d time.Duration) string { return strconv.Itoa(int(bound(d) / time.Second)) }
