package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/rds/auth"
)

// awsOfDatabase is AWS's configuration by the process's environment. It caches credentials, and gets new ones by itself.
var awsOfDatabase = sync.OnceValues(func() (aws.Config, error) { return awsconfig.LoadDefaultConfig(context.Background()) })

// DatabaseToken returns a token by which the IAM identity of this process logs in to RDS as user at endpoint, host:port, within
// 15 minutes. An empty region is that of the environment.
func DatabaseToken(ctx context.Context, region, endpoint, user string) (string, error) {
	sdk, err := awsOfDatabase()
	if err != nil {
		return "", fmt.Errorf("reading AWS's configuration: %w", err)
	}
	if region = cmp.Or(region, sdk.Region); region == "" {
		return "", errors.New("no region: set AWS_REGION, or aws_region in the database's URL")
	}
	if sdk.Credentials == nil {
		return "", errors.New("no AWS credentials")
	}
	return auth.BuildAuthToken(ctx, endpoint, region, user, sdk.Credentials)
}
