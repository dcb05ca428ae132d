package eice

import (
	"context"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/ec2instanceconnect"
	"github.com/aws/smithy-go/middleware"
)

// PushKey lets a public key log in as osUser on the instance for the next 60 s. authorizedKey is one line of
// authorized_keys. request is the request's id; empty: AWS gave none. Errors are of type *Error.
func (c *Client) PushKey(ctx context.Context, route Route, osUser, authorizedKey string) (request string, err error) {
	if !ValidOSUser(osUser) {
		return "", fault(OSUser, "the OS user's name is malformed")
	}
	authorizedKey = strings.TrimSpace(authorizedKey)
	if strings.ContainsAny(authorizedKey, "\r\n") {
		return "", fault(KeyRefused, "the public key is more than one line")
	}
	ctx, cancel := c.step(ctx)
	defer cancel()
	if _, err := c.credentials(ctx, route.principal(), route.Region); err != nil {
		return "", err
	}
	out, err := c.sendKey(ctx, &ec2instanceconnect.SendSSHPublicKeyInput{
		InstanceId: aws.String(route.ID), InstanceOSUser: aws.String(osUser), SSHPublicKey: aws.String(authorizedKey),
	}, func(o *ec2instanceconnect.Options) {
		o.Region, o.Credentials = route.Region, c.provider(route.principal(), route.Region)
	})
	if err != nil {
		c.Forget(route)
		err := c.explain(ctx, sendKey, err)
		c.doubt(route.principal(), err)
		return "", err
	}
	if !out.Success {
		c.Forget(route)
		return "", fault(KeyRefused, "SendSSHPublicKey: no success")
	}
	return requestOf(out.ResultMetadata), nil
}

// requestOf returns the request's id in an answer of the SDK, or "".
func requestOf(answer middleware.Metadata) string {
	id, _ := awsmiddleware.GetRequestIDMetadata(answer)
	return validRequest(id)
}

var requestForm = regexp.MustCompile(`^[A-Za-z0-9-]{8,64}$`)

// validRequest returns the id of a request, or "" for a text that is none.
func validRequest(id string) string {
	if !requestForm.MatchString(id) {
		return ""
	}
	return id
}
