package awsplay

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// AWS's own examples, from its Signature Version 4 test suite.
func TestPublishedSignatures(t *testing.T) {
	v := verifier{
		creds:  Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"},
		region: "us-east-1", service: "service", now: time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC),
	}
	for target, signature := range map[string]string{
		"/":                             "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
		"/?Param2=value2&Param1=value1": "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
	} {
		r := httptest.NewRequest(http.MethodGet, target, nil)
		r.Host = "example.amazonaws.com"
		r.Header.Set("X-Amz-Date", "20150830T123600Z")
		r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "+
			"SignedHeaders=host;x-amz-date, Signature="+signature)
		if err := v.header(r, nil); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

var (
	signedAt = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	testKeys = Credentials{AccessKeyID: "AKIAEXAMPLEEXAMPLE00", SecretAccessKey: "a secret", SessionToken: "a/token+with=signs"}
)

func testVerifier() verifier {
	return verifier{testKeys, "us-east-1", "ec2-instance-connect", signedAt}
}

func sdkKeys(c Credentials) aws.Credentials {
	return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
}

// signedRequest is what the SDK would send.
func signedRequest(t testing.TB, body string) *http.Request {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "https://ec2.us-east-1.amazonaws.com/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "Some.Thing")
	err := v4.NewSigner().SignHTTP(t.Context(), sdkKeys(testKeys), r, hexHash([]byte(body)), "ec2-instance-connect", "us-east-1", signedAt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHeaderSignature(t *testing.T) {
	const body = `{"a":"body"}`
	if err := testVerifier().header(signedRequest(t, body), []byte(body)); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	authorization := func(old, replacement string) func(*http.Request, *verifier) {
		return func(r *http.Request, _ *verifier) {
			was := r.Header.Get("Authorization")
			if !strings.Contains(was, old) {
				panic(old)
			}
			r.Header.Set("Authorization", strings.Replace(was, old, replacement, 1))
		}
	}
	header := func(name, value string) func(*http.Request, *verifier) {
		return func(r *http.Request, _ *verifier) { r.Header.Set(name, value) }
	}
	for name, test := range map[string]struct {
		change func(*http.Request, *verifier)
		body   string
		want   error
	}{
		"another body":          {func(*http.Request, *verifier) {}, `{"a":"bodz"}`, errMismatch},
		"another method":        {func(r *http.Request, _ *verifier) { r.Method = http.MethodPut }, body, errMismatch},
		"another host":          {func(r *http.Request, _ *verifier) { r.Host = "evil.example" }, body, errMismatch},
		"another path":          {func(r *http.Request, _ *verifier) { r.URL.Path = "/other" }, body, errMismatch},
		"a query":               {func(r *http.Request, _ *verifier) { r.URL.RawQuery = "a=b" }, body, errMismatch},
		"another target":        {header("X-Amz-Target", "Other.Thing"), body, errMismatch},
		"another date":          {header("X-Amz-Date", "20261123T120001Z"), body, errMismatch},
		"no date":               {header("X-Amz-Date", ""), body, errUnsigned},
		"another day":           {header("X-Amz-Date", "20261122T235959Z"), body, errScope},
		"another token":         {header("X-Amz-Security-Token", "other"), body, errToken},
		"another hash":          {header("X-Amz-Content-Sha256", hexHash(nil)), body, errMismatch},
		"an unsigned header":    {header("X-Amz-Extra", "1"), body, errUnsigned},
		"no authorization":      {header("Authorization", ""), body, errUnsigned},
		"another algorithm":     {authorization("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"), body, errUnsigned},
		"another access key":    {authorization("AKIA", "AKIB"), body, errAccessKey},
		"another region":        {authorization("us-east-1", "us-east-2"), body, errScope},
		"another service":       {authorization("ec2-instance-connect", "ec2"), body, errScope},
		"another signature":     {authorization("Signature=", "Signature=0"), body, errMismatch},
		"an empty signature":    {authorization("Signature=", "Signature=,X="), body, errUnsigned},
		"a header less":         {authorization("content-type;", ""), body, errUnsigned},
		"no host":               {authorization("host;", ""), body, errUnsigned},
		"five minutes late":     {func(_ *http.Request, v *verifier) { v.now = v.now.Add(5*time.Minute + time.Second) }, body, errSkew},
		"five minutes early":    {func(_ *http.Request, v *verifier) { v.now = v.now.Add(-5*time.Minute - time.Second) }, body, errSkew},
		"an expired token":      {func(_ *http.Request, v *verifier) { v.creds.Expired = true }, body, errRenew},
		"another secret":        {func(_ *http.Request, v *verifier) { v.creds.SecretAccessKey = "b secret" }, body, errMismatch},
		"a header missing":      {func(r *http.Request, _ *verifier) { r.Header.Del("X-Amz-Target") }, body, errUnsigned},
		"two authorizations":    {func(r *http.Request, _ *verifier) { r.Header.Add("Authorization", "x") }, body, errUnsigned},
		"a signed header twice": {func(r *http.Request, _ *verifier) { r.Header.Add("X-Amz-Target", "x") }, body, errMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			r, v := signedRequest(t, body), testVerifier()
			test.change(r, &v)
			if err := v.header(r, []byte(test.body)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// presignedRequest is a tunnel's.
func presignedRequest(t testing.TB, query url.Values) *http.Request {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "wss://eice-1.amazonaws.com/openTunnel?"+query.Encode(), nil)
	signed, _, err := v4.NewSigner().PresignHTTP(t.Context(), sdkKeys(testKeys), r, hexHash(nil), "ec2-instance-connect", "us-east-1", signedAt)
	if err != nil {
		t.Fatal(err)
	}
	return httptest.NewRequest(http.MethodGet, signed, nil)
}

func TestPresignedSignature(t *testing.T) {
	good := url.Values{"privateIpAddress": {"10.0.0.5"}, "remotePort": {"22"}, "X-Amz-Expires": {"60"}}
	if err := testVerifier().presigned(presignedRequest(t, good), maxExpires); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	query := func(old, replacement string) func(*http.Request, *verifier) {
		return func(r *http.Request, _ *verifier) {
			if !strings.Contains(r.URL.RawQuery, old) {
				panic(old)
			}
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, old, replacement, 1)
		}
	}
	at := func(d time.Duration) func(*http.Request, *verifier) {
		return func(_ *http.Request, v *verifier) { v.now = v.now.Add(d) }
	}
	for name, test := range map[string]struct {
		change func(*http.Request, *verifier)
		want   error
	}{
		"still good":          {at(60 * time.Second), nil},
		"expired":             {at(61 * time.Second), errExpired},
		"not yet":             {at(-5*time.Minute - time.Second), errSkew},
		"another address":     {query("10.0.0.5", "10.0.0.6"), errMismatch},
		"one parameter more":  {query("remotePort=22", "remotePort=22&x=y"), errMismatch},
		"one parameter twice": {query("remotePort=22", "remotePort=22&remotePort=23"), errUnsigned},
		"a longer life":       {query("X-Amz-Expires=60", "X-Amz-Expires=59"), errMismatch},
		"too long a life":     {query("X-Amz-Expires=60", "X-Amz-Expires=61"), errUnsigned},
		"no life":             {query("X-Amz-Expires=60", "x=1"), errUnsigned},
		"another host":        {func(r *http.Request, _ *verifier) { r.Host = "eice-2.amazonaws.com" }, errMismatch},
		"another path":        {func(r *http.Request, _ *verifier) { r.URL.Path = "/openTunnel2" }, errMismatch},
		"another method":      {func(r *http.Request, _ *verifier) { r.Method = http.MethodPost }, errMismatch},
		"another token":       {query("X-Amz-Security-Token=a", "X-Amz-Security-Token=b"), errToken},
		"another signature":   {query("X-Amz-Signature=", "X-Amz-Signature=0"), errMismatch},
		"no signature":        {query("X-Amz-Signature=", "Y="), errUnsigned},
		"another access key":  {query("AKIA", "AKIB"), errAccessKey},
		"a plus":              {query("remotePort=22", "remotePort=+22"), errUnsigned},
		"an expired token":    {func(_ *http.Request, v *verifier) { v.creds.Expired = true }, errRenew},
	} {
		t.Run(name, func(t *testing.T) {
			r, v := presignedRequest(t, good), testVerifier()
			test.change(r, &v)
			if err := v.presigned(r, maxExpires); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	// The life has to be signed with the rest: added afterwards it is refused.
	late := presignedRequest(t, url.Values{"remotePort": {"22"}})
	late.URL.RawQuery += "&X-Amz-Expires=60"
	if err := testVerifier().presigned(late, maxExpires); !errors.Is(err, errMismatch) {
		t.Errorf("X-Amz-Expires after signing: %v", err)
	}
}

// FuzzVerify holds that no change of a signed request passes.
func FuzzVerify(f *testing.F) {
	good := presignedRequest(f, url.Values{"remotePort": {"22"}, "X-Amz-Expires": {"60"}})
	signed := signedRequest(f, "body")
	f.Add(good.URL.RawQuery, signed.Header.Get("Authorization"), []byte("body"))
	f.Add("a=b&a", "AWS4-HMAC-SHA256 Credential=////,SignedHeaders=;,Signature=", []byte(nil))
	f.Fuzz(func(t *testing.T, query, authorization string, body []byte) {
		r := good.Clone(t.Context())
		r.URL.RawQuery = query
		if err := testVerifier().presigned(r, maxExpires); err == nil && !sameQuery(query, good.URL.RawQuery) {
			t.Errorf("taken: %q", query)
		}
		r = signed.Clone(t.Context())
		was := r.Header.Get("Authorization")
		r.Header.Set("Authorization", authorization)
		if err := testVerifier().header(r, body); err == nil && (!sameFields(authorization, was) || !bytes.Equal(body, []byte("body"))) {
			t.Errorf("taken: %q %q", authorization, body)
		}
	})
}

func sameQuery(a, b string) bool {
	x, errX := url.ParseQuery(a)
	y, errY := url.ParseQuery(b)
	return errX == nil && errY == nil && x.Encode() == y.Encode()
}

// sameFields compares but for the order of the fields and space around them.
func sameFields(a, b string) bool {
	fields := func(s string) string {
		q := url.Values{}
		for part := range strings.SplitSeq(strings.TrimPrefix(s, algorithm+" "), ",") {
			q.Add(strings.TrimSpace(part), "")
		}
		return q.Encode()
	}
	return fields(a) == fields(b)
}
