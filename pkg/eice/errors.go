package eice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/molecule-ai/termgw/internal/redact"
)

// Detail is the name of a failure, for clients, operators and docs. Names are stable.
type Detail string

// The failures on the way to an instance.
const (
	InstanceID           Detail = "instance_id"
	InstanceUnknown      Detail = "instance_unknown"
	InstancePending      Detail = "instance_pending"
	InstanceStopping     Detail = "instance_stopping"
	InstanceStopped      Detail = "instance_stopped"
	InstanceShuttingDown Detail = "instance_shutting_down"
	InstanceTerminated   Detail = "instance_terminated"
	InstanceNotReady     Detail = "instance_not_ready"
	InstanceNoAddress    Detail = "instance_no_address"
	Region               Detail = "region"
	Role                 Detail = "role_arn"
	SourceIdentity       Detail = "source_identity"
	OSUser               Detail = "os_user"
	EndpointID           Detail = "endpoint_id"
	EndpointNone         Detail = "endpoint_none"
	EndpointUnknown      Detail = "endpoint_unknown"
	EndpointCreating     Detail = "endpoint_creating"
	EndpointFIPS         Detail = "endpoint_fips"
	EndpointAddress      Detail = "endpoint_address_type"
	IAMRole              Detail = "iam_assume_role"
	IAMInstances         Detail = "iam_describe_instances"
	IAMEndpoints         Detail = "iam_describe_endpoints"
	IAMKey               Detail = "iam_send_key"
	IAMTunnel            Detail = "iam_open_tunnel"
	Account              Detail = "aws_account"
	Credentials          Detail = "credentials"
	CredentialsExpired   Detail = "credentials_expired"
	Clock                Detail = "clock"
	Throttled            Detail = "throttled"
	Unreachable          Detail = "aws_unreachable"
	Fault                Detail = "aws_fault"
	Answer               Detail = "aws_answer"
	KeyRefused           Detail = "key_refused"
	TunnelRefused        Detail = "tunnel_refused"
	TunnelQuota          Detail = "tunnel_quota"
	TunnelCommand        Detail = "tunnel"
	NoTunnelCommand      Detail = "aws_cli"
	TargetUnreachable    Detail = "security_group"
	TunnelCut            Detail = "tunnel_cut"
	TunnelExpired        Detail = "tunnel_expired"
)

// Docs is the page with each Detail's causes and fixes.
const Docs = "docs/infra/workspace-terminal.md"

// The classes of failures, by whether a later try of the same request can succeed.
const (
	passing = false // it can: the cause passes by itself, or is not known
	final   = true  // it cannot before somebody has mended the cause
)

// details has the class of each failure, and the sentence that tells the person at the terminal what to do.
var details = map[Detail]struct {
	final    bool
	sentence string
}{
	InstanceID:           {final, "The workspace's instance id is malformed: correct it in the workspace's row."},
	InstanceUnknown:      {final, "AWS knows no such instance in this account and region. If the instance was created a moment ago, open the terminal again in a minute; else correct instance_id, region or role_arn in the workspace's row."},
	InstancePending:      {passing, "The workspace's instance is starting: try again in a minute."},
	InstanceStopping:     {final, "The workspace's instance is stopping: start it once it has stopped, then open the terminal again."},
	InstanceStopped:      {final, "The workspace's instance is not running: start it, then open the terminal again."},
	InstanceShuttingDown: {final, "The workspace's instance is being terminated: the workspace needs a new one."},
	InstanceTerminated:   {final, "The workspace's instance was terminated: the workspace needs a new one."},
	InstanceNotReady:     {passing, "AWS takes no key for the workspace's instance, which starts or stops at this moment: try again in a minute."},
	InstanceNoAddress:    {final, "The workspace's instance has no private address: check its network interface."},
	Region:               {final, "No valid AWS region is configured for this workspace: set its region or AWS_REGION."},
	Role:                 {final, "The workspace's role_arn is no ARN of an IAM role: correct it in the workspace's row."},
	SourceIdentity:       {final, "AWS takes no source identity like the subject of this ticket: it has 2 to 64 letters, digits or characters of _ + = , . @ -."},
	OSUser:               {final, "The OS user configured for this workspace is not a valid user name: correct os_user in the workspace's row, or TERMGW_EICE_OS_USER."},
	EndpointID:           {final, "The id of the EC2 Instance Connect Endpoint is malformed: correct endpoint_id in the workspace's row, or TERMGW_EICE_ENDPOINT_ID."},
	EndpointNone:         {final, "The instance's VPC has no EC2 Instance Connect Endpoint: create one."},
	EndpointUnknown:      {final, "The configured EC2 Instance Connect Endpoint does not exist or is not ready: check endpoint_id in the workspace's row and TERMGW_EICE_ENDPOINT_ID."},
	EndpointCreating:     {passing, "The EC2 Instance Connect Endpoint is still being created: try again in a few minutes."},
	EndpointFIPS:         {final, "FIPS is asked for, but the EC2 Instance Connect Endpoint has no FIPS name: use a region that has FIPS endpoints, or unset AWS_USE_FIPS_ENDPOINT."},
	EndpointAddress:      {final, "The EC2 Instance Connect Endpoint reaches no address of the instance: one of them has IPv4 only, the other IPv6 only. Make the endpoint's address type dualstack, or give the instance an address of the endpoint's type."},
	IAMRole:              {final, "The gateway may not assume the workspace's role: check role_arn in the workspace's row, the role's trust policy, and that the gateway is allowed sts:AssumeRole (and sts:SetSourceIdentity, with source_identity)."},
	IAMInstances:         {final, "The gateway may not describe instances: allow ec2:DescribeInstances."},
	IAMEndpoints:         {final, "The gateway may not describe endpoints: allow ec2:DescribeInstanceConnectEndpoints."},
	IAMKey:               {final, "The gateway may not push a key: allow ec2-instance-connect:SendSSHPublicKey and check its ec2:osuser condition."},
	IAMTunnel:            {final, "The gateway may not open a tunnel: allow ec2-instance-connect:OpenTunnel on the endpoint and check its conditions."},
	Account:              {final, "AWS refuses the account in this region, or what the gateway asks there: check that the region is enabled in the account and that the account is not blocked. The gateway's log has AWS's word."},
	Credentials:          {final, "The gateway has no AWS credentials that AWS accepts: give it a role, or check AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."},
	CredentialsExpired:   {passing, "The gateway's AWS credentials have expired: renew them."},
	Clock:                {final, "The gateway's clock differs from AWS's by minutes: set it right."},
	Throttled:            {passing, "AWS takes no more requests for the moment: try again in a minute."},
	Unreachable:          {passing, "The gateway cannot reach AWS: check its network, DNS, proxy and CA certificates."},
	Fault:                {passing, "AWS, or a proxy on the way to it, reports a fault of its own: try again in a minute."},
	Answer:               {passing, "AWS gave an answer that the gateway does not accept. Check for a proxy that answers in AWS's place (HTTPS_PROXY)."},
	KeyRefused:           {final, "AWS did not take the key for the instance: check the OS user and that the instance supports EC2 Instance Connect."},
	TunnelRefused:        {passing, "The EC2 Instance Connect Endpoint refused the tunnel: check the endpoint's state, and see the gateway's log for AWS's word."},
	TunnelQuota:          {passing, "All tunnels of the EC2 Instance Connect Endpoint are in use: close a terminal and try again."},
	TunnelCommand:        {passing, "The AWS CLI carries no tunnel: check that it trusts and reaches the endpoint (SSL_CERT_FILE, HTTPS_PROXY, DNS)."},
	NoTunnelCommand:      {final, "The gateway's AWS CLI is missing or opens no tunnels: put version 2.12 or later into its PATH, or set TERMGW_EICE_TUNNEL to native."},
	TargetUnreachable:    {passing, "The endpoint cannot reach the instance's port 22. If the instance is starting or rebooting, try again in a minute; else check both security groups, network ACLs, sshd, and endpoint_id in the workspace's row."},
	TunnelCut:            {passing, "The connection to the instance broke: open the terminal again."},
	TunnelExpired:        {passing, "The tunnel's longest life is over: open the terminal again."},
}

// Error is a failure on the way to an instance. Its text holds no account id, ARN, signed URL or key.
type Error struct {
	Detail  Detail
	Err     error
	Request string // the id of the request that AWS refused; empty: AWS gave none
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Detail, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Sentence returns what the person at the terminal can do.
func (e *Error) Sentence() string { return details[e.Detail].sentence }

// Final reports whether no later try can succeed before somebody has mended the cause.
func (e *Error) Final() bool { return details[e.Detail].final }

func fault(detail Detail, text string) *Error { return &Error{Detail: detail, Err: errors.New(text)} }

// operation is an AWS call, with the meaning of its failures.
type operation struct {
	name    string
	denied  Detail
	refused Detail // for a code that says nothing more precise
}

var (
	getCredentials    = operation{"getting AWS credentials", Credentials, Credentials}
	assumeRole        = operation{"AssumeRole", IAMRole, Account}
	describeInstances = operation{"DescribeInstances", IAMInstances, Account}
	describeEndpoints = operation{"DescribeInstanceConnectEndpoints", IAMEndpoints, Account}
	sendKey           = operation{"SendSSHPublicKey", IAMKey, KeyRefused}
	openTunnel        = operation{"OpenTunnel", IAMTunnel, TunnelRefused}
)

// refusal is an unsuccessful answer of AWS.
type refusal struct {
	status    int
	code      string
	message   string
	date      string // the Date header
	requestID string
}

// refusalOf returns the refusal that an error of the SDK is of. An answer that is not the API's own counts by its status:
// the instance's metadata service and proxies give no more.
func refusalOf(err error) (refusal, bool) {
	var r refusal
	api, ok := errors.AsType[smithy.APIError](err)
	if ok {
		r.code, r.message = api.ErrorCode(), api.ErrorMessage()
	}
	if response, has := errors.AsType[*smithyhttp.ResponseError](err); has && response.Response != nil {
		r.status, r.date = response.HTTPStatusCode(), response.Response.Header.Get("Date")
		if !ok && (r.status == http.StatusTooManyRequests || r.status >= http.StatusInternalServerError) {
			r.code, r.message, ok = noJSON, response.Err.Error(), true
		}
	}
	if response, has := errors.AsType[*awshttp.ResponseError](err); has {
		r.requestID = response.ServiceRequestID()
	}
	return r, ok
}

// explain returns the Error for an error of the SDK in a step. If AWS refused an earlier try of the step (a throttled one,
// mostly) and the time for the retries ran out, the refusal is the cause, and not the network.
func (c *Client) explain(ctx context.Context, op operation, err error) *Error {
	if r, ok := refusalOf(err); ok {
		return c.refused(op, r)
	}
	if r, tried, ok := lastRefusal(ctx); ok {
		e := c.refused(operation{tried, op.denied, op.refused}, r)
		e.Err = scrub(fmt.Errorf("%s: %w, after %w", op.name, err, e.Err))
		return e
	}
	detail := Unreachable
	if _, ok := errors.AsType[*smithy.DeserializationError](err); ok {
		detail = Answer
	}
	return &Error{Detail: detail, Err: scrub(fmt.Errorf("%s: %w", op.name, err))}
}

func (c *Client) refused(op operation, r refusal) *Error {
	text, request := scrub(fmt.Errorf("%s: status %d, %s: %s", op.name, r.status, r.code, r.message)), validRequest(r.requestID)
	if request != "" {
		text.text += " (request " + request + ")"
	}
	return &Error{c.meaning(op, r), text, request}
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
	case "InternalError", "InternalFailure", "InternalServerError", "InternalServerException", "ServiceException", "ServiceUnavailable",
		"ServiceUnavailableException", "Unavailable", "IDPCommunicationError":
		return Fault // with any status: the AWS CLI tells none
	case "AccountDisabled", "Blocked", "OptInRequired", "PendingVerification", "RegionDisabledException", "SubscriptionRequiredException":
		return Account
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthException":
		return op.denied
	case "InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed", "EC2InstanceNotFoundException":
		return InstanceUnknown
	case "EC2InstanceStateInvalidException":
		return InstanceNotReady // the instance ran half a minute ago
	case "InvalidInstanceConnectEndpointId.NotFound", "InvalidInstanceConnectEndpointId.Malformed":
		return EndpointUnknown
	}
	if op == openTunnel && (r.status == http.StatusTooManyRequests ||
		strings.Contains(code, "Quota") || strings.Contains(code, "LimitExceeded")) {
		return TunnelQuota
	}
	if r.status >= http.StatusInternalServerError {
		return Fault
	}
	noCode := r.code == noJSON || r.code == "" || code == "UnknownError"
	if noCode && (op == openTunnel || op.refused == Account) {
		return Answer // a proxy's: AWS has a code for each refusal
	}
	return op.refused
}

func (c *Client) skewed(date string) bool {
	theirs, err := http.ParseTime(date)
	return err == nil && c.now().Sub(theirs).Abs() > skewLimit
}

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

func scrub(err error) *scrubbed {
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
	text = redact.Secrets(text)
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return text
}
