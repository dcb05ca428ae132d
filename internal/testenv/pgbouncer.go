package testenv

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// PgBouncer is a connection pooler in front of a cluster.
type PgBouncer struct {
	service
	port int
}

// StartPgBouncer starts a pooler with a pool mode (session, transaction or statement) and four connections to each
// database. When the test ends, the pooler is stopped and removed.
func (p *Postgres) StartPgBouncer(tb testing.TB, mode string) *PgBouncer {
	tb.Helper()
	b, err := p.newPgBouncer(mode)
	check(tb, err)
	tb.Cleanup(func() {
		if err := b.remove(); err != nil {
			tb.Error(err)
		}
	})
	return b
}

// Before returns the connection string of a database of the cluster through the pooler.
func (b *PgBouncer) Before(tb testing.TB, databaseURL string) string {
	tb.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		tb.Fatal(err)
	}
	u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port))
	return u.String()
}

func (p *Postgres) newPgBouncer(mode string) (_ *PgBouncer, err error) {
	program, err := lookPath("pgbouncer")
	if err != nil {
		return nil, missingError("needs PgBouncer: apt-get install pgbouncer")
	}
	credential, dir, err := postgresDir() // like the server, PgBouncer refuses to run as root
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.remove())
		}
	}()
	u, err := url.Parse(p.URL)
	if err != nil {
		return nil, fmt.Errorf("starting PgBouncer: %w", err)
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	config, users := filepath.Join(dir.path, "pgbouncer.ini"), filepath.Join(dir.path, "users")
	for path, text := range map[string]string{
		config: fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
pool_mode = %s
default_pool_size = 4
`, u.Port(), port, users, mode),
		users: fmt.Sprintf("\"postgres\" %q\n", p.password),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("configuring PgBouncer: %w", err)
		}
		if credential != nil {
			if err := os.Chown(path, int(credential.Uid), int(credential.Gid)); err != nil {
				return nil, fmt.Errorf("configuring PgBouncer: %w", err)
			}
		}
	}
	b := &PgBouncer{port: port, service: service{daemon: daemon{
		argv: []string{program, config}, env: os.Environ(), credential: credential, dir: dir,
		stopSignal: syscall.SIGQUIT, // pgbouncer(1): ends at once; before 1.23 by the default action of the signal
	}}}
	u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	b.ping = func(ctx context.Context) error {
		db, err := sql.Open("postgres", u.String())
		if err != nil {
			return err
		}
		defer func() { _ = db.Close() }() // only used for the ping
		return db.PingContext(ctx)
	}
	return b, b.start()
}
