//go:build image

package imagetest

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testARM64 has the Dockerfile build the program for arm64, as a builder of several platforms does, and runs that program,
// both ends of a terminal, on a processor that qemu plays. native is the program for this machine.
func testARM64(t *testing.T, e engine, native string) {
	need(t, "qemu-aarch64", "qemu-user")
	const image, container = "termgw:test-arm64", "termgw-arm64"
	if out, err := e.build("--target", "build", "--build-arg", "TARGETARCH=arm64", "-t", image); err != nil {
		t.Fatalf("building %s: %v\n%s", image, err, out)
	}
	dir := t.TempDir()
	program, outside := filepath.Join(dir, "termgw"), filepath.Join(dir, "outside")
	e.docker(t, "create", "--network", "none", "--name", container, image, "none")
	defer e.docker(t, "rm", container)
	e.docker(t, "cp", container+":/usr/local/bin/termgw", program)

	linked, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := linked.Close(); err != nil || linked.Machine != elf.EM_AARCH64 {
		t.Fatalf("the program is for %s: %v", linked.Machine, err)
	}
	buildOutside(t, outside, "arm64")
	inImage, imageErr := os.ReadFile(program)
	built, err := os.ReadFile(outside)
	if err != nil || imageErr != nil || !bytes.Equal(inImage, built) {
		t.Errorf("the program differs from the one that is built outside: %v, %v", imageErr, err)
	}

	said := start(t, nil, "qemu-aarch64", program, "version")
	if status := said.wait(t); status != 0 || !strings.Contains(said.said(), " linux/arm64)\n") {
		t.Errorf("exit status %d, %s", status, said.said())
	}
	// A terminal of a container: qemu-user has no CLONE_PIDFD, by which a shell of the gateway's own machine is started.
	e.RunContainer(t, "ws-arm64")
	mounted := settings(t, native, map[string]string{"id": "arm64"})
	g := start(t, []string{
		"DOCKER_HOST=" + e.Host, "TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN=",
		"TERMGW_TICKET_JWKS=" + mounted + "/ticket.jwks.json", "TERMGW_WORKSPACES_FILE=" + mounted + "/workspaces.json",
	}, "qemu-aarch64", program, "serve")
	var found []string
	eventually(t, func() bool {
		found = serving.FindStringSubmatch(g.said())
		return found != nil
	}, func() string { return "the gateway does not serve: " + g.said() })
	mint := start(t, nil, "qemu-aarch64", program, "ticket", "mint", "--key", filepath.Join(filepath.Dir(mounted), "ticket.json"),
		"--workspace", "arm64", "--subject", "me@example.com")
	if status := mint.wait(t); status != 0 {
		t.Fatalf("exit status %d: %s", status, mint.said())
	}
	c := start(t, []string{"TERMGW_TICKET=" + strings.TrimSpace(mint.said())},
		"qemu-aarch64", program, "connect", "ws://"+found[1]+"/workspaces/arm64/terminal")
	c.enter(t, "echo whole $((40+2))")
	c.expect(t, "whole 42")
	c.enter(t, "exit 3")
	if status := c.wait(t); status != 3 {
		t.Errorf("exit status %d: %s; the gateway: %s", status, c.said(), g.said())
	}
}
