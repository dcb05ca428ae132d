package eice

import (
	"context"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2instanceconnect"
)

// PushKey lets a public key log in as osUser on the instance for the next 60 s. authorizedKey is one line of
// authorized_keys. Errors are of type *Error.
func (c *Client) PushKey(ctx context.Context, route Route, osUser, authorizedKey string) error {
	if !ValidOSUser(osUser) {
		return fault(OSUser, "the OS user's name is malformed")
	}
	authorizedKey = strings.TrimSpace(authorizedKey)
	if strings.ContainsAny(authorizedKey, "\r\n") {
		return fault(KeyRefused, "the public key is more than one line")
	}
	ctx, cancel := context.WithTimeout(ctx, c.stepTime)
	defer cancel()
	if _, err := c.credentials(ctx); err != nil {
		return err
	}
	out, err := c.sendKey(ctx, &ec2instanceconnect.SendSSHPublicKeyInput{
		InstanceId: aws.String(route.InstanceID), InstanceOSUser: aws.String(osUser), SSHPublicKey: aws.String(authorizedKey),
	}, func(o *ec2instanceconnect.Options) { o.Region = route.Region })
	if err != nil {
		c.Forget(route)
		return c.explain(sendKey, err)
	}
	if !out.Success {
		c.Forget(route)
		return fault(KeyRefused, "SendSSHPublicKey: no success")
	}
	return nil
}
