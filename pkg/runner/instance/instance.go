// Package instance is the kind of place that is an EC2 instance, reached by ssh
// through a tunnel: the workspace's container there, or the instance's own login
// shell.
//
// It knows OpenSSH and nothing of AWS: Tunnels opens the way.
package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/molecule-ai/termgw/internal/keeper/program"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Tunnels opens the way to an instance's sshd.
type Tunnels interface {
	// Find finds the way to an instance, which Open then knows. It brings no byte to the
	// instance. The request has no key.
	Find(context.Context, TunnelRequest) (runner.Trail, error)
	// Open has the instance accept the request's key and opens a tunnel. Start
	// returns its errors unchanged. The context bounds the opening alone.
	Open(context.Context, TunnelRequest) (Tunnel, error)
	// Steps returns the doctor's steps up to the instance's sshd. The request has no
	// key.
	Steps(TunnelRequest) []runner.Step
}

// TunnelRequest names the instance that a tunnel leads to, and the login. InstanceID and
// OSUser are validated. Region, Role and Endpoint are the row's columns as they are; empty
// is the default of Tunnels.
type TunnelRequest struct {
	InstanceID string
	Region     string
	Role       string // role_arn
	Endpoint   string // endpoint_id
	// SourceIdentity is the subject of the person for whom the tunnel is opened, if the
	// row asks for it (source_identity); else empty. Such a tunnel serves one person alone.
	SourceIdentity string
	OSUser         string
	PublicKey      string // a line as in authorized_keys
}

// Tunnel is a stream to an sshd: either Conn, or the stdin and stdout of Command.
type Tunnel struct {
	Conn    net.Conn
	Command []string
	Env     []string // Command's whole environment
	// Explain returns the error for the last words of Command, or for why it did not
	// start; an empty text means that nothing came through the tunnel in time. Nil:
	// the words are the error.
	Explain func(said string) error
	Expires time.Time // end of the tunnel; zero: never
	Ended   func()    // called once, when the tunnel is no longer used; may be nil
	// Trail is what the way is known by at the other side, by name, for the log and the
	// audit trail: the endpoint, the address, the ids of the requests. It holds no secret.
	Trail runner.Trail
	// Room reports whether the quota has room for one more tunnel to the same
	// instance, and would leave places for others; nil: it has none.
	Room func(context.Context) bool
	// Idle is called at once and twice a second while no terminal uses the tunnel, and
	// reports whether another tunnel needs its place: then the tunnel ends, else after
	// Timing.Linger. May be nil.
	Idle func(context.Context) (wanted bool)
}

// ErrQuota is the cause of an error of Tunnels.Open if the quota lets no more tunnels
// open.
var ErrQuota = errors.New("no more tunnels")

// HostKeys keeps the public keys of sshds, as in authorized_keys, for all replicas.
type HostKeys interface {
	// HostKey returns the kept key of an instance, or an empty string.
	HostKey(ctx context.Context, instanceID string) (string, error)
	// KeepHostKey keeps a key for an instance unless one is kept already, and
	// returns the kept key.
	KeepHostKey(ctx context.Context, instanceID, key string) (string, error)
}

// Column is the row's column that names the instance.
const Column = "instance_id"

// Values of the row's column remote_target.
const (
	TargetContainer = "container" // the workspace's container on the instance
	TargetHost      = "host"      // the login shell of the instance itself
)

// Config says how to open terminals on instances.
type Config struct {
	Tunnels  Tunnels
	HostKeys HostKeys
	// OSUser and Target are the defaults for the columns os_user and remote_target.
	OSUser string
	Target string
	// Shells are tried in order, in a container. Absolute paths of POSIX shells.
	Shells []string
	// KeepDetached spares, at a session's end, what was told to stay.
	KeepDetached bool
	// Swept is called with the report of each session's end. May be nil.
	Swept func(runner.Swept)
	// Keepers returns the programs that hold terminals on instances; a terminal outlives its connection then. Nil: a
	// terminal ends with its connection.
	Keepers func() (program.Programs, error)
	// TempDir is the parent of the directory of sockets; empty: the system's.
	TempDir string
	Now     func() time.Time
	Timing  runner.Timing
}

const (
	// sessionLimit is the default limit of sessions on one connection of an sshd
	// (MaxSessions).
	sessionLimit = 10
	// A new terminal shares a tunnel that has freshLife of its hour left. It shares one
	// that has usefulLife left if the quota has no room for another, and one with
	// leastLife if the quota is used up: a short life is better than none.
	freshLife  = 55 * time.Minute
	usefulLife = 15 * time.Minute
	leastLife  = time.Minute
	// idlePoll is the interval between calls of Tunnel.Idle.
	idlePoll = 500 * time.Millisecond
	// connectTries bounds the connections that one terminal tries.
	connectTries = 5
	// endFor bounds the retries of a session's end after its connection was lost, and endPause the pauses between them. The
	// instance ends its shells by itself.
	endFor   = 2 * time.Minute
	endPause = 15 * time.Second
)

// startTime bounds the opening of a terminal. It is shorter than Timing.Start, which includes the end of a failed opening.
func startTime(t runner.Timing) time.Duration { return t.Start - t.Start/15 }

// loginTime bounds the opening of a connection. It is shorter than startTime, so that the connection's error is returned.
func loginTime(t runner.Timing) time.Duration { return startTime(t) - t.Start/15 }

// sweepTime bounds one sweep over a connection: three graces, and 10 s for the way.
func sweepTime(t runner.Timing) time.Duration { return 3*t.Grace + 10*time.Second }

// Kind opens terminals on instances, by ssh. Terminals of one OS user on one
// instance share connections.
type Kind struct {
	cfg     Config
	ssh     string // the program
	version string // the program's
	sockets *sockets
	ends    *runner.Ends
	gate    *gate
	stop    context.CancelFunc
	ctx     context.Context // ends with Close
	wg      sync.WaitGroup

	thorough atomic.Bool // a doctor's

	mu      sync.Mutex
	conns   map[destination][]*connection
	bounds  map[destination]bound
	keepers map[keeperKey]*keeperAt
	closed  bool
}

// destination is the key by which terminals share connections: whatever decides which
// sshd answers, who logs in, and under whose name AWS records the connection.
type destination struct {
	instance, region, user, hostKey string
	role, endpoint                  string
	identity                        string // of the one person whom the connection serves; empty: it is shared
}

// tunnelRequest returns the destination as Tunnels has it.
func (d destination) tunnelRequest(publicKey string) TunnelRequest {
	return TunnelRequest{
		InstanceID: d.instance, Region: d.region, Role: d.role, Endpoint: d.endpoint, SourceIdentity: d.identity,
		OSUser: d.user, PublicKey: publicKey,
	}
}

// Open returns the kind. The caller closes it, after its terminals.
func Open(cfg Config) (*Kind, error) {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return nil, fmt.Errorf("remote workspaces need OpenSSH's client: %w", err)
	}
	version, err := sshVersion(program)
	if err != nil {
		return nil, fmt.Errorf("remote workspaces need OpenSSH's client: %w", err)
	}
	cfg.TempDir = cmp.Or(cfg.TempDir, os.TempDir())
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Timing = cfg.Timing.WithDefaults()
	s, err := newSockets(cfg.TempDir)
	if err != nil {
		return nil, err
	}
	k := &Kind{cfg: cfg, ssh: program, version: version, sockets: s, gate: newGate(cfg.Now), conns: map[destination][]*connection{}, bounds: map[destination]bound{}, keepers: map[keeperKey]*keeperAt{}}
	k.ends = runner.NewEnds(runner.EndsConfig{Timing: &k.cfg.Timing, For: endFor, RetryMost: max(cfg.Timing.Retry, endPause)})
	k.ctx, k.stop = context.WithCancel(context.Background())
	k.wg.Go(s.watch)
	return k, nil
}

// Close tries the ends that are put off once more, ends all connections with the
// terminals that are still open, and removes the sockets.
func (k *Kind) Close() error {
	k.ends.Close()
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.stop()
	err := k.sockets.close()
	k.wg.Wait()
	return errors.Join(err, k.sockets.remove())
}

// background runs do, which ends with its connection, in a goroutine that Close joins.
func (k *Kind) background(do func()) {
	k.mu.Lock()
	if !k.closed {
		defer k.mu.Unlock()
		k.wg.Go(do)
		return
	}
	k.mu.Unlock()
	do()
}

var errClosed = errors.New("the gateway ends")

// Values of these forms alone reach an argument of ssh or the instance's shell.
var (
	instanceForm = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)
	userForm     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	sessionForm  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// request is a request for a terminal, completed while the terminal opens.
type request struct {
	kind             *Kind
	to               destination
	session, target  string
	sudo             bool   // docker is run by sudo
	container, shell string // of target container
	sid, start       string // the shell's pid where it runs, and its start time
	trail            runner.Trail
	log              *slog.Logger
}

// request checks a target's columns and fills in the defaults.
func (k *Kind) request(t runner.Target) (*request, error) {
	row := t.Attributes
	r := &request{
		kind: k, session: t.Session, target: cmp.Or(row["remote_target"], k.cfg.Target), sid: "find", start: "0", trail: t.Trail, log: t.Log,
		to: destination{
			instance: row[Column], region: row["region"], user: cmp.Or(row["os_user"], k.cfg.OSUser),
			role: row["role_arn"], endpoint: row["endpoint_id"],
		},
	}
	switch {
	case !instanceForm.MatchString(r.to.instance):
		return nil, malformed("instance_id", "%q is no instance's id", r.to.instance)
	case !userForm.MatchString(r.to.user):
		return nil, malformed("os_user", "%q is no user's name", r.to.user)
	case !sessionForm.MatchString(r.session):
		return nil, malformed("session", "%q is no session's id", r.session)
	case r.target != TargetContainer && r.target != TargetHost:
		return nil, malformed("remote_target", "%q is neither %s nor %s", r.target, TargetContainer, TargetHost)
	}
	var err error
	if r.sudo, err = strconv.ParseBool(cmp.Or(row["docker_sudo"], "false")); err != nil {
		return nil, malformed("docker_sudo", "%q is neither true nor false", row["docker_sudo"])
	}
	if r.to.identity, err = sourceIdentity(row, t.Subject); err != nil {
		return nil, err
	}
	if row["host_key"] == "" {
		return r, nil
	}
	keys, err := readHostKeys(row["host_key"], r.to.instance)
	if err != nil {
		f := malformed("ssh_hostkey", "host_key in the workspace's row is malformed: %w", err)
		f.Sentence = "host_key in the workspace's row is malformed: " + err.Error() + "."
		return nil, f
	}
	r.to.hostKey = keys.String()
	return r, nil
}

// sourceIdentity returns the subject if the row asks that connections be in the person's name, else "".
func sourceIdentity(row map[string]string, subject string) (string, error) {
	asked := row["source_identity"]
	if asked == "" {
		return "", nil
	}
	named, err := strconv.ParseBool(asked)
	switch {
	case err != nil:
		err = fmt.Errorf("%q is neither true nor false", asked)
	case !named:
		return "", nil
	case row["role_arn"] == "":
		err = errors.New("AWS takes a source identity only with a role, and the row has no role_arn")
	case subject == "":
		err = errors.New("the terminal is for nobody who has a name")
	default:
		return subject, nil
	}
	f := malformed("source_identity", "%w", err)
	f.Sentence = "The workspace's source_identity cannot be used: it is true or false, and true needs a role_arn in the workspace's row."
	return "", f
}

// idForm is what the engine may take for the start of a container's id.
var idForm = regexp.MustCompile(`^[0-9a-f]+$`)

// Start opens a terminal. Its error is a *runner.Failure, or an error of Tunnels.
func (k *Kind) Start(ctx context.Context, t runner.Target, size terminal.Size) (terminal.Terminal, error) {
	term, err := k.start(ctx, t, size)
	if err != nil {
		return nil, t.ExplainName(err)
	}
	return term, nil
}

func (k *Kind) start(ctx context.Context, t runner.Target, size terminal.Size) (*sshTerminal, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime(k.cfg.Timing))
	defer cancel()
	r, err := k.request(t)
	if err != nil {
		return nil, err
	}
	r.trail.Set(runner.TrailInstance, r.to.instance)
	r.trail.Set(runner.TrailOSUser, r.to.user)
	if r.target == TargetHost {
		return k.open(ctx, r, size, "host")
	}
	names := t.ContainerNames()
	if len(names) == 0 {
		return nil, runner.NotRunning("the workspace has no name that a container can have")
	}
	// Mode choose costs one more docker command. A name that cannot be mistaken for
	// an id is tried directly.
	direct, dir := !idForm.MatchString(names[0]), ""
	last := errNoShell
	for shells := k.cfg.Shells; len(shells) > 0; {
		r.shell = shells[0]
		keys, _ := runner.DetachKeys() // from here nobody can see what the engine reads, as a container's terminal does
		words := []string{"dir=" + dir, "shell=" + r.shell, "keys=" + keys, "opening=" + remoteOpening(size)}
		mode := "direct"
		if direct {
			words = append(words, "container="+names[0])
		} else {
			mode = "choose"
			words = append(words, "own="+t.Attributes["container"])
			for _, name := range names {
				words = append(words, "name="+name)
			}
		}
		term, err := k.open(ctx, r, size, mode, words...)
		switch {
		case err == nil:
			return term, nil
		case direct && errors.Is(err, runner.ErrNotRunning):
			direct = false
		case errors.Is(err, errNoShell):
			last = err
			if shells = shells[1:]; len(shells) == 0 && dir == "" {
				shells, dir = k.cfg.Shells, "/" // a working directory that is gone looks like a shell that is not there
			}
		default:
			return nil, err
		}
	}
	f := failed("shell", fmt.Errorf("none of %s is in the container: %w", strings.Join(k.cfg.Shells, ", "), last))
	f.Final = runner.ShellMissing(last.Error())
	return nil, f
}

// open opens a terminal over the first connection that takes it.
func (k *Kind) open(ctx context.Context, r *request, size terminal.Size, mode string, words ...string) (*sshTerminal, error) {
	var t *sshTerminal
	err := k.over(ctx, r, func(c *connection) (err error) {
		t, err = c.open(ctx, r, size, mode, words...)
		return err
	})
	return t, err
}

// over opens a session by do, over the first connection that takes it. The session is
// reserved when do is called, and stays so if it returns nil.
func (k *Kind) over(ctx context.Context, r *request, do func(*connection) error) error {
	err := error(failed("ssh_sessions", errors.New("the instance's sshd opens no session")))
	for n := range connectTries {
		c, connectErr := k.connect(ctx, r.to, r.trail)
		switch {
		case connectErr == nil:
		case n > 0 && ctx.Err() != nil:
			return err // what has taken the time
		default:
			return connectErr
		}
		switch doErr := do(c); {
		case doErr == nil:
			return nil
		case errors.Is(doErr, errRefused):
			k.settle(ctx, c)
			k.refused(c, false)
		case errors.Is(doErr, errGone):
			select {
			case <-c.gone:
				err = c.lost
			default:
				err = failed("ssh", doErr)
			}
			k.refused(c, true)
		default:
			if runner.StepOf(doErr) == "ssh_timeout" {
				k.retire(c)
			}
			k.release(c)
			return doErr
		}
	}
	return err
}

// endsAlone is the time without a heartbeat after which a session is over: the guard on the instance ends the shell when the
// connection ends or the lease is over.
const endsAlone = 10 * time.Minute

// Reap ends nothing: the instance ends the shell by itself, within endsAlone.
func (k *Kind) Reap(_ context.Context, t runner.Target) error {
	if t.Silent < endsAlone {
		return fmt.Errorf("%w: its instance ends it by itself", runner.ErrUnknown)
	}
	return nil
}

// remoteOpening is the opening of pkg/runner/docker without the wait for a line, which
// would cost a round trip. It sets the size itself: the docker command does so some
// 10 ms after its start, too late for the shell's first program.
func remoteOpening(size terminal.Size) string {
	return `IFS= read -r s </proc/$$/stat; ` + runner.OpeningPrelude +
		fmt.Sprintf(` rows %d cols %d; `, size.Rows, size.Cols) +
		`printf '\036%s\036' "$s"; exec "$0"`
}
