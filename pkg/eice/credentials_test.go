package eice

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

const (
	oneRole     = "arn:aws:iam::111111111111:role/termgw"
	otherRole   = "arn:aws:iam::222222222222:role/teams/b/termgw"
	namedRole   = "arn:aws:iam::111111111111:role/named"
	otherID     = "i-0123456789abcdef2"
	otherEICE   = "eice-0123456789abcdef2"
	oneInstance = "i-0123456789abcdef1"
	oneEICE     = "eice-0123456789abcdef1"
)

// newAccounts is a world with two more accounts, each with a role, an instance and an endpoint, in the same address range.
func newAccounts(t testing.TB) *world {
	return newWorld(t, func(w *world, _ *Config) {
		w.play.PutRole(awsplay.Role{ARN: oneRole})
		w.play.PutRole(awsplay.Role{ARN: otherRole})
		w.play.PutRole(awsplay.Role{ARN: namedRole, SourceIdentity: true})
		for _, a := range []struct{ account, instance, endpoint string }{{"111111111111", oneInstance, oneEICE}, {"222222222222", otherID, otherEICE}} {
			w.play.PutInstance(awsplay.Instance{ID: a.instance, PrivateIP: privateIP, Account: a.account, Target: listen(t, echo)})
			w.play.PutEndpoint(awsplay.Endpoint{ID: a.endpoint, Account: a.account})
		}
	})
}

// way walks the whole way to an instance, and returns the route and the ids of the last two requests.
func (w *world) way(t testing.TB, at Instance) (route Route, pushed, opened string) {
	t.Helper()
	route, err := w.client.Locate(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	if pushed, err = w.client.PushKey(t.Context(), route, "ec2-user", publicKey); err != nil {
		t.Fatal(err)
	}
	conn, opened, err := w.client.OpenTunnel(t.Context(), route, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return route, pushed, opened
}

func TestRoles(t *testing.T) {
	w := newAccounts(t)
	w.way(t, Instance{ID: instanceID})
	w.way(t, Instance{ID: oneInstance, Role: oneRole})
	w.way(t, Instance{ID: otherID, Role: otherRole})
	w.way(t, Instance{ID: oneInstance, Role: namedRole, SourceIdentity: "ann@example.com"})
	w.way(t, Instance{ID: oneInstance, Role: namedRole, SourceIdentity: "bob"})
	w.way(t, Instance{ID: oneInstance, Role: oneRole}) // cached
	type whose struct{ account, role, identity string }
	var got []string
	byWhom := map[whose][]awsplay.Op{}
	for _, r := range w.play.Requests() {
		who := whose{r.Account, r.Role, r.SourceIdentity}
		byWhom[who] = append(byWhom[who], r.Op)
		got = append(got, r.ID)
	}
	if slices.Sort(got); len(slices.Compact(got)) != len(w.play.Requests()) {
		t.Error("an id is of two requests")
	}
	whole := []awsplay.Op{awsplay.DescribeInstances, awsplay.DescribeEndpoints, awsplay.SendSSHPublicKey, awsplay.OpenTunnel}
	assumed := slices.Repeat([]awsplay.Op{awsplay.AssumeRole}, 4)
	for who, want := range map[whose][]awsplay.Op{
		{accountID, "", ""}:                            {}, // checked below
		{"111111111111", oneRole, ""}:                  append(slices.Clone(whole), awsplay.SendSSHPublicKey, awsplay.OpenTunnel),
		{"222222222222", otherRole, ""}:                whole,
		{"111111111111", namedRole, "ann@example.com"}: whole,
		{"111111111111", namedRole, "bob"}:             whole,
	} {
		if who.role == "" {
			want = append(slices.Clone(whole), assumed...)
		}
		if !slices.Equal(byWhom[who], want) {
			t.Errorf("%v made the requests %v, want %v", who, byWhom[who], want)
		}
		delete(byWhom, who)
	}
	if len(byWhom) > 0 {
		t.Errorf("others made the requests %v", byWhom)
	}
}

// A route that one role found is not for another, which may not see the instance, nor for the same role in another's name.
func TestRoutesAreOfTheirRole(t *testing.T) {
	w := newAccounts(t)
	w.way(t, Instance{ID: oneInstance, Role: oneRole})
	for _, at := range []Instance{{ID: oneInstance}, {ID: oneInstance, Role: otherRole}} {
		_, err := w.client.Locate(t.Context(), at)
		wantDetail(t, err, InstanceUnknown)
	}
	w.way(t, Instance{ID: oneInstance, Role: namedRole, SourceIdentity: "ann"})
	before := w.play.Calls(awsplay.DescribeInstances)
	w.way(t, Instance{ID: oneInstance, Role: namedRole, SourceIdentity: "bob"})
	if n := w.play.Calls(awsplay.DescribeInstances) - before; n != 1 {
		t.Errorf("%d calls for another person", n)
	}
	_, err := w.client.Locate(t.Context(), Instance{ID: oneInstance, Role: oneRole, EndpointID: "eice-0123456789abcdef9"})
	wantDetail(t, err, EndpointUnknown)
}

// An endpoint of the row's goes before the gateway's, in another VPC too.
func TestEndpointOfTheRow(t *testing.T) {
	const hub = "eice-0123456789abcdef5"
	w := newWorld(t, func(w *world, c *Config) {
		w.play.PutEndpoint(awsplay.Endpoint{ID: hub, VPC: "vpc-hub"})
		c.EndpointID = "eice-0123456789abcdef9"
	})
	_, err := w.client.Locate(t.Context(), Instance{ID: instanceID})
	wantDetail(t, err, EndpointUnknown)
	route, err := w.client.Locate(t.Context(), Instance{ID: instanceID, EndpointID: hub})
	if err != nil || route.EndpointID != hub {
		t.Errorf("got %+v, %v", route, err)
	}
}

func TestRoleFaults(t *testing.T) {
	w := newAccounts(t)
	for _, arn := range []string{
		"termgw", "arn:aws:iam::1:role/termgw", "arn:aws:iam::111111111111:user/termgw", "arn:aws:iam::111111111111:role/", oneRole + "\n", oneRole + " x",
		"arn:aws:iam::111111111111:role/a b", "arn:evil:iam::111111111111:role/termgw", "arn:aws:sts::111111111111:assumed-role/x/y", oneRole + "/" + strings.Repeat("x", 65),
	} {
		_, err := w.client.Locate(t.Context(), Instance{ID: oneInstance, Role: arn})
		wantDetail(t, err, Role)
	}
	for _, arn := range []string{"arn:aws-us-gov:iam::111111111111:role/x", "arn:aws-iso-b:iam::111111111111:role/x", "arn:aws-eusc:iam::111111111111:role/a/b/c+d=e,f.g@h-i_j"} {
		if !roleForm.MatchString(arn) {
			t.Errorf("%s is refused", arn)
		}
	}
	for _, identity := range []string{"a", "ann lee", "aws:ann", "ann\n", "ä", "auth0|ann", strings.Repeat("x", 65)} {
		_, err := w.client.Locate(t.Context(), Instance{ID: oneInstance, Role: namedRole, SourceIdentity: identity})
		wantDetail(t, err, SourceIdentity)
	}
	_, err := w.client.Locate(t.Context(), Instance{ID: oneInstance, SourceIdentity: "ann"})
	wantDetail(t, err, SourceIdentity)
	_, err = w.client.Locate(t.Context(), Instance{ID: oneInstance, Role: oneRole, EndpointID: "eice-1 -x"})
	wantDetail(t, err, EndpointID)
	if n := w.play.Calls(awsplay.AssumeRole) + w.play.Calls(awsplay.DescribeInstances); n != 0 {
		t.Errorf("AWS was asked %d times", n)
	}

	for name, at := range map[string]Instance{
		"no such role":               {ID: oneInstance, Role: "arn:aws:iam::111111111111:role/nobody"},
		"a person where none may be": {ID: oneInstance, Role: oneRole, SourceIdentity: "ann"},
		"no person where one must":   {ID: oneInstance, Role: namedRole},
	} {
		_, err := w.client.Locate(t.Context(), at)
		if got := wantFault(t, err); got != IAMRole {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, test := range []struct {
		fault awsplay.Fault
		want  Detail
	}{
		{answered(400, "Throttling"), Throttled},
		{answered(500, "InternalFailure"), Fault},
		{answered(403, "ExpiredToken"), CredentialsExpired},
		{answered(403, "InvalidClientTokenId"), Credentials},
		{answered(403, "RegionDisabledException"), Account},
		{answered(400, "PackedPolicyTooLarge"), Account},
		{denied("AccessDenied"), IAMRole},
		{awsplay.Fault{Status: 200, Body: "<html/>"}, Answer},
	} {
		w.play.Fail(awsplay.AssumeRole, test.fault)
		_, err := w.client.Locate(t.Context(), Instance{ID: oneInstance, Role: oneRole})
		wantDetail(t, err, test.want)
	}
	w.play.Heal()
	w.way(t, Instance{ID: oneInstance, Role: oneRole})
}

// Credentials of a role that AWS no longer takes are not kept for the rest of their hour.
func TestRevokedRole(t *testing.T) {
	w := newAccounts(t)
	at := Instance{ID: oneInstance, Role: oneRole}
	route, _, _ := w.way(t, at)
	w.play.RevokeRoles()
	_, err := w.client.PushKey(t.Context(), route, "ec2-user", publicKey)
	wantDetail(t, err, Credentials)
	w.way(t, at)
	w.play.RevokeRoles()
	w.client.Forget(route)
	_, err = w.client.Locate(t.Context(), at)
	wantDetail(t, err, Credentials)
	w.way(t, at)
}

func TestRoleIsAssumedOnce(t *testing.T) {
	w := newAccounts(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := w.client.Locate(t.Context(), Instance{ID: oneInstance, Role: oneRole}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.way(t, Instance{ID: oneInstance, Role: oneRole})
	if n := w.play.Calls(awsplay.AssumeRole); n != 1 {
		t.Errorf("%d calls", n)
	}
}

// The AWS CLI gets a role's credentials instead of the gateway's, and none in argv.
func TestCommandOfARole(t *testing.T) {
	w := newAccounts(t)
	w.config.Environ = []string{
		"PATH=/usr/bin", "AWS_ACCESS_KEY_ID=" + keys.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + keys.SecretAccessKey, "AWS_SESSION_TOKEN=" + keys.SessionToken,
		"AWS_ROLE_ARN=arn:aws:iam::" + accountID + ":role/x", "AWS_WEB_IDENTITY_TOKEN_FILE=/token", "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1/",
		"AWS_CA_BUNDLE=/ca.pem",
	}
	w.client = newPatient(w.config)
	route, err := w.client.Locate(t.Context(), Instance{ID: oneInstance, Role: oneRole})
	if err != nil {
		t.Fatal(err)
	}
	argv, env, err := w.client.Command(t.Context(), route, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(env) != 5 || env[0] != "PATH=/usr/bin" || env[1] != "AWS_CA_BUNDLE=/ca.pem" || !strings.HasPrefix(env[2], "AWS_ACCESS_KEY_ID=ASIA") ||
		!strings.HasPrefix(env[3], "AWS_SECRET_ACCESS_KEY=issued/") || !strings.HasPrefix(env[4], "AWS_SESSION_TOKEN=issued/") {
		t.Errorf("the environment is %q", env)
	}
	if text := strings.Join(argv, " "); strings.Contains(text, "ASIA") || strings.Contains(text, "issued") {
		t.Errorf("argv is %q", argv)
	}
	w.play.Fail(awsplay.AssumeRole, denied("AccessDenied"))
	w.client.doubt(route.principal(), fault(Credentials, "revoked"))
	_, _, err = w.client.Command(t.Context(), route, 0)
	wantDetail(t, err, IAMRole)
}

// Each request has an id, by which CloudTrail finds it: of what went well and of what did not.
func TestRequestIDs(t *testing.T) {
	w := newAccounts(t)
	route, pushed, opened := w.way(t, Instance{ID: oneInstance, Role: oneRole})
	want := map[awsplay.Op]string{
		awsplay.DescribeInstances: route.InstanceRequest, awsplay.DescribeEndpoints: route.EndpointRequest,
		awsplay.SendSSHPublicKey: pushed, awsplay.OpenTunnel: opened,
	}
	for _, r := range w.play.Requests() {
		if got, ok := want[r.Op]; ok && (got != r.ID || got == "") {
			t.Errorf("%s has the id %q, want %q", r.Op, got, r.ID)
		}
	}
	w.play.PutInstance(awsplay.Instance{ID: instanceID, PrivateIP: privateIP, OSUsers: []string{"ubuntu"}})
	_, err := w.client.PushKey(t.Context(), w.locate(t), "ec2-user", publicKey)
	wantDetail(t, err, IAMKey)
	all := w.play.Requests()
	if id := all[len(all)-1].ID; !strings.Contains(err.Error(), "(request "+id+")") {
		t.Errorf("%v does not name the request %s", err, id)
	}
	for _, id := range []string{"", "a b", "x", "\x1b[2J-00000000", strings.Repeat("x", 65)} {
		if validRequest(id) != "" {
			t.Errorf("%q is taken for an id", id)
		}
	}
}
