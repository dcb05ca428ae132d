package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// AWSCLI returns a directory for PATH that has an `aws` of 2.12 or later, which the first caller on a machine makes.
// Debian's build of it trusts the CA that SSL_CERT_FILE names.
func AWSCLI(tb testing.TB) string {
	tb.Helper()
	dir, err := awsCLI()
	check(tb, err)
	return dir
}

func awsCLI() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(root, "scripts", "aws-cli"))
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+string(os.PathListSeparator)+sbin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if _, lookErr := lookPath("debootstrap"); lookErr != nil {
			return "", missingError("needs debootstrap for the AWS CLI: apt-get install debootstrap")
		}
		return "", fmt.Errorf("making the AWS CLI: %w\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
}
