package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// clock is one that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

var errOfAWS = errors.New("throttled")

// goes lets a login through that ends with an error, and returns what is told; "" for a success.
func goes(tb testing.TB, g *gate, to destination, err error) (told error, through bool) {
	tb.Helper()
	leave, told := g.pass(tb.Context(), to)
	if told != nil {
		return told, false
	}
	return leave(err), true
}

// TestGate: what is let through after which result, and what is told.
func TestGate(t *testing.T) {
	t.Parallel()
	clock := newClock()
	g := newGate(clock.Now)
	wrong := destination{instance: "i-1", user: "wrong"}
	otherRow, neighbour := wrong, wrong
	otherRow.hostKey, otherRow.identity = edKey, "somebody"
	neighbour.user = "right"
	for n, c := range []struct {
		after   time.Duration
		to      destination
		err     error
		step    string
		through bool
		says    string
	}{
		{0, wrong, failed("ssh_timeout", io.EOF), "ssh_timeout", true, ""},
		{0, wrong, errOfAWS, "", true, "throttled"},
		{0, wrong, failed("ssh_auth", errAuth), "ssh_auth", true, "in 30 s"},
		{0, wrong, nil, "ssh_auth", false, "in 30 s"},
		{10 * time.Second, otherRow, nil, "ssh_auth", false, "in 20 s"},
		{0, neighbour, failed("ssh_penalty", io.EOF), "ssh_penalty", true, ""},
		{20 * time.Second, otherRow, failed("ssh_penalty", io.EOF), "ssh_auth", true, "in 60 s"}, // the first cause
		{59 * time.Second, wrong, nil, "ssh_auth", false, "in 1 s"},
		{time.Second, wrong, errOfAWS, "", true, "throttled"},
		{0, wrong, failed("ssh_closed", io.EOF), "ssh_auth", true, "in 60 s"},
		{time.Minute + rememberFor, wrong, failed("ssh_closed", io.EOF), "ssh_closed", true, ""}, // it is forgotten
		{0, wrong, failed("ssh_auth", errAuth), "ssh_auth", true, "in 30 s"},
		{30 * time.Second, wrong, nil, "", true, ""}, // somebody has mended it
		{0, wrong, failed("ssh_auth", errAuth), "ssh_auth", true, "in 30 s"},
	} {
		clock.add(c.after)
		told, through := goes(t, g, c.to, c.err)
		if through != c.through || runner.StepOf(told) != c.step || (told == nil) != (c.step == "" && c.says == "") {
			t.Fatalf("%d: through %t, %v", n, through, told)
		}
		var failure *runner.Failure
		says := fmt.Sprint(told)
		if errors.As(told, &failure) {
			says += failure.Sentence
			if failure.Final != (c.step == "ssh_auth") || strings.Contains(failure.Fix, "tries this login again") {
				t.Errorf("%d: %+v", n, failure)
			}
		}
		if !strings.Contains(says, c.says) {
			t.Errorf("%d: %q, want %q", n, says, c.says)
		}
	}
	g.closed(wrong)
	if len(g.logins) != 0 {
		t.Errorf("%d accounts are kept without a login", len(g.logins))
	}
}

// TestGateOfHostKeys: a row with a wrong host key holds up no other row, and two of them do not free each other.
func TestGateOfHostKeys(t *testing.T) {
	t.Parallel()
	g := newGate(newClock().Now)
	row := func(hostKey string) destination { return destination{instance: "i-1", user: "u", hostKey: hostKey} }
	for _, hostKey := range []string{edKey, ecKey, ""} {
		if _, through := goes(t, g, row(hostKey), failed("ssh_hostkey", errHostKey)); !through {
			t.Errorf("%q is held up", hostKey)
		}
	}
	for _, hostKey := range []string{edKey, ecKey, ""} {
		if told, through := goes(t, g, row(hostKey), nil); through || runner.StepOf(told) != "ssh_hostkey" {
			t.Errorf("%q: %v", hostKey, told)
		}
	}
	if told, through := goes(t, g, row(somePrint), nil); !through || told != nil {
		t.Errorf("a right row: %v", told)
	}
}

// TestGateOneAtATime: many come at once. One is let through; all know with it.
func TestGateOneAtATime(t *testing.T) {
	t.Parallel()
	for name, result := range map[string]error{"refused": failed("ssh_auth", errAuth), "slow": failed("ssh_timeout", io.EOF), "well": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(time.Now)
				to := destination{instance: "i-1", user: "u"}
				leave, err := g.pass(t.Context(), to)
				if err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				var wg sync.WaitGroup
				results := map[string]int{}
				for range 30 {
					wg.Go(func() {
						_, err := g.pass(t.Context(), to)
						mu.Lock()
						defer mu.Unlock()
						results[runner.StepOf(err)]++
					})
				}
				cancelled, cancel := context.WithCancel(t.Context())
				wg.Go(func() {
					if _, err := g.pass(cancelled, to); !errors.Is(err, context.Canceled) {
						t.Errorf("one that leaves is told %v", err)
					}
				})
				synctest.Wait()
				cancel()
				synctest.Wait()
				if len(results) > 0 {
					t.Errorf("before the result: %v", results)
				}
				_ = leave(result)
				wg.Wait()
				if results[runner.StepOf(result)] != 30 {
					t.Errorf("%v", results)
				}
			})
		})
	}
}

// TestGateAfterOneThatWasCancelled: a login for which nobody waits any more says nothing to the others.
func TestGateAfterOneThatWasCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(time.Now)
		to := destination{instance: "i-1", user: "u"}
		leave, err := g.pass(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if told, through := goes(t, g, to, nil); !through || told != nil {
				t.Errorf("the next one is told %v", told)
			}
		})
		synctest.Wait()
		_ = leave(failed("ssh", context.Canceled))
		wg.Wait()
	})
}

// TestGateIsBounded: rows with many users.
func TestGateIsBounded(t *testing.T) {
	t.Parallel()
	clock := newClock()
	g := newGate(clock.Now)
	for n := range mostRemembered + 50 {
		clock.add(refusedCosts)
		_, _ = goes(t, g, destination{instance: "i-1", user: fmt.Sprint("u", n)}, failed("ssh_auth", errAuth))
		g.hasTaken(fmt.Sprint("i-", n), keyRSA)
	}
	if len(g.refused) > mostRemembered || len(g.takes) > mostRemembered || len(g.logins) > 0 {
		t.Errorf("%d refusals, %d types, %d accounts", len(g.refused), len(g.takes), len(g.logins))
	}
	if told, _ := goes(t, g, destination{instance: "i-1", user: fmt.Sprint("u", mostRemembered+49)}, nil); told == nil {
		t.Error("the last one is forgotten")
	}
	for n := range mostRemembered + 50 {
		_, _ = goes(t, g, destination{instance: fmt.Sprint("i-", n), user: "u"}, failed("ssh_auth", errAuth))
		clock.add(refusedCosts)
	}
	if len(g.sums) > mostRemembered {
		t.Errorf("the sums of %d instances", len(g.sums))
	}
}

// penalties are those of an sshd for one source address (PerSourcePenalties, srclimit.c of OpenSSH 9.8).
type penalties struct {
	expiry time.Time
	active bool
}

const (
	penaltyAuthFail = 5 * time.Second
	penaltyFrom     = 15 * time.Second
	penaltyMost     = 10 * time.Minute
)

func (p *penalties) refuses(now time.Time) bool {
	if !now.Before(p.expiry) {
		*p = penalties{}
	}
	return p.active
}

func (p *penalties) add(now time.Time, d time.Duration) {
	if !now.Before(p.expiry) {
		*p = penalties{expiry: now}
	}
	p.expiry = p.expiry.Add(d)
	if p.expiry.Sub(now) > penaltyMost {
		p.expiry = now.Add(penaltyMost)
	}
	p.active = p.active || p.expiry.Sub(now) > penaltyFrom
}

// TestGateStaysBelowThePenalty: three replicas, tries without end for a wrong row, from whatever time on.
func TestGateStaysBelowThePenalty(t *testing.T) {
	t.Parallel()
	for _, apart := range []time.Duration{0, 700 * time.Millisecond, 10 * time.Second} {
		clock := newClock()
		var sshd penalties
		gates := []*gate{newGate(clock.Now), newGate(clock.Now), newGate(clock.Now)}
		logins := 0
		for tick := range 6000 { // 20 minutes, 5 tries a second
			for n, g := range gates {
				if time.Duration(tick)*200*time.Millisecond < time.Duration(n)*apart {
					continue
				}
				leave, err := g.pass(t.Context(), destination{instance: "i-1", user: "wrong"})
				if err != nil {
					continue
				}
				logins++
				if sshd.refuses(clock.Now()) {
					t.Fatalf("the address is refused after %d logins", logins)
				}
				sshd.add(clock.Now(), penaltyAuthFail)
				_ = leave(failed("ssh_auth", errAuth))
			}
			clock.add(200 * time.Millisecond)
		}
		if logins > 3*21 || logins < 3*19 {
			t.Errorf("%d logins in 20 minutes", logins)
		}
	}
}

// TestGateOfManyAccounts: rows with many wrong users on one instance, each tried without end at one gateway, bring no penalty
// about. A right one that nobody has tried before gets through, and one that is open waits for nothing.
func TestGateOfManyAccounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(time.Now)
		to := func(user string) destination { return destination{instance: "i-1", user: user} }
		if _, through := goes(t, g, to("open"), nil); !through {
			t.Fatal("the first login is held up")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		defer cancel()
		var mu sync.Mutex
		var sshd penalties
		logins := 0
		var wg sync.WaitGroup
		for n := range 12 {
			wg.Go(func() {
				for ; ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
					leave, err := g.pass(ctx, to(fmt.Sprint("wrong", n)))
					if err != nil {
						continue
					}
					time.Sleep(300 * time.Millisecond) // the login takes a while
					mu.Lock()
					logins++
					if sshd.refuses(time.Now()) {
						t.Errorf("the address is refused after %d logins", logins)
						cancel()
					}
					sshd.add(time.Now(), penaltyAuthFail)
					mu.Unlock()
					_ = leave(failed("ssh_auth", errAuth))
				}
			})
		}
		time.Sleep(2 * time.Minute)
		began := time.Now()
		if told, through := goes(t, g, to("open"), nil); !through || told != nil || time.Since(began) > 0 {
			t.Errorf("one that is open: %v, after %s", told, time.Since(began))
		}
		told, through := goes(t, g, to("right"), nil)
		if !through || told != nil {
			t.Errorf("a right one is told %v", told)
		}
		if waits := time.Since(began); waits > refusedCosts {
			t.Errorf("a right one waits for %s", waits)
		}
		wg.Wait()
		if logins < 100 {
			t.Errorf("%d logins", logins)
		}
	})
}

// TestGateToldInTheQueue: whoever waits because of others is told so, and not that the instance is slow.
func TestGateToldInTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(time.Now)
		for _, user := range []string{"a", "b"} {
			_, _ = goes(t, g, destination{instance: "i-1", user: user}, failed("ssh_denied", io.EOF))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		g.greeted("i-1", "SSH-2.0-OpenSSH_10.0")
		_, err := g.pass(ctx, destination{instance: "i-1", user: "c"})
		var told *runner.Failure
		if !errors.As(err, &told) || told.Final || !strings.Contains(told.Sentence, "other OS users") {
			t.Errorf("told %v", err)
		}
		if _, through := goes(t, g, destination{instance: "i-2", user: "c"}, nil); !through {
			t.Error("another instance is held up")
		}
		if len(g.sums["i-1"].fresh) > 0 {
			t.Error("one that has left is in the queue")
		}
		var after sync.WaitGroup
		after.Go(func() {
			if _, through := goes(t, g, destination{instance: "i-1", user: "d"}, nil); !through {
				t.Error("an sshd without penalties lets others wait")
			}
		})
		synctest.Wait()
		began := time.Now()
		g.greeted("i-1", "SSH-2.0-OpenSSH_9.2")
		after.Wait()
		if waited := time.Since(began); waited > 0 {
			t.Errorf("it goes through after %s", waited)
		}
	})
}

// TestGateOfDenials: an sshd that hangs up in the middle of a login was ended, or keeps the account out; twice, it keeps it out.
func TestGateOfDenials(t *testing.T) {
	t.Parallel()
	clock := newClock()
	g := newGate(clock.Now)
	boots := failed("ssh_denied", io.EOF)
	boots.Sentence = "it boots"
	for n, c := range []struct {
		err   error
		final bool
	}{{failed("ssh_denied", io.EOF), false}, {failed("ssh_denied", io.EOF), true}, {nil, false}, {boots, false}, {boots, false}, {failed("ssh_denied", io.EOF), true}} {
		var told *runner.Failure
		if err, through := goes(t, g, destination{instance: "i-1", user: "u"}, c.err); !through || errors.As(err, &told) && told.Final != c.final {
			t.Errorf("%d: %+v", n, told)
		}
		if c.err == nil {
			g.closed(destination{instance: "i-1", user: "u"})
		}
		clock.add(longPause)
	}
}

// TestGateKeys: an account that is refused is tried with the other type of key next, and another account is not.
func TestGateKeys(t *testing.T) {
	t.Parallel()
	clock := newClock()
	g := newGate(clock.Now)
	wrong, other := destination{instance: "i-1", user: "wrong"}, destination{instance: "i-1", user: "other"}
	for n, want := range []keyType{keyEd25519, keyRSA, keyEd25519, keyRSA} {
		if got, known := g.keyFor(wrong); got != want || known {
			t.Errorf("%d: %v, known %t", n, got, known)
		}
		_, _ = goes(t, g, wrong, failed("ssh_auth", errAuth))
		clock.add(time.Minute)
	}
	if got, _ := g.keyFor(other); got != keyEd25519 {
		t.Errorf("another account gets %v", got)
	}
	for greeting, want := range map[string]bool{
		"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7": false, "SSH-2.0-OpenSSH_9.7": false, "SSH-2.0-OpenSSH_8.10": false, "SSH-2.0-dropbear": false, "": false,
		"SSH-2.0-OpenSSH_9.8": true, "SSH-2.0-OpenSSH_9.9p1": true, "SSH-2.0-OpenSSH_10.0p2 Debian-7": true, "SSH-2.0-OpenSSH_10.5": true,
	} {
		if penalises.MatchString(greeting) != want {
			t.Errorf("%q: penalties %t", greeting, !want)
		}
	}
}

// TestOtherKey: the other type of key is tried at once where that brings no penalty about, or the server's own list says so.
func TestOtherKey(t *testing.T) {
	t.Parallel()
	const all = "kex_ext_info_client_parse: server-sig-algs=<ssh-ed25519,sk-ssh-ed25519@openssh.com,rsa-sha2-512>"
	for _, c := range []struct {
		greeting, debug string
		doctor, want    bool
	}{
		{"SSH-2.0-OpenSSH_9.2", all, false, true},
		{"SSH-2.0-OpenSSH_10.0p2", all, false, false},
		{"SSH-2.0-OpenSSH_10.0p2", all, true, true},
		{"SSH-2.0-OpenSSH_10.0p2", "kex_input_ext_info: server-sig-algs=<sk-ssh-ed25519@openssh.com,rsa-sha2-512,rsa-sha2-256>", false, true},
		{"SSH-2.0-OpenSSH_10.0p2", "Authentications that can continue: publickey", false, false},
	} {
		l := &login{exchange: &exchange{greeting: c.greeting}}
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		l.log = newLog(read, l.sees)
		_, err = io.WriteString(write, "debug1: Connecting\ndebug1: "+c.debug+"\nPermission denied\ndebug1: "+strings.Repeat("x", 2*tailLength)+"\nthe end")
		if err != nil || write.Close() != nil {
			t.Fatal(err)
		}
		if got := l.log.text(); !strings.HasPrefix(got, "Permission denied\n") || !strings.HasSuffix(got, "the end") || strings.Contains(got, "debug1") {
			t.Errorf("the log has %.200q", got)
		}
		conn := &connection{kind: &Kind{}}
		conn.kind.thorough.Store(c.doctor)
		if got := conn.mayTryOther(l); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
		l.log.close()
	}
}

// waitingTunnels are an instance's, whose AWS answers a row with a role late.
type waitingTunnels struct {
	*instance
	answers chan struct{}
}

func (w waitingTunnels) Find(ctx context.Context, r TunnelRequest) (runner.Trail, error) {
	if r.Role == "" {
		return nil, nil
	}
	select {
	case <-w.answers:
	case <-ctx.Done():
	}
	return nil, errOfAWS
}

// TestRemoteWaitsForNoOthersAWS: a login waits for another of its account, and not for what AWS answers to the other.
func TestRemoteWaitsForNoOthersAWS(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	slow := waitingTunnels{i, make(chan struct{})}
	r := i.remote(t, Config{Tunnels: slow})
	hangs := i.target(t, "")
	hangs.Attributes["role_arn"] = "arn:aws:iam::111111111111:role/slow"
	var waits sync.WaitGroup
	waits.Go(func() {
		if _, err := r.Start(t.Context(), hangs, shelltest.DefaultSize); !errors.Is(err, errOfAWS) {
			t.Errorf("told %v", err)
		}
	})
	shelltest.Eventually(t, "it has begun", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.conns) == 1
	})
	shelltest.Open(t, shelltest.By(r), i.target(t, "")).End(t)
	close(slow.answers)
	waits.Wait()
}

// penalisingRelay lies before a real sshd and refuses as one since OpenSSH 9.8 does, from the failed logins in sshd's log.
type penalisingRelay struct {
	i     *instance
	clock *clock
	tb    testing.TB

	mu        sync.Mutex
	seen      int // failed logins in the log
	penalties penalties
	refusals  int
}

var failedLogin = regexp.MustCompile(`(?m)^Connection (closed|reset) by (authenticating|invalid) user `)

func (r *penalisingRelay) serve(l net.Listener) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		if r.takes() {
			far, err := net.Dial("tcp", r.i.sshd.Addr)
			if err != nil {
				_ = near.Close()
				continue
			}
			go func() { _, _ = io.Copy(far, near); _ = far.(*net.TCPConn).CloseWrite() }()
			go func() { _, _ = io.Copy(near, far); _ = near.Close() }()
			continue
		}
		_, _ = io.WriteString(near, "Not allowed at this time\r\n")
		_ = near.Close()
	}
}

func (r *penalisingRelay) takes() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := len(failedLogin.FindAllString(r.i.sshd.Log(r.tb), -1)); r.seen < n; r.seen++ {
		r.penalties.add(r.clock.Now(), penaltyAuthFail)
	}
	if r.penalties.refuses(r.clock.Now()) {
		r.refusals++
		return false
	}
	return true
}

// TestRemotePenalty: three replicas, a wrong row that is tried five times a second at each, and a right one on the same
// instance, which opens all the time. Once somebody has caused the penalty, the wrong row is still told its own cause.
func TestRemotePenalty(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	i.addr = l.Addr().String()
	clock := newClock()
	relay := &penalisingRelay{i: i, clock: clock, tb: t}
	go relay.serve(l)

	replicas := make([]*Kind, 3)
	for n := range replicas {
		replicas[n] = i.remote(t, Config{Now: clock.Now, Timing: runner.Timing{Linger: time.Millisecond}})
		replicas[n].gate.hasTaken(i.id, keyEd25519) // else a refusal counts twice the 1 s that one does, and not 5 s
	}
	wrong := i.target(t, "")
	wrong.Attributes["os_user"] = "another"
	fails := func(r *Kind) {
		t.Helper()
		_, err := r.Start(t.Context(), wrong, shelltest.DefaultSize)
		var told *runner.Failure
		if !errors.As(err, &told) || told.Step != "ssh_auth" || !told.Final || !strings.Contains(told.Sentence, "again in ") {
			t.Fatalf("the wrong row at %s: %v", clock.Now(), err)
		}
	}
	opens := func(r *Kind) {
		t.Helper()
		term, err := r.Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
		if err != nil {
			t.Fatalf("the right row: %v", err)
		}
		_ = term.Close()
	}
	for tick := range 5 * 65 {
		for _, r := range replicas {
			fails(r)
		}
		if tick == 5*20 || tick == 5*45 {
			for _, r := range replicas {
				opens(r)
			}
		}
		clock.add(200 * time.Millisecond)
	}
	if n := len(failedLogin.FindAllString(i.sshd.Log(t), -1)); n != 2*len(replicas) || relay.refusals > 0 {
		t.Errorf("%d failed logins, %d connections refused", n, relay.refusals)
	}

	relay.mu.Lock()
	relay.penalties.add(clock.Now(), penaltyMost) // another's doing
	relay.mu.Unlock()
	clock.add(longPause)
	fails(replicas[0])
	_, err = replicas[0].Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
	var told *runner.Failure
	if !errors.As(err, &told) || told.Step != "ssh_penalty" || told.Final {
		t.Errorf("the right row is told %v", err)
	}
}
