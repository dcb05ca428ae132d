package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/internal/gateway"
	"github.com/molecule-ai/termgw/pkg/eice"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// DoctorCmd opens a terminal step by step, and reports each step.
type DoctorCmd struct {
	Workspace string `required:"" placeholder:"ID" help:"The workspace whose terminal does not open."`
}

// Help describes the output, and the row that the command leaves in the audit trail.
func (DoctorCmd) Help() string {
	return `Run it where the gateway runs, with the gateway's environment. It walks the way of a terminal:
  configuration, keys, database, schema, workspace; then
  docker, container, shell          for a workspace on the gateway's own engine, or
  aws, instance, endpoint, key, tunnel, login, account, tools, docker, container, shell
                                    for a workspace on an instance.
With TERMGW_RESUME it then looks at how people come back to shells that wait: the step resume asks the addresses
that other replicas with sessions have in the database, eight at most, whether a gateway is there.

Each step says ok or FAILED, how long it took, and what it found; a step that failed says its detail, which
is the one that the terminal's error has, then the cause and the fix. Mend that step first: the steps behind
it are not run, and are named. The page docs/infra/workspace-terminal.md has all details, and what doctor
says of many broken set-ups.

The exit status is 0 if every step went well, and 1 if one has failed.

It takes seconds, up to half a minute where something does not answer. The step shell opens a shell in the
workspace and ends it. So the audit trail gets a row, as it does for every shell: its subject is
"termgw doctor" and who runs it.`
}

// Run prints the steps. The exit status is 1 if a step has failed.
func (c *DoctorCmd) Run(ctx context.Context, std *stdio, timing runner.Timing, places runner.Places) error {
	d := &doctor{out: std.Out, id: c.Workspace, session: rand.Text(), timing: timing, places: places}
	d.log = slog.New(&d.shellLog)
	defer d.close()
	if d.walk(ctx, d.toTheRow()) && d.walk(ctx, d.toTheShell()) {
		return nil
	}
	return exitStatus(1)
}

// doctor opens a terminal for no person, by the gateway's own parts and in their order,
// one step at a time.
type doctor struct {
	out         io.Writer
	id, session string
	log         *slog.Logger
	shellLog    shellLog
	timing      runner.Timing

	cfg        gateway.Config
	ticketKeys *ticket.Keys
	store      gateway.Store
	pinged     error
	workspace  store.Workspace

	places runner.Places // besides those that the gateway opens itself
	place  runner.Place  // of the workspace

	term    terminal.Terminal
	openErr error
	trail   runner.Trail

	closers []func() error
}

// walk runs the steps, and reports whether all have succeeded. Once a step has failed,
// walk stops after the first step that is not Apart, and names the steps that it did not run.
func (d *doctor) walk(ctx context.Context, steps []runner.Step) bool {
	well := true
	for n, s := range steps {
		began := time.Now()
		found, err := s.Run(ctx)
		took := time.Since(began).Round(100 * time.Microsecond)
		if err == nil {
			_, _ = fmt.Fprintf(d.out, "ok      %-13s  %9s  %s\n", s.Name, took, printable(found))
		} else {
			well = false
			detail, cause := causeOf(err)
			_, _ = fmt.Fprintln(d.out, strings.TrimSpace(fmt.Sprintf("FAILED  %-13s  %9s  %s", s.Name, took, detail)))
			for line := range strings.Lines(cause) {
				_, _ = fmt.Fprintf(d.out, "        cause: %s\n", printable(strings.TrimSpace(line)))
			}
			_, _ = fmt.Fprintf(d.out, "        fix:   %s\n", fixOf(s, err))
		}
		if !well && !s.Apart {
			var behind []string
			for _, s := range steps[n+1:] {
				behind = append(behind, s.Name)
			}
			if len(behind) > 0 {
				_, _ = fmt.Fprintf(d.out, "not run: %s\n", strings.Join(behind, ", "))
			}
			break
		}
	}
	return well
}

// causeOf returns an error's detail, or "", and the error's text without the detail, which
// several errors of a chain may begin with.
func causeOf(err error) (detail, text string) {
	detail, text = runner.StepOf(err), err.Error()
	if detail == "" {
		return "", text
	}
	return detail, regexp.MustCompile(`(^|: )(?:`+regexp.QuoteMeta(detail)+`: )+`).ReplaceAllString(text, "$1")
}

// fixOf returns the failure's own fix or sentence, else the step's fix.
func fixOf(s runner.Step, err error) string {
	var failed *runner.Failure
	switch {
	case errors.As(err, &failed) && failed.Fix+failed.Sentence != "":
		return cmp.Or(failed.Fix, failed.Sentence) + seeDocs
	case errors.Is(err, store.ErrNotFound):
		return "Check the id, and that TERMGW_WORKSPACE_QUERY gives a row for it." + seeDocs
	case errors.Is(err, store.ErrRevoked):
		return "A row in termgw.revocations is newer than this machine's clock: set the clocks right." + seeDocs
	}
	return s.Fix + seeDocs
}

const seeDocs = " See " + eice.Docs + "."

func (d *doctor) close() {
	for _, c := range slices.Backward(d.closers) {
		_ = c() // the steps have reported every error that matters
	}
}

func (d *doctor) toTheRow() []runner.Step {
	return []runner.Step{
		{Name: "configuration", Run: d.configure, Fix: "Set what is named in the gateway's environment."},
		{
			Name: "keys", Run: d.keys,
			Fix: "Let TERMGW_TICKET_JWKS lead to a JWK Set with a key in it, and this machine reach it; the platform's public keys belong in it (`termgw ticket keygen` shows the form).",
		},
		{
			Name: "database", Run: d.reach,
			Fix: "Check that Postgres runs and that TERMGW_DATABASE_URL is right: host, port, user, password, database, sslmode.",
		},
		{
			Name: "schema", Run: d.schema,
			Fix: "Run `termgw migrate`, let the gateway's role read workspaces and read and write the schema termgw, and try TERMGW_WORKSPACE_QUERY by hand.",
		},
		{
			Name: "workspace", Run: d.row,
			Fix: "Let the gateway's role write the schema termgw, and TERMGW_WORKSPACE_QUERY give one row for an id, with instance_id and name.",
		},
	}
}

func (d *doctor) toTheShell() []runner.Step {
	steps := append(d.place.Kind.Steps(d.target(), d.open), runner.Step{Name: "shell", Run: d.shell, Fix: runner.FixShell})
	if d.cfg.Resume > 0 {
		steps = append(steps, runner.Step{Name: "resume", Run: d.resume, Fix: "Let the gateway's role read the schema termgw."})
	}
	return steps
}

func (d *doctor) configure(context.Context) (string, error) {
	d.cfg = loadConfig(io.Discard)
	// The limits of sessions are switched off: a limit that is reached is no fault of the path.
	d.cfg.Limits, d.cfg.Log, d.cfg.Replica, d.cfg.Timing, d.cfg.Places = store.Limits{}, d.log, "termgw doctor", d.timing, d.places
	err := d.cfg.Faults
	if err == nil {
		d.ticketKeys, err = d.cfg.OpenKeys() // serve does not start after this error
	}
	return "no fault", err
}

// keys reads the key set as the gateway does, from the file or the URL.
func (d *doctor) keys(ctx context.Context) (string, error) {
	if err := d.ticketKeys.Load(ctx); err != nil {
		return "", err
	}
	return "tickets may be signed by " + strings.Join(d.ticketKeys.IDs(), ", "), nil
}

// reach sends one statement to the database. If the database refuses the statement, the
// database was reached, and the next step reports the error.
func (d *doctor) reach(ctx context.Context) (string, error) {
	var err error
	if d.store, err = d.cfg.OpenStore(ctx); err != nil {
		return "", err
	}
	d.closers = append(d.closers, d.store.Close)
	if d.cfg.DatabaseURL == "" && d.cfg.DatabaseURLFile == "" {
		return "none; workspaces are those of TERMGW_WORKSPACES_FILE", nil
	}
	d.pinged = d.store.Ping(ctx)
	var refused interface{ SQLState() string }
	// SQLSTATE class 42: syntax error or access rule violation, also a missing table.
	statement := errors.Is(d.pinged, store.ErrQuery) || errors.Is(d.pinged, store.ErrSchema) || errors.As(d.pinged, &refused) && strings.HasPrefix(refused.SQLState(), "42")
	if d.pinged != nil && !statement {
		return "", d.pinged
	}
	return "answers", nil
}

func (d *doctor) schema(context.Context) (string, error) {
	return "up to date (" + store.SchemaVersion() + "); the workspace query fits", d.pinged
}

// row redeems a ticket that nobody has signed: this process could also write the rows
// by itself. Redeem is the gateway's own statement and needs the same rights, and its
// row in the audit trail records the shell that doctor opens.
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
	places, _, closePlaces, err := d.cfg.OpenPlaces(ctx, d.store, nil, nil)
	d.closers = append(d.closers, closePlaces)
	if err != nil {
		return "", err
	}
	d.place = places.Of(w.Attributes)
	found := d.place.Name
	if w.ID != d.id {
		found += fmt.Sprintf(", by another spelling of its id, which is %q", w.ID)
	}
	for _, column := range []string{d.place.Column, "name", "container", "region", "os_user", "remote_target", "docker_sudo"} {
		if value := w.Attributes[column]; value != "" {
			found += fmt.Sprintf(", %s %q", column, value)
		}
	}
	if w.Attributes["host_key"] != "" {
		found += ", host_key given"
	}
	return found, nil
}

// finish records the end of the session whose audit row the step row has written.
func (d *doctor) finish() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	end := store.End{Reason: "client_closed", Trail: d.trail}
	switch {
	case errors.Is(d.openErr, runner.ErrNotRunning):
		end.Reason = "container_not_running"
	case d.term == nil:
		end.Reason = "backend_failed"
	}
	return d.store.Finish(ctx, d.session, end)
}

func (d *doctor) target() runner.Target {
	return runner.Target{Session: d.session, WorkspaceID: d.workspace.ID, Subject: doctorSubject(), Attributes: d.workspace.Attributes, Log: d.log}
}

// notInIdentity matches what AWS takes in no source identity (AssumeRole), of 64 characters at most.
var notInIdentity = regexp.MustCompile(`[^A-Za-z0-9_+=,.@-]`)

// doctorSubject returns who runs the doctor, as a row with source_identity may tell AWS.
func doctorSubject() string {
	who := notInIdentity.ReplaceAllString(operator(), "-")
	return who[:min(len(who), 64)]
}

// open starts the shell at the first call; every call returns the result of the first.
func (d *doctor) open(ctx context.Context) error {
	if d.term == nil && d.openErr == nil {
		d.trail = runner.Trail{}
		target := d.target()
		target.Trail = d.trail
		d.term, d.openErr = d.place.Kind.Start(ctx, target, terminal.Size{Cols: 80, Rows: 24})
	}
	return d.openErr
}

// shellTime bounds the time in which a shell exits after "exit 0" was typed.
const shellTime = 10 * time.Second

// shell types "exit 0", and checks that the shell exits with 0.
func (d *doctor) shell(ctx context.Context) (string, error) {
	if err := d.open(ctx); err != nil {
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
	if container := d.shellLog.where(); container != "" {
		found += "; container " + container
	}
	return found, nil
}

// shellLog is the handler of a kind of place's log. It keeps the container, an id or a
// name, from the lines about the shell.
type shellLog struct {
	mu        sync.Mutex
	container string
}

func (*shellLog) Enabled(context.Context, slog.Level) bool { return true }
func (s *shellLog) WithAttrs([]slog.Attr) slog.Handler     { return s }
func (s *shellLog) WithGroup(string) slog.Handler          { return s }

func (s *shellLog) Handle(_ context.Context, r slog.Record) error {
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

func (s *shellLog) where() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.container
}
