package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/testenv"
)

// rotated is a role with what a gateway needs, on a server that a test may change.
func rotated(t *testing.T, pg *testenv.Postgres) (dsn string, u *url.URL) {
	t.Helper()
	dsn = pg.NewDatabase(t)
	prepare(t, dsn, textWorkspaces)
	execSQL(t, dsn, `CREATE ROLE rotated LOGIN PASSWORD 'first'`)
	execSQL(t, dsn, documentedGrants(t, "gateway", "rotated"))
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("rotated", "first")
	return dsn, u
}

// wait waits until what is awaited is so.
func wait(t *testing.T, what string, is func() error) {
	t.Helper()
	var err error
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		if err = is(); err == nil {
			return
		}
	}
	t.Fatalf("waited %v until %s: %v", patience, what, err)
}

// cutAll ends all connections of the role.
func cutAll(t *testing.T, dsn string) {
	t.Helper()
	execSQL(t, dsn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'`)
}

// A password that is rotated in the file needs no restart: neither of the pool, nor of the connection that listens.
func TestURLFileIsReadForEachConnection(t *testing.T) {
	t.Parallel()
	dsn, u := rotated(t, testenv.StartPostgres(t))
	file := filepath.Join(t.TempDir(), "url")
	write := func(content string) {
		t.Helper()
		// As Kubernetes does: the name is another file's from one moment to the next.
		if err := errors.Join(os.WriteFile(file+".new", []byte(content), 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	write(u.String() + "\n")
	p := open(t, PostgresConfig{URLFile: file, Timeout: 10 * time.Second})
	var watching sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	watching.Go(func() {
		if err := p.Watch(ctx, func(Revocation, []string) {}); err != nil {
			t.Error(err)
		}
	})
	defer watching.Wait()
	defer cancel()
	wait(t, "revocations arrive", p.Watching)

	execSQL(t, dsn, `ALTER ROLE rotated PASSWORD 'sec%ond'`)
	if err := p.Ping(t.Context()); err != nil {
		t.Errorf("a connection that is open: %v", err)
	}
	cutAll(t, dsn)
	wait(t, "the old password is refused", func() error {
		if err := p.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "password authentication failed") || strings.Contains(err.Error(), "first") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	u.User = url.UserPassword("rotated", "sec%ond")
	write(u.String())
	wait(t, "the new password is taken", func() error { return p.Ping(t.Context()) })
	wait(t, "revocations arrive again", p.Watching)

	// A file that is not there, or holds anything else, costs no connection that is open.
	write("no:// secret %")
	if err := p.Ping(t.Context()); err != nil {
		t.Errorf("a connection that is open: %v", err)
	}
	cutAll(t, dsn)
	wait(t, "the fault is told", func() error {
		if err := p.Ping(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "database URL") || strings.Contains(err.Error(), "secret") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	write(u.String())
	wait(t, "the file is good again", func() error { return p.Ping(t.Context()) })
	wait(t, "revocations arrive again", p.Watching)
}

// Each connection has a token of its own, which nobody sees but a server that TLS has proven.
func TestTokens(t *testing.T) {
	t.Parallel()
	pg := testenv.StartPostgres(t)
	dsn, u := rotated(t, pg)
	u.Host = "localhost:" + u.Port()
	root := serveTLS(t, dsn)
	u.User = url.User("rotated")
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {root}, "aws_iam": {"true"}, "aws_region": {"eu-west-1"}}.Encode()
	var (
		mu    sync.Mutex
		given int
		token = "first"
	)
	ask := func(_ context.Context, region, endpoint, user string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		given++
		if region != "eu-west-1" || endpoint != u.Host || user != "rotated" {
			return "", fmt.Errorf("asked for %s, %s, %s", region, endpoint, user)
		}
		return token, nil
	}
	p := open(t, PostgresConfig{URL: u.String(), Token: ask, Timeout: 10 * time.Second})
	if given != 0 {
		t.Error("a token was asked for before the first connection")
	}
	var watching sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	watching.Go(func() {
		if err := p.Watch(ctx, func(Revocation, []string) {}); err != nil {
			t.Error(err)
		}
	})
	defer watching.Wait()
	defer cancel()
	wait(t, "revocations arrive", p.Watching)
	if err := p.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	const next = "db.example:5432/?Action=connect&X-Amz-Signature=0%2F"
	execSQL(t, dsn, `ALTER ROLE rotated PASSWORD '`+next+`'`)
	mu.Lock()
	token = next
	mu.Unlock()
	cutAll(t, dsn)
	wait(t, "the next token is taken", func() error { return p.Ping(t.Context()) })
	wait(t, "revocations arrive again", p.Watching)
	if applied, err := (PostgresConfig{URL: strings.Replace(u.String(), "rotated", "postgres", 1), Token: func(context.Context, string, string, string) (string, error) {
		password, _ := mustURL(t, dsn).User.Password()
		return password, nil
	}}).Migrate(t.Context(), nil); err != nil || len(applied) != 0 {
		t.Errorf("migrating: %v, %v", applied, err)
	}
}

func mustURL(t *testing.T, dsn string) *url.URL {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// serveTLS has the server of a superuser's URL speak TLS as localhost, and returns the file of its CA.
func serveTLS(t *testing.T, dsn string) (root string) {
	t.Helper()
	var data string
	if err := sqlDB(t, dsn).QueryRow(`SHOW data_directory`).Scan(&data); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	root = filepath.Join(t.TempDir(), "root.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	files := map[string][]byte{
		root: cert, filepath.Join(data, "server.crt"): cert,
		filepath.Join(data, "server.key"): pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}
	for name, content := range files {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if account, err := user.Lookup("postgres"); err == nil && os.Getuid() == 0 {
		uid, uidErr := strconv.Atoi(account.Uid)
		gid, gidErr := strconv.Atoi(account.Gid)
		err := errors.Join(uidErr, gidErr, os.Chown(filepath.Join(data, "server.crt"), uid, gid), os.Chown(filepath.Join(data, "server.key"), uid, gid))
		if err != nil {
			t.Fatal(err)
		}
	}
	execSQL(t, dsn, `ALTER SYSTEM SET ssl = on`)
	execSQL(t, dsn, `SELECT pg_reload_conf()`)
	return root
}

// What is wrong is told in words, before the start, and never with what may be secret.
func TestSourceFaults(t *testing.T) {
	t.Parallel()
	ask := func(context.Context, string, string, string) (string, error) {
		return "", errors.New("asked for a token")
	}
	dir := t.TempDir()
	long := filepath.Join(dir, "long")
	if err := os.WriteFile(long, make([]byte, maxURL+1), 0o600); err != nil {
		t.Fatal(err)
	}
	const secure = "?sslmode=verify-full&aws_iam=true"
	for says, c := range map[string]PostgresConfig{
		"no such file":       {URLFile: filepath.Join(dir, "none")},
		"more than 65536":    {URLFile: long},
		"not possible here":  {URL: "postgres://u@h/d" + secure},
		"leave the password": {URL: "postgres://u:s3cret@h/d" + secure, Token: ask},
		"one host":           {URL: "postgres://u@h1,h2/d" + secure, Token: ask},
		"wants sslmode":      {URL: "postgres://u@h/d?sslmode=disable&aws_iam=true", Token: ask},
		"aws_iam is true":    {URL: "postgres://u@h/d?sslmode=verify-full&aws_iam=yes", Token: ask},
		"goes with it":       {URL: "postgres://u@h/d?sslmode=verify-full&aws_region=eu-west-1", Token: ask},
		"not of a key=value": {URL: "host=h user=u sslmode=verify-full aws_iam=true", Token: ask},
	} {
		p, err := OpenPostgres(c)
		if err == nil {
			_ = p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("want %q, got %v", says, err)
		}
	}
	p := open(t, PostgresConfig{URL: "postgres://u@h/d" + secure, Token: ask, Timeout: time.Second})
	if err := p.Ping(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "asked for a token") {
		t.Errorf("without a token: %v", err)
	}
}
