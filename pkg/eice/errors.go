package eice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Detail is the name of a failure, for clients, operators and docs. Names are stable.
type Detail string

// The failures on the way to an instance.
const (
	InstanceID         Detail = "instance_id"
	InstanceUnknown    Detail = "instance_unknown"
	InstanceStopped    Detail = "instance_stopped"
	InstanceTerminated Detail = "instance_terminated"
	InstanceNoAddress  Detail = "instance_no_address"
	InstanceIPv6Only   Detail = "instance_ipv6_only"
	Region             Detail = "region"
	OSUser             Detail = "os_user"
	EndpointNone       Detail = "endpoint_none"
	EndpointUnknown    Detail = "endpoint_unknown"
	EndpointCreating   Detail = "endpoint_creating"
	EndpointFIPS       Detail = "endpoint_fips"
	IAMInstances       Detail = "iam_describe_instances"
	IAMEndpoints       Detail = "iam_describe_endpoints"
	IAMKey             Detail = "iam_send_key"
	IAMTunnel          Detail = "iam_open_tunnel"
	Credentials        Detail = "credentials"
	CredentialsExpired Detail = "credentials_expired"
	Clock              Detail = "clock"
	Throttled          Detail = "throttled"
	Unreachable        Detail = "aws_unreachable"
	Answer             Detail = "aws_answer"
	KeyRefused         Detail = "key_refused"
	TunnelRefused      Detail = "tunnel_refused"
	TunnelQuota        Detail = "tunnel_quota"
	TunnelCommand      Detail = "tunnel"
	TargetUnreachable  Detail = "security_group"
	TunnelCut          Detail = "tunnel_cut"
	TunnelStalled      Detail = "tunnel_stalled"
	TunnelExpired      Detail = "tunnel_expired"
)

// Docs is the page with each Detail's causes and fixes.
const Docs = "docs/infra/workspace-terminal.md"

// sentences tell the person at the terminal what to do.
var sentences = map[Detail]string{
	InstanceID:         "The workspace's instance id is malformed: correct it in the workspace's row.",
	InstanceUnknown:    "The workspace's instance does not exist in this AWS account and region.",
	InstanceStopped:    "The workspace's instance is not running: start it, then open the terminal again.",
	InstanceTerminated: "The workspace's instance was terminated: the workspace needs a new one.",
	InstanceNoAddress:  "The workspace's instance has no private IPv4 address.",
	InstanceIPv6Only:   "The workspace's instance has an IPv6 address only; the endpoint needs a private IPv4 address.",
	Region:             "No valid AWS region is configured for this workspace: set its region or AWS_REGION.",
	OSUser:             "The OS user configured for this workspace is not a valid user name.",
	EndpointNone:       "The instance's VPC has no EC2 Instance Connect Endpoint: create one.",
	EndpointUnknown:    "The configured EC2 Instance Connect Endpoint does not exist or is not ready: check TERMGW_EICE_ENDPOINT_ID.",
	EndpointCreating:   "The EC2 Instance Connect Endpoint is still being created: try again in a few minutes.",
	EndpointFIPS:       "FIPS is asked for, but the EC2 Instance Connect Endpoint has no FIPS name.",
	IAMInstances:       "The gateway may not describe instances: allow ec2:DescribeInstances.",
	IAMEndpoints:       "The gateway may not describe endpoints: allow ec2:DescribeInstanceConnectEndpoints.",
	IAMKey:             "The gateway may not push a key: allow ec2-instance-connect:SendSSHPublicKey and check its ec2:osuser condition.",
	IAMTunnel:          "The gateway may not open a tunnel: allow ec2-instance-connect:OpenTunnel on the endpoint and check its conditions.",
	Credentials:        "The gateway has no AWS credentials that AWS accepts.",
	CredentialsExpired: "The gateway's AWS credentials have expired: renew them.",
	Clock:              "The gateway's clock differs from AWS's by minutes: set it right.",
	Throttled:          "AWS takes no more requests for the moment: try again in a minute.",
	Unreachable:        "The gateway cannot reach AWS: check its network, DNS, proxy and CA certificates.",
	Answer:             "AWS gave an answer that the gateway does not accept.",
	KeyRefused:         "AWS did not take the key for the instance: check the OS user and that the instance supports EC2 Instance Connect.",
	TunnelRefused:      "The EC2 Instance Connect Endpoint refused the tunnel.",
	TunnelQuota:        "All tunnels of the EC2 Instance Connect Endpoint are in use: close a terminal and try again.",
	TunnelCommand:      "The AWS CLI carries no tunnel: check that version 2.12 or later is in the gateway's PATH, and that it trusts and reaches the endpoint (SSL_CERT_FILE, HTTPS_PROXY, DNS).",
	TargetUnreachable:  "The endpoint cannot reach the instance's port 22: check both security groups, network ACLs and sshd.",
	TunnelCut:          "The connection to the instance broke: open the terminal again.",
	TunnelStalled:      "The connection to the instance went silent: open the terminal again.",
	TunnelExpired:      "The tunnel's longest life is over: open the terminal again.",
}

// Error is a failure on the way to an instance. Its text holds no account id, ARN, signed URL or key.
type Error struct {
	Detail Detail
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Detail, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Sentence returns what the person at the terminal can do.
func (e *Error) Sentence() string { return sentences[e.Detail] }

func fault(detail Detail, text string) *Error { return &Error{detail, errors.New(text)} }

// operation is an AWS call, with the meaning of its failures.
type operation struct {
	name    string
	denied  Detail
	refused Detail // for a code that says nothing more precise
}

var (
	describeInstances = operation{"DescribeInstances", IAMInstances, Answer}
	describeEndpoints = operation{"DescribeInstanceConnectEndpoints", IAMEndpoints, Answer}
	sendKey           = operation{"SendSSHPublicKey", IAMKey, KeyRefused}
	openTunnel        = operation{"OpenTunnel", IAMTunnel, TunnelRefused}
)

// refusal is an unsuccessful answer of AWS.
type refusal struct {
	status  int
	code    string
	message string
	date    string // the Date header
}

// explain returns the Error for an error of the SDK.
func (c *Client) explain(op operation, err error) *Error {
	api, answered := errors.AsType[smithy.APIError](err)
	if !answered {
		detail := Unreachable
		if _, ok := errors.AsType[*smithy.DeserializationError](err); ok {
			detail = Answer
		}
		return &Error{detail, scrub(fmt.Errorf("%s: %w", op.name, err))}
	}
	r := refusal{code: api.ErrorCode(), message: api.ErrorMessage()}
	if response, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && response.Response != nil {
		r.status, r.date = response.HTTPStatusCode(), response.Response.Header.Get("Date")
	}
	return c.refused(op, r)
}

func (c *Client) refused(op operation, r refusal) *Error {
	text := fmt.Errorf("%s: status %d, %s: %s", op.name, r.status, r.code, r.message)
	return &Error{c.meaning(op, r), scrub(text)}
}

// skewLimit is the difference from AWS's clock that counts as a wrong clock: AWS's limit of 5 minutes, less 10 s for a
// Date header that has whole seconds and travels for a while.
const skewLimit = 5*time.Minute - 10*time.Second

func (c *Client) meaning(op operation, r refusal) Detail {
	// AWS writes the code X also as "Client.X" and "…#X".
	code := r.code[strings.LastIndexAny(r.code, "#:")+1:]
	code = strings.TrimPrefix(strings.TrimPrefix(code, "Client."), "Server.")
	_, throttled := retry.DefaultThrottleErrorCodes[code]
	expired := slices.Contains([]string{"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}, code)
	unsigned := slices.Contains([]string{
		"AuthFailure", "IncompleteSignature", "InvalidClientTokenId", "InvalidSignatureException", "MissingAuthenticationToken",
		"MissingAuthenticationTokenException", "SignatureDoesNotMatch", "UnrecognizedClientException",
	}, code)
	unauthorised := r.status == http.StatusUnauthorized || r.status == http.StatusForbidden
	switch {
	case code == "RequestTimeTooSkewed", code == "RequestInTheFuture",
		// For a wrong clock AWS reports an expired or wrong signature; only the Date header shows the reason.
		(expired || unsigned || unauthorised) && c.skewed(r.date):
		return Clock
	case expired:
		return CredentialsExpired
	case unsigned:
		return Credentials
	case throttled, r.status == http.StatusTooManyRequests && op != openTunnel:
		return Throttled
	}
	switch code {
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthException":
		return op.denied
	case "InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed", "EC2InstanceNotFoundException":
		return InstanceUnknown
	case "EC2InstanceStateInvalidException":
		return InstanceStopped
	case "InvalidInstanceConnectEndpointId.NotFound", "InvalidInstanceConnectEndpointId.Malformed":
		return EndpointUnknown
	}
	if op == openTunnel && (r.status == http.StatusTooManyRequests ||
		strings.Contains(code, "Quota") || strings.Contains(code, "LimitExceeded")) {
		return TunnelQuota
	}
	if r.status >= http.StatusInternalServerError {
		return Answer
	}
	return op.refused
}

func (c *Client) skewed(date string) bool {
	theirs, err := http.ParseTime(date)
	return err == nil && c.now().Sub(theirs).Abs() > skewLimit
}

// Secrets that scrub removes: AWS puts ARNs and account ids into its messages, and Go puts a request's URL into its
// errors.
var (
	secretURL  = regexp.MustCompile(`(?i)[a-z0-9+.-]*://[^\s"]*`)
	secretARN  = regexp.MustCompile(`(?i)arn:[a-z0-9-]*:[^\s"]*`)
	secretAmz  = regexp.MustCompile(`(?i)x-amz-[^\s"]*`)
	secretKey  = regexp.MustCompile(`\b(ssh|ecdsa|sk-ssh|sk-ecdsa)-[^\s"]* [^\s"]*`)
	accessKey  = regexp.MustCompile(`\b[A-Z]{4}[A-Z0-9]{12,}\b`)
	longSecret = regexp.MustCompile(`[A-Za-z0-9+/=_-]{40,}`)
	account    = regexp.MustCompile(`\d{12,}`)
)

// maxErrorText bounds the text of an error, in bytes.
const maxErrorText = 400

// scrubbed is an error's text without secrets. It does not wrap the error, whose text a log might print; it wraps
// context.Canceled or a deadline's error if the error did.
type scrubbed struct {
	text string
	is   error
}

func (s *scrubbed) Error() string { return s.text }
func (s *scrubbed) Unwrap() error { return s.is }

func scrub(err error) error {
	s := &scrubbed{text: scrubText(err.Error())}
	for _, known := range []error{context.Canceled, context.DeadlineExceeded, os.ErrDeadlineExceeded} {
		if errors.Is(err, known) {
			s.is = known
		}
	}
	return s
}

func scrubText(text string) string {
	text = strings.ToValidUTF8(text, "?")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' ' // no line break or escape sequence reaches the operator's terminal
		}
		return r
	}, text)
	for _, secret := range []*regexp.Regexp{secretURL, secretARN, secretAmz, secretKey, longSecret, accessKey, account} {
		text = secret.ReplaceAllString(text, "…")
	}
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return text
}
