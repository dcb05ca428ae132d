package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/client"
)

// scene is a gateway that plays, and the way to it, for one session after another connection.
type scene struct {
	resume  int // seconds
	tickets func(ctx context.Context) (string, error)
	way     func(n int) error                    // of the n-th connection, from 0; may be nil
	held    func(n int)                          // between the request and its answer; may be nil
	play    func(n int, asked url.Values, f far) // until the connection ends
	config  client.Config

	mu       sync.Mutex
	statuses []client.Status
}

// ready tells that there is a shell, or the one that was asked for.
func (s *scene) ready(f far, asked url.Values, resumed bool) {
	id := "S" + asked.Get("try")
	if resumed {
		id = asked.Get("resume")
	}
	f.frame(opText, fmt.Sprintf(`{"type":"ready","session":"%s","mode":"rw","resume":%d,"resumed":%v,"output":0}`, id, s.resume, resumed))
}

// open opens the scene's session, in a bubble of time.
func (s *scene) open(t *testing.T) *client.Session {
	t.Helper()
	n := 0
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		s.mu.Lock()
		at := n
		n++
		s.mu.Unlock()
		if s.way != nil {
			if err := s.way(at); err != nil {
				return nil, err
			}
		}
		near, end := net.Pipe()
		go func() {
			if f, asked := upgrade(end, func() {
				if s.held != nil {
					s.held(at)
				}
			}); asked != nil {
				s.play(at, asked, f)
			}
			_ = end.Close()
		}()
		return newLine(near), nil
	}}
	s.config.URL, s.config.HTTPClient = "ws://gateway.test/", &http.Client{Transport: transport}
	if s.tickets == nil {
		s.tickets = func(context.Context) (string, error) { return ticket, nil }
	}
	session, err := client.Open(t.Context(), s.config, s.tickets, func(status client.Status) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.statuses = append(s.statuses, status)
	})
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// ends reads until the session ends, and returns the end.
func ends(session *client.Session) error {
	_, err := io.Copy(io.Discard, session)
	_ = session.Close()
	time.Sleep(time.Minute) // tries that were given up end
	return err
}

func (f far) exit() {
	f.frame(opText, `{"type":"exit","code":0}`)
	f.frame(8, "\x03\xe8")
}

// A try that hangs, because the network swallows it, has company: the session goes on within 1.5 s after the network is back,
// and the try that hung takes nothing.
func TestComeBackWhereATryHangs(t *testing.T) {
	t.Parallel()
	for _, away := range []time.Duration{0, 2 * time.Second, 21 * time.Second, 4 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			var back, resumed time.Time
			s := &scene{resume: 600}
			s.way = func(n int) error {
				if n > 0 && time.Now().Before(back) {
					time.Sleep(30 * time.Second) // what is sent meanwhile is lost for good
					return errors.New("timed out")
				}
				return nil
			}
			s.play = func(n int, asked url.Values, f far) {
				if s.ready(f, asked, n > 0); n == 0 {
					back = time.Now().Add(away)
					return
				}
				resumed = time.Now()
				f.exit()
			}
			if err := ends(s.open(t)); err != nil {
				t.Error(err)
			}
			if took := resumed.Sub(back); took > 1500*time.Millisecond {
				t.Errorf("away for %s: back after %s", away, took)
			}
		})
	}
}

// A way that is slow, but a way, is not given up for others again and again.
func TestComeBackOverASlowWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{resume: 600}
		var lost, resumed time.Time
		s.way = func(n int) error {
			if n > 0 {
				time.Sleep(8 * time.Second)
			}
			return nil
		}
		s.play = func(n int, asked url.Values, f far) {
			if s.ready(f, asked, n > 0); n == 0 {
				lost = time.Now()
				return
			}
			resumed = time.Now()
			f.exit()
		}
		if err := ends(s.open(t)); err != nil {
			t.Error(err)
		}
		if took := resumed.Sub(lost); took > 9*time.Second {
			t.Errorf("back after %s", took)
		}
	})
}

// slowly answers pings after a time, until the connection is over. It reports whether that was by a close frame.
func (f far) slowly(after time.Duration) (closed bool) {
	for {
		op, p, err := f.read()
		if err != nil || op == 8 {
			return op == 8
		}
		var id int
		if _, err := fmt.Sscanf(string(p), `{"type":"ping","id":%d}`, &id); op == opText && err == nil {
			time.AfterFunc(after, func() { f.frame(opText, fmt.Sprintf(`{"type":"pong","id":%d}`, id)) })
		}
	}
}

// takenOver tells that the shell is another connection's.
func (f far) takenOver() {
	f.frame(opText, `{"type":"error","code":"taken_over","message":"It goes on elsewhere."}`)
	f.frame(8, "\x11\x3c") // 4412
}

// A line with a round trip of seconds loses nothing by that: its answers are waited for, and no crowd of tries takes the shell from
// each other.
func TestComeBackOverALongLine(t *testing.T) {
	t.Parallel()
	const trip = 5 * time.Second
	synctest.Test(t, func(t *testing.T) {
		s := &scene{resume: 600}
		var (
			mu    sync.Mutex
			owner far
			last  int
			conns int
		)
		s.held = func(n int) {
			if n > 0 {
				time.Sleep(trip)
			}
		}
		s.play = func(n int, asked url.Values, f far) {
			mu.Lock()
			try, _ := strconv.Atoi(asked.Get("try"))
			if n > 0 && try <= last {
				mu.Unlock()
				f.takenOver()
				return
			}
			if owner.Conn != nil {
				go owner.takenOver()
			}
			owner, last = f, try
			conns++
			mu.Unlock()
			if s.ready(f, asked, n > 0); n == 0 {
				mu.Lock()
				owner = far{}
				mu.Unlock()
				return
			}
			time.AfterFunc(5*time.Minute, func() {
				mu.Lock()
				defer mu.Unlock()
				if owner == f {
					f.exit()
				}
			})
			f.slowly(trip)
		}
		if err := ends(s.open(t)); err != nil {
			t.Error(err)
		}
		if conns > 5 {
			t.Errorf("%d connections had the shell", conns)
		}
		for _, status := range s.statuses[1:] {
			if status.Waiting && strings.Contains(status.Err.Error(), "elsewhere") {
				t.Errorf("told %+v", status)
			}
		}
	})
}

// A session whose shell went to a later try of its own, which was given up, comes back once more.
func TestComeBackFromOwnTry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{resume: 600}
		s.held = func(n int) {
			if n == 1 { // it has company meanwhile
				time.Sleep(600 * time.Millisecond)
			}
		}
		s.play = func(n int, asked url.Values, f far) {
			switch n {
			case 0:
				s.ready(f, asked, false)
			case 1:
				s.ready(f, asked, true)
				time.Sleep(time.Second)
				f.takenOver()
			case 2: // is answered too late
				_, _ = io.Copy(io.Discard, f.r)
			default:
				s.ready(f, asked, true)
				f.exit()
			}
		}
		if err := ends(s.open(t)); err != nil {
			t.Error(err)
		}
		if len(s.statuses) != 2 || !s.statuses[0].Waiting || s.statuses[1].Waiting {
			t.Errorf("told %+v", s.statuses)
		}
	})
}

// typed reads frames, answers pings, and returns the input up to so many bytes.
func (f far) typed(n int) (input []byte, sizes []string) {
	for len(input) < n {
		op, p, err := f.read()
		var id int
		switch {
		case err != nil:
			return input, sizes
		case op == opBinary:
			input = append(input, p...)
		case op == opText && strings.Contains(string(p), "resize"):
			sizes = append(sizes, string(p))
		case op == opText:
			if _, err := fmt.Sscanf(string(p), `{"type":"ping","id":%d}`, &id); err == nil {
				f.frame(opText, fmt.Sprintf(`{"type":"pong","id":%d,"input":%d}`, id, len(input)))
			}
		}
	}
	return input, sizes
}

// A shell that takes long to start has no others beside it.
func TestNewShellStartsSlowly(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &scene{resume: 60}
			var shells, ended atomic.Int32
			s.held = func(n int) {
				if late && n == 1 {
					time.Sleep(2 * time.Second) // another try is answered meanwhile
				}
			}
			s.play = func(n int, asked url.Values, f far) {
				if n > 0 {
					shells.Add(1)
					time.Sleep(4 * time.Second)
				}
				if s.ready(f, asked, false); n == 0 {
					return
				}
				time.AfterFunc(5*time.Second, f.exit)
				if f.slowly(0) {
					ended.Add(1)
				}
			}
			if err := ends(s.open(t)); err != nil {
				t.Error(err)
			}
			want := int32(1)
			if late {
				want = 2
			}
			if shells.Load() != want || ended.Load() < want-1 {
				t.Errorf("%d shells, %d of them ended", shells.Load(), ended.Load())
			}
		})
	}
}

// While nobody reads what came, a lost connection is made anew all the same.
func TestComeBackWhileNobodyReads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{resume: 10}
		s.play = func(n int, asked url.Values, f far) {
			if s.ready(f, asked, n > 0); n == 0 {
				f.frame(opBinary, "first")
				return
			}
			f.frame(opBinary, asked.Get("output"))
			f.slowly(0)
		}
		session := s.open(t)
		time.Sleep(time.Minute)
		s.mu.Lock()
		if n := len(s.statuses); n != 2 {
			t.Errorf("told %+v", s.statuses)
		}
		s.mu.Unlock()
		buf := make([]byte, 100)
		if n, err := session.Read(buf); string(buf[:n]) != "0" || err != nil { // what nobody read comes again
			t.Errorf("read %q, %v", buf[:n], err)
		}
		_ = session.Close()
	})
}

// Input that is on its way when a line goes silent is no reason to wait for longer than the shell does; nor is a program that takes
// none one to tell anybody.
func TestSilenceWithInputOnItsWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{resume: 60}
		began := time.Now()
		var came []time.Duration
		s.play = func(n int, asked url.Values, f far) {
			came = append(came, time.Since(began))
			if s.ready(f, asked, n > 0); n < 3 {
				_, _ = io.Copy(io.Discard, f.r) // what comes is lost
				return
			}
			if got, _ := f.typed(32 << 10); len(got) != 32<<10 {
				t.Errorf("%d bytes of input", len(got))
			}
			f.exit()
		}
		session := s.open(t)
		if _, err := session.Write(make([]byte, 32<<10)); err != nil {
			t.Error(err)
		}
		if err := ends(session); err != nil {
			t.Error(err)
		}
		if len(came) != 4 || came[1] > 12*time.Second || came[2] < came[1]+20*time.Second || len(s.statuses) > 0 {
			t.Errorf("connections after %v, told %+v", came, s.statuses)
		}
	})
}

// What is typed comes in order, whatever the ticket of the connection allows over which it comes.
func TestTypedWhileAwayComesFirst(t *testing.T) {
	t.Parallel()
	for _, resume := range []int{0, 60} {
		synctest.Test(t, func(t *testing.T) {
			want := make([]byte, 900<<10)
			for i := range want {
				want[i] = byte(i >> 10)
			}
			s := &scene{resume: 60}
			s.held = func(n int) {
				if n > 0 {
					time.Sleep(2 * time.Second)
				}
			}
			s.play = func(n int, asked url.Values, f far) {
				if s.ready(f, asked, n > 0); n == 0 {
					s.resume = resume
					return
				}
				time.Sleep(2 * time.Second) // the line is full meanwhile
				if got, _ := f.typed(len(want)); !bytes.Equal(got, want) {
					t.Errorf("resume %d: other input, %d bytes", resume, len(got))
				}
				f.exit()
			}
			session := s.open(t)
			var typist sync.WaitGroup
			typist.Go(func() {
				for piece := range slices.Chunk(want, 7777) {
					time.Sleep(30 * time.Millisecond)
					_, _ = session.Write(piece)
				}
			})
			if err := ends(session); err != nil {
				t.Error(err)
			}
			typist.Wait()
		})
	}
}

// What was typed for a shell that is gone is not typed into the one in its place, and no more than a mebibyte of it is kept.
func TestPasteForAShellThatIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{resume: 60}
		s.held = func(n int) {
			if n > 0 {
				time.Sleep(5 * time.Second)
			}
		}
		s.play = func(n int, asked url.Values, f far) {
			if s.ready(f, asked, false); n == 0 {
				return
			}
			if got, _ := f.typed(3); string(got) != "new" {
				t.Errorf("the new shell was given %q", got)
			}
			f.exit()
		}
		session := s.open(t)
		var typist sync.WaitGroup
		typist.Go(func() {
			time.Sleep(time.Second) // it is away
			if n, err := session.Write(bytes.Repeat([]byte("old"), 1<<20)); n != 1<<20 || !errors.Is(err, client.ErrNotKept) {
				t.Errorf("%d bytes were written: %v", n, err)
			}
			time.Sleep(10 * time.Second)
			_, _ = session.Write([]byte("new"))
		})
		if err := ends(session); err != nil {
			t.Error(err)
		}
		typist.Wait()
	})
}

// A size of while the connection was away is told over the next one.
func TestResizedWhileAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{resume: 60, config: client.Config{Cols: 80, Rows: 24}}
		s.held = func(n int) {
			if n > 0 {
				time.Sleep(5 * time.Second)
			}
		}
		s.play = func(n int, asked url.Values, f far) {
			if s.ready(f, asked, n > 0); n == 0 {
				return
			}
			if _, sizes := f.typed(1); len(sizes) == 0 || sizes[len(sizes)-1] != `{"type":"resize","cols":77,"rows":33}` {
				t.Errorf("told %q", sizes)
			}
			f.exit()
		}
		session := s.open(t)
		var typist sync.WaitGroup
		typist.Go(func() {
			time.Sleep(time.Second) // a try is under way
			session.Resize(77, 33)
			time.Sleep(10 * time.Second)
			_, _ = session.Write([]byte("x"))
		})
		if err := ends(session); err != nil {
			t.Error(err)
		}
		typist.Wait()
	})
}

// The ends of a session that has no connection.
func TestNoComeBack(t *testing.T) {
	t.Parallel()
	dead := errors.New("dead")
	first := true
	for name, c := range map[string]struct {
		scene *scene
		want  string
	}{
		"after the wait": {&scene{resume: 2, way: func(n int) error {
			if n > 0 {
				return dead
			}
			return nil
		}}, "the shell is gone: it waited for 2s (connecting to gateway.test: dead)"},
		"no ticket": {&scene{resume: 60, tickets: func(context.Context) (string, error) {
			if first {
				first = false
				return ticket, nil
			}
			return "", fmt.Errorf("%w: not today", client.ErrNoTicket)
		}}, "no ticket: not today (the connection to the gateway is lost)"},
		"one shell": {&scene{resume: 60, config: client.Config{OneShell: true}}, "the shell is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.scene.play = func(n int, asked url.Values, f far) {
					if c.scene.ready(f, asked, false); n > 0 {
						_, _ = io.Copy(io.Discard, f.r)
					}
				}
				if err := ends(c.scene.open(t)); err == nil || err.Error() != c.want {
					t.Errorf("%v, want %s", err, c.want)
				}
			})
		})
	}
}

// A gateway that restarts has another one in its place: the session goes on there, with a new shell unless it may have one only.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, one := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &scene{resume: 60, config: client.Config{OneShell: one}}
			s.play = func(n int, asked url.Values, f far) {
				s.ready(f, asked, false)
				if n > 0 {
					f.exit()
					return
				}
				f.frame(opText, `{"type":"error","code":"draining","message":"This gateway is being restarted."}`)
				f.frame(8, "\x03\xf4") // 1012
			}
			err := ends(s.open(t))
			var refused *client.Error
			switch {
			case one && (!errors.As(err, &refused) || refused.Code != "draining"):
				t.Errorf("one shell: %v", err)
			case one:
			case err != nil || len(s.statuses) != 2 || s.statuses[0].Left != 0 || !s.statuses[0].Waiting || !s.statuses[1].New:
				t.Errorf("%v, %+v", err, s.statuses)
			}
		})
	}
}

// No words of a library are shown.
func TestWordsOfALoss(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := meet(t, func(f far) { _, _, _ = f.read() })
		_, err := c.Read(make([]byte, 1))
		if err == nil || strings.Contains(err.Error(), "failed to") {
			t.Error(err)
		}
		_ = c.Close()
	})
}
