package testenv

import "testing"

// AWSCLI returns a directory for PATH with an `aws` of version 2.12 or later, which the first caller on a machine
// makes. Debian's build of the AWS CLI trusts the CA that SSL_CERT_FILE names.
func AWSCLI(tb testing.TB) string {
	tb.Helper()
	dir, err := debootstrapped("aws-cli", "the AWS CLI")
	check(tb, err)
	return dir
}
