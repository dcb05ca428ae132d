package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

var env = testenv.Env{OwnDocker: true}

func TestMain(m *testing.M) {
	if start, err := time.ParseDuration(os.Getenv(asProgram)); err == nil {
		os.Exit(runProcess(runner.Timing{Start: start}, morePlaces))
	}
	flag.Parse()
	// The tests mostly wait for what other processes do.
	parallel := "10"
	if *faultTime > 0 {
		parallel = strconv.Itoa(len(faults) + 1) // each takes minutes
	}
	if err := flag.Set("test.parallel", parallel); err != nil {
		panic(err)
	}
	env.Main(m)
}

// patience is how long a test waits for what a busy machine does late.
const patience = 3 * time.Minute

// shortPing is an interval of pings at which a client that is there answers in time, on a busy machine, too.
const shortPing = 4 * time.Second

// asProgram in the environment makes this test binary the real termgw, with the race detector if the tests have it. Its
// value is the time that the start of a shell may take: patience, unless a test waits for that time to pass. A machine that
// has much else to do is no fault of what starts there.
const asProgram = "TEST_AS_TERMGW"

// raceExit in the environment makes a program with the race detector end at once: it would wait for a second.
const raceExit = "GORACE=atexit_sleep_ms=0"

// child is a running termgw.
type child struct {
	cmd    *exec.Cmd
	out    lines // standard output, if the command had none of its own
	log    lines // standard error
	exited chan struct{}
	err    error // of Wait, once exited is closed
}

// command makes a termgw command with a short environment of its own.
func command(tb testing.TB, environ []string, args ...string) *exec.Cmd {
	tb.Helper()
	path, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Args[0] = "termgw"
	cmd.Env = append([]string{asProgram + "=" + patience.String(), raceExit, "PATH=" + os.Getenv("PATH"), "HOME=" + tb.TempDir(), "TMPDIR=" + shortTempDir(tb)}, environ...)
	return cmd
}

// shortTempDir is TempDir of a name in which sockets can be made, however long the test's is.
func shortTempDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "tgw")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// start starts the command; it is killed at the test's end if it still runs.
func start(tb testing.TB, cmd *exec.Cmd) *child {
	tb.Helper()
	c := &child{cmd: cmd, exited: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &c.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &c.log
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // also when the tests panic
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		c.err = cmd.Wait()
		close(c.exited)
	}()
	tb.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-c.exited
	})
	return c
}

func (c *child) signal(tb testing.TB, sig os.Signal) {
	tb.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		tb.Error(err)
	}
}

// wait waits for the end and returns the exit status; -1 is a signal's.
func (c *child) wait(tb testing.TB) int {
	tb.Helper()
	select {
	case <-c.exited:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		tb.Fatalf("termgw has not ended:\n%s", c.log.String())
		return 0
	}
}

// lines collects what a process writes.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// platform is what termgw works for: a database with workspaces, and a key that tickets are signed with.
type platform struct {
	key      jose.JSONWebKey
	jwks     string // the key set's file
	url      string // the database's
	db       *sql.DB
	minter   *ticket.Minter
	mu       sync.Mutex
	secretly []string // what no log may show
}

const issuer = "https://platform.example"

func newPlatform(tb testing.TB) *platform {
	tb.Helper()
	p := &platform{}
	p.makeKey(tb)
	p.useDatabase(tb, env.Postgres(tb).NewDatabase(tb))
	return p
}

func (p *platform) makeKey(tb testing.TB) {
	tb.Helper()
	private, set := generateTicketKey(tb, "EdDSA")
	p.jwks = set
	p.secretly = append(p.secretly, jwkMember(tb, private, "d"))
	var err error
	if p.key, err = readTicketKey(private); err != nil {
		tb.Fatal(err)
	}
	if p.minter, err = ticket.NewMinter(p.key); err != nil {
		tb.Fatal(err)
	}
}

// useDatabase gives the database what it needs, by the real `termgw migrate`.
func (p *platform) useDatabase(tb testing.TB, databaseURL string) {
	tb.Helper()
	p.url = databaseURL
	parsed, err := url.Parse(databaseURL)
	if err != nil {
		tb.Fatal(err)
	}
	password, _ := parsed.User.Password()
	p.secretly = append(p.secretly, password)
	migrate := start(tb, command(tb, []string{"TERMGW_DATABASE_URL=" + databaseURL}, "migrate"))
	if status := migrate.wait(tb); status != 0 || !strings.Contains(migrate.out.String(), "applied") {
		tb.Fatalf("migrate: exit status %d\n%s%s", status, migrate.out.String(), migrate.log.String())
	}
	if p.db, err = sql.Open("postgres", databaseURL); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = p.db.Close() })
	p.exec(tb, "CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text)")
}

func (p *platform) exec(tb testing.TB, query string, args ...any) {
	tb.Helper()
	if _, err := p.db.ExecContext(tb.Context(), query, args...); err != nil {
		tb.Fatal(err)
	}
}

// workspace adds a row; its container, if there is one, is called ws- and the id.
func (p *platform) workspace(tb testing.TB, id, instanceID string) {
	tb.Helper()
	p.exec(tb, "INSERT INTO workspaces VALUES ($1, '', $2)", id, instanceID)
}

// ticketLife is how long a ticket of these tests may be used: where a busy machine comes to it late, too.
const ticketLife = 2 * patience

// ticket mints a ticket for one use.
func (p *platform) ticket(tb testing.TB, workspace string, change ...func(*ticket.Claims)) string {
	tb.Helper()
	claims := ticket.Claims{Issuer: issuer, Subject: "ann", WorkspaceID: workspace, Expires: time.Now().Add(ticketLife)}
	for _, f := range change {
		f(&claims)
	}
	raw, err := p.minter.Mint(claims)
	if err != nil {
		tb.Fatal(err)
	}
	return p.keepSecret(raw)
}

// forge signs a ticket that no Minter would write: by the platform's own key unless sign says otherwise.
func (p *platform) forge(tb testing.TB, header, claims map[string]any, sign func(signed []byte) []byte) string {
	tb.Helper()
	h := map[string]any{"alg": "EdDSA", "typ": ticket.Type, "kid": p.key.KeyID}
	now := time.Now().Unix()
	c := map[string]any{
		"iss": issuer, "aud": "termgw", "sub": "ann", "jti": rand.Text(), "iat": now, "nbf": now, "exp": now + 60,
		"workspace_id": "ws",
	}
	overlay := func(onto, changes map[string]any) string {
		for name, value := range changes {
			if onto[name] = value; value == nil {
				delete(onto, name)
			}
		}
		b, err := json.Marshal(onto)
		if err != nil {
			tb.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := overlay(h, header) + "." + overlay(c, claims)
	if sign == nil {
		sign = func(b []byte) []byte { return ed25519.Sign(p.key.Key.(ed25519.PrivateKey), b) }
	}
	return p.keepSecret(signed + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(signed))))
}

// keepSecret notes a ticket whose claims and signature no log may show. The header is no secret.
func (p *platform) keepSecret(raw string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for part := range strings.SplitSeq(raw, ".") {
		if len(part) > 20 && part != strings.Split(raw, ".")[0] {
			p.secretly = append(p.secretly, part)
		}
	}
	return raw
}

// checkSecrets finds what a text must not show.
func (p *platform) checkSecrets(tb testing.TB, what, text string) {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, secret := range p.secretly {
		if secret != "" && strings.Contains(text, secret) {
			tb.Errorf("%s shows a secret, %.12s…:\n%s", what, secret, text)
			return
		}
	}
}

// served is a gateway that runs.
type served struct {
	*child
	*platform
	address, admin string // host:port
}

// serve starts a gateway for the platform, on a free port. The variables come after the defaults of these tests.
func (p *platform) serve(tb testing.TB, environ ...string) *served {
	tb.Helper()
	return p.serveBy(tb, nil, environ...)
}

// serveBy is serve by a command that becomes the one after it, like nohup.
func (p *platform) serveBy(tb testing.TB, by []string, environ ...string) *served {
	tb.Helper()
	g := p.launch(tb, by, environ...)
	eventually(tb, "ready", func() bool { return g.get(tb, g.address, "/readyz").StatusCode == http.StatusOK })
	return g
}

// launch is serveBy for a gateway that may not become ready.
func (p *platform) launch(tb testing.TB, by []string, environ ...string) *served {
	tb.Helper()
	defaults := []string{
		"TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN=127.0.0.1:0", "TERMGW_PPROF_LISTEN=127.0.0.1:0", "TERMGW_LOG_LEVEL=debug",
		"TERMGW_TICKET_JWKS=" + p.jwks, "TERMGW_TICKET_ISSUER=" + issuer, "TERMGW_TICKET_MAX_TTL=" + ticketLife.String(),
		"TERMGW_DRAIN_TIMEOUT=0", // no test waits for a terminal that it left open
	}
	if p.url != "" {
		defaults = append(defaults, "TERMGW_DATABASE_URL="+p.url)
	}
	if !slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, "DOCKER_HOST=") }) {
		defaults = append(defaults, "DOCKER_HOST="+env.Docker(tb).Host)
	}
	cmd := command(tb, append(defaults, environ...), "serve")
	if by != nil {
		env := cmd.Env
		cmd = exec.Command(by[0], slices.Concat(by[1:], []string{cmd.Path, "serve"})...)
		cmd.Env = env
	}
	g := &served{platform: p, child: start(tb, cmd)}
	eventually(tb, "the gateway says where it listens", func() bool {
		g.address, g.admin = g.said("serving terminals"), g.said("serving metrics")
		select {
		case <-g.exited:
			tb.Fatalf("termgw serve ended: %v\n%s", g.err, g.log.String())
		default:
		}
		return g.address != ""
	})
	tb.Cleanup(func() {
		g.stop(tb)
		g.checkLog(tb)
	})
	return g
}

// said returns the address in the log's line with a message.
func (g *served) said(message string) string {
	for _, line := range g.logLines() {
		if line["msg"] == message {
			address, _ := line["address"].(string)
			return address
		}
	}
	return ""
}

func (g *served) logLines() []map[string]any {
	var all []map[string]any
	for scan := bufio.NewScanner(strings.NewReader(g.log.String())); scan.Scan(); {
		line := map[string]any{}
		if json.Unmarshal(scan.Bytes(), &line) != nil {
			line = map[string]any{"msg": scan.Text(), "not": "json"}
		}
		all = append(all, line)
	}
	return all
}

// stop ends the gateway in order, if the test has not.
func (g *served) stop(tb testing.TB) {
	tb.Helper()
	select {
	case <-g.exited:
		return
	default:
	}
	g.checkSecrets(tb, "the command line of termgw serve", procFile(tb, g.cmd.Process.Pid, "cmdline"))
	g.signal(tb, syscall.SIGTERM)
	if status := g.wait(tb); status != 0 {
		tb.Errorf("termgw serve: exit status %d\n%s", status, g.log.String())
	}
}

// ownWords are the messages of the gateway itself, which belong to no session.
var ownWords = []string{
	"serving terminals", "serving metrics", "serving profiles", "TLS certificate read", "ending", "cutting sessions", "not ready", "ready again", "old rows were not purged",
	"revocations are not read", "revocations do not arrive at once", "revocations are read again", "sessions were not noted as live", "abandoned sessions were not looked for",
	"the workspace query returns no id", "a revocation's workspace has no row", "a revocation cannot be read",
	"ticket keys loaded", "no ticket keys yet", "ticket keys not refreshed, the last good ones stay", "ticket key set is empty: every ticket will be refused",
	"no memory limit is kept", // on a machine without control groups
	"no database: sessions are kept in this process, which must be the only replica",
	"no terminals on instances", // the temporary directory of a test with a long name is too long for a socket
	"sessions are revoked",      // it names all sessions of an order
	"more of the same was not logged",
	"spans were not exported", "the last spans were not exported",
	"the TLS certificate was not read again; the last good one is used",
	"a trusted proxy's connection was closed: it has to begin with a PROXY protocol header of version 2 (TERMGW_PROXY_PROTOCOL)",
}

// checkLog is the rule for every line that a gateway logs: JSON, no secret, and the session's id in each line of a
// session.
func (g *served) checkLog(tb testing.TB) {
	tb.Helper()
	g.checkSecrets(tb, "the log", g.log.String())
	for _, line := range g.logLines() {
		message, _ := line["msg"].(string)
		session, _ := line["session"].(string)
		switch {
		case line["not"] == "json":
			tb.Errorf("a line of the log is not JSON: %s", message)
		case session == "" && !slices.Contains(ownWords, message) && !strings.HasPrefix(message, "http: "):
			tb.Errorf("a line of the log has no session: %v", line)
		}
	}
}

// get asks an address of the gateway.
func (g *served) get(tb testing.TB, address, path string) *answer {
	tb.Helper()
	return request(tb, http.MethodGet, "http://"+address+path, nil, nil)
}

// answer is a response that was read.
type answer struct {
	*http.Response
	body string
}

func request(tb testing.TB, method, target string, header http.Header, body io.Reader) *answer {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		tb.Fatal(err)
	}
	for name, values := range header {
		if r.Header[name] = values; name == "Host" {
			r.Host = values[0]
		}
	}
	r.Close = true // no connection is kept: what is left in the gateway is counted
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		tb.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return &answer{response, string(b)}
}

// metric reads one sample of /metrics; 0 if it is not there.
func (g *served) metric(tb testing.TB, sample string) float64 {
	tb.Helper()
	for line := range strings.SplitSeq(g.get(tb, g.admin, "/metrics").body, "\n") {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// row is a line of the audit trail.
type row struct {
	id, client, reason string
	ended              bool
	exitCode           sql.NullInt64
	in, out            int64
}

// lastRow waits for the end of the workspace's latest session.
func (p *platform) lastRow(tb testing.TB, workspace string) (r row) {
	tb.Helper()
	eventually(tb, "the session's end is recorded", func() bool {
		err := p.db.QueryRowContext(tb.Context(), `
			SELECT id, client_addr, COALESCE(end_reason, ''), ended_at IS NOT NULL, exit_code, bytes_in, bytes_out
			FROM termgw.sessions WHERE workspace_id = $1 ORDER BY started_at DESC LIMIT 1`, workspace).
			Scan(&r.id, &r.client, &r.reason, &r.ended, &r.exitCode, &r.in, &r.out)
		if err != nil {
			tb.Fatal(err)
		}
		return r.ended
	})
	return r
}

// eventually waits until ok.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	// Looking costs: most of what is waited for is asked of a gateway, or read from /proc.
	pause := 5 * time.Millisecond
	for timeout := time.After(patience); !ok(); pause = min(pause*3/2, 100*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-timeout:
			tb.Fatalf("not so after %s: %s", patience, what)
		}
	}
}

// procFile reads /proc/PID/name, its NULs as blanks.
func procFile(tb testing.TB, pid int, name string) string {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\x00", " ")
}
