package main

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	var to1000 []float64
	for i := 1000; i > 0; i-- {
		to1000 = append(to1000, float64(i))
	}
	for _, test := range []struct {
		values  []float64
		p, want float64
	}{
		{nil, 50, 0},
		{[]float64{7}, 99.9, 7},
		{[]float64{3, 1, 2}, 50, 2},
		{[]float64{4, 3, 2, 1}, 50, 2},
		{to1000, 50, 500},
		{to1000, 99, 990},
		{to1000, 99.9, 999},
		{to1000, 100, 1000},
		{to1000, 0, 1},
	} {
		if got := percentile(test.values, test.p); got != test.want {
			t.Errorf("p%g of %d values = %g, want %g", test.p, len(test.values), got, test.want)
		}
	}
	if to1000[0] != 1000 {
		t.Error("the values were sorted in place")
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{5}, 5}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v = %g, want %g", test.values, got, test.want)
		}
	}
}

func TestRatioPairsRounds(t *testing.T) {
	var r report
	for i, ms := range []float64{2, 20, 200} { // the machine gets slower and slower
		r.add("x", gateway, ms)
		r.add("x", "ttyd", []float64{1, 10, 0}[i])
	}
	if got := r.ratio("x", "x", "ttyd"); !slices.Equal(got, []float64{2, 2}) {
		t.Errorf("ratios %v, want 2 of the two rounds that can be divided", got)
	}
}

func TestTable(t *testing.T) {
	r := report{programs: []string{bare, gateway}, Versions: map[string]string{gateway: "1.0"}}
	r.add("bulk_mb_s", bare, 70)
	r.add("bulk_mb_s", gateway, 60)
	r.add("bulk_mb_s", gateway, 80)
	r.add("echo_idle_p50", gateway, 12.6)
	r.add("echo_idle_p99", gateway, 99)
	for _, equal := range []float64{1, 0, 1} {
		r.add("checksum", gateway, equal)
	}
	want := strings.TrimPrefix(`
|                            | bare pty | termgw 1.0 |
|----------------------------|----------|------------|
| echo p50 / p99 / p99.9, µs |          | 13 / 99    |
| bulk, MB/s                 | 70.0     | 70.0       |
| streams complete and equal |          | 2 of 3     |
`, "\n")
	if got := r.table(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestJudge(t *testing.T) {
	r := report{sessions: []int{100}}
	for range 3 {
		r.add("bulk_mb_s", gateway, 94)
		r.add("bulk_mb_s", bare, 100)
		r.add("echo_idle_p50", gateway, 100)
		r.add("echo_idle_p50", "ttyd", 100)
	}
	r.add("checksum", gateway, 1)
	r.add("checksum", gateway, 0)
	r.add("idle_pss_kib_100", gateway, 24)
	r.add("container_echo_idle_p50", gateway, 104)
	r.add("container_echo_idle_p50", bare, 100)
	r.add("container_echo_idle_p50", "ttyd", 103)
	r.add("container_ends", gateway, 3)
	r.add("container_execs", bare, 2)
	got := map[string]string{}
	for _, v := range r.judge() {
		state, _, _ := strings.Cut(v.String(), "  ")
		got[v.Target] = state
	}
	for target, want := range map[string]string{
		"bulk, to the bare pty's: at least 0.95":                    "NOT MET",
		"echo p50, to ttyd's: at most 1":                            "met",
		"streams complete and equal, share: 1":                      "NOT MET",
		"memory a session at 100 (PSS): at most 24 KiB":             "met",
		"connect to first byte, to ttyd's: at most 1":               "not measured",
		"echo p50 in a container, to docker exec -it: at most 1.05": "met",
		"echo p50 in a container, to ttyd of it: at most 1":         "NOT MET",
		"100 sessions in a container, to 100 execs: at most 1":      "NOT MET",
	} {
		if got[target] != want {
			t.Errorf("%s: %q, want %q", target, got[target], want)
		}
	}
}

func TestBenchmarkFigures(t *testing.T) {
	const output = "goos: linux\nBenchmarkOther-2 \t 1 \t 5 ns/op\t 6 close-p50-ms\n" +
		"BenchmarkRevoke-2   \t     300\t 53100123 ns/op\t        47.25 close-p50-ms\t       101.5 close-p99-ms\t       476.3 cpu-µs\nPASS\n"
	got := benchmarkFigures(output, "BenchmarkRevoke")
	if want := map[string]float64{"close-p50-ms": 47.25, "close-p99-ms": 101.5, "cpu-µs": 476.3}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := benchmarkFigures("--- SKIP: BenchmarkRevoke\n    needs Postgres\nok\n", "BenchmarkRevoke"); len(got) > 0 {
		t.Errorf("of one that was skipped: %v", got)
	}
}

func TestStreamIsChecked(t *testing.T) {
	const size = 3*period + 17
	var stream bytes.Buffer
	if err := writeStream(&stream, "3145736"); err != nil {
		t.Fatal(err)
	}
	if stream.Len() != size {
		t.Fatalf("%d bytes, want %d", stream.Len(), size)
	}
	whole := stream.Bytes()
	for name, test := range map[string]struct {
		stream []byte
		want   string
	}{
		"whole":         {whole, ""},
		"the end lost":  {whole[:size-5000], "5000 bytes lost"},
		"4 KiB lost":    {slices.Concat(whole[:1<<20], whole[1<<20+4096:]), "differs"},
		"a byte turned": {slices.Concat(whole[:100], []byte{whole[100] ^ 1}, whole[101:]), "differs"},
		"4 KiB twice":   {slices.Concat(whole[:8192], whole[4096:]), "differs"},
	} {
		check := checker{pattern: pattern()}
		for piece := range slices.Chunk(test.stream, 4095) {
			check.take(piece)
		}
		err := check.verdict(size)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestFinderAcrossPieces(t *testing.T) {
	const output = "y\r\ny\r\n@y@ ^C\r\n@@ rest"
	want := strings.Index(output, prompt) + len(prompt)
	for size := 1; size <= len(output); size++ {
		var f finder
		before := 0
		found := -1
		for piece := range slices.Chunk([]byte(output), size) {
			if n := f.find(piece); n >= 0 {
				found = before + n
				break
			}
			before += len(piece)
		}
		if found != want {
			t.Errorf("pieces of %d: the prompt ends at %d, want %d", size, found, want)
		}
	}
}

func TestParseCPU(t *testing.T) {
	got, err := parseCPU([]byte("7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 150 9 9 20 0 1 0 1 2 3"))
	if want := 4 * time.Second; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	if _, err := parseCPU([]byte("7 (a) S 1")); err == nil {
		t.Error("no error for a line that is cut")
	}
}

// frame is an unmasked frame, as a server sends it.
func frame(op byte, payload string) []byte {
	return append([]byte{0x80 | op, byte(len(payload))}, payload...)
}

// serverSide gives a client's connection, whose peer sends these frames and
// reads what comes.
func serverSide(t *testing.T, frames ...[]byte) (c *wsConn, sent func() []byte) {
	t.Helper()
	client, server := net.Pipe()
	var got bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&got, server)
	}()
	go func() { _, _ = server.Write(slices.Concat(frames...)) }()
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return newWS(client), func() []byte {
		_ = client.Close()
		<-done
		return got.Bytes()
	}
}

func TestTermgwOutput(t *testing.T) {
	c, sent := serverSide(t,
		frame(opText, `{"type":"ready","window":65536}`), frame(opBinary, "ab"), frame(opPing, "p"),
		frame(opBinary, ""), frame(opText, `{"type":"exit","code":0}`), frame(opBinary, "c"), frame(opClose, "\x03\xe8exit"))
	s := &termgwSession{wsConn: c}
	got, err := io.ReadAll(s)
	if string(got) != "abc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if frames := sent(); len(frames) == 0 || frames[0] != 0x80|opPong {
		t.Errorf("the ping was answered by % x", frames)
	}
}

func TestTermgwRefusal(t *testing.T) {
	c, _ := serverSide(t, frame(opText, `{"type":"error","code":"ticket_used","message":"Once."}`))
	if _, err := io.ReadAll(&termgwSession{wsConn: c}); err == nil || !strings.Contains(err.Error(), "ticket_used") {
		t.Errorf("the refusal reads %v", err)
	}
}

func TestTtydOutput(t *testing.T) {
	c, _ := serverSide(t, frame(opBinary, "1title"), frame(opBinary, "2{}"), frame(opBinary, "0ab"), frame(opBinary, "0c"))
	s := &ttydSession{wsConn: c}
	got := make([]byte, 3)
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAcksFollowWhatIsRendered(t *testing.T) {
	c, sent := serverSide(t)
	s := &termgwSession{wsConn: c}
	err := errors.Join(s.rendered(ackEvery-1, false), s.rendered(0, true), s.rendered(ackEvery, false), s.rendered(0, true))
	if err != nil {
		t.Fatal(err)
	}
	acks := 0
	for b := sent(); len(b) > 0; acks++ {
		b = b[6+int(b[1]&127):] // header, mask, payload
	}
	if acks != 2 {
		t.Errorf("%d acks, want one when idle and one after 8 KiB", acks)
	}
}

func TestSendLengths(t *testing.T) {
	for _, size := range []int{0, 125, 126, 65535, 65536} {
		c, sent := serverSide(t)
		payload := bytes.Repeat([]byte{'x'}, size)
		if err := c.send(opBinary, payload[:size/2], payload[size/2:]); err != nil {
			t.Fatal(err)
		}
		b := sent()
		head := map[bool]int{true: 2, false: 4}[size < 126]
		if size > 65535 {
			head = 10
		}
		mask, masked := b[head:head+4], b[head+4:]
		for i := range masked {
			masked[i] ^= mask[i%4]
		}
		if !bytes.Equal(masked, payload) {
			t.Errorf("%d bytes arrive as %d others", size, len(masked))
		}
	}
}
