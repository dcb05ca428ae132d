package awsplay

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	stsVersion   = "2011-06-15"
	stsNamespace = "https://sts.amazonaws.com/doc/" + stsVersion + "/"
)

// session is whom a signature is of: the credentials of Config, or those of an assumed role.
type session struct {
	creds                         Credentials
	account, role, sourceIdentity string
	until                         time.Time // zero: for ever
}

// caller returns the session that a request's access key is of, which is still to be verified: that of Config for an unknown
// key, which its verifier refuses.
func (s *Server) caller(r *http.Request) session {
	credential := r.URL.Query().Get("X-Amz-Credential")
	if _, signed, ok := strings.Cut(r.Header.Get("Authorization"), "Credential="); ok {
		credential = signed
	}
	key, _, _ := strings.Cut(credential, "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	if got, ok := s.issued[key]; ok {
		got.creds.Expired = !s.cfg.Now().Before(got.until)
		return got
	}
	return session{creds: s.creds, account: s.cfg.Account}
}

type stsError struct {
	XMLName   xml.Name `xml:"ErrorResponse"`
	Namespace string   `xml:"xmlns,attr"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

type assumeRoleAnswer struct {
	XMLName        xml.Name `xml:"AssumeRoleResponse"`
	Namespace      string   `xml:"xmlns,attr"`
	SourceIdentity string   `xml:"AssumeRoleResult>SourceIdentity,omitempty"`
	RoleARN        string   `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
	RoleID         string   `xml:"AssumeRoleResult>AssumedRoleUser>AssumedRoleId"`
	AccessKeyID    string   `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
	Secret         string   `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
	Token          string   `xml:"AssumeRoleResult>Credentials>SessionToken"`
	Expiration     string   `xml:"AssumeRoleResult>Credentials>Expiration"`
	RequestID      string   `xml:"ResponseMetadata>RequestId"`
}

func tellSTS(w http.ResponseWriter, d denial) {
	writeXML(w, d.status, stsError{
		Namespace: stsNamespace, Type: "Sender", Code: d.code, Message: d.message, RequestID: w.Header().Get(requestIDHeader),
	})
}

// stsDenial returns STS's error for a refused signature.
func stsDenial(err error) denial {
	code := "IncompleteSignature"
	switch {
	case errors.Is(err, errSkew), errors.Is(err, errExpired), errors.Is(err, errMismatch), errors.Is(err, errScope):
		code = "SignatureDoesNotMatch"
	case errors.Is(err, errAccessKey), errors.Is(err, errToken):
		code = "InvalidClientTokenId"
	case errors.Is(err, errRenew):
		code = "ExpiredToken"
	}
	return denial{http.StatusForbidden, code, err.Error()}
}

var (
	sessionForm  = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	assumedParts = regexp.MustCompile(`^arn:[a-z-]+:iam::(\d{12}):role/(?:.*/)?([^/]+)$`)
)

func (s *Server) serveSTS(w http.ResponseWriter, r *http.Request, form url.Values, body []byte) {
	if Op(form.Get("Action")) != AssumeRole {
		tellSTS(w, denial{http.StatusBadRequest, "InvalidAction", "The action is not valid here."})
		return
	}
	if s.playFault(w, r, AssumeRole, tellSTS) {
		return
	}
	who := s.caller(r)
	if err := s.verifier("sts", who).header(r, body); err != nil {
		tellSTS(w, stsDenial(err))
		return
	}
	s.record(w, AssumeRole, who)
	got, name, d := s.assume(who, form)
	if d != nil {
		tellSTS(w, *d)
		return
	}
	writeXML(w, http.StatusOK, assumeRoleAnswer{
		Namespace: stsNamespace, SourceIdentity: got.sourceIdentity, RequestID: w.Header().Get(requestIDHeader),
		RoleARN: "arn:aws:sts::" + got.account + ":assumed-role/" + name, RoleID: "AROAEXAMPLE:" + form.Get("RoleSessionName"),
		AccessKeyID: got.creds.AccessKeyID, Secret: got.creds.SecretAccessKey, Token: got.creds.SessionToken,
		Expiration: got.until.UTC().Format(time.RFC3339),
	})
}

// assume checks the parameters of AssumeRole and the role's trust policy, and issues credentials. name is the role's with the
// session's.
func (s *Server) assume(who session, form url.Values) (got session, name string, _ *denial) {
	arn, identity, called := form.Get("RoleArn"), form.Get("SourceIdentity"), form.Get("RoleSessionName")
	seconds, err := strconv.Atoi(form.Get("DurationSeconds"))
	parts := assumedParts.FindStringSubmatch(arn)
	if err != nil || seconds < 900 || seconds > 3600 || parts == nil || !sessionForm.MatchString(called) ||
		form.Has("SourceIdentity") && !sessionForm.MatchString(identity) {
		return got, "", &denial{http.StatusBadRequest, "ValidationError", "A parameter of AssumeRole is not valid."}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	role, ok := s.roles[arn]
	if !ok || who.role != "" || role.SourceIdentity != (identity != "") {
		return got, "", &denial{http.StatusForbidden, "AccessDenied", s.unauthorised("sts:AssumeRole") + " " + arn}
	}
	n := len(s.issued) + s.answered
	got = session{
		creds: Credentials{
			AccessKeyID: fmt.Sprintf("ASIAEXAMPLE%09d", n), SecretAccessKey: fmt.Sprintf("issued/secret+%d", n), SessionToken: fmt.Sprintf("issued/token+%d=", n),
		},
		account: parts[1], role: arn, sourceIdentity: identity, until: s.cfg.Now().Add(time.Duration(seconds) * time.Second),
	}
	s.issued[got.creds.AccessKeyID] = got
	return got, parts[2] + "/" + called, nil
}
