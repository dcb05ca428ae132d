package instance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
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

	ready  chan struct{} // closed once the next four fields are set
	trail  runner.Trail  // also of an opening that failed
	err    error         // of the opening
	tunnel Tunnel        // its ends are login's
	pump   *pump         // between ssh and the tunnel

	way  way
	gone chan struct{} // closed once lost is set: the sessions are lost
	lost error

	streamsMu sync.Mutex
	streams   map[*keptStream]struct{} // that outlive the connection; nil once it is gone
	givenUp   bool                     // the streams go over to another

	// Kind's mutex guards the rest.
	used, asking int // sessions that are reserved, and terminals among them that sshd is asked for
	has, turned  int // terminals that it has opened, and refused, while they are reserved
	bound        bound
	settled      chan struct{}      // closed once none is asked for; nil: nobody waits for that
	over         bool               // no new sessions
	needed       context.CancelFunc // ends linger; nil: it never ran
}

// newConnection makes a connection. The caller holds the mutex.
func (k *Kind) newConnection(to destination) *connection {
	c := &connection{
		kind: k, to: to, serial: k.sockets.serial(), bound: k.bounds[to],
		ready: make(chan struct{}), gone: make(chan struct{}), trail: runner.Trail{}, streams: map[*keptStream]struct{}{},
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
	l, err := c.pacedLogin()
	if err != nil {
		c.err = err
		c.kind.forget(c)
		close(c.ready)
		c.lost = err
		close(c.gone)
		return
	}
	c.pump = l.pump
	close(c.ready)
	c.lost = c.keep(l)
	c.kind.forget(c)
	close(c.gone)
	for s := range c.loseStreams() {
		s.loseConnection(c)
	}
	l.end()
	c.removeFiles()
	c.kind.gate.closed(c.to)
}

// pacedLogin opens the connection when the gate lets it. The host keys and the way to the instance are asked for before: a
// refusal of a host key is over once another is known, and others need not wait for AWS's answers to this one.
func (c *connection) pacedLogin() (*login, error) {
	ctx, cancel := context.WithTimeoutCause(c.ctx, loginTime(c.kind.cfg.Timing), errSlow)
	defer cancel()
	to, known, err := c.prepare(ctx)
	if err != nil {
		return nil, err
	}
	leave, err := c.kind.gate.pass(ctx, to)
	if err != nil {
		return nil, err
	}
	l, err := c.login(known)
	return l, leave(err)
}

// prepare returns the destination as the gate has it, with all known host keys.
func (c *connection) prepare(ctx context.Context) (to destination, known hostKeys, err error) {
	if known, err = c.knownHostKeys(ctx); err != nil {
		return to, nil, err
	}
	to = c.to
	to.hostKey = known.String()
	if err := c.kind.gate.paused(to); err != nil {
		return to, nil, err
	}
	trail, err := c.kind.cfg.Tunnels.Find(ctx, to.tunnelRequest(""))
	c.trail.Add(trail)
	return to, known, err
}

// keepsStream has a stream hear of the connection's end, and reports whether the connection lives.
func (c *connection) keepsStream(s *keptStream) bool {
	c.streamsMu.Lock()
	defer c.streamsMu.Unlock()
	if c.streams == nil {
		return false
	}
	c.streams[s] = struct{}{}
	return true
}

// letsStream is called when a stream no longer uses the connection.
func (c *connection) letsStream(s *keptStream) {
	c.streamsMu.Lock()
	defer c.streamsMu.Unlock()
	delete(c.streams, s)
}

// loseStreams returns the streams at the connection's end.
func (c *connection) loseStreams() map[*keptStream]struct{} {
	c.streamsMu.Lock()
	defer c.streamsMu.Unlock()
	lost := c.streams
	c.streams = nil
	return lost
}

// each calls a function with each stream.
func (c *connection) each(do func(*keptStream)) {
	c.streamsMu.Lock()
	all := slices.Collect(maps.Keys(c.streams))
	c.streamsMu.Unlock()
	for _, s := range all {
		do(s)
	}
}

// giveUp has the streams go over to another connection, and keeps new terminals off this one.
func (c *connection) giveUp() {
	c.kind.retire(c)
	c.streamsMu.Lock()
	c.givenUp = true
	c.streamsMu.Unlock()
	c.each((*keptStream).cross)
}

// isGivenUp reports whether streams go over to another connection.
func (c *connection) isGivenUp() bool {
	c.streamsMu.Lock()
	defer c.streamsMu.Unlock()
	return c.givenUp
}

// leaving is when the streams go over to another tunnel; nil: the tunnel has no end.
func (c *connection) leaving() <-chan time.Time {
	if c.tunnel.Expires.IsZero() {
		return nil
	}
	left := c.lifeLeft()
	return time.After(max(left-c.kind.cfg.Timing.Cross, left/2))
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
		select {
		case <-l.ssh.Exited:
			return l.fault(context.Background())
		case <-time.After(runner.Quiet):
			return failed("ssh", err)
		}
	}
	defer func() { _ = control.Close() }()
	leaving := c.leaving()
	for {
		select {
		case <-l.ssh.Exited:
			return l.fault(context.Background())
		case <-c.ctx.Done():
			return failed("ssh", errors.New("the connection was ended"))
		case <-listen.C:
			silence := l.pump.silence()
			if silence >= patience {
				return failed("tunnel_stalled", fmt.Errorf("nothing has come from the instance for %s", patience))
			}
			if silence >= 2*c.kind.cfg.Timing.Alive { // ssh has probed the instance meanwhile
				c.giveUp()
			}
		case <-leaving:
			c.giveUp()
		case <-renew.C:
			_ = control.SetWriteDeadline(time.Now().Add(time.Second)) // of an ssh that is stuck
			_, _ = control.Write(ignored)                             // an error is in ssh's exit
			c.each((*keptStream).beat)
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
	for _, end := range []string{".ctl", ".key", ".known", ".log"} {
		_ = os.Remove(c.kind.path(c.serial + end)) // ssh may have removed it
	}
}

// login holds the parts of a connection.
type login struct {
	key       *loginKey
	ssh, cli  *runner.Process // cli: the command that carries the tunnel; nil: Tunnel.Conn does
	pump      *pump           // between ssh and the tunnel; nil: there is no tunnel yet
	said      *tail           // ssh's stderr: what a server prints, its banner, say
	log       *tail           // ssh's own messages
	logEnd    *os.File        // of the pipe for log, to which ssh writes too
	exchange  *exchange       // what the server said before it encrypted
	noEd25519 atomic.Bool     // the server says that it takes no such key of a user
	cliSaid   *tail
	explain   func(said string) error // Tunnel's; may be nil
	ended     func()                  // Tunnel's; may be nil
}

var errSlow = errors.New("it took too long")

// attempt is how a login is tried.
type attempt struct {
	key     keyType
	known   bool     // the instance takes this type of key
	without []string // types of host keys to leave out
}

// errOther is the cause of an end by the gateway itself, before ssh tries to log in.
var errOther = errors.New("the instance takes another type of key")

// login opens the connection. It tries in another way where the refusal may be of the way.
func (c *connection) login(known hostKeys) (*login, error) {
	ctx, cancel := context.WithTimeoutCause(c.ctx, loginTime(c.kind.cfg.Timing), errSlow)
	defer cancel()
	var a attempt
	a.key, a.known = c.kind.gate.keyFor(c.to)
	var first error
	for {
		l, err := c.try(ctx, a, known)
		switch {
		case err == nil:
			c.kind.gate.hasTaken(c.to.instance, a.key)
			return l, nil
		case errors.Is(err, errOther):
			// The server's own list says so before the login, and the instance's next one has the key at once.
			c.kind.gate.hasTaken(c.to.instance, a.key.other())
			c.trail.Set(runner.TrailKeyRefused, l.key.fingerprint())
			a.key, a.known = a.key.other(), true
			continue
		case runner.StepOf(err) == "ssh_auth" && !errors.Is(err, errMore) && !a.known && c.mayTryOther(l):
			c.trail.Set(runner.TrailKeyRefused, l.key.fingerprint())
			a.key, a.known = a.key.other(), true
		case runner.StepOf(err) == "ssh_hostkey" && known.mayBeOther() && l.exchange.shown() != nil && len(a.without)+1 < len(hostKeyTypes):
			a.without = append(a.without, l.exchange.shown().Type())
		case first != nil:
			return nil, first
		default:
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
}

// mayTryOther reports whether a login that was refused is tried with the other type of key: where that costs no penalty, or the
// server says that it is of use. Who runs the doctor is there to see.
func (c *connection) mayTryOther(l *login) bool {
	return l.noEd25519.Load() || c.kind.thorough.Load() || !penalises.MatchString(l.exchange.greets())
}

// sees is called with what ssh logs of its own work.
func (l *login) sees(debug string) {
	if m := keysTaken.FindStringSubmatch(debug); m != nil && !slices.Contains(strings.Split(m[1], ","), ssh.KeyAlgoED25519) {
		l.noEd25519.Store(true)
	}
}

// try logs in in one way. Its slow steps run at the same time: the tunnel with the push of the key, and the start of ssh. With
// an error, the login that is returned has ended.
func (c *connection) try(ctx context.Context, a attempt, known hostKeys) (l *login, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	appeared := c.kind.sockets.expect(c.serial + ".ctl")
	l = &login{}
	l.exchange = &exchange{
		algorithms: func(hostKeys []string) error {
			c.kind.gate.greeted(c.to.instance, l.exchange.greets())
			// An sshd in FIPS mode has no Ed25519 at all.
			if a.key == keyEd25519 && !slices.Contains(hostKeys, ssh.KeyAlgoED25519) {
				return errOther
			}
			return nil
		},
		hostKey: func(key ssh.PublicKey) error { return c.checkHostKey(known, key) },
	}
	defer func() {
		c.kind.sockets.forget(c.serial + ".ctl")
		if err != nil {
			l.end()
			c.removeFiles()
		}
	}()
	if l.key, err = newLoginKey(c.kind.path(c.serial+".key"), a.key); err != nil {
		return l, failed("ssh", err)
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
	near, startErr := c.startSSH(l, known.algorithms(a.without))
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
		return l, err
	}
	c.tunnel = got.tunnel

	select {
	case <-appeared:
	case <-l.ssh.Exited:
		err := l.fault(ctx)
		return l, l.denial(err, l.said.text())
	case <-ctx.Done():
		return l, l.fault(ctx)
	}
	if l.cli == nil {
		l.pump.hasLoggedIn() // the AWS CLI looks for more bytes every 50 ms only: one byte ahead would cost more than it saves
	}
	l.key.close()
	if len(known) > 0 {
		return l, nil
	}
	return l, c.keepHostKey(ctx, l.exchange.shown())
}

// startSSH starts the ssh of a connection. near is the tunnel's end of ssh's stream.
func (c *connection) startSSH(l *login, hostKeyAlgorithms string) (near *os.File, err error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, failed("ssh", err)
	}
	defer func() { _ = far.Close() }()
	log := c.kind.path(c.serial + ".log")
	messages, end, err := logPipe(log)
	if err != nil {
		_ = near.Close()
		return nil, failed("ssh", err)
	}
	l.log, l.logEnd = newLog(messages, l.sees), end
	argv := append([]string{c.kind.ssh}, masterArgs(c.control, c.to.user, c.to.instance,
		c.kind.path(c.serial+".key"), c.knownHosts(), log, hostKeyAlgorithms, c.kind.cfg.Timing)...)
	p, stderr, err := startChild(argv, sshEnv, far, far)
	if err != nil {
		_ = near.Close()
		return nil, failed("ssh", err)
	}
	l.ssh, l.said = p, newTail(stderr)
	return near, nil
}

func (c *connection) knownHosts() string { return c.kind.path(c.serial + ".known") }

// knownHostKeys returns the host keys of the workspace's row, or else the kept one.
func (c *connection) knownHostKeys(ctx context.Context) (hostKeys, error) {
	if c.to.hostKey != "" {
		return parsedHostKeys(c.to.hostKey), nil
	}
	kept, err := c.kind.cfg.HostKeys.HostKey(ctx, c.to.instance)
	if err != nil {
		return nil, fmt.Errorf("asking for the kept host key: %w", err)
	}
	if kept == "" {
		return nil, nil
	}
	keys, err := readHostKeys(kept, c.to.instance)
	if err != nil {
		f := malformed("ssh_hostkey", "the kept host key is malformed: %w", err)
		f.Sentence = "The host key that is kept for the instance is malformed: run `termgw hostkeys forget INSTANCE_ID`."
		return nil, f
	}
	return keys, nil
}

// checkHostKey has ssh accept the key that the server shows if it is a known one, or none is known. ssh knows no key before.
func (c *connection) checkHostKey(known hostKeys, key ssh.PublicKey) error {
	if len(known) > 0 && !known.have(key) {
		return failed("ssh_hostkey", fmt.Errorf("%w: it shows %s %s", errHostKey, key.Type(), ssh.FingerprintSHA256(key)))
	}
	if err := os.WriteFile(c.knownHosts(), []byte(c.to.instance+" "+lineOf(key)+"\n"), 0o600); err != nil {
		return failed("ssh", fmt.Errorf("writing known hosts: %w", err))
	}
	return nil
}

// keepHostKey keeps the host key that was accepted at its first use. If another
// replica has kept another key, one of the two servers was not the instance.
func (c *connection) keepHostKey(ctx context.Context, accepted ssh.PublicKey) error {
	c.trail.Set(runner.TrailHostKey, ssh.FingerprintSHA256(accepted))
	kept, err := c.kind.cfg.HostKeys.KeepHostKey(ctx, c.to.instance, lineOf(accepted))
	if err != nil {
		return fmt.Errorf("keeping the host key: %w", err)
	}
	if keys, err := readHostKeys(kept, c.to.instance); err != nil || !keys.have(accepted) {
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
	l.pump = newPump(stream, tunnel, l.exchange.read)
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
	if err := l.exchange.refusal(); err != nil {
		return err
	}
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
	_ = l.logEnd.Close() // ssh's end is closed
	if l.ssh.Status.Signaled() {
		return failed("ssh", fmt.Errorf("ssh was ended by %s", unix.SignalName(l.ssh.Status.Signal())))
	}
	err := loginFault(l.log.textWithin(busyTime), l.said.text())
	if err.Final {
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

// denial returns the meaning of a login's fault: an sshd that hangs up once it has shown its host key keeps the account out,
// or was ended at that moment. What PAM says comes as a banner does.
func (l *login) denial(err error, said string) error {
	if runner.StepOf(err) != "ssh_closed" || l.exchange.shown() == nil {
		return err
	}
	f := failed("ssh_denied", fmt.Errorf("in the middle of the login: %w", err))
	f.Final = accountOver.MatchString(said)
	if comesOrGoes.MatchString(said) {
		f.Sentence = "The instance lets nobody in for now, because it starts or shuts down: try again in a minute."
		f.Fix = "Wait until the instance has started. If it has, remove /etc/nologin and /run/nologin there."
	}
	return f
}

// What PAM says, as whole lines, of an instance that starts or shuts down (pam_nologin(8), with the words of systemd and
// shutdown(8)), and of an account that is over (pam_unix(8), pam_faillock(8)).
var (
	comesOrGoes = regexp.MustCompile(`(?m)^"?(The s|S)ystem is (booting up|going down|shutting down)\b`)
	accountOver = regexp.MustCompile(`(?m)^(Your account has expired|Account (is )?(locked|expired|disabled))\b`)
)

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
	if l.log != nil {
		_ = l.logEnd.Close()
		l.log.close()
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
