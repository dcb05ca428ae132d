package instance

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/testenv"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

var env testenv.Env

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests mostly wait for the grace between hang-up and kill.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	env.Main(m)
}

var instances atomic.Int64

func nextInstanceID() string { return fmt.Sprintf("i-%017x", instances.Add(1)) }

// instance is an EC2 instance as Kind sees it: a real sshd, and for target
// container an engine. AWS is played: a key that is pushed counts for one
// connection, whose tunnel is a TCP connection that a test can break.
type instance struct {
	id   string
	sshd *testenv.SSHD
	keys keptKeys

	mu      sync.Mutex
	tunnels []*tunnel
	pushed  []string
	life    time.Duration // of a tunnel; 0: no end
	err     error         // what Open answers
	delay   chan struct{} // what Open waits for
	command []string      // instead of a connection
	shell   string        // a test's own
	addr    string        // without an sshd of this process
	push    func(key string) error

	room, wanted atomic.Bool // what tunnels answer
	ended        atomic.Int64
}

func newInstance(tb testing.TB, engine *testenv.Docker, lines ...string) *instance {
	tb.Helper()
	return &instance{
		id:   nextInstanceID(),
		sshd: testenv.StartSSHD(tb, testenv.SSHDConfig{Docker: engine, Lines: lines}),
	}
}

// newInstanceWith is newInstance of an account with another login shell.
func newInstanceWith(tb testing.TB, shell string) *instance {
	tb.Helper()
	return &instance{
		id:   nextInstanceID(),
		sshd: testenv.StartSSHD(tb, testenv.SSHDConfig{Shell: shell}),
	}
}

// write writes a file in the account's home.
func (i *instance) write(tb testing.TB, name, text string) {
	tb.Helper()
	account, err := user.Lookup(i.sshd.User)
	if err == nil {
		err = os.WriteFile(filepath.Join(account.HomeDir, name), []byte(text), 0o755)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func (i *instance) Find(context.Context, TunnelRequest) (runner.Trail, error) { return nil, nil }

func (i *instance) Open(ctx context.Context, r TunnelRequest) (Tunnel, error) {
	i.mu.Lock()
	err, delay, life, command := i.err, i.delay, i.life, i.command
	i.pushed = append(i.pushed, r.PublicKey)
	i.mu.Unlock()
	if delay != nil {
		select {
		case <-delay:
		case <-ctx.Done():
			return Tunnel{}, context.Cause(ctx)
		}
	}
	if err != nil {
		return Tunnel{}, err
	}
	if r.InstanceID != i.id {
		return Tunnel{}, fmt.Errorf("asked for %s", r.InstanceID)
	}
	addr := i.addr
	switch {
	case i.push != nil:
		err = i.push(r.PublicKey)
	case r.OSUser == i.sshd.User:
		err = i.sshd.Push(r.PublicKey)
	}
	if err != nil {
		return Tunnel{}, err
	}
	if addr == "" {
		addr = i.sshd.Addr
	}
	t := Tunnel{
		Trail: runner.Trail{runner.TrailTunnel: fmt.Sprintf("lease-%d", i.opened()+1)},
		Room:  func(context.Context) bool { return i.room.Load() },
		Idle:  func(context.Context) bool { return i.wanted.Load() },
		Ended: func() { i.ended.Add(1) },
	}
	if life > 0 {
		t.Expires = time.Now().Add(life)
	}
	if command != nil {
		t.Command = command
		return t, nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return Tunnel{}, err
	}
	tun := &tunnel{Conn: conn, stalled: make(chan struct{}), closed: make(chan struct{})}
	i.mu.Lock()
	i.tunnels = append(i.tunnels, tun)
	i.mu.Unlock()
	t.Conn = tun
	return t, nil
}

func (i *instance) Steps(TunnelRequest) []runner.Step { return nil }

// opened counts the tunnels so far.
func (i *instance) opened() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.tunnels)
}

// asked are the public keys that Open was asked to let in.
func (i *instance) asked() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.pushed)
}

func (i *instance) tunnel(n int) *tunnel {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.tunnels[n]
}

// tunnel is a connection that can go silent.
type tunnel struct {
	net.Conn
	stalled, closed chan struct{}
	once            sync.Once
}

// stall lets nothing through any more, and tells nobody: the peer's end stays
// open until the test ends.
func (t *tunnel) stall() { close(t.stalled) }

func (t *tunnel) silent() bool {
	select {
	case <-t.stalled:
		return true
	default:
		return false
	}
}

func (t *tunnel) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	if t.silent() {
		<-t.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (t *tunnel) Write(b []byte) (int, error) {
	if t.silent() {
		return len(b), nil
	}
	return t.Conn.Write(b)
}

func (t *tunnel) Close() error {
	t.once.Do(func() { close(t.closed) })
	if t.silent() {
		return t.SetReadDeadline(time.Unix(1, 0)) // wakes Read, and tells the peer nothing
	}
	return t.Conn.Close()
}

// keptKeys is a store of host keys.
type keptKeys struct {
	mu   sync.Mutex
	keys map[string]string
}

func (k *keptKeys) HostKey(_ context.Context, instance string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[instance], nil
}

func (k *keptKeys) KeepHostKey(_ context.Context, instance, key string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = map[string]string{}
	}
	if k.keys[instance] == "" {
		k.keys[instance] = key
	}
	return k.keys[instance], nil
}

// wholeStart is the timing of tests that wait for the whole time of a start.
var wholeStart = runner.Timing{Start: 15 * time.Second}

// remote is the kind of terminals on the instance, closed at the test's end.
func (i *instance) remote(tb testing.TB, cfg Config, edits ...func(*Config)) *Kind {
	tb.Helper()
	cfg.KeepDetached = true
	for _, edit := range edits {
		edit(&cfg)
	}
	if cfg.HostKeys = &i.keys; cfg.Tunnels == nil {
		cfg.Tunnels = i
	}
	cfg.Timing.Grace = cmp.Or(cfg.Timing.Grace, shelltest.Timing.Grace)
	cfg.Timing.Retry = cmp.Or(cfg.Timing.Retry, shelltest.Timing.Retry)
	cfg.Timing.Start = cmp.Or(cfg.Timing.Start, shelltest.Timing.Start)
	if cfg.OSUser == "" {
		cfg.OSUser = i.sshd.User
	}
	if cfg.Target == "" {
		cfg.Target = TargetHost
	}
	if cfg.Shells == nil {
		cfg.Shells = []string{"/bin/bash", "/bin/sh"}
	}
	r, err := Open(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

// target is a workspace on the instance.
func (i *instance) target(tb testing.TB, container string) runner.Target {
	tb.Helper()
	t := shelltest.NewTarget(tb, container)
	t.Attributes["instance_id"] = i.id
	return t
}

func containerNameOf(tb testing.TB, engine *testenv.Docker, id string) string {
	tb.Helper()
	c, err := engine.Client(tb).ContainerInspect(tb.Context(), id, client.ContainerInspectOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimPrefix(c.Container.Name, "/")
}

// connOf is the connection of a terminal.
func connOf(t terminal.Terminal) *connection {
	switch s := t.(*sshTerminal).stream.(type) {
	case *plainStream:
		return s.conn
	case *keptStream:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.link.conn
	}
	return nil
}
