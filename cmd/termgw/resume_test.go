package main

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/client"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// cable is a TCP relay to a gateway that can be cut.
type cable struct {
	net.Listener
	to string

	mu    sync.Mutex
	conns []net.Conn
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &cable{Listener: l, to: to}
	var relays sync.WaitGroup
	relays.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			relays.Go(func() { line.relay(&relays, from) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		line.cut(false)
		relays.Wait()
	})
	return line
}

func (l *cable) relay(relays *sync.WaitGroup, from net.Conn) {
	to, err := net.Dial("tcp", l.to)
	if err != nil {
		_ = from.Close()
		return
	}
	l.mu.Lock()
	l.conns = append(l.conns, from, to)
	l.mu.Unlock()
	relays.Go(func() {
		_, _ = io.Copy(from, to)
		_ = from.Close()
	})
	_, _ = io.Copy(to, from)
	_ = to.Close()
}

// cut ends all that is carried, by a FIN or a reset.
func (l *cable) cut(reset bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		if reset {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		_ = c.Close()
	}
	l.conns = nil
}

// TestCuts: streams both ways, through a line that is cut again and again, lose nothing,
// and nothing comes twice.
func TestCuts(t *testing.T) {
	t.Parallel()
	t.Run("one replica", func(t *testing.T) {
		t.Parallel()
		p := newPlatform(t)
		p.cuts(t, "one", p.serve(t, "TERMGW_RESUME=1h").address)
	})
	t.Run("three behind nginx", func(t *testing.T) {
		t.Parallel()
		p := newPlatform(t)
		var addresses []string
		var gateways []*served
		for range 3 {
			address := ownHost() + ":8080"
			gateways = append(gateways, p.serve(t, "TERMGW_RESUME=1h", "TERMGW_LISTEN="+address, "TERMGW_ADVERTISE_URL=http://"+address))
			addresses = append(addresses, address)
		}
		p.cuts(t, "three", startNginx(t, addresses)[0])
		passed := 0.0
		for _, g := range gateways {
			passed += g.metric(t, `termgw_resumes_total{outcome="passed_on"}`)
		}
		if passed == 0 {
			t.Error("no connection was passed on")
		}
	})
}

func (p *platform) cuts(t *testing.T, workspace, gateway string) {
	t.Helper()
	const cuts, lines, typing = 60, 300_000, 200 << 10
	p.workspace(t, workspace, "")
	b := newBox(t, env.Docker(t), workspace)
	line := newCable(t, gateway)

	command := fmt.Sprintf("bash -c 'stty raw -echo; printf REA; printf DY.; exec 3<&0; "+
		"head -c %d <&3 | sha256sum >/tmp/in & seq 1 %d; wait; cat /tmp/in'; exit 7\r", typing, lines)
	secret := make([]byte, typing)
	_, _ = cryptorand.Read(secret)
	typed := append([]byte(command), secret...) // all input
	may := len(command)                         // how much of it is typed for the time being
	var want bytes.Buffer                       // the output from READY on
	for i := range lines {
		fmt.Fprintln(&want, i+1)
	}
	fmt.Fprintf(&want, "%x  -\n", sha256.Sum256(secret))

	var output bytes.Buffer // all of it, of all connections
	began := -1             // the offset after READY
	var session string
	buf := make([]byte, 10_000)
	for done := 0; ; {
		c, err := client.Dial(t.Context(), client.Config{
			URL: "ws://" + line.Addr().String() + "/workspaces/" + workspace + "/terminal", Resume: session, Output: int64(output.Len()),
			Ticket: p.ticket(t, workspace, func(c *ticket.Claims) { c.Resume = time.Hour }),
		})
		if refused := (*client.Error)(nil); errors.As(err, &refused) {
			t.Fatal(err)
		}
		if err != nil {
			continue // it was cut
		}
		ready := c.Ready()
		if session != "" && (!ready.Resumed || ready.Session != session || ready.Output != int64(output.Len()) || ready.Input > int64(may)) {
			t.Fatalf("with %d bytes of output and %d typed: %+v", output.Len(), may, ready)
		}
		session = ready.Session
		var typist sync.WaitGroup
		typist.Go(func() { // what the gateway has not taken yet
			for rest := typed[ready.Input:may]; len(rest) > 0; {
				n, err := c.Write(rest[:min(len(rest), 1+rand.IntN(3000))])
				if err != nil {
					return
				}
				rest = rest[n:]
			}
		})
		cutAt := output.Len() + rand.IntN(want.Len()/cuts)
		for err == nil {
			var n int
			n, err = c.Read(buf[:1+rand.IntN(len(buf))])
			output.Write(buf[:n])
			if i := bytes.Index(output.Bytes(), []byte("READY.")); began < 0 && i >= 0 {
				began = i + len("READY.")
				may = len(typed)
				cutAt = 0 // the rest is typed from the next connection on
			}
			// Not at the end: who has heard it does not come back, and the gateway would wait.
			if began >= 0 && done < cuts && output.Len() >= cutAt && output.Len() < began+want.Len()*9/10 {
				line.cut(done%2 == 0)
				done++
				cutAt = math.MaxInt
			}
		}
		exit := c.Exit()
		_ = c.Close()
		typist.Wait()
		if errors.Is(err, io.EOF) {
			if exit.Code != 7 || done < cuts/2 {
				t.Errorf("exit %+v after %d cuts", exit, done)
			}
			break
		}
	}
	if got := output.Bytes()[began:]; !bytes.HasPrefix(got, want.Bytes()) {
		i := 0
		for i < min(len(got), want.Len()) && got[i] == want.Bytes()[i] {
			i++
		}
		t.Errorf("other output after %d of %d bytes", i, want.Len())
	}
	b.empty(t)
	var resumes, rows int
	p.query(t, "SELECT max(resumes), count(*) FROM termgw.sessions", &resumes, &rows)
	if r := p.lastRow(t, workspace); r.reason != "exit" || rows != 1 || resumes < cuts/2 {
		t.Errorf("recorded %+v, %d rows, %d resumes", r, rows, resumes)
	}
}

// TestSessionOverCuts: pkg/client comes back by itself.
func TestSessionOverCuts(t *testing.T) {
	t.Parallel()
	const lines, typing = 200_000, 100 << 10
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	line := newCable(t, p.serve(t, "TERMGW_RESUME=1h").address)
	var resumed, lost int
	s, err := client.Open(t.Context(), client.Config{URL: "ws://" + line.Addr().String() + "/workspaces/ws/terminal"},
		func(context.Context) (string, error) {
			return p.ticket(t, "ws", func(c *ticket.Claims) { c.Resume = time.Hour }), nil
		}, func(status client.Status) {
			switch {
			case status.Waiting:
				lost++
			case status.New:
				t.Error("a new shell")
			default:
				resumed++
			}
		})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := fmt.Fprintf(s, "bash -c 'stty raw -echo; printf REA; printf DY.; exec 3<&0; "+
		"head -c %d <&3 | sha256sum >/tmp/in & seq 1 %d; wait; cat /tmp/in'; exit 7\r", typing, lines); err != nil {
		t.Fatal(err)
	}
	var want, output bytes.Buffer
	for i := range lines {
		fmt.Fprintln(&want, i+1)
	}
	secret := make([]byte, typing)
	_, _ = cryptorand.Read(secret)
	fmt.Fprintf(&want, "%x  -\n", sha256.Sum256(secret))
	var typist sync.WaitGroup
	defer typist.Wait()
	began, cuts := -1, 0
	buf := make([]byte, 5000)
	for err == nil {
		var n int
		n, err = s.Read(buf)
		output.Write(buf[:n])
		if i := bytes.Index(output.Bytes(), []byte("READY.")); began < 0 && i >= 0 {
			began = i + len("READY.")
			typist.Go(func() {
				for rest := secret; len(rest) > 0; {
					n, err := s.Write(rest[:min(len(rest), 1+rand.IntN(3000))])
					if err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
			})
		}
		if got := output.Len() - began; began >= 0 && cuts < 20 && got > (cuts+1)*want.Len()/25 {
			cuts++
			line.cut(cuts%2 == 0)
		}
	}
	if !errors.Is(err, io.EOF) || s.Exit().Code != 7 || lost == 0 || resumed == 0 {
		t.Errorf("%v, exit %+v, lost %d times, resumed %d times", err, s.Exit(), lost, resumed)
	}
	if !bytes.HasPrefix(output.Bytes()[began:], want.Bytes()) {
		t.Error("other output")
	}
}
