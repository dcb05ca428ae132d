// Package redact removes secrets from texts of others, AWS and instances say, which go to the log and the doctor.
package redact

import "regexp"

// Secrets in texts, and what names an account: AWS puts ARNs and account ids into its messages, Go puts a request's URL into
// its errors, and a start file may print anything.
var secrets = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*-----|$)`),
	regexp.MustCompile(`(?i)[a-z0-9+.-]*://[^\s"]*`),
	regexp.MustCompile(`(?i)arn:[a-z0-9-]*:[^\s"]*`),
	regexp.MustCompile(`(?i)x-amz-[^\s"]*`),
	regexp.MustCompile(`\b(ssh|ecdsa|sk-ssh|sk-ecdsa)-[^\s"]* [^\s"]*`),
	regexp.MustCompile(`(?i)\bey[a-z0-9_-]{8,}\.[a-z0-9_-]*(\.[a-z0-9_-]*)?`), // a JWT
	regexp.MustCompile(`(?i)(password|passwd|secret|token|api_?key)[a-z_]*("\s*:|=)\s*("[^"]*"|'[^']*'|[^\s"',;]+)`),
	regexp.MustCompile(`[A-Za-z0-9+/=_-]{40,}`),
	regexp.MustCompile(`\b[A-Z]{4}[A-Z0-9]{12,}\b`), // an AWS access key's id
	regexp.MustCompile(`\d{12,}`),                   // an AWS account's id
}

// Secrets returns the text with "…" in place of each secret.
func Secrets(text string) string {
	for _, secret := range secrets {
		text = secret.ReplaceAllString(text, "…")
	}
	return text
}
