package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// connection is one tunnel to an instance and the ssh that speaks through it, by
// whose control socket sessions are opened (ControlMaster).
type connection struct {
	kind    *Kind
	to      destination
	serial  string
	control string // the control socket
	ctx     context.Context
	hangUp  context.CancelFunc

	ready   chan struct{}   // closed after the next four were set
	err     error           // why it did not open
	expires time.Time       // when the tunnel is cut; zero: never
	pump    *pump           // nil: a command carries the tunnel
	master  *runner.Process // the ssh that has the connection

	gone chan struct{} // closed after the next was set, when sessions are lost
	lost error

	// Remote's mutex guards these.
	used, limit int
	over        bool // no new sessions
	idle        *time.Timer
}

func (k *Kind) newConnection(to destination) *connection {
	c := &connection{
		kind: k, to: to, serial: k.sockets.serial(), limit: sessionLimit,
		ready: make(chan struct{}), gone: make(chan struct{}),
	}
	c.control = k.path(c.serial + ".ctl")
	c.ctx, c.hangUp = context.WithCancel(k.ctx)
	return c
}

// lastsFor tells whether the tunnel is not cut for so long. That of a connection
// that is not open yet is as long as they come.
func (c *connection) lastsFor(d time.Duration) bool {
	select {
	case <-c.ready:
		return c.expires.IsZero() || c.expires.Sub(c.kind.cfg.Now()) >= d
	default:
		return true
	}
}

// live opens the connection, keeps it until it ends or is told to, and removes
// it. The connection is its goroutine's.
func (c *connection) live() {
	defer c.hangUp()
	l, err := c.login()
	if err != nil {
		c.err = err
		c.kind.forget(c)
		close(c.ready)
		c.lost = err
		close(c.gone)
		return
	}
	c.pump, c.master = l.pump, l.ssh
	close(c.ready)
	c.lost = c.keep(l)
	c.kind.forget(c)
	close(c.gone)
	l.end()
	c.removeFiles()
}

// keep renews the connection's lease until its end, and returns why it ended.
//
// ssh itself is silent while the instance sends. What makes it speak, without a
// session of its own (sshd counts those) and unseen by any program, is the signal
// of a new size: it tells those of all its terminals, changed or not.
func (c *connection) keep(l *login) error {
	renew := time.NewTicker(c.kind.cfg.Timing.Renew)
	defer renew.Stop()
	for {
		select {
		case <-l.ssh.Exited:
			return l.fault(context.Background())
		case <-c.ctx.Done():
			return failed("ssh", errors.New("the connection was ended"))
		case <-renew.C:
			l.ssh.Signal(unix.SIGWINCH)
		}
	}
}

// listen returns what tells whether the tunnel has been silent since. A session
// that says nothing is no sign of that: what hangs may be one container, or may
// want to be taken for the whole instance. Of a tunnel that a command carries
// nothing is known; ssh itself gives that up, after 45 s.
func (c *connection) listen() (silent func() bool) {
	if c.pump == nil {
		return func() bool { return false }
	}
	began, heard := time.Now(), c.pump.heard.Load()
	return func() bool { return time.Since(began) >= c.kind.cfg.Timing.Silent && c.pump.heard.Load() == heard }
}

func (c *connection) removeFiles() {
	for _, end := range []string{".ctl", ".key", ".known"} {
		_ = os.Remove(c.kind.path(c.serial + end)) // ssh may have done it
	}
}

// login is what a connection is made of.
type login struct {
	key      *loginKey
	ssh, cli *runner.Process // cli: what carries the tunnel, if it is a command
	pump     *pump           // what does otherwise
	said     *tail           // by ssh
	cliSaid  *tail
	explain  func(said string) error // by cli; may be nil
	ended    func()                  // the tunnel's; may be nil
}

var errSlow = errors.New("it took too long")

// login opens the connection. All that takes time goes at once: the tunnel with
// the key's way to the instance, ssh's own start, and the question for a kept
// host key.
func (c *connection) login() (_ *login, err error) {
	ctx, cancel := context.WithTimeoutCause(c.ctx, loginTime(c.kind.cfg.Timing), errSlow)
	defer cancel()
	appeared := c.kind.sockets.expect(c.serial + ".ctl")
	l := &login{}
	defer func() {
		c.kind.sockets.forget(c.serial + ".ctl")
		if err != nil {
			l.end()
			c.removeFiles()
		}
	}()
	if l.key, err = newLoginKey(c.kind.path(c.serial + ".key")); err != nil {
		return nil, failed("ssh", err)
	}

	type opened struct {
		tunnel Tunnel
		err    error
	}
	opening := make(chan opened, 1)
	go func() { // received below, always
		t, err := c.kind.cfg.Tunnels.Open(ctx, TunnelRequest{
			InstanceID: c.to.instance, Region: c.to.region, OSUser: c.to.user, PublicKey: l.key.public,
		})
		opening <- opened{t, err}
	}()
	near, known, startErr := c.startSSH(ctx, l)
	if startErr != nil {
		cancel()
	}
	got := <-opening
	l.ended = got.tunnel.Ended
	switch {
	case startErr != nil:
		err = startErr
	case got.err != nil:
		err = got.err
	default:
		err = l.carry(near, got.tunnel)
		near = nil
	}
	if err != nil {
		if near != nil {
			_ = near.Close()
		}
		if got.tunnel.Conn != nil {
			_ = got.tunnel.Conn.Close()
		}
		return nil, err
	}
	c.expires = got.tunnel.Expires

	select {
	case <-appeared:
	case <-l.ssh.Exited:
		return nil, l.fault(ctx)
	case <-ctx.Done():
		return nil, l.fault(ctx)
	}
	if l.pump != nil {
		l.pump.hasLoggedIn()
	}
	l.key.close()
	if known {
		return l, nil
	}
	return l, c.keepHostKey(ctx)
}

// startSSH starts the ssh of a connection. It returns the tunnel's end of its
// stream, and whether the host's key was known.
func (c *connection) startSSH(ctx context.Context, l *login) (near *os.File, known bool, err error) {
	keys, err := c.knownHostKeys(ctx)
	if err != nil {
		return nil, false, failed("ssh_hostkey", err)
	}
	var lines strings.Builder
	for _, key := range keys {
		fmt.Fprintf(&lines, "%s %s\n", c.to.instance, key)
	}
	knownHosts := c.kind.path(c.serial + ".known")
	if err := os.WriteFile(knownHosts, []byte(lines.String()), 0o600); err != nil {
		return nil, false, failed("ssh", fmt.Errorf("writing known hosts: %w", err))
	}
	near, far, err := socketPair()
	if err != nil {
		return nil, false, failed("ssh", err)
	}
	defer func() { _ = far.Close() }()
	argv := append([]string{c.kind.ssh}, masterArgs(c.control, c.to.user, c.to.instance,
		c.kind.path(c.serial+".key"), knownHosts, len(keys) > 0, c.kind.cfg.Timing)...)
	p, stderr, err := startChild(argv, sshEnv, far, far)
	if err != nil {
		_ = near.Close()
		return nil, false, failed("ssh", err)
	}
	l.ssh, l.said = p, newTail(stderr)
	return near, len(keys) > 0, nil
}

// knownHostKeys are those of the workspace's row, else the one that is kept.
func (c *connection) knownHostKeys(ctx context.Context) ([]string, error) {
	if c.to.hostKey != "" {
		return strings.Split(c.to.hostKey, "\n"), nil
	}
	kept, err := c.kind.cfg.HostKeys.HostKey(ctx, c.to.instance)
	if err != nil {
		return nil, fmt.Errorf("asking for the kept host key: %w", err)
	}
	if kept == "" {
		return nil, nil
	}
	keys, err := hostKeyLines(kept, c.to.instance)
	if err != nil {
		return nil, fmt.Errorf("the kept host key: %w", err)
	}
	return keys, nil
}

// keepHostKey keeps the key that ssh has accepted at the first use. When another
// replica was first, and saw another key, one of the two was not the instance.
func (c *connection) keepHostKey(ctx context.Context) error {
	b, err := os.ReadFile(c.kind.path(c.serial + ".known"))
	if err != nil {
		return failed("ssh_hostkey", fmt.Errorf("reading the accepted key: %w", err))
	}
	accepted, err := hostKeyLines(string(b), c.to.instance)
	if err == nil && len(accepted) != 1 {
		err = fmt.Errorf("%d keys", len(accepted))
	}
	if err != nil {
		return failed("ssh_hostkey", fmt.Errorf("the accepted key: %w", err))
	}
	kept, err := c.kind.cfg.HostKeys.KeepHostKey(ctx, c.to.instance, accepted[0])
	if err != nil {
		return failed("ssh_hostkey", fmt.Errorf("keeping the host key: %w", err))
	}
	if keys, err := hostKeyLines(kept, c.to.instance); err != nil || len(keys) != 1 || keys[0] != accepted[0] {
		return failed("ssh_hostkey", fmt.Errorf("%w: another gateway has seen another key", errHostKey))
	}
	return nil
}

// carry joins ssh's stream and the tunnel. It takes both.
func (l *login) carry(near *os.File, t Tunnel) error {
	defer func() { _ = near.Close() }()
	if len(t.Command) > 0 {
		l.explain = t.Explain
		p, stderr, err := startChild(t.Command, t.Env, near, near)
		if err != nil {
			return l.cliFault(err.Error())
		}
		l.cli, l.cliSaid = p, newTail(stderr)
		return nil
	}
	if t.Conn == nil {
		return failed("tunnel", errors.New("there is none"))
	}
	stream, err := net.FileConn(near)
	if err != nil {
		return failed("ssh", fmt.Errorf("reaching ssh: %w", err))
	}
	l.pump = newPump(stream, t.Conn)
	return nil
}

// fault is why ssh has ended, or does not get on. A tunnel that failed knows
// better than ssh, to which it only ended.
func (l *login) fault(ctx context.Context) error {
	select {
	case <-l.ssh.Exited:
	default:
		err := context.Cause(ctx)
		switch {
		case errors.Is(err, errSlow) && l.cli != nil:
			return l.cliFault(l.cliSaid.text())
		case errors.Is(err, errSlow):
			return failed("ssh_timeout", errors.New("sshd does not answer"))
		}
		return failed("ssh", err)
	}
	err := loginFault(l.said.text())
	if err.Step == "ssh_auth" || err.Step == "ssh_hostkey" {
		return err
	}
	if l.pump != nil {
		if tunnelErr := l.pump.fault(); tunnelErr != nil {
			return tunnelErr
		}
	}
	if l.cli != nil {
		// It is given a moment to say why, and then it may stay as it is.
		select {
		case <-l.cli.Exited:
		case <-time.After(runner.Quiet):
		}
		if said := l.cliSaid.text(); said != "" {
			return l.cliFault(said)
		}
	}
	return err
}

// cliFault is what the last words of a tunnel's command mean. On a wrong
// certificate or name the AWS CLI has none, and does not end.
func (l *login) cliFault(said string) error {
	switch {
	case l.explain != nil:
		return l.explain(said)
	case said == "":
		said = "nothing came through it"
	}
	return failed("tunnel", errors.New(shorten(said)))
}

// end ends what is there, and waits for it.
func (l *login) end() {
	if l.key != nil {
		l.key.close()
	}
	if l.ssh != nil {
		l.ssh.Signal(unix.SIGTERM)
		select {
		case <-l.ssh.Exited:
		case <-time.After(time.Second):
			l.ssh.Signal(unix.SIGKILL)
			<-l.ssh.Exited
		}
		l.said.close()
	}
	if l.pump != nil {
		l.pump.close()
	}
	if l.cli != nil {
		// The AWS CLI does not hear the end of its stdin.
		l.cli.SignalGroup(unix.SIGKILL)
		<-l.cli.Exited
		l.cliSaid.close()
	}
	if l.ended != nil {
		l.ended()
	}
}
