package redact

import (
	"strings"
	"testing"
)

// TestSecrets: what goes, and what stays.
func TestSecrets(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"role arn:aws:iam::123456789012:role/x refuses":                                           "role … refuses",
		"account 123456789012 of i-0123456789abcdef0, port 22":                                    "account … of i-0123456789abcdef0, port 22",
		"a -----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNz a/c= -----END OPENSSH PRIVATE KEY----- b": "a … b",
		"cut short -----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc":                                    "cut short …",
		"token eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbm4ifQ.aaaa.":                                     "token ….",
		"password=hunter2 and DB_PASSWORD='x y' go":                                               "… and DB_… go",
		"{\"api_key\": \"x y\"}":                                                                  "{\"…}",
		"AWS_SECRET_ACCESS_KEY=abc AKIAIOSFODNN7EXAMPLE":                                          "AWS_… …",
		"(current) UNIX password: passwd: Authentication token manipulation error":                "(current) UNIX password: passwd: Authentication token manipulation error",
		"ssh-ed25519 AAAAC3Nza user@host":                                                         "… user@host",
		"GET https://x.example/?X-Amz-Signature=1 fails":                                          "GET … fails",
		"Your password has expired. Choose a new password.":                                       "Your password has expired. Choose a new password.",
		"bash: /opt/tools/bin/start: No such file or directory":                                   "bash: /opt/tools/bin/start: No such file or directory",
		"This account is currently not available.":                                                "This account is currently not available.",
	} {
		if got := Secrets(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if got := Secrets(strings.Repeat("a", 40)); got != "…" {
		t.Errorf("%q", got)
	}
}
