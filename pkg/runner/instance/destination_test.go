package instance

import (
	"errors"
	"testing"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// Terminals share a connection if all is alike that decides which sshd answers and whom AWS records, and only then.
func TestDestinations(t *testing.T) {
	t.Parallel()
	k := &Kind{cfg: Config{OSUser: "ec2-user", Target: TargetHost}}
	of := func(subject string, columns ...string) destination {
		t.Helper()
		row := map[string]string{"instance_id": "i-0123456789abcdef0"}
		for i := 0; i < len(columns); i += 2 {
			row[columns[i]] = columns[i+1]
		}
		r, err := k.request(runner.Target{Session: "S", Subject: subject, Attributes: row})
		if err != nil {
			t.Fatal(err)
		}
		return r.to
	}
	const role = "arn:aws:iam::111111111111:role/termgw"
	for _, alike := range [][2]destination{
		{of("ann"), of("bob")},
		{of("ann", "role_arn", role), of("bob", "role_arn", role)},
		{of("ann", "role_arn", role, "source_identity", "false"), of("bob", "role_arn", role, "source_identity", "f")},
		{of("ann", "role_arn", role, "source_identity", "true"), of("ann", "role_arn", role, "source_identity", "t")},
	} {
		if alike[0] != alike[1] {
			t.Errorf("%+v and %+v share nothing", alike[0], alike[1])
		}
	}
	apart := []destination{
		of("ann"), of("ann", "region", "eu-west-1"), of("ann", "os_user", "ubuntu"), of("ann", "endpoint_id", "eice-0123456789abcdef0"),
		of("ann", "role_arn", role), of("ann", "role_arn", role+"2"),
		of("ann", "role_arn", role, "source_identity", "true"), of("bob", "role_arn", role, "source_identity", "true"),
	}
	seen := map[destination]bool{}
	for _, to := range apart {
		if seen[to] {
			t.Errorf("%+v is another's", to)
		}
		seen[to] = true
		if got := to.tunnelRequest("key"); got.Role != to.role || got.Endpoint != to.endpoint || got.SourceIdentity != to.identity {
			t.Errorf("%+v is asked for as %+v", to, got)
		}
	}
}

// A source identity that cannot be had opens nothing, rather than a terminal in nobody's name.
func TestSourceIdentityThatCannotBe(t *testing.T) {
	t.Parallel()
	k := &Kind{cfg: Config{OSUser: "ec2-user", Target: TargetHost}}
	for name, test := range map[string]struct{ subject, asked, role string }{
		"neither true nor false": {"ann", "yes please", "arn:aws:iam::111111111111:role/termgw"},
		"no role":                {"ann", "true", ""},
		"nobody":                 {"", "true", "arn:aws:iam::111111111111:role/termgw"},
	} {
		_, err := k.request(runner.Target{Session: "S", Subject: test.subject, Attributes: map[string]string{
			"instance_id": "i-0123456789abcdef0", "source_identity": test.asked, "role_arn": test.role,
		}})
		failed, ok := errors.AsType[*runner.Failure](err)
		if !ok || failed.Step != "source_identity" || !failed.Final || failed.Sentence == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
