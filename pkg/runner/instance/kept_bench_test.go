package instance

import (
	"bytes"
	"flag"
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/runner"
)

var (
	benchCuts      = flag.Int("cuts", 40, "cuts of BenchmarkKeptCuts")
	benchCrossings = flag.Int("crossings", 5, "crossings of BenchmarkKeptCrossings")
	benchLife      = flag.Duration("life", 20*time.Second, "life of a tunnel of BenchmarkKeptCrossings")
)

// ways are a terminal that a keeper holds, and one that ends with its connection.
func ways(b *testing.B, do func(b *testing.B, s *shelltest.Session)) {
	b.Helper()
	for name, cfg := range map[string]Config{"kept": {Keepers: keepers}, "plain": {}} {
		b.Run(name, func(b *testing.B) {
			i := newInstance(b, nil)
			do(b, shelltest.Open(b, shelltest.By(i.remote(b, cfg)), i.target(b, "")))
		})
	}
}

// report reports percentiles in milliseconds.
func report(b *testing.B, what string, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	for name, at := range map[string]int{"p50": len(took) / 2, "p99": len(took) * 99 / 100, "max": len(took) - 1} {
		b.ReportMetric(float64(took[at].Microseconds())/1000, what+"-"+name+"-ms")
	}
}

// typeKeys types keys, one after the other, until stop, and returns how long each echo took, with the time at which it was typed.
func typeKeys(s *shelltest.Session, stop func(n int) bool) (took []time.Duration, at []time.Time, typed []byte) {
	buf := make([]byte, 16)
	for n := 0; !stop(n); n++ {
		key := byte('a' + n%26)
		begin := time.Now()
		if _, err := s.Write([]byte{key}); err != nil {
			return took, at, typed
		}
		typed = append(typed, key)
		for got := 0; got == 0; {
			m, err := s.Read(buf)
			if err != nil {
				return took, at, typed
			}
			got = m
		}
		took, at = append(took, time.Since(begin)), append(at, begin)
		time.Sleep(5 * time.Millisecond)
	}
	return took, at, typed
}

func BenchmarkKeptBulk(b *testing.B) {
	ways(b, func(b *testing.B, s *shelltest.Session) {
		const size = 64 << 20
		b.SetBytes(size)
		s.Send(b, "stty -echo -opost\n")
		for n := range b.N {
			s.Send(b, fmt.Sprintf("yes | head -c %d; echo end%d=\n", size, n))
			s.Expect(b, fmt.Sprintf("end%d=", n))
		}
	})
}

// BenchmarkKeptStart opens the first terminal on an instance, and further ones.
func BenchmarkKeptStart(b *testing.B) {
	for name, cfg := range map[string]Config{"kept": {Keepers: keepers}, "plain": {}} {
		b.Run(name, func(b *testing.B) {
			if _, err := keepers(); err != nil {
				b.Fatal(err)
			}
			i := newInstance(b, nil)
			var first, further []time.Duration
			open := func(k *Kind, took *[]time.Duration) {
				begin := time.Now()
				s, err := k.Start(b.Context(), i.target(b, ""), shelltest.DefaultSize)
				if err != nil {
					b.Fatal(err)
				}
				*took = append(*took, time.Since(begin))
				b.Cleanup(func() { _ = s.Close() })
			}
			var sent []time.Duration
			for n := range 20 {
				k := i.remote(b, cfg)
				if n == 0 {
					open(k, &sent)
				} else {
					open(k, &first)
				}
				open(k, &further)
				open(k, &further)
			}
			report(b, "first", first)
			report(b, "further", further)
			report(b, "with-the-file", sent)
		})
	}
}

// BenchmarkKeptCuts cuts the way of a two-way stream, by reset, by an end, in silence and by killing sshd, and reports how
// long each took until something came again.
func BenchmarkKeptCuts(b *testing.B) {
	i := newInstance(b, nil)
	k := i.kept(b, runner.Timing{Alive: time.Second})
	s := shelltest.Open(b, shelltest.By(k), i.target(b, ""))
	echo(b, s)
	from := len(s.Output())
	stop, typed := make(chan struct{}), make(chan []byte)
	go func() { typed <- sends(b, s, stop) }()
	var cut, silent []time.Duration
	for n := range *benchCuts {
		count := i.opened()
		tun := i.tunnel(count - 1)
		begin := time.Now()
		took := &cut
		switch n % 4 {
		case 0:
			_ = tun.Conn.(interface{ SetLinger(int) error }).SetLinger(0)
			_ = tun.Conn.Close()
		case 1:
			_ = tun.Conn.(interface{ CloseWrite() error }).CloseWrite()
		case 2:
			tun.stall()
			took = &silent
		case 3:
			out, err := exec.Command("pkill", "-KILL", "-u", i.sshd.User, "sshd").CombinedOutput()
			if err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
		shelltest.Within(b, shelltest.Patience, "there is another tunnel", func() bool { return i.opened() > count })
		printed := len(s.Output())
		shelltest.Within(b, shelltest.Patience, "something comes", func() bool { return len(s.Output()) > printed })
		*took = append(*took, time.Since(begin))
		printed = len(s.Output())
		shelltest.Within(b, shelltest.Patience, "more comes", func() bool { return len(s.Output()) > printed+20000 })
	}
	close(stop)
	all := <-typed
	wantEcho(b, s, from, all)
	b.ReportMetric(float64(len(all)), "bytes-each-way")
	report(b, "cut", cut)
	report(b, "silent", silent)
}

// BenchmarkKeptCrossings types through a number of crossings, and beside that through none.
func BenchmarkKeptCrossings(b *testing.B) {
	for name, life := range map[string]time.Duration{"crossing": *benchLife, "none": 0} {
		b.Run(name, func(b *testing.B) {
			i := newInstance(b, nil)
			i.life = life
			term, err := i.kept(b, runner.Timing{Cross: life / 4}).Start(b.Context(), i.target(b, ""), shelltest.DefaultSize)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = term.Close() }()
			s := &shelltest.Session{Terminal: term}
			if _, err := term.Write([]byte("stty raw -echo; echo be''gin; exec cat\n")); err != nil {
				b.Fatal(err)
			}
			buf, seen := make([]byte, 4<<10), []byte(nil)
			for !bytes.Contains(seen, []byte("begin\n")) {
				n, err := term.Read(buf)
				if err != nil {
					b.Fatal(err)
				}
				seen = append(seen, buf[:n]...)
			}
			begin := time.Now()
			took, _, _ := typeKeys(s, func(int) bool {
				if life == 0 {
					return time.Since(begin) > 20*time.Second
				}
				return i.opened() > *benchCrossings
			})
			report(b, "key", took)
			b.ReportMetric(float64(i.opened()-1), "crossings")
		})
	}
}
