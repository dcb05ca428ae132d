package deploy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is for a machine that has much else to do; nothing takes a tenth of it.
const patience = 3 * time.Minute

// child is a process that serves until its test ends. What it says, on both streams, is in a file.
type child struct {
	cmd *exec.Cmd
	out string
}

// start starts a child with no environment but a home and what is given.
func start(t *testing.T, cmd *exec.Cmd, environ ...string) *child {
	t.Helper()
	dir := t.TempDir()
	out, err := os.OpenFile(filepath.Join(dir, "out"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}, environ...)
	cmd.Stdout, cmd.Stderr = out, out // files: nothing copies
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd, out.Name()}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(patience, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		_ = cmd.Wait()
		if !kill.Stop() {
			t.Errorf("%s did not end on SIGTERM", cmd.Path)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", cmd.Path, c.said(t))
		}
	})
	return c
}

func (c *child) said(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(c.out)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// eventually waits for what must come.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ready waits until the child listens.
func (c *child) ready(t *testing.T, address string) {
	t.Helper()
	eventually(t, c.cmd.Path+" listens at "+address, func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
		} else if c.ended() {
			t.Fatalf("%s ended:\n%s", c.cmd.Path, c.said(t))
		}
		return err == nil
	})
}

func (c *child) ended() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err != nil || strings.HasPrefix(state, "Z")
}

// ownAddress is a loopback address that nobody else has, at a port that no connection gets by itself.
func ownAddress() string {
	return fmt.Sprintf("127.%d.%d.%d:20080", 100+mathrand.N(100), mathrand.N(256), 1+mathrand.N(250))
}

// certificate makes one for host, and its key.
func certificate(t *testing.T, host string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", private)
}
