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
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/client"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// TestCuts: streams both ways, through a line that is cut again and again, lose nothing,
// and nothing comes twice.
func TestCuts(t *testing.T) {
	t.Parallel()
	short := stream{cuts: 60, lines: 300_000, typing: 200 << 10, cut: cutsOf}
	t.Run("one replica", func(t *testing.T) {
		t.Parallel()
		p := newPlatform(t)
		p.cuts(t, "one", p.serve(t, "TERMGW_RESUME=1h").address, short)
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
		p.cuts(t, "three", startNginx(t, addresses)[0], short)
		passed := 0.0
		for _, g := range gateways {
			passed += g.metric(t, `termgw_resumes_total{outcome="passed_on"}`)
		}
		if passed == 0 {
			t.Error("no connection was passed on")
		}
	})
}

// stream is what is carried both ways while the line is cut.
type stream struct {
	cuts, lines, typing int // lines are printed, bytes are typed
	cut                 func(line *cable, n int)
}

// cutsOf cuts in each way in turn.
func cutsOf(line *cable, n int) { line.cut(everyCut[n%len(everyCut)]) }

// cuts carries a stream through a line to a gateway, comes back after each cut, and returns how long the shell was away
// each time. A byte that is lost, or comes twice, fails the test.
func (p *platform) cuts(tb testing.TB, workspace, gateway string, s stream) (away []time.Duration) {
	tb.Helper()
	p.workspace(tb, workspace, "")
	b := newBox(tb, env.Docker(tb), workspace)
	line := newCable(tb, gateway, 0)

	command := fmt.Sprintf("bash -c 'stty raw -echo; printf REA; printf DY.; exec 3<&0; "+
		"head -c %d <&3 | sha256sum >/tmp/in & seq 1 %d; wait; cat /tmp/in'; exit 7\r", s.typing, s.lines)
	secret := make([]byte, s.typing)
	randomKeys(secret)
	typed := append([]byte(command), secret...) // all input
	var want bytes.Buffer                       // the output from READY on
	for i := range s.lines {
		fmt.Fprintln(&want, i+1)
	}
	fmt.Fprintf(&want, "%x  -\n", sha256.Sum256(secret))

	var output bytes.Buffer // all of it, of all connections
	began := -1             // the offset after READY
	var session string
	var cutOff time.Time // zero: never
	buf := make([]byte, 10_000)
	for done := 0; ; {
		c, err := client.Dial(tb.Context(), client.Config{
			URL: "ws://" + line.Addr().String() + "/workspaces/" + workspace + "/terminal", Resume: session, Output: int64(output.Len()),
			Ticket: p.ticket(tb, workspace, func(c *ticket.Claims) { c.Resume = time.Hour }),
		})
		if refused := (*client.Error)(nil); errors.As(err, &refused) {
			tb.Fatal(err)
		}
		if err != nil {
			continue // it was cut
		}
		if !cutOff.IsZero() {
			away = append(away, time.Since(cutOff))
			cutOff = time.Time{}
		}
		// What is typed goes along with what was printed, so that cuts hit both.
		may := func() int {
			if began < 0 {
				return len(command)
			}
			share := float64(output.Len()-began) / float64(want.Len())
			return min(len(command)+64<<10+int(share*float64(s.typing)), len(typed))
		}
		ready := c.Ready()
		if session != "" && (!ready.Resumed || ready.Session != session || ready.Output != int64(output.Len()) || ready.Input > int64(may())) {
			tb.Fatalf("with %d bytes of output and %d typed: %+v", output.Len(), may(), ready)
		}
		session = ready.Session
		allowed := make(chan int, 1) // the latest value of may
		allowed <- may()
		var typist sync.WaitGroup
		typist.Go(func() {
			at := int(ready.Input) // what the gateway has not taken yet
			for may := range allowed {
				for at < may {
					n, err := c.Write(typed[at:min(may, at+1+rand.IntN(3000))])
					if err != nil {
						return
					}
					at += n
				}
			}
		})
		cutAt := output.Len() + rand.IntN(want.Len()/s.cuts)
		for err == nil {
			var n int
			n, err = c.Read(buf[:1+rand.IntN(len(buf))])
			output.Write(buf[:n])
			if i := bytes.Index(output.Bytes(), []byte("READY.")); began < 0 && i >= 0 {
				began = i + len("READY.")
			}
			select {
			case <-allowed:
			default:
			}
			allowed <- may()
			// Not at the end: who has heard it does not come back, and the gateway would wait.
			if began >= 0 && done < s.cuts && output.Len() >= cutAt && output.Len() < began+want.Len()*9/10 {
				s.cut(line, done)
				done++
				cutAt = math.MaxInt
				for err := error(nil); err == nil; { // a proxy may take its time
					_, err = c.Ping(tb.Context())
				}
				cutOff = time.Now()
				if done%4 > 0 {
					break // what has come and was not read is lost, too
				}
			}
		}
		close(allowed)
		exit := c.Exit()
		_ = c.Close()
		typist.Wait()
		if errors.Is(err, io.EOF) {
			if exit.Code != 7 || done < s.cuts/2 {
				tb.Errorf("exit %+v after %d cuts", exit, done)
			}
			break
		}
	}
	if got := output.Bytes()[began:]; !bytes.HasPrefix(got, want.Bytes()) {
		i := 0
		for i < min(len(got), want.Len()) && got[i] == want.Bytes()[i] {
			i++
		}
		tb.Errorf("other output after %d of %d bytes", i, want.Len())
	}
	b.empty(tb)
	var resumes, rows int
	p.query(tb, "SELECT max(resumes), count(*) FROM termgw.sessions", &resumes, &rows)
	if r := p.lastRow(tb, workspace); r.reason != "exit" || rows != 1 || resumes < s.cuts/2 {
		tb.Errorf("recorded %+v, %d rows, %d resumes", r, rows, resumes)
	}
	return away
}

// randomKeys fills p with random bytes. The last is no NUL, which an engine holds back until the next key
// (runner.DetachKeys).
func randomKeys(p []byte) {
	_, _ = cryptorand.Read(p)
	p[len(p)-1] |= 1
}

// TestSessionOverCuts: pkg/client comes back by itself.
func TestSessionOverCuts(t *testing.T) {
	t.Parallel()
	const lines, typing = 200_000, 100 << 10
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	line := newCable(t, p.serve(t, "TERMGW_RESUME=1h").address, 0)
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
	randomKeys(secret)
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
			cutsOf(line, cuts)
		}
	}
	if !errors.Is(err, io.EOF) || s.Exit().Code != 7 || lost == 0 || resumed == 0 {
		t.Errorf("%v, exit %+v, lost %d times, resumed %d times", err, s.Exit(), lost, resumed)
	}
	if !bytes.HasPrefix(output.Bytes()[began:], want.Bytes()) {
		t.Error("other output")
	}
}
