package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/molecule-ai/termgw/internal/gateway"
	"github.com/molecule-ai/termgw/pkg/eice"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/runner/docker"
	"github.com/molecule-ai/termgw/pkg/runner/instance"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// DoctorCmd walks the path that a terminal takes.
type DoctorCmd struct {
	Workspace string `required:"" placeholder:"ID" help:"The workspace whose terminal does not open."`
}

// Help says what is done, and what it leaves.
func (DoctorCmd) Help() string {
	return `Run it where the gateway runs, with the gateway's environment. Each step says ok or FAILED, how long
it took and what it found; a failure comes with the likely cause and the fix. The exit status is 1 if
a step has failed.

The last step opens a shell in the workspace and ends it. So the audit trail gets a row, as it does for
every shell: its subject is "termgw doctor" and who runs it.`
}

// Run prints the steps.
func (c *DoctorCmd) Run(ctx context.Context, std *stdio, timing runner.Timing) error {
	d := &doctor{out: std.Out, id: c.Workspace, session: rand.Text(), timing: timing}
	d.log = slog.New(&d.said)
	defer d.close()
	if d.walk(ctx, d.toTheRow()) && d.walk(ctx, d.toTheShell()) {
		return nil
	}
	return exitStatus(1)
}

// doctor is a terminal without a person: it goes the gateway's own way, by the
// gateway's own parts, one step at a time.
type doctor struct {
	out         io.Writer
	id, session string
	log         *slog.Logger
	said        saidOfShell
	timing      runner.Timing

	cfg        gateway.Config
	ticketKeys *ticket.Keys
	store      gateway.Store
	pinged     error
	workspace  store.Workspace

	docker *docker.Kind

	aws      *eice.Client
	route    eice.Route
	routeErr error

	starter  runner.Starter
	term     terminal.Terminal
	startErr error

	closers []func() error
}

// step is one step. Those after it need it, unless it is apart: then the next
// one does not.
type step struct {
	name  string
	run   func(context.Context) (found string, err error)
	fix   string // when the error itself has none
	apart bool
}

// walk takes steps until one fails that the rest depends on, and tells whether
// all went well.
func (d *doctor) walk(ctx context.Context, steps []step) bool {
	well := true
	for _, s := range steps {
		began := time.Now()
		found, err := s.run(ctx)
		took := time.Since(began).Round(100 * time.Microsecond)
		if err == nil {
			_, _ = fmt.Fprintf(d.out, "ok      %-13s  %9s  %s\n", s.name, took, printable(found))
		} else {
			well = false
			_, _ = fmt.Fprintf(d.out, "FAILED  %-13s  %9s\n", s.name, took)
			for line := range strings.Lines(err.Error()) {
				_, _ = fmt.Fprintf(d.out, "        cause: %s\n", printable(strings.TrimSpace(line)))
			}
			_, _ = fmt.Fprintf(d.out, "        fix:   %s\n", fixOf(s, err))
		}
		if !well && !s.apart {
			break
		}
	}
	return well
}

// fixOf is what the errors of AWS and of a login say themselves, else what is
// the step's.
func fixOf(s step, err error) string {
	var ours *eice.Error
	var failed *runner.Failure
	switch {
	case errors.As(err, &ours):
		return ours.Sentence() + seeDocs
	case errors.As(err, &failed) && failed.Fix+failed.Sentence != "":
		return cmp.Or(failed.Fix, failed.Sentence) + seeDocs
	case errors.Is(err, store.ErrNotFound):
		return "Check the id, and that TERMGW_WORKSPACE_QUERY gives a row for it." + seeDocs
	case errors.Is(err, store.ErrRevoked):
		return "A row in termgw.revocations is newer than this machine's clock: set the clocks right." + seeDocs
	}
	return s.fix
}

const seeDocs = " See " + eice.Docs + "."

func (d *doctor) close() {
	for _, c := range slices.Backward(d.closers) {
		_ = c() // what matters was told by a step
	}
}

func (d *doctor) toTheRow() []step {
	return []step{
		{name: "configuration", run: d.configure, fix: "Set what is named in the gateway's environment." + seeDocs},
		{
			name: "keys", run: d.keys,
			fix: "Let TERMGW_TICKET_JWKS lead to a JWK Set with a key in it, and this machine reach it; the platform's public keys belong in it (`termgw ticket keygen` shows the form)." + seeDocs,
		},
		{
			name: "database", run: d.reach,
			fix: "Check that Postgres runs and that TERMGW_DATABASE_URL is right: host, port, user, password, database, sslmode." + seeDocs,
		},
		{
			name: "schema", run: d.schema,
			fix: "Run `termgw migrate`, let the gateway's role read workspaces and read and write the schema termgw, and try TERMGW_WORKSPACE_QUERY by hand." + seeDocs,
		},
		{
			name: "workspace", run: d.row,
			fix: "Let the gateway's role write the schema termgw, and TERMGW_WORKSPACE_QUERY give one row for an id, with instance_id and name." + seeDocs,
		},
	}
}

func (d *doctor) toTheShell() []step {
	shell := step{
		name: "shell", run: d.shell,
		fix: "Let one of TERMGW_SHELLS be in the workspace, and let it start without help: `docker exec NAME /bin/sh -c true`." + seeDocs,
	}
	container := step{name: "container", run: d.container}
	if d.workspace.InstanceID == "" {
		return []step{{name: "docker", run: d.engine}, container, shell}
	}
	if !eice.ValidInstanceID(d.workspace.InstanceID) { // AWS is not asked
		return []step{{name: "instance", run: func(context.Context) (string, error) {
			return "", &eice.Error{Detail: eice.InstanceID, Err: fmt.Errorf("%q is no instance's id", d.workspace.InstanceID)}
		}}}
	}
	steps := []step{
		{name: "aws", run: d.locate, fix: "Check the SDK's configuration: AWS_REGION, AWS_PROFILE, the shared configuration file." + seeDocs},
		{name: "instance", run: d.instance},
		{name: "endpoint", run: d.endpoint},
		{name: "key", run: d.key, apart: true},
		{
			name: "tunnel", run: d.tunnel,
			fix: "Check both security groups (endpoint outbound 22, instance inbound 22), network ACLs and sshd." + seeDocs,
		},
		{name: "login", run: d.login, fix: "Check sshd's log on the instance, and on this machine ssh, descriptors (ulimit -n) and ptys (kernel.pty.max)." + seeDocs},
	}
	if d.remoteTarget() == instance.TargetContainer {
		steps = append(steps, container)
	}
	return append(steps, shell)
}

func (d *doctor) configure(context.Context) (string, error) {
	d.cfg = loadConfig(io.Discard)
	// A limit that is reached is not a fault of the path.
	d.cfg.Limits, d.cfg.Log, d.cfg.Replica, d.cfg.Timing = store.Limits{}, d.log, "termgw doctor", d.timing
	err := d.cfg.Faults
	if err == nil {
		d.ticketKeys, err = d.cfg.OpenKeys() // what serve could not start with
	}
	return "no fault", err
}

// keys reads the key set as the gateway does, from a URL too.
func (d *doctor) keys(ctx context.Context) (string, error) {
	if err := d.ticketKeys.Load(ctx); err != nil {
		return "", err
	}
	return "tickets may be signed by " + strings.Join(d.ticketKeys.IDs(), ", "), nil
}

// reach asks the database once. A refusal of the statement is the next step's:
// it took a database to refuse it.
func (d *doctor) reach(ctx context.Context) (string, error) {
	var err error
	if d.store, err = d.cfg.OpenStore(ctx); err != nil {
		return "", err
	}
	d.closers = append(d.closers, d.store.Close)
	if d.cfg.DatabaseURL == "" {
		return "none; workspaces are those of TERMGW_WORKSPACES_FILE", nil
	}
	d.pinged = d.store.Ping(ctx)
	var refused interface{ SQLState() string }
	// Class 42: syntax error or access rule violation, a missing table too.
	statement := errors.Is(d.pinged, store.ErrQuery) || errors.As(d.pinged, &refused) && strings.HasPrefix(refused.SQLState(), "42")
	if d.pinged != nil && !statement {
		return "", d.pinged
	}
	return "answers", nil
}

func (d *doctor) schema(context.Context) (string, error) {
	return "up to date; the workspace query fits", d.pinged
}

// row redeems a ticket that nobody signed: this process could write the rows
// itself. It is the one statement that the gateway asks, with all the rights
// that it takes; and no shell is opened without a row that says so.
func (d *doctor) row(ctx context.Context) (string, error) {
	now := time.Now()
	claims := ticket.Claims{
		Issuer: "termgw doctor", Subject: "termgw doctor " + operator(), ID: d.session,
		IssuedAt: now, NotBefore: now, Expires: now.Add(time.Minute), WorkspaceID: d.id, Mode: ticket.ReadWrite,
	}
	w, err := d.store.Redeem(ctx, claims, store.Session{ID: d.session, Replica: d.cfg.Replica, ClientAddr: "local"})
	if err != nil {
		return "", err
	}
	d.workspace = w
	d.closers = append(d.closers, d.finish)
	found := "local"
	if w.InstanceID != "" {
		found = fmt.Sprintf("remote, %s, target %s", w.InstanceID, d.remoteTarget())
	}
	if w.ID != d.id {
		found += fmt.Sprintf(", by another spelling of its id, which is %q", w.ID)
	}
	for _, column := range [][2]string{{"name", w.Name}, {"container", w.Container}, {"region", w.Region}, {"os_user", w.OSUser}} {
		if column[1] != "" {
			found += fmt.Sprintf(", %s %q", column[0], column[1])
		}
	}
	if w.HostKey != "" {
		found += ", host_key given"
	}
	return found, nil
}

// finish records the end of the session that row began.
func (d *doctor) finish() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	end := store.End{Reason: "client_closed"}
	switch {
	case errors.Is(d.startErr, runner.ErrNotRunning):
		end.Reason = "container_not_running"
	case d.term == nil:
		end.Reason = "backend_failed"
	}
	return d.store.Finish(ctx, d.session, end)
}

func (d *doctor) engine(ctx context.Context) (string, error) {
	docker, err := d.cfg.OpenDocker(nil)
	if err != nil {
		return "", err
	}
	d.closers = append(d.closers, docker.Close)
	d.docker, d.starter = docker, docker
	return "answers", docker.Ping(ctx)
}

// locate asks AWS all that it takes to find the way. What is wrong with the
// instance or the endpoint is for their steps to tell.
func (d *doctor) locate(ctx context.Context) (string, error) {
	var err error
	if d.aws, err = d.cfg.OpenAWS(ctx); err != nil {
		return "", err
	}
	d.route, d.routeErr = d.aws.Locate(ctx, d.workspace.InstanceID, d.workspace.Region)
	if d.routeErr != nil && stepOf(d.routeErr) == "aws" {
		return "", d.routeErr
	}
	return "takes the gateway's credentials", nil
}

// stepOf is the step that an error of Locate belongs to.
func stepOf(err error) string {
	var e *eice.Error
	if !errors.As(err, &e) {
		return "aws"
	}
	switch e.Detail {
	case eice.InstanceID, eice.InstanceUnknown, eice.InstanceStopped, eice.InstanceTerminated, eice.InstanceNoAddress, eice.InstanceIPv6Only,
		eice.IAMInstances:
		return "instance"
	case eice.EndpointNone, eice.EndpointUnknown, eice.EndpointCreating, eice.EndpointFIPS, eice.IAMEndpoints:
		return "endpoint"
	default:
		return "aws"
	}
}

func (d *doctor) instance(context.Context) (string, error) {
	if d.routeErr != nil && stepOf(d.routeErr) == "instance" {
		return "", d.routeErr
	}
	found := "runs"
	if d.routeErr == nil {
		found += fmt.Sprintf(" in %s at %s", d.route.Region, d.route.Address)
	}
	return found, nil
}

func (d *doctor) endpoint(context.Context) (string, error) {
	return d.route.EndpointID, d.routeErr
}

// key pushes a key that nobody can log in with: its private half is dropped.
func (d *doctor) key(ctx context.Context) (string, error) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", fmt.Errorf("making a key: %w", err)
	}
	line, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("making a key: %w", err)
	}
	return "AWS lets one in as " + d.osUser(), d.aws.PushKey(ctx, d.route, d.osUser(), string(ssh.MarshalAuthorizedKey(line)))
}

// greetTime bounds the wait for sshd's first line.
const greetTime = 10 * time.Second

// tunnel opens one and waits for sshd's first line: an endpoint that cannot
// reach the instance opens the tunnel all the same.
func (d *doctor) tunnel(ctx context.Context) (string, error) {
	lease, err := d.store.AcquireTunnel(ctx, d.route.EndpointID, d.route.InstanceID, d.cfg.Replica, eice.MaxTunnels)
	if errors.Is(err, store.ErrLimit) {
		err = &eice.Error{Detail: eice.TunnelQuota, Err: err}
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = d.store.ReleaseTunnel(context.WithoutCancel(ctx), lease) }() // it frees itself
	conn, err := d.aws.OpenTunnel(ctx, d.route, eice.MaxTunnel)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(greetTime))
	line, err := bufio.NewReader(io.LimitReader(conn, 256)).ReadString('\n') // RFC 4253, section 4.2
	if err != nil {
		return "", fmt.Errorf("waiting for sshd's greeting: %w\nnot looked at: security groups, which the gateway's rights do not let it read", err)
	}
	return "sshd answers: " + strings.TrimSpace(line), nil
}

func (d *doctor) login(ctx context.Context) (string, error) {
	remote, err := d.cfg.OpenRemote(ctx, d.store, nil, nil)
	if err != nil {
		return "", err
	}
	d.closers = append(d.closers, remote.Close)
	d.starter = remote
	if err := d.start(ctx); err != nil && stepOfStart(err) == "login" {
		return "", err
	}
	return "as " + d.osUser() + ", tunnel by " + d.cfg.EICETunnel, nil
}

// stepOfStart is the step that a failed start belongs to.
func stepOfStart(err error) string {
	var failed *runner.Failure
	switch {
	case errors.Is(err, runner.ErrNotRunning):
		return "container"
	case !errors.As(err, &failed):
		return "login"
	case failed.Step == "docker":
		return "container"
	case failed.Step == "shell":
		return "shell"
	default:
		return "login"
	}
}

// start opens the shell, once.
func (d *doctor) start(ctx context.Context) error {
	if d.term == nil && d.startErr == nil {
		w := d.workspace
		d.term, d.startErr = d.starter.Start(ctx, runner.Target{
			Session: d.session, WorkspaceID: w.ID, Attributes: w.Attributes(), Log: d.log,
		}, terminal.Size{Cols: 80, Rows: 24})
	}
	return d.startErr
}

// container says of a container that does not run which names were looked for,
// and what runs instead.
func (d *doctor) container(ctx context.Context) (string, error) {
	err := d.start(ctx)
	if err == nil || stepOfStart(err) == "shell" {
		return "runs", nil
	}
	if d.docker != nil && errors.Is(err, runner.ErrNotRunning) {
		if running, listErr := d.docker.Containers(ctx); listErr == nil {
			names := make([]string, len(running))
			for i, c := range running {
				names[i] = c.Name
			}
			err = fmt.Errorf("%w\nrunning on this engine: %s", err, strings.Join(names, ", "))
		}
	}
	return "", err
}

// shellTime bounds what a shell may take to do as it is told.
const shellTime = 10 * time.Second

// shell has the shell do something: end.
func (d *doctor) shell(ctx context.Context) (string, error) {
	if err := d.start(ctx); err != nil {
		return "", err
	}
	end := sync.OnceValue(d.term.Close)
	late := time.AfterFunc(shellTime, func() { _ = end() })
	_, err := io.WriteString(d.term, "exit 0\r")
	if err == nil {
		_, err = io.Copy(io.Discard, d.term)
	}
	if !late.Stop() {
		err = errors.Join(err, errors.New("it does not do what is typed: what its profile starts may not end"))
	} else if err == nil {
		var exit terminal.Exit
		if exit, err = d.term.Wait(); err == nil && exit.Code != 0 {
			err = fmt.Errorf("it ended with %d, not as it was told", exit.Code)
		}
	}
	if err := errors.Join(err, end()); err != nil {
		return "", err
	}
	found := "does what is typed, and ended"
	if d.workspace.InstanceID == "" || d.remoteTarget() == instance.TargetContainer {
		found += "; container " + d.said.where()
	}
	return found, nil
}

func (d *doctor) osUser() string {
	if d.workspace.OSUser != "" {
		return d.workspace.OSUser
	}
	return d.cfg.EICEOSUser
}

func (d *doctor) remoteTarget() string {
	if d.workspace.RemoteTarget != "" {
		return d.workspace.RemoteTarget
	}
	return d.cfg.RemoteTarget
}

// saidOfShell hears what a runner logs of a shell, and keeps which container it
// was in: an id, or a name.
type saidOfShell struct {
	mu        sync.Mutex
	container string
}

func (*saidOfShell) Enabled(context.Context, slog.Level) bool { return true }
func (s *saidOfShell) WithAttrs([]slog.Attr) slog.Handler     { return s }
func (s *saidOfShell) WithGroup(string) slog.Handler          { return s }

func (s *saidOfShell) Handle(_ context.Context, r slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "container" {
			s.container = a.Value.String()
		}
		return true
	})
	return nil
}

func (s *saidOfShell) where() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.container
}
