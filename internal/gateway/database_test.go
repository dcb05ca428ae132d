package gateway

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

// A token lets its user into its endpoint alone, and is signed with the credentials of the environment.
func TestDatabaseToken(t *testing.T) {
	credentials := awsplay.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "x.secretsecretsecretsecret.x", SessionToken: "session/token+="}
	aws, err := awsplay.New(awsplay.Config{Region: "eu-west-1", Credentials: credentials})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := aws.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY": credentials.SecretAccessKey, "AWS_SESSION_TOKEN": credentials.SessionToken,
		"AWS_REGION": "us-east-2", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "",
	} {
		t.Setenv(name, value)
	}
	const endpoint = "db.cluster-1.eu-west-1.rds.amazonaws.com:5432"
	token, err := DatabaseToken(t.Context(), "eu-west-1", endpoint, "termgw")
	if err != nil {
		t.Fatal(err)
	}
	if at, user, err := aws.DatabaseLogin(token); err != nil || at != endpoint || user != "termgw" {
		t.Errorf("%s, %s, %v", at, user, err)
	}
	for _, forged := range []string{
		strings.Replace(token, "termgw", "postgres", 1), strings.Replace(token, "db.", "other.", 1), strings.Replace(token, "5432", "5433", 1),
	} {
		if _, _, err := aws.DatabaseLogin(forged); err == nil {
			t.Errorf("a changed token is taken")
		}
	}
	elsewhere, err := DatabaseToken(t.Context(), "", endpoint, "termgw")
	u, parseErr := url.Parse("https://" + elsewhere)
	if err := errors.Join(err, parseErr); err != nil || !strings.Contains(u.Query().Get("X-Amz-Credential"), "/us-east-2/") {
		t.Errorf("without a region the environment's counts: %v", err)
	}
}
