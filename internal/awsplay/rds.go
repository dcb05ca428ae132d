package awsplay

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// maxTokenExpires is the longest life of a token for a database, in seconds.
const maxTokenExpires = 900

// DatabaseLogin returns the endpoint, host:port, and the user that a token lets in, as RDS does for IAM database authentication: the
// token is a presigned request for the action connect of the service rds-db, without its scheme.
func (s *Server) DatabaseLogin(token string) (endpoint, user string, err error) {
	r, err := http.NewRequest(http.MethodGet, "https://"+token, nil) //nolint:noctx // it is not sent
	if err != nil || strings.Contains(token, "://") {
		return "", "", errors.New("the token is not a URL without a scheme")
	}
	if err := s.verifier("rds-db", s.caller(r)).presigned(r, maxTokenExpires); err != nil {
		return "", "", err
	}
	q := r.URL.Query()
	if q.Get("Action") != "connect" || q.Get("DBUser") == "" || r.URL.Port() == "" {
		return "", "", fmt.Errorf("%w: Action, DBUser or port", errUnsigned)
	}
	return r.Host, q.Get("DBUser"), nil
}
