package instance

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/keeper/program"
	"github.com/molecule-ai/termgw/internal/keeper/wire"
	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

// keepers builds the keeper for this machine, once.
var keepers = sync.OnceValues(func() (program.Programs, error) {
	dir, err := os.MkdirTemp("", "keeper-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "keeper")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, "github.com/molecule-ai/termgw/cmd/termgw-keeper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the keeper: %w: %s", err, out)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err = w.Write(file)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	p, err := program.New(packed.Bytes())
	return program.Programs{"x86_64": p, "aarch64": p}, err
})

// kept is a kind whose terminals outlive their connections.
func (i *instance) kept(tb testing.TB, timing runner.Timing, edits ...func(*Config)) *Kind {
	tb.Helper()
	return i.remote(tb, Config{Keepers: keepers, Timing: timing}, edits...)
}

// streamOf is the stream of a terminal that a keeper holds.
func streamOf(tb testing.TB, s *shelltest.Session) *keptStream {
	tb.Helper()
	kept, ok := s.Terminal.(*sshTerminal).stream.(*keptStream)
	if !ok {
		tb.Fatal("no keeper holds the terminal")
	}
	return kept
}

// echo has a terminal print all that is typed, byte by byte.
func echo(tb testing.TB, s *shelltest.Session) {
	tb.Helper()
	s.Send(tb, "stty raw -echo; echo be''gin; exec cat\n")
	s.Expect(tb, "begin\n")
}

// sends types random bytes until stop is closed, and returns them.
func sends(tb testing.TB, s *shelltest.Session, stop <-chan struct{}) []byte {
	var all []byte
	for seed := mathrand.New(mathrand.NewPCG(1, 2)); ; {
		p := make([]byte, 1+seed.IntN(3000))
		_, _ = rand.Read(p)
		if _, err := s.Write(p); err != nil {
			tb.Errorf("typing: %v", err)
			return all
		}
		all = append(all, p...)
		select {
		case <-stop:
			return all
		case <-time.After(time.Duration(seed.IntN(4)) * time.Millisecond):
		}
	}
}

// wantEcho waits until all that was typed has come back.
func wantEcho(tb testing.TB, s *shelltest.Session, from int, typed []byte) {
	tb.Helper()
	shelltest.Within(tb, shelltest.Patience, "all that was typed comes back", func() bool { return len(s.Output()) >= from+len(typed) })
	if got := s.Output()[from:]; !bytes.Equal(got, typed) {
		at := 0
		for at < len(got) && at < len(typed) && got[at] == typed[at] {
			at++
		}
		tb.Errorf("%d bytes came back of %d, and differ from byte %d on", len(got), len(typed), at)
	}
}

func TestKept(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	k := i.kept(t, runner.Timing{})
	first := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
	streamOf(t, first)
	first.Send(t, "stty size; echo $TERM $((6*7))\n")
	first.Expect(t, "24 80\r\nxterm-256color 42\r\n")
	second := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
	second.Send(t, "exit 7\n")
	if exit := second.Exit(t); exit.Code != 7 {
		t.Errorf("it ended with %+v", exit)
	}
	second.End(t)
	first.Send(t, "sleep 7781 & echo started\n")
	first.Expect(t, "started\r\n")
	if swept := first.End(t); swept.Left != 0 {
		t.Errorf("swept %+v", swept)
	}
	wantNothingOf(t, first.ID)
	if got := i.opened(); got != 1 {
		t.Errorf("%d tunnels", got)
	}
}

// TestKeptCuts: what is typed and printed arrives once, whatever cuts the way.
func TestKeptCuts(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	k := i.kept(t, runner.Timing{Alive: time.Second})
	s := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
	streamOf(t, s)
	echo(t, s)
	from := len(s.Output())
	stop, typed := make(chan struct{}), make(chan []byte)
	go func() { typed <- sends(t, s, stop) }()
	for cut := range 12 {
		n := i.opened()
		tun := i.tunnel(n - 1)
		printed := len(s.Output())
		shelltest.Within(t, shelltest.Patience, "something comes", func() bool { return len(s.Output()) > printed+5000 })
		if cut%3 == 2 {
			tun.stall()
		} else {
			_ = tun.Conn.Close()
		}
		shelltest.Within(t, shelltest.Patience, "there is another tunnel", func() bool { return i.opened() > n })
	}
	close(stop)
	wantEcho(t, s, from, <-typed)
	s.End(t)
	wantNothingOf(t, s.ID)
}

// TestKeptCrosses: terminals go over to another tunnel before theirs ends.
func TestKeptCrosses(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	i.life = 4 * time.Second
	k := i.kept(t, runner.Timing{Cross: time.Second})
	var all []*shelltest.Session
	var from []int
	stop := make(chan struct{})
	var typing sync.WaitGroup
	typed := make([][]byte, 3)
	for n := range typed {
		s := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
		echo(t, s)
		all, from = append(all, s), append(from, len(s.Output()))
		typing.Go(func() { typed[n] = sends(t, s, stop) })
	}
	const crossings = 4
	shelltest.Within(t, shelltest.Patience, "they have gone over", func() bool { return i.opened() > crossings })
	for n := range crossings - 1 {
		tun := i.tunnel(n)
		shelltest.Within(t, shelltest.Patience, "the last one is let go", func() bool {
			select {
			case <-tun.closed:
				return true
			default:
				return false
			}
		})
	}
	if got := i.opened(); got > crossings+2 {
		t.Errorf("%d tunnels for three terminals", got)
	}
	close(stop)
	typing.Wait()
	for n, s := range all {
		wantEcho(t, s, from[n], typed[n])
		s.End(t)
		wantNothingOf(t, s.ID)
	}
}

// TestKeptWithoutSockets: an sshd that opens no channel to a socket runs a command that joins it.
func TestKeptWithoutSockets(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"AllowStreamLocalForwarding no", "DisableForwarding yes"} {
		i := newInstance(t, nil, line)
		k := i.kept(t, runner.Timing{})
		s := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
		streamOf(t, s)
		echo(t, s)
		from := len(s.Output())
		_ = i.tunnel(0).Conn.Close()
		s.Send(t, "typed meanwhile")
		wantEcho(t, s, from, []byte("typed meanwhile"))
		s.End(t)
	}
}

// TestKeptNobodyComesBack: the keeper hangs up when the lease is over, and when it is killed the shell ends.
func TestKeptNobodyComesBack(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	k := i.kept(t, runner.Timing{Lease: shortLease, Renew: time.Second})
	s := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
	streamOf(t, s)
	s.Send(t, "sleep 7781 & echo started\n")
	s.Expect(t, "started\r\n")
	i.mu.Lock()
	i.err = errors.New("no way")
	i.mu.Unlock()
	_ = i.tunnel(0).Conn.Close()
	shelltest.Within(t, shelltest.Patience, "the shell ends", func() bool { return len(shelltest.Living(t, s.ID)) == 0 })
	<-s.Done
	if s.ReadErr == nil || errors.Is(s.ReadErr, io.EOF) {
		t.Errorf("the output ended with %v", s.ReadErr)
	}
	s.Closed = true
	_ = s.Close()
}

// TestKeptKeeperKilled: without a keeper the kernel hangs up, and the guard sweeps.
func TestKeptKeeperKilled(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	k := i.kept(t, runner.Timing{})
	s := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
	streamOf(t, s)
	s.Send(t, "trap '' HUP; sleep 7781 & echo started\n")
	s.Expect(t, "started\r\n")
	out, err := exec.Command("pkill", "-KILL", "-u", i.sshd.User, "-f", "keeper-[0-9a-f]* serve").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	<-s.Done
	if runner.StepOf(s.ReadErr) != "ssh_closed" {
		t.Errorf("the output ended with %v", s.ReadErr)
	}
	s.Closed = true
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantNothingOf(t, s.ID)
	again := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
	streamOf(t, again)
	again.End(t)
}

// wantPlain checks that a terminal is open without a keeper, and ends it.
func wantPlain(tb testing.TB, name string, s *shelltest.Session) {
	tb.Helper()
	if _, ok := s.Terminal.(*sshTerminal).stream.(*plainStream); !ok {
		tb.Errorf("%s: a keeper holds the terminal", name)
	}
	s.Send(tb, "exit 3\n")
	if exit := s.Exit(tb); exit.Code != 3 {
		tb.Errorf("%s: it ended with %+v", name, exit)
	}
	s.End(tb)
}

// TestKeptCannotBe: where nothing can hold a terminal, the terminal ends with its connection.
func TestKeptCannotBe(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	for name, edit := range map[string]func(*Config){
		"no keeper for the machine": func(c *Config) {
			c.Keepers = func() (program.Programs, error) { return program.Programs{}, nil }
		},
		"the file does not run": func(c *Config) {
			var packed bytes.Buffer
			w := gzip.NewWriter(&packed)
			_, _ = w.Write([]byte("\x7fELF nonsense"))
			_ = w.Close()
			p, err := program.New(packed.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			c.Keepers = func() (program.Programs, error) { return program.Programs{"x86_64": p, "aarch64": p}, nil }
		},
	} {
		k := i.kept(t, runner.Timing{}, edit)
		s := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
		wantPlain(t, name, s)
	}
}

// TestKeptFullInput: input that the program reads late is taken to its end, also by the next link.
func TestKeptFullInput(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	k := i.kept(t, runner.Timing{})
	s := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
	stream := streamOf(t, s)
	s.Send(t, "stty raw -echo; echo be''gin; until [ -e go ]; do sleep 0.1; done; head -c 65536 >all; echo en''d; cat\n")
	s.Expect(t, "begin\n")
	full := bytes.Repeat([]byte("x"), wire.InputWindow)
	for n := 0; n < len(full); {
		m, err := stream.TryWrite(full[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	_ = i.tunnel(0).Conn.Close()
	shelltest.Within(t, shelltest.Patience, "there is another tunnel", func() bool { return i.opened() > 1 })
	shelltest.Within(t, shelltest.Patience, "there is another link", func() bool {
		stream.mu.Lock()
		defer stream.mu.Unlock()
		return stream.link != nil
	})
	i.write(t, "go", "")
	s.Expect(t, "end\n")
	s.Send(t, "more")
	s.Expect(t, "more")
	s.End(t)
}

// TestKeptFindFailsOnce: a terminal that is there outlasts an account that does something else for once.
func TestKeptFindFailsOnce(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	i.write(t, ".bashrc", "if [ -e ~/once ]; then rm ~/once; exit 1; fi\n")
	k := i.kept(t, runner.Timing{})
	s := shelltest.Open(t, shelltest.By(k), i.target(t, ""))
	streamOf(t, s)
	s.Send(t, "echo be''gin\n")
	s.Expect(t, "begin\r\n")
	i.write(t, "once", "")
	_ = i.tunnel(0).Conn.Close()
	s.Send(t, "rm -f once; echo al''ive\n")
	s.Expect(t, "alive\r\n")
	s.End(t)
}

// TestKeptRelayOfWhoPrints: what an account prints before the relay, or beside it, is no frame.
func TestKeptRelayOfWhoPrints(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil, "AllowStreamLocalForwarding no")
	i.write(t, ".bashrc", "echo hello; echo hello >&2\n")
	s := shelltest.Open(t, shelltest.By(i.kept(t, runner.Timing{})), i.target(t, ""))
	streamOf(t, s)
	s.Send(t, "echo be''gin\n")
	s.Expect(t, "begin\r\n")
	s.End(t)
	wantNothingOf(t, s.ID)
}

// TestKeptHeldAcks: output goes on after an attempt to go over that has failed.
func TestKeptHeldAcks(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	s := shelltest.Open(t, shelltest.By(i.kept(t, runner.Timing{})), i.target(t, ""))
	stream := streamOf(t, s)
	s.Send(t, "yes\n")
	s.Expect(t, "y\r\ny\r\n")
	stream.mu.Lock()
	l, received := stream.link, stream.received
	stream.mu.Unlock()
	held := l.holdAcks(received)
	const kept = 256 << 10 // by the keeper
	shelltest.Within(t, shelltest.Patience, "the keeper is full", func() bool {
		stream.mu.Lock()
		defer stream.mu.Unlock()
		return stream.received > held+kept-16<<10
	})
	l.releaseAcks()
	shelltest.Within(t, shelltest.Patience, "output goes on", func() bool {
		stream.mu.Lock()
		defer stream.mu.Unlock()
		return stream.received > held+2*kept
	})
	s.End(t)
}

// TestKeptHostileAnswers: an account that pretends to look for the keeper gets a few files, and its terminal without one.
func TestKeptHostileAnswers(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]string{
		"it never has a place":  `*mode=put*) cat >/dev/null; printf '\036failed 1 x\036'; exit;; *mode=find*) printf '\036missing x86_64 true\036'; exit;;`,
		"a path that is none":   `*mode=find*) printf '\036keeper $(reboot) /x;y\036'; exit;;`,
		"a path of nobody":      `*mode=find*) printf '\036keeper /nonexistent/a /nonexistent/b\036'; exit;;`,
		"it prints without end": `*mode=find*) exec yes;;`,
	} {
		i := newInstance(t, nil)
		i.write(t, ".bashrc", "case $BASH_EXECUTION_STRING in "+says+" esac\n")
		s := shelltest.Open(t, shelltest.By(i.kept(t, runner.Timing{})), i.target(t, ""))
		wantPlain(t, name, s)
	}
}

// TestKeptFloodIsBounded: what a program prints waits in the program, and not on the way.
func TestKeptFloodIsBounded(t *testing.T) {
	t.Parallel()
	i := newInstance(t, nil)
	term, err := i.kept(t, runner.Timing{}).Start(t.Context(), i.target(t, ""), shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := term.Write([]byte("stty -echo; n=0; while :; do echo $((n+=1)); echo $n >printed; done\n")); err != nil {
		t.Fatal(err)
	}
	account, err := user.Lookup(i.sshd.User)
	if err != nil {
		t.Fatal(err)
	}
	printed := func() string {
		n, _ := os.ReadFile(filepath.Join(account.HomeDir, "printed"))
		return string(n)
	}
	last := ""
	shelltest.Within(t, shelltest.Patience, "the program is held back", func() bool {
		before := last
		last = printed()
		time.Sleep(500 * time.Millisecond)
		return last != "" && last == before && last == printed()
	})
	if n, _ := strconv.Atoi(strings.TrimSpace(last)); n > (firstWindow+32<<10)/5 { // lines
		t.Errorf("it has printed %d lines that nobody has read", n)
	}
	s := shelltest.Start(t, term)
	shelltest.Within(t, shelltest.Patience, "it goes on", func() bool { return printed() != last })
	s.End(t)
}
