package instance

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// connection is a tunnel to an instance and the ssh that speaks through it. Its
// control socket opens sessions (ControlMaster).
type connection struct {
	kind    *Kind
	to      destination
	serial  string
	control string // the control socket
	ctx     context.Context
	hangUp  context.CancelFunc

	ready  chan struct{}   // closed once the next five fields are set
	trail  runner.Trail    // also of an opening that failed
	err    error           // of the opening
	tunnel Tunnel          // its ends are login's
	pump   *pump           // between ssh and the tunnel
	master *runner.Process // the connection's ssh

	way  way
	gone chan struct{} // closed once lost is set: the sessions are lost
	lost error

	// Kind's mutex guards the rest.
	used, limit int
	over        bool               // no new sessions
	needed      context.CancelFunc // ends linger; nil: it never ran
}

func (k *Kind) newConnection(to destination) *connection {
	c := &connection{
		kind: k, to: to, serial: k.sockets.serial(), limit: sessionLimit,
		ready: make(chan struct{}), gone: make(chan struct{}), trail: runner.Trail{},
	}
	c.control = k.path(c.serial + ".ctl")
	c.ctx, c.hangUp = context.WithCancel(k.ctx)
	return c
}

// lifeLeft returns how long the tunnel lives on. A connection that is still opening
// has the longest possible life, and so has one whose tunnel has no end.
func (c *connection) lifeLeft() time.Duration {
	select {
	case <-c.ready:
		if !c.tunnel.Expires.IsZero() {
			return c.tunnel.Expires.Sub(c.kind.cfg.Now())
		}
	default:
	}
	return math.MaxInt64
}

// live is the goroutine of a connection: it opens the connection, keeps it until it
// ends or hangUp is called, and removes it.
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

// keep renews the connection's lease until its end, gives a silent connection up, and returns why it ended.
//
// ssh sends nothing by itself while the instance sends. A message that sshd ignores costs no session, which sshd would
// count.
func (c *connection) keep(l *login) error {
	renew := time.NewTicker(c.kind.cfg.Timing.Renew)
	defer renew.Stop()
	patience := c.kind.cfg.Timing.Patience()
	listen := time.NewTicker(min(time.Second, patience/4))
	defer listen.Stop()
	control, err := dialControl(c.ctx, c.control)
	if err != nil {
		return failed("ssh", err)
	}
	defer func() { _ = control.Close() }()
	for {
		select {
		case <-l.ssh.Exited:
			return l.fault(context.Background())
		case <-c.ctx.Done():
			return failed("ssh", errors.New("the connection was ended"))
		case <-listen.C:
			if l.pump.silence() >= patience {
				return failed("tunnel_stalled", fmt.Errorf("nothing has come from the instance for %s", patience))
			}
		case <-renew.C:
			_ = control.SetWriteDeadline(time.Now().Add(time.Second)) // of an ssh that is stuck
			_, _ = control.Write(ignored)                             // an error is in ssh's exit
		}
	}
}

// listen returns a function that reports whether the tunnel has been silent since.
// A silent session proves nothing: one container may hang, or pretend to be a dead
// instance.
func (c *connection) listen() (silent func() bool) {
	began, heard := time.Now(), c.pump.heard.Load()
	return func() bool { return time.Since(began) >= c.kind.cfg.Timing.Silent && c.pump.heard.Load() == heard }
}

func (c *connection) removeFiles() {
	for _, end := range []string{".ctl", ".key", ".known"} {
		_ = os.Remove(c.kind.path(c.serial + end)) // ssh may have removed it
	}
}

// login holds the parts of a connection.
type login struct {
	key      *loginKey
	ssh, cli *runner.Process // cli: the command that carries the tunnel; nil: Tunnel.Conn does
	pump     *pump           // between ssh and the tunnel; nil: there is no tunnel yet
	said     *tail           // ssh's stderr
	cliSaid  *tail
	explain  func(said string) error // Tunnel's; may be nil
	ended    func()                  // Tunnel's; may be nil
}

var errSlow = errors.New("it took too long")

// login opens the connection. Its slow steps run at the same time: the tunnel with
// the push of the key, the start of ssh, and the query for a kept host key.
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
	c.trail.Set(runner.TrailKey, l.key.fingerprint())

	type opened struct {
		tunnel Tunnel
		err    error
	}
	opening := make(chan opened, 1)
	go func() { // received below, always
		t, err := c.kind.cfg.Tunnels.Open(ctx, c.to.tunnelRequest(l.key.public))
		opening <- opened{t, err}
	}()
	near, known, startErr := c.startSSH(ctx, l)
	if startErr != nil {
		cancel()
	}
	got := <-opening
	l.ended = got.tunnel.Ended
	c.trail.Add(got.tunnel.Trail)
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
	c.tunnel = got.tunnel

	select {
	case <-appeared:
	case <-l.ssh.Exited:
		return nil, l.fault(ctx)
	case <-ctx.Done():
		return nil, l.fault(ctx)
	}
	if l.cli == nil {
		l.pump.hasLoggedIn() // the AWS CLI looks for more bytes every 50 ms only: one byte ahead would cost more than it saves
	}
	l.key.close()
	if known {
		return l, nil
	}
	return l, c.keepHostKey(ctx)
}

// startSSH starts the ssh of a connection. near is the tunnel's end of ssh's stream;
// known reports whether the host key was known.
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

// knownHostKeys returns the host keys of the workspace's row, or else the kept one.
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

// keepHostKey keeps the host key that ssh accepted at its first use. If another
// replica has kept another key, one of the two servers was not the instance.
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
	c.trail.Set(runner.TrailHostKey, fingerprint(accepted[0]))
	kept, err := c.kind.cfg.HostKeys.KeepHostKey(ctx, c.to.instance, accepted[0])
	if err != nil {
		return failed("ssh_hostkey", fmt.Errorf("keeping the host key: %w", err))
	}
	if keys, err := hostKeyLines(kept, c.to.instance); err != nil || len(keys) != 1 || keys[0] != accepted[0] {
		return failed("ssh_hostkey", fmt.Errorf("%w: another gateway has seen another key", errHostKey))
	}
	return nil
}

// carry joins ssh's stream and the tunnel, and owns both.
func (l *login) carry(near *os.File, t Tunnel) error {
	defer func() { _ = near.Close() }()
	tunnel := t.Conn
	if len(t.Command) > 0 {
		var err error
		if tunnel, err = l.startCommand(t); err != nil {
			return err
		}
	}
	if tunnel == nil {
		return failed("tunnel", errors.New("there is none"))
	}
	stream, err := net.FileConn(near)
	if err != nil {
		if l.cli != nil {
			_ = tunnel.Close()
		}
		return failed("ssh", fmt.Errorf("reaching ssh: %w", err))
	}
	l.pump = newPump(stream, tunnel)
	return nil
}

// startCommand starts the command that carries a tunnel on its stdin and stdout, and returns the gateway's end of both.
func (l *login) startCommand(t Tunnel) (net.Conn, error) {
	l.explain = t.Explain
	own, its, err := socketPair()
	if err != nil {
		return nil, failed("tunnel", err)
	}
	defer func() { _, _ = own.Close(), its.Close() }()
	p, stderr, err := startChild(t.Command, t.Env, its, its)
	if err != nil {
		return nil, l.cliFault(err.Error())
	}
	l.cli, l.cliSaid = p, newTail(stderr)
	tunnel, err := net.FileConn(own)
	if err != nil {
		return nil, failed("tunnel", fmt.Errorf("reaching the tunnel's command: %w", err))
	}
	return tunnel, nil
}

// fault returns why ssh ended, or makes no progress. The tunnel's error goes before
// ssh's own, which is only that its stream ended.
func (l *login) fault(ctx context.Context) error {
	select {
	case <-l.ssh.Exited:
	default:
		err := context.Cause(ctx)
		switch {
		case errors.Is(err, errSlow) && l.cli != nil && l.pump.heard.Load() == 0:
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
	if l.cli == nil {
		if tunnelErr := l.pump.fault(); tunnelErr != nil {
			return tunnelErr
		}
	} else {
		// The pump saw no more than the command's end. The command gets a moment to print its reason.
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

// cliFault returns the meaning of the last words of a tunnel's command. With a wrong
// certificate or name, the AWS CLI prints nothing and does not end.
func (l *login) cliFault(said string) error {
	switch {
	case l.explain != nil:
		return l.explain(said)
	case said == "":
		said = "nothing came through it"
	}
	return failed("tunnel", errors.New(shorten(said)))
}

// end ends all parts and waits for their end.
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
		// The AWS CLI ignores the end of its stdin.
		l.cli.SignalGroup(unix.SIGKILL)
		<-l.cli.Exited
		l.cliSaid.close()
	}
	if l.ended != nil {
		l.ended()
	}
}
