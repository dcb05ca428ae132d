package awsplay

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUwSLuvlcpyY4dF5UkAIjJQJqaf8pWcHHMvYGkY9qWp"

func TestKeysLiveAMinute(t *testing.T) {
	var offset atomic.Int64
	s, err := New(Config{
		Credentials: testKeys,
		Now:         func() time.Time { return signedAt.Add(time.Duration(offset.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.PutInstance(Instance{ID: "i-0123456789abcdef0"})
	if d := s.push(s.cfg.Account, "i-0123456789abcdef0", "ec2-user", testKey); d != nil {
		t.Fatal(d)
	}
	keys := httptest.NewServer(s.Keys())
	defer keys.Close()
	get := func(path string) string {
		t.Helper()
		response, err := http.Get(keys.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(body))
	}
	defer http.DefaultClient.CloseIdleConnections()
	offset.Store(int64(59 * time.Second))
	for path, want := range map[string]string{
		"/i-0123456789abcdef0/ec2-user": testKey,
		"/i-0123456789abcdef0/root":     "",
		"/i-0123456789abcdef1/ec2-user": "",
	} {
		if got := get(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	offset.Store(int64(60 * time.Second))
	if got := get("/i-0123456789abcdef0/ec2-user"); got != "" {
		t.Errorf("after a minute: %q", got)
	}
}

func TestPushIsChecked(t *testing.T) {
	s, err := New(Config{Credentials: testKeys})
	if err != nil {
		t.Fatal(err)
	}
	s.PutInstance(Instance{ID: "i-1", OSUsers: []string{"ubuntu"}})
	s.PutInstance(Instance{ID: "i-2", State: "stopped"})
	for _, test := range []struct{ instance, user, key, code string }{
		{"i-1", "ubuntu", testKey, ""},
		{"i-1", "root", testKey, "AccessDeniedException"},
		{"i-2", "ubuntu", testKey, "EC2InstanceStateInvalidException"},
		{"i-3", "ubuntu", testKey, "EC2InstanceNotFoundException"},
		{"i-1", "ubuntu", "nonsense", "InvalidArgsException"},
		{"i-1", "ubuntu", testKey + "\n" + testKey, "InvalidArgsException"},
	} {
		code := ""
		if d := s.push(s.cfg.Account, test.instance, test.user, test.key); d != nil {
			code = d.code
		}
		if code != test.code {
			t.Errorf("%s %s: %q, want %q", test.instance, test.user, code, test.code)
		}
	}
}

// What a client of the SDK or the CLI never sends is refused too.
func TestUnsignedIsRefused(t *testing.T) {
	s, err := New(Config{Credentials: testKeys})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		method, target, amzTarget, body string
		status                          int
	}{
		"instances":      {http.MethodPost, "/", "", "Action=DescribeInstances&Version=2016-11-15", http.StatusForbidden},
		"a role":         {http.MethodPost, "/", "", "Action=AssumeRole&Version=2011-06-15&RoleArn=arn:aws:iam::123456789012:role/x", http.StatusForbidden},
		"another of STS": {http.MethodPost, "/", "", "Action=GetFederationToken&Version=2011-06-15", http.StatusBadRequest},
		"another action": {http.MethodPost, "/", "", "Action=TerminateInstances&Version=2016-11-15", http.StatusBadRequest},
		"another time":   {http.MethodPost, "/", "", "Action=DescribeInstances&Version=2006-01-01", http.StatusBadRequest},
		"key":            {http.MethodPost, "/", "AWSEC2InstanceConnectService.SendSSHPublicKey", "{}", http.StatusForbidden},
		"another target": {http.MethodPost, "/", "AWSEC2InstanceConnectService.SendSerialConsoleSSHPublicKey", "{}", http.StatusBadRequest},
		"tunnel":         {http.MethodGet, "/openTunnel?remotePort=22", "", "", http.StatusForbidden},
		"elsewhere":      {http.MethodGet, "/", "", "", http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(test.method, test.target, strings.NewReader(test.body))
			if test.amzTarget != "" {
				r.Header.Set("X-Amz-Target", test.amzTarget)
			}
			w := httptest.NewRecorder()
			s.serve(w, r)
			if w.Code != test.status {
				t.Errorf("status %d, want %d: %s", w.Code, test.status, w.Body)
			}
		})
	}
}
