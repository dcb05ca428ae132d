package runner

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/terminal"
)

// Tunnels opens the way to an instance's sshd.
type Tunnels interface {
	// Open lets the request's key in and opens a tunnel. Its errors are passed
	// on as they are. The context bounds the opening alone.
	Open(context.Context, TunnelRequest) (Tunnel, error)
}

// TunnelRequest says where a tunnel leads and who will log in. All but Region
// was validated.
type TunnelRequest struct {
	InstanceID string
	Region     string // empty: the default
	OSUser     string
	PublicKey  string // a line as in authorized_keys
}

// Tunnel is a stream to an sshd: either Conn, or a Command that carries it on
// its stdin and stdout.
type Tunnel struct {
	Conn    net.Conn
	Command []string
	Env     []string // Command's whole environment
	// Explain makes an error of what Command said, or of why it did not start;
	// of an empty text if nothing came through it in time. Nil: its words are the
	// error.
	Explain func(said string) error
	Expires time.Time // when it is cut; zero: never
	Ended   func()    // called once, when the tunnel is no longer used; may be nil
}

// HostKeys remembers the public keys of sshds, as in authorized_keys, for all
// replicas.
type HostKeys interface {
	// HostKey returns the key that is kept for an instance, or an empty string.
	HostKey(ctx context.Context, instanceID string) (string, error)
	// KeepHostKey keeps a key for an instance unless one is kept already, and
	// returns the one that is kept.
	KeepHostKey(ctx context.Context, instanceID, key string) (string, error)
}

// What a remote terminal opens.
const (
	TargetContainer = "container" // the workspace's container on the instance
	TargetHost      = "host"      // the login shell of the instance itself
)

// RemoteConfig says how to open terminals on instances.
type RemoteConfig struct {
	Tunnels  Tunnels
	HostKeys HostKeys
	// OSUser and Target hold where a workspace's row says nothing.
	OSUser string
	Target string
	// Shells are tried in order, in a container. Absolute paths of POSIX shells.
	Shells []string
	// EndDetached ends also what was told to stay.
	EndDetached bool
	// Swept is told what each session's end found. May be nil.
	Swept func(Swept)
	// TempDir is where the directory of sockets is made; empty: the system's.
	TempDir string
	Log     *slog.Logger
	Now     func() time.Time
	Timing  Timing
}

const (
	// sessionLimit is how many sessions an sshd opens on one connection
	// (MaxSessions) unless it is configured otherwise.
	sessionLimit = 10
	// usefulLife is what a connection's tunnel must have left for a new terminal.
	usefulLife = 15 * time.Minute
	// connectTries bounds the connections that one terminal tries.
	connectTries = 5
	// endLaterTime bounds the sweeps that are tried after a connection was lost.
	endLaterTime = 2 * time.Minute
)

// Remote opens terminals on instances, by ssh. Terminals of one OS user on one
// instance share connections.
type Remote struct {
	cfg     RemoteConfig
	ssh     string // the program
	sockets *sockets
	stop    context.CancelFunc
	ctx     context.Context // ends with Close
	wg      sync.WaitGroup

	turns *turns

	mu     sync.Mutex
	conns  map[destination][]*connection
	closed bool
}

// destination is what terminals must have in common to share a connection.
type destination struct{ instance, region, user, hostKey string }

// NewRemote returns a runner. The caller closes it, after its terminals.
func NewRemote(cfg RemoteConfig) (*Remote, error) {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return nil, fmt.Errorf("remote workspaces need OpenSSH's client: %w", err)
	}
	cfg.TempDir = cmp.Or(cfg.TempDir, os.TempDir())
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Timing = cfg.Timing.withDefaults()
	s, err := newSockets(cfg.TempDir)
	if err != nil {
		return nil, err
	}
	r := &Remote{
		cfg: cfg, ssh: program, sockets: s,
		conns: map[destination][]*connection{}, turns: newTurns(cfg.Timing.Turn),
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.wg.Go(s.watch)
	return r, nil
}

// Close ends every connection, and with it the terminals that are still open.
// The key sockets and control sockets are gone then.
func (r *Remote) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop()
	err := r.sockets.close()
	r.wg.Wait()
	return errors.Join(err, r.sockets.remove())
}

// background starts a goroutine that Close joins, unless it is too late.
func (r *Remote) background(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.wg.Go(f)
	}
	return !r.closed
}

var errClosed = errors.New("the gateway ends")

// Nothing else reaches an argument of ssh or a line of the instance's shell.
var (
	instanceForm = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)
	userForm     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	sessionForm  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// order is a terminal that is asked for, and what was learnt of it.
type order struct {
	remote           *Remote
	to               destination
	session, target  string
	container, shell string // of target container
	sid, start       string // the shell's pid where it runs, and its start time
	log              *slog.Logger
}

// newOrder fills in what the workspace's row leaves open.
func (r *Remote) newOrder(t Target) (*order, error) {
	o := &order{
		remote: r, session: t.Session, target: cmp.Or(t.RemoteTarget, r.cfg.Target), sid: "find", start: "0", log: t.Log,
		to: destination{t.InstanceID, t.Region, cmp.Or(t.OSUser, r.cfg.OSUser), ""},
	}
	switch {
	case !instanceForm.MatchString(o.to.instance):
		return nil, &Error{"instance_id", fmt.Errorf("%q is no instance's id", o.to.instance)}
	case !userForm.MatchString(o.to.user):
		return nil, &Error{"os_user", fmt.Errorf("%q is no user's name", o.to.user)}
	case !sessionForm.MatchString(o.session):
		return nil, &Error{"session", fmt.Errorf("%q is no session's id", o.session)}
	case o.target != TargetContainer && o.target != TargetHost:
		return nil, &Error{"remote_target", fmt.Errorf("%q is neither %s nor %s", o.target, TargetContainer, TargetHost)}
	}
	if t.HostKey == "" {
		return o, nil
	}
	keys, err := hostKeyLines(t.HostKey, o.to.instance)
	if err != nil {
		return nil, &spoken{
			&Error{"ssh_hostkey", fmt.Errorf("host_key in the workspace's row is malformed: %w", err)},
			"host_key in the workspace's row is malformed: " + err.Error() + ".",
		}
	}
	o.to.hostKey = strings.Join(keys, "\n")
	return o, nil
}

// idForm is what the engine may take for the start of a container's id.
var idForm = regexp.MustCompile(`^[0-9a-f]+$`)

// Start opens a terminal. Its errors are ErrNotRunning, an *Error, or what
// Tunnels has returned. Those of ssh, then or later, have a Sentence that tells a
// person what to do.
func (r *Remote) Start(ctx context.Context, t Target, size terminal.Size) (terminal.Terminal, error) {
	term, err := r.start(ctx, t, size)
	if err != nil {
		return nil, spoke(explainName(t, err))
	}
	return term, nil
}

func (r *Remote) start(ctx context.Context, t Target, size terminal.Size) (*remoteTerminal, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timing.open())
	defer cancel()
	o, err := r.newOrder(t)
	if err != nil {
		return nil, err
	}
	if o.target == TargetHost {
		return r.open(ctx, o, size, "host")
	}
	names := candidates(t)
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: the workspace has no name that a container can have", ErrNotRunning)
	}
	// Choosing costs one more docker command. A name that cannot be mistaken for
	// an id is tried without.
	direct := !idForm.MatchString(names[0])
	for shells := r.cfg.Shells; len(shells) > 0; {
		o.shell = shells[0]
		keys, _ := dockerKeys() // from here nobody can see what the engine reads, as dockerTerminal.Write does
		args := append([]string{"choose", o.shell, keys, remoteOpening(size), t.Container}, names...)
		if direct {
			args = []string{"direct", o.shell, keys, remoteOpening(size), names[0]}
		}
		term, err := r.open(ctx, o, size, args...)
		switch {
		case err == nil:
			return term, nil
		case direct && errors.Is(err, ErrNotRunning):
			direct = false
		case errors.Is(err, errNoShell):
			shells = shells[1:]
		default:
			return nil, err
		}
	}
	return nil, &Error{"shell", fmt.Errorf("none of %s is in the container", strings.Join(r.cfg.Shells, ", "))}
}

// open opens a terminal over the first connection that takes it.
func (r *Remote) open(ctx context.Context, o *order, size terminal.Size, args ...string) (*remoteTerminal, error) {
	for range connectTries {
		c, err := r.connect(ctx, o.to)
		if err != nil {
			return nil, err
		}
		silent := c.listen()
		t, err := c.open(ctx, o, size, o.command(!r.cfg.EndDetached, args[0], args[1:]...))
		switch {
		case err == nil:
			return t, nil
		case errors.Is(err, errRefused), errors.Is(err, errGone):
			r.refused(c, errors.Is(err, errGone))
		default:
			if errors.Is(ctx.Err(), context.DeadlineExceeded) && silent() {
				r.retire(c)
			}
			r.release(c)
			return nil, err
		}
	}
	return nil, &Error{"ssh_sessions", errors.New("the instance's sshd opens no session")}
}

//go:embed remote.sh
var remoteScript string

// remoteOpening is opening without the line to wait for, which would cost one
// more way to the instance. The docker command gives a terminal its size some
// 10 ms after its start, too late for what the shell does first.
func remoteOpening(size terminal.Size) string {
	return `IFS= read -r s </proc/$$/stat; ` +
		fmt.Sprintf(`stty rows %d cols %d 2>/dev/null; `, size.Rows, size.Cols) +
		`printf '\036%s\036' "$s"; exec "$0"`
}

// command is the line for the account's login shell that runs remote.sh.
func (o *order) command(keep bool, mode string, args ...string) string {
	flag := map[bool]string{false: "0", true: "1"}
	timing := o.remote.cfg.Timing
	argv := []string{
		"/bin/sh", "-c", `eval "$1"`, "termgw", remoteScript, sweepScript,
		mode, o.target, o.session, flag[keep], hundredths(timing.Grace),
		wholeSeconds(timing.Lease), wholeSeconds(timing.Retry),
	}
	return "exec " + quote(append(argv, args...)...)
}
