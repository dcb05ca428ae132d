package eice

import (
	"context"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// labelsForm is one or more labels of a DNS name, each with the dot after it.
var labelsForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.){1,8}$`)

// ofAWS reports whether name is a DNS name of the AWS partition that the region belongs to (aws, aws-cn, aws-us-gov,
// aws-eusc and others): whatever an answer says, a signed request goes to AWS alone. The partitions' domains, one for
// IPv4 names and one for dual-stack names, are the SDK's own: it builds the names of EC2 with them.
func ofAWS(ctx context.Context, name, region string) bool {
	if len(name) > 253 {
		return false
	}
	for _, dualstack := range []bool{false, true} {
		endpoint, err := ec2.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, ec2.EndpointParameters{
			Region: aws.String(region), UseDualStack: aws.Bool(dualstack),
		})
		if err != nil {
			continue // the partition has no dual-stack names
		}
		domain, found := strings.CutPrefix(endpoint.URI.Hostname(), "ec2."+region+".")
		labels, under := strings.CutSuffix(name, domain)
		if found && under && labelsForm.MatchString(labels) {
			return true
		}
	}
	return false
}
