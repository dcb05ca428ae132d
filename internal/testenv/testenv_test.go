package testenv

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

var env Env

func TestMain(m *testing.M) { env.Main(m) }

func connect(tb testing.TB, url string) *sql.DB {
	tb.Helper()
	db, err := sql.Open("postgres", url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

func TestPostgresKeepsDataAndPortAcrossARestart(t *testing.T) {
	p := StartPostgres(t)
	db := connect(t, p.NewDatabase(t))
	if _, err := db.Exec("CREATE TABLE kept AS SELECT 'yes' AS answer"); err != nil {
		t.Fatal(err)
	}
	p.Stop(t)
	if err := db.Ping(); err == nil {
		t.Fatal("a stopped server answered")
	}
	p.Start(t)
	var answer string
	if err := db.QueryRow("SELECT answer FROM kept").Scan(&answer); err != nil || answer != "yes" {
		t.Fatalf("after the restart: %q, %v", answer, err)
	}
}

func TestSuspendedPostgresAnswersNothing(t *testing.T) {
	p := StartPostgres(t)
	db := connect(t, p.NewDatabase(t))
	if err := db.Ping(); err != nil {
		t.Fatal(err)
	}
	p.Suspend(t)
	answer := make(chan error)
	go func() { answer <- db.Ping() }()
	select {
	case err := <-answer:
		t.Errorf("a suspended server answered: %v", err)
		return
	case <-time.After(100 * time.Millisecond):
	}
	p.Resume(t)
	if err := <-answer; err != nil {
		t.Error(err)
	}
}

func TestPostgresOnAFullDisk(t *testing.T) {
	p := StartPostgresOnDisk(t, 160)
	db := connect(t, p.NewDatabase(t))
	if _, err := db.Exec("CREATE TABLE kept AS SELECT 'yes' AS answer"); err != nil {
		t.Fatal(err)
	}
	makeRoom := p.FillDisk(t)
	if err := db.Ping(); err == nil {
		t.Error("a server without space answered")
	}
	makeRoom()
	var answer string
	if err := db.QueryRow("SELECT answer FROM kept").Scan(&answer); err != nil || answer != "yes" {
		t.Errorf("with room again: %q, %v", answer, err)
	}
}

func TestDatabaseIsDroppedThoughConnected(t *testing.T) {
	p := env.Postgres(t)
	var db *sql.DB
	t.Run("owner", func(owner *testing.T) {
		db = connect(t, p.NewDatabase(owner))
		if err := db.Ping(); err != nil {
			owner.Fatal(err)
		}
	})
	if err := db.Ping(); err == nil {
		t.Fatal("the database outlived its test")
	}
}

func TestEnginesDoNotDisturbEachOther(t *testing.T) {
	shared, own := env.Docker(t), StartDocker(t)
	id := shared.RunContainer(t, "twin")
	twin := own.RunContainer(t, "twin")

	if got := shared.Exec(t, id, "bash", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"); got != "sleep infinity " {
		t.Errorf("PID 1 is %q", got)
	}
	own.Stop(t)
	if got := shared.Exec(t, id, "echo", "here"); got != "here\n" {
		t.Errorf("with the other engine stopped: %q", got)
	}
	own.Start(t)
	if _, err := own.Client(t).ContainerStart(t.Context(), twin, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := own.Exec(t, twin, "echo", "again"); got != "again\n" {
		t.Errorf("after the restart: %q", got)
	}
}

func TestWorkspaceHasATerminal(t *testing.T) {
	d := env.Docker(t)
	id := d.RunContainer(t, "")
	cli := d.Client(t)
	// The engine says that a container runs while its first process is still about to become the program.
	created, err := cli.ExecCreate(t.Context(), id, client.ExecCreateOptions{
		Cmd: []string{"/bin/bash", "-c", "tty; until ps -o args= 1 | grep -v 'runc init'; do sleep 0.1; done"}, TTY: true, AttachStdout: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := cli.ExecAttach(t.Context(), created.ID, client.ExecAttachOptions{TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var out bytes.Buffer
	if _, err := out.ReadFrom(stream.Reader); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/dev/pts/", "sleep infinity\r\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

// TestKilledRunLeavesNothing kills a test run while it has a cluster and an engine with a container.
func TestKilledRunLeavesNothing(t *testing.T) {
	if os.Getenv("TERMGW_TEST_KILL_SELF") != "" {
		StartPostgres(t).NewDatabase(t)
		StartDocker(t).RunContainer(t, "orphan")
		if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	env.Postgres(t) // skips when a part is missing
	env.Docker(t)
	tmp, err := os.MkdirTemp("", "tgwkill-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(tmp); err != nil {
			t.Error(err)
		}
	})
	// The account postgres has to reach the cluster's directory.
	if err := os.Chmod(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "TERMGW_TEST_KILL_SELF=1")
	out, err := cmd.CombinedOutput()
	if !strings.Contains(fmt.Sprint(err), "killed") {
		t.Fatalf("the helper was not killed: %v\n%s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(tmp, dirPrefix+"*"))
	if err != nil || len(left) != 2 {
		t.Fatalf("directories left: %v, %v", left, err)
	}
	for _, path := range left {
		waitUnlocked(t, path)
	}
	t.Setenv("TMPDIR", tmp)
	if err := removeOldDirs(); err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

// waitUnlocked waits until the last process that holds the directory's lock has ended.
func waitUnlocked(tb testing.TB, path string) {
	tb.Helper()
	lock, err := os.Open(filepath.Join(path, "lock"))
	if err != nil {
		tb.Fatal(err)
	}
	defer lock.Close()
	stuck := time.AfterFunc(stopTimeout, func() { panic("processes of a killed test run are still there: " + path) })
	defer stuck.Stop()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		tb.Fatal(err)
	}
}

func TestRemoveTreeUnmountsFirst(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs to mount: run the tests as root")
	}
	outside, inside := t.TempDir(), filepath.Join(t.TempDir(), "part")
	precious := filepath.Join(outside, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(inside, "mnt")
	if err := os.MkdirAll(point, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(outside, point, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(inside); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error("deleted through the mount:", err)
	}
	if _, err := os.Stat(inside); !errors.Is(err, fs.ErrNotExist) {
		t.Error("still there:", err)
	}
}

func TestMissingPartIsNamed(t *testing.T) {
	for _, require := range []string{"", "1"} {
		t.Setenv("TERMGW_TEST_REQUIRE", require)
		r := &recorder{TB: t}
		check(r, fmt.Errorf("starting: %w", missingError("needs a thing: apt-get install thing")))
		if r.skipped == (require == "1") || r.failed != (require == "1") {
			t.Errorf("TERMGW_TEST_REQUIRE=%q: skipped %v, failed %v", require, r.skipped, r.failed)
		}
	}
}

// recorder notes how check ends a test.
type recorder struct {
	testing.TB
	skipped, failed bool
}

func (r *recorder) Skip(...any)  { r.skipped = true }
func (r *recorder) Fatal(...any) { r.failed = true }

func TestRemoveOldDirsSparesHeldAndForeignOnes(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	held, err := newDir()
	if err != nil {
		t.Fatal(err)
	}
	dropped, err := newDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := dropped.lock.Close(); err != nil {
		t.Fatal(err)
	}
	others := t.TempDir()
	if err := os.WriteFile(filepath.Join(others, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(tmp, dirPrefix+"link")
	if err := os.Symlink(others, link); err != nil {
		t.Fatal(err)
	}

	if err := removeOldDirs(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{held.path, link, filepath.Join(others, "lock")} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dropped.path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what nobody holds is still there:", err)
	}
	if err := held.remove(); err != nil {
		t.Error(err)
	}
}
