package awsplay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A verifier of Signature Version 4, written from AWS's description ("Signature Version 4 for API requests", IAM User
// Guide), not from a signer.

const (
	algorithm  = "AWS4-HMAC-SHA256"
	dateFormat = "20060102T150405Z"
	maxSkew    = 5 * time.Minute
	// maxExpires is the longest life of a presigned request, in seconds: that of the AWS CLI for a tunnel.
	maxExpires = 60
)

// The reasons to refuse a signature.
var (
	errUnsigned  = errors.New("the request is not signed as Signature Version 4 asks")
	errScope     = errors.New("the credential's scope is for another day, region or service")
	errAccessKey = errors.New("the access key does not exist")
	errToken     = errors.New("the security token is not the access key's")
	errSkew      = errors.New("the request's date is not near the time here")
	errExpired   = errors.New("the signed request has expired")
	errRenew     = errors.New("the security token has expired")
	errMismatch  = errors.New("the signature does not match the request")
)

// verifier holds the values that signatures are checked against.
type verifier struct {
	creds   Credentials
	region  string
	service string
	now     time.Time
}

// signatureFields describe the signature of a request.
type signatureFields struct {
	credential, signedHeaders, signature string
	date, token                          string
}

// header verifies a request whose signature is in its headers.
func (v verifier) header(r *http.Request, body []byte) error {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), algorithm+" ")
	if !ok || len(r.Header.Values("Authorization")) != 1 {
		return errUnsigned
	}
	var c signatureFields
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		field, known := map[string]*string{
			"Credential": &c.credential, "SignedHeaders": &c.signedHeaders, "Signature": &c.signature,
		}[name]
		if !known || *field != "" {
			return errUnsigned
		}
		*field = value
	}
	c.date, c.token = r.Header.Get("X-Amz-Date"), r.Header.Get("X-Amz-Security-Token")
	date, err := v.checkFields(c)
	if err != nil {
		return err
	}
	if v.now.Sub(date).Abs() > maxSkew {
		return errSkew
	}
	hash := hexHash(body)
	if said := r.Header.Get("X-Amz-Content-Sha256"); said != "" && said != hash {
		return errMismatch
	}
	query, err := canonicalQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	return v.compare(r, c, date, query, hash)
}

// presigned verifies a request whose signature is in its query, without a body, for longest seconds at most.
func (v verifier) presigned(r *http.Request, longest int) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || query.Get("X-Amz-Algorithm") != algorithm || r.Header.Get("Authorization") != "" {
		return errUnsigned
	}
	for name, values := range query {
		if len(values) != 1 {
			return fmt.Errorf("%w: %s is there twice", errUnsigned, name)
		}
	}
	c := signatureFields{
		query.Get("X-Amz-Credential"), query.Get("X-Amz-SignedHeaders"), query.Get("X-Amz-Signature"),
		query.Get("X-Amz-Date"), query.Get("X-Amz-Security-Token"),
	}
	date, err := v.checkFields(c)
	if err != nil {
		return err
	}
	expires, err := strconv.Atoi(query.Get("X-Amz-Expires"))
	if err != nil || expires < 1 || expires > longest {
		return fmt.Errorf("%w: X-Amz-Expires", errUnsigned)
	}
	switch {
	case date.Sub(v.now) > maxSkew:
		return errSkew
	case v.now.Sub(date) > time.Duration(expires)*time.Second:
		return errExpired
	}
	unsigned, err := canonicalQuery(r.URL.RawQuery, "X-Amz-Signature")
	if err != nil {
		return err
	}
	return v.compare(r, c, date, unsigned, hexHash(nil))
}

// checkFields checks all but the signature itself, and returns the request's date.
func (v verifier) checkFields(c signatureFields) (time.Time, error) {
	date, err := time.Parse(dateFormat, c.date)
	if err != nil || c.signature == "" {
		return time.Time{}, errUnsigned
	}
	scope := strings.Split(c.credential, "/")
	if len(scope) != 5 {
		return time.Time{}, errUnsigned
	}
	switch {
	case scope[0] != v.creds.AccessKeyID:
		return time.Time{}, errAccessKey
	case scope[1] != date.Format("20060102"), scope[2] != v.region, scope[3] != v.service, scope[4] != "aws4_request":
		return time.Time{}, errScope
	case c.token != v.creds.SessionToken:
		return time.Time{}, errToken
	}
	return date, nil
}

func (v verifier) compare(r *http.Request, c signatureFields, date time.Time, query, bodyHash string) error {
	names := strings.Split(c.signedHeaders, ";")
	if !slices.IsSorted(names) || !slices.Contains(names, "host") {
		return fmt.Errorf("%w: SignedHeaders", errUnsigned)
	}
	for name := range r.Header {
		lower := strings.ToLower(name)
		if (strings.HasPrefix(lower, "x-amz-") || lower == "content-type") && !slices.Contains(names, lower) {
			return fmt.Errorf("%w: %s is not signed", errUnsigned, lower)
		}
	}
	var headers strings.Builder
	for _, name := range names {
		values := r.Header.Values(name)
		switch name {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		}
		if len(values) == 0 {
			return fmt.Errorf("%w: a signed header is missing", errUnsigned)
		}
		headers.WriteString(name + ":")
		for i, value := range values {
			if i > 0 {
				headers.WriteByte(',')
			}
			headers.WriteString(strings.Join(strings.Fields(value), " "))
		}
		headers.WriteByte('\n')
	}
	canonical := strings.Join([]string{
		r.Method, canonicalPath(r.URL), query, headers.String(), c.signedHeaders, bodyHash,
	}, "\n")
	day := date.Format("20060102")
	scope := strings.Join([]string{day, v.region, v.service, "aws4_request"}, "/")
	toSign := strings.Join([]string{algorithm, c.date, scope, hexHash([]byte(canonical))}, "\n")
	key := []byte("AWS4" + v.creds.SecretAccessKey)
	for _, part := range []string{day, v.region, v.service, "aws4_request", toSign} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(key)), []byte(c.signature)) {
		return errMismatch
	}
	// An expired token is reported only for a correct signature.
	if v.creds.Expired {
		return errRenew
	}
	return nil
}

func hexHash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// canonicalPath encodes the path a second time, as every service but S3 requires.
func canonicalPath(u *url.URL) string {
	path := u.EscapedPath()
	if path == "" {
		return "/"
	}
	parts := strings.Split(path, "/")
	for i := range parts {
		parts[i] = encode(parts[i])
	}
	return strings.Join(parts, "/")
}

// canonicalQuery sorts the query by name, then by value, both encoded.
func canonicalQuery(raw string, without ...string) (string, error) {
	if raw == "" {
		return "", nil
	}
	var pairs [][2]string
	for part := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(part, "=")
		if strings.Contains(part, "+") {
			return "", fmt.Errorf("%w: a + in the query", errUnsigned)
		}
		name, err := url.PathUnescape(name)
		if err != nil {
			return "", fmt.Errorf("%w: the query", errUnsigned)
		}
		value, err = url.PathUnescape(value)
		if err != nil {
			return "", fmt.Errorf("%w: the query", errUnsigned)
		}
		if !slices.Contains(without, name) {
			pairs = append(pairs, [2]string{encode(name), encode(value)})
		}
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	encoded := make([]string, len(pairs))
	for i, pair := range pairs {
		encoded[i] = pair[0] + "=" + pair[1]
	}
	return strings.Join(encoded, "&"), nil
}

// encode is AWS's UriEncode: it encodes all but RFC 3986's unreserved characters.
func encode(s string) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(unreserved, s[i]) >= 0 {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

// verifier returns the values that a caller's requests to a service are checked against now.
func (s *Server) verifier(service string, who session) verifier {
	return verifier{who.creds, s.cfg.Region, service, s.cfg.Now()}
}
