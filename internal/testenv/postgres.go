package testenv

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq" // the driver that the store uses
	"golang.org/x/sys/unix"
)

// Postgres is a cluster on a free port of loopback. fsync=off makes it several times faster; a crash of the machine
// loses its data.
type Postgres struct {
	// URL is the superuser's connection string, for the database "postgres".
	URL string

	service
	databases int // guarded by the service's lock
	password  string
	disk      string // the path of its data
}

// StartPostgres starts a cluster for this test. When the test ends, the cluster is stopped and removed.
func StartPostgres(tb testing.TB) *Postgres {
	tb.Helper()
	return startCluster(tb, 0)
}

// StartPostgresOnDisk is StartPostgres on a disk of its own, of so many MiB in memory.
func StartPostgresOnDisk(tb testing.TB, mib int) *Postgres {
	tb.Helper()
	check(tb, unavailable("a disk"))
	return startCluster(tb, mib)
}

func startCluster(tb testing.TB, mib int) *Postgres {
	tb.Helper()
	p, err := newPostgres(mib)
	check(tb, err)
	tb.Cleanup(func() {
		if err := p.remove(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// FillDisk writes to the disk of StartPostgresOnDisk until nothing more fits, and has the server write until it is out of
// space and gives up. The returned function makes room, and starts the server again.
func (p *Postgres) FillDisk(tb testing.TB) (makeRoom func()) {
	tb.Helper()
	fill := filepath.Join(p.disk, "fill")
	file, err := os.Create(fill)
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	for block := make([]byte, 64<<10); err == nil; {
		_, err = file.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		tb.Fatal(err)
	}
	for deadline := time.Now().Add(startTimeout); !p.daemon.exited(); time.Sleep(pollInterval) {
		// Each switch leaves the rest of a segment of 16 MiB unused.
		_ = p.exec(tb.Context(), "SELECT pg_logical_emit_message(false, 'fill', 'x'), pg_switch_wal()")
		if time.Now().After(deadline) {
			tb.Fatalf("the server runs on a full disk; its log ends:\n%s", p.daemon.logTail())
		}
	}
	return func() {
		tb.Helper()
		if err := os.Remove(fill); err != nil {
			tb.Fatal(err)
		}
		p.Stop(tb)
		p.Start(tb)
	}
}

// NewDatabase makes an empty database and returns its connection string. When the test ends, the database is dropped,
// even with open connections.
func (p *Postgres) NewDatabase(tb testing.TB) string {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.databases++
	name := fmt.Sprintf("test_%d", p.databases)
	if err := p.exec(tb.Context(), "CREATE DATABASE "+name); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		err := p.whileUp(func() error { // a stopped server's databases are removed with the cluster
			return p.exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
		})
		if err != nil {
			tb.Error(err)
		}
	})
	u, err := url.Parse(p.URL)
	if err != nil {
		tb.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// StartStandby starts an asynchronous hot standby of the cluster. When the test ends, it is stopped and removed.
func (p *Postgres) StartStandby(tb testing.TB) *Postgres {
	tb.Helper()
	standby, err := p.newStandby()
	check(tb, err)
	tb.Cleanup(func() {
		if err := standby.remove(); err != nil {
			tb.Error(err)
		}
	})
	return standby
}

// Promote makes a standby a primary: it follows no other server and takes writes.
func (p *Postgres) Promote(tb testing.TB) {
	tb.Helper()
	if err := p.exec(tb.Context(), "SELECT pg_promote()"); err != nil {
		tb.Fatal(err)
	}
}

// Crash kills one of the server's processes, so that the server recovers from its disk, and waits until the server
// answers. The server's start time does not change.
func (p *Postgres) Crash(tb testing.TB) {
	tb.Helper()
	db, err := sql.Open("postgres", p.URL)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = db.Close() }() // its connection is dead
	var pid int
	if err := db.QueryRowContext(tb.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		tb.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		tb.Fatal(err)
	}
	var count int
	for db.QueryRowContext(tb.Context(), "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid).Scan(&count) != nil || count > 0 {
		time.Sleep(pollInterval)
	}
}

// newPostgres starts a cluster; with mib > 0 its data is on a disk of that size.
func newPostgres(mib int) (_ *Postgres, err error) {
	initdb, server, err := postgresBinaries()
	if err != nil {
		return nil, missingError("needs Postgres: apt-get install postgresql")
	}
	if testing.Short() {
		return nil, errShort
	}
	credential, dir, err := postgresDir()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.remove())
		}
	}()

	// A password, because any account of this machine can connect to the port, and a superuser can run commands.
	password := rand.Text()
	passwordFile := filepath.Join(dir.path, "password")
	if err := os.WriteFile(passwordFile, []byte(password), 0o600); err != nil {
		return nil, fmt.Errorf("writing the password: %w", err)
	}
	if credential != nil {
		if err := os.Chown(passwordFile, int(credential.Uid), int(credential.Gid)); err != nil {
			return nil, fmt.Errorf("giving the password to the account postgres: %w", err)
		}
	}
	data := filepath.Join(dir.path, "data")
	if mib > 0 {
		if err := mountDisk(data, mib, credential); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(initdb, "--pgdata="+data, "--username=postgres", "--pwfile="+passwordFile,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	cmd.Dir = dir.path
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("running initdb: %w\n%s", err, out)
	}

	return startPostgres(server, data, password, dir, credential)
}

// mountDisk mounts a disk in memory, which is unmounted when its directory is removed.
func mountDisk(path string, mib int, owner *syscall.Credential) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("mounting a disk: %w", err)
	}
	options := fmt.Sprintf("mode=0700,size=%dm", mib)
	if owner != nil {
		options += fmt.Sprintf(",uid=%d,gid=%d", owner.Uid, owner.Gid)
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mounting a disk: %w", err)
	}
	return nil
}

func (p *Postgres) newStandby() (_ *Postgres, err error) {
	credential, dir, err := postgresDir()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.remove())
		}
	}()
	server, data := p.daemon.argv[0], filepath.Join(dir.path, "data")
	cmd := exec.Command(filepath.Join(filepath.Dir(server), "pg_basebackup"), "--dbname="+p.URL, "--pgdata="+data,
		"--write-recovery-conf", "--checkpoint=fast", "--no-sync")
	cmd.Dir = dir.path
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("running pg_basebackup: %w\n%s", err, out)
	}
	return startPostgres(server, data, p.password, dir, credential)
}

// postgresDir makes a directory that belongs to the account for servers.
func postgresDir() (*syscall.Credential, *dir, error) {
	credential, err := postgresCredential()
	if err != nil {
		return nil, nil, err
	}
	dir, err := newDir()
	if err != nil || credential == nil {
		return credential, dir, err
	}
	if err := os.Chown(dir.path, int(credential.Uid), int(credential.Gid)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("giving the directory to the account postgres: %w", err), dir.remove())
	}
	return credential, dir, nil
}

func startPostgres(server, data, password string, dir *dir, credential *syscall.Credential) (p *Postgres, err error) {
	// Another process may take the free port before the server does: then another port is tried.
	for range 3 {
		if p, err = startPostgresOn(server, data, password, dir, credential); err == nil {
			return p, nil
		}
	}
	return nil, err
}

func startPostgresOn(server, data, password string, dir *dir, credential *syscall.Credential) (*Postgres, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p := &Postgres{
		password: password, disk: data,
		URL: (&url.URL{
			Scheme:   "postgres",
			User:     url.UserPassword("postgres", password),
			Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
			Path:     "/postgres",
			RawQuery: "sslmode=disable",
		}).String(),
		service: service{daemon: daemon{
			argv: []string{
				server, "-D", data, "-p", strconv.Itoa(port), "-k", dir.path,
				"-c", "listen_addresses=127.0.0.1", "-c", "max_connections=500",
				"-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
			},
			env:        os.Environ(),
			credential: credential,
			stopSignal: syscall.SIGINT, // postgres(1): fast shutdown
			dir:        dir,
		}},
	}
	p.ping = p.answers
	return p, p.start()
}

func (p *Postgres) answers(ctx context.Context) error { return p.exec(ctx, "SELECT 1") }

// exec runs one statement over a new connection.
func (p *Postgres) exec(ctx context.Context, query string) error {
	db, err := sql.Open("postgres", p.URL)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	if _, err := db.ExecContext(ctx, query); err != nil {
		return errors.Join(fmt.Errorf("running %q: %w", query, err), db.Close())
	}
	if err := db.Close(); err != nil {
		return fmt.Errorf("disconnecting from Postgres: %w", err)
	}
	return nil
}

// postgresBinaries returns the paths of initdb and of the server beside it. Debian keeps a directory per version.
func postgresBinaries() (initdb, server string, err error) {
	initdb, err = lookPath("initdb")
	if err != nil {
		found, globErr := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
		if globErr != nil || len(found) == 0 {
			return "", "", err
		}
		initdb = slices.MaxFunc(found, func(a, b string) int { return postgresVersion(a) - postgresVersion(b) })
	}
	initdb, err = filepath.EvalSymlinks(initdb)
	if err != nil {
		return "", "", fmt.Errorf("finding Postgres: %w", err)
	}
	server, err = exec.LookPath(filepath.Join(filepath.Dir(initdb), "postgres"))
	return initdb, server, err
}

// postgresVersion returns the 15 of /usr/lib/postgresql/15/bin/initdb, and 0 for any other path.
func postgresVersion(initdb string) int {
	version, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(initdb))))
	return version
}

// postgresCredential returns the account for the server, which refuses to run as root. nil is this process's account.
func postgresCredential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		return nil, missingError("needs the account postgres: apt-get install postgresql")
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("reading the account postgres: %w", err)
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("reading the account postgres: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// freePort returns a port on which nothing listens. It is below those that the kernel gives to outgoing connections
// (ip_local_port_range in ip(7), from 32768 by default): none begins there before the server listens, or while it is stopped.
func freePort() (int, error) {
	const first, end = 16 << 10, 32 << 10
	for {
		port := first + mathrand.N(end-first) //nolint:gosec // a port is no secret
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			return 0, fmt.Errorf("finding a free port: %w", err)
		}
		return port, nil
	}
}
