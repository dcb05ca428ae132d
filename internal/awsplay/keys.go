package awsplay

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// login is the account that a key is for.
type login struct{ instance, user string }

type pushed struct {
	line  string
	until time.Time
}

func tellJSON(w http.ResponseWriter, d denial) {
	writeJSON(w, d.status, map[string]string{"__type": "com.amazon.aws.ec2instanceconnect#" + d.code, "Message": d.message})
}

func writeJSON(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the client may have left
}

func (s *Server) serveKey(w http.ResponseWriter, r *http.Request, body []byte) {
	if r.Header.Get("X-Amz-Target") != "AWSEC2InstanceConnectService.SendSSHPublicKey" {
		tellJSON(w, denial{http.StatusBadRequest, "UnknownOperationException", "The operation is not valid here."})
		return
	}
	if s.playFault(w, r, SendSSHPublicKey, tellJSON) {
		return
	}
	who := s.caller(r)
	if err := s.verifier("ec2-instance-connect", who).header(r, body); err != nil {
		tellJSON(w, jsonDenial(err))
		return
	}
	s.record(w, SendSSHPublicKey, who)
	var in struct {
		InstanceID     string `json:"InstanceId"`
		InstanceOSUser string
		SSHPublicKey   string
	}
	if err := json.Unmarshal(body, &in); err != nil {
		tellJSON(w, denial{http.StatusBadRequest, "SerializationException", "The body is not the JSON of this operation."})
		return
	}
	if d := s.push(who.account, in.InstanceID, in.InstanceOSUser, in.SSHPublicKey); d != nil {
		tellJSON(w, *d)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"RequestId": w.Header().Get(requestIDHeader), "Success": true})
}

// jsonDenial returns the JSON services' error for a refused signature.
func jsonDenial(err error) denial {
	code := "IncompleteSignature"
	switch {
	case errors.Is(err, errSkew), errors.Is(err, errExpired), errors.Is(err, errMismatch), errors.Is(err, errScope):
		code = "InvalidSignatureException"
	case errors.Is(err, errAccessKey), errors.Is(err, errToken):
		code = "UnrecognizedClientException"
	case errors.Is(err, errRenew):
		code = "ExpiredTokenException"
	}
	return denial{http.StatusForbidden, code, err.Error()}
}

func (s *Server) push(account, instance, user, key string) *denial {
	_, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(key))
	if err != nil || len(rest) > 0 || user == "" {
		return &denial{http.StatusBadRequest, "InvalidArgsException", "The key or the OS user is not valid."}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.instances[instance]
	switch {
	case !ok || i.Account != account:
		return &denial{http.StatusNotFound, "EC2InstanceNotFoundException", "The instance was not found."}
	case i.State != "running":
		return &denial{http.StatusBadRequest, "EC2InstanceStateInvalidException", "The instance is not running."}
	case len(i.OSUsers) > 0 && !slices.Contains(i.OSUsers, user):
		return &denial{http.StatusForbidden, "AccessDeniedException", s.unauthorised("ec2-instance-connect:SendSSHPublicKey")}
	}
	at := login{instance, user}
	s.keys[at] = append(s.keys[at], pushed{key, s.cfg.Now().Add(s.cfg.KeyLife)})
	return nil
}

// AuthorizedKeys returns the keys with which a user can log in to an instance now.
func (s *Server) AuthorizedKeys(instance, user string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, now := login{instance, user}, s.cfg.Now()
	s.keys[at] = slices.DeleteFunc(s.keys[at], func(p pushed) bool { return !now.Before(p.until) })
	var lines []string
	for _, p := range s.keys[at] {
		lines = append(lines, p.line)
	}
	return lines
}

// Keys serves AuthorizedKeys at /INSTANCE/USER, over plain HTTP, for an sshd's
//
//	AuthorizedKeysCommand /usr/bin/curl -sf http://127.0.0.1:PORT/i-0123456789abcdef0/%u
func (s *Server) Keys() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{instance}/{user}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		for _, line := range s.AuthorizedKeys(r.PathValue("instance"), r.PathValue("user")) {
			_, _ = fmt.Fprintln(w, line)
		}
	})
	return mux
}
