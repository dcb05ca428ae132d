package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// spans is a receiver of OTLP, as a collector's.
type spans struct {
	*httptest.Server

	mu       sync.Mutex
	all      []*tracepb.Span
	resource map[string]string
	headers  http.Header // of the last request
	faults   []string
}

func receiveSpans(tb testing.TB) *spans {
	tb.Helper()
	s := &spans{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request collector.ExportTraceServiceRequest
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(body, &request)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			s.faults = append(s.faults, fmt.Sprintf("%s, %s: %v", r.URL.Path, r.Header.Get("Content-Type"), err))
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.headers = r.Header.Clone()
		for _, of := range request.GetResourceSpans() {
			s.resource = attributes(of.GetResource().GetAttributes())
			for _, scope := range of.GetScopeSpans() {
				s.all = append(s.all, scope.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	tb.Cleanup(func() {
		s.Close()
		for _, fault := range s.faults {
			tb.Errorf("the receiver of spans: %s", fault)
		}
	})
	return s
}

// environ are the variables of a gateway that exports to it, often.
func (s *spans) environ() []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + s.URL, "OTEL_BSP_SCHEDULE_DELAY=20"}
}

func attributes(list []*common.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range list {
		m[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return m
}

// opening waits for the spans of the opening of a session, which end with "open terminal"'s, and returns them by their names.
func (s *spans) opening(tb testing.TB, session string) (root *tracepb.Span, named map[string]*tracepb.Span) {
	tb.Helper()
	eventually(tb, "the spans of session "+session+" are received", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		root, named = nil, map[string]*tracepb.Span{}
		for _, span := range s.all {
			if span.GetName() == "open terminal" && attributes(span.GetAttributes())["termgw.session"] == session {
				root = span
			}
		}
		if root == nil {
			return false
		}
		for _, span := range s.all {
			if string(span.GetTraceId()) == string(root.GetTraceId()) && span != root {
				named[span.GetName()] = span
			}
		}
		return true
	})
	return root, named
}

// wantSteps wants spans below others, by their names, each within its parent's time.
func wantSteps(tb testing.TB, root *tracepb.Span, named map[string]*tracepb.Span, parents map[string]string) {
	tb.Helper()
	for name, parent := range parents {
		span, above := named[name], named[parent]
		if parent == root.GetName() {
			above = root
		}
		switch {
		case span == nil || above == nil:
			tb.Errorf("there is no span %q below %q", name, parent)
		case string(span.GetParentSpanId()) != string(above.GetSpanId()):
			tb.Errorf("%q is not below %q", name, parent)
		case span.GetStartTimeUnixNano() < above.GetStartTimeUnixNano() || span.GetEndTimeUnixNano() > above.GetEndTimeUnixNano() ||
			span.GetEndTimeUnixNano() < span.GetStartTimeUnixNano():
			tb.Errorf("%q is not within the time of %q", name, parent)
		}
	}
	for name := range named {
		if _, ok := parents[name]; !ok && !strings.Contains(name, " /") { // those of the engine's client are its own
			tb.Errorf("there is a span %q", name)
		}
	}
}

const (
	traceID     = "0af7651916cd43dd8448eb211c80319c"
	parentID    = "b7ad6b7169203331"
	traceparent = "00-" + traceID + "-" + parentID + "-01"
)

// linesOf returns the log's lines of a session.
func (g *served) linesOf(session string) (lines []map[string]any) {
	for _, line := range g.logLines() {
		if line["session"] == session {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestTrace: a terminal's opening is a trace of its steps below the proxy's span; every line of the session has the proxy's
// request id and the trace; the start's histogram leads to the trace; and the line of the end has what the audit trail has.
func TestTrace(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	received := receiveSpans(t)
	const secret = "the-collectors-password"
	p.secretly = append(p.secretly, secret)
	g := p.serve(t, slices.Concat(environ, received.environ(), []string{
		"TERMGW_TRUSTED_PROXIES=127.0.0.1", "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20" + secret, "OTEL_RESOURCE_ATTRIBUTES=deployment.environment=test",
	})...)
	c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{header: http.Header{"X-Request-Id": {"req-7/a=b"}, "Traceparent": {traceparent}}})
	session := c.message(t, "ready").Session
	c.run(t, "echo hello")
	root, named := received.opening(t, session)
	if hex.EncodeToString(root.GetTraceId()) != traceID || hex.EncodeToString(root.GetParentSpanId()) != parentID || root.GetKind() != tracepb.Span_SPAN_KIND_SERVER {
		t.Errorf("the trace is %v", root)
	}
	if a := attributes(root.GetAttributes()); a["termgw.workspace"] != "ws" || a["termgw.request_id"] != "req-7/a=b" || a["termgw.target"] != "shell" || a["termgw.code"] != "" {
		t.Errorf("its attributes are %v", a)
	}
	wantSteps(t, root, named, map[string]string{"ticket": "open terminal", "redeem": "open terminal", "start": "open terminal", "first byte": "open terminal"})
	received.mu.Lock()
	if received.resource["service.name"] != "termgw" || received.resource["service.version"] == "" || received.resource["service.instance.id"] == "" || received.resource["deployment.environment"] != "test" {
		t.Errorf("the resource is %v", received.resource)
	}
	if got := received.headers.Get("Authorization"); got != "Bearer "+secret {
		t.Errorf("the receiver is shown %q", got)
	}
	received.mu.Unlock()

	c.send(t, "exit 7\n")
	c.closed(t)
	end := g.lineOf(t, "session ended", func(line map[string]any) bool { return line["session"] == session })
	for name, want := range map[string]any{
		"subject": "ann", "workspace": "ws", "client": "127.0.0.1", "target": "shell", "code": "exit", "exit_code": 7.0,
		"request_id": "req-7/a=b", "trace_id": traceID,
	} {
		if end[name] != want {
			t.Errorf("the end's %s is %v, want %v", name, end[name], want)
		}
	}
	if in, out := end["bytes_in"].(float64), end["bytes_out"].(float64); in < float64(len("echo hello\nexit 7\n")) || out < float64(len("hello")) {
		t.Errorf("bytes: %v, %v", in, out)
	}
	began, err := time.Parse(time.RFC3339Nano, fmt.Sprint(end["started"]))
	if seconds, ok := end["duration_seconds"].(float64); err != nil || !ok || seconds <= 0 || seconds > time.Since(began).Seconds() || end["replica"] == "" {
		t.Errorf("the end is %v", end)
	}
	lines := g.linesOf(session)
	for _, line := range lines {
		if line["request_id"] != "req-7/a=b" || line["trace_id"] != traceID {
			t.Errorf("without what it belongs to: %v", line)
		}
	}
	if _, ok := lines[0]["after_seconds"].(float64); !ok || len(lines) < 2 {
		t.Errorf("the lines are %v", lines)
	}

	metrics := request(t, http.MethodGet, "http://"+g.admin+"/metrics", http.Header{"Accept": {"application/openmetrics-text; version=1.0.0"}}, nil)
	if !strings.Contains(metrics.body, `termgw_session_start_seconds_bucket{target="shell"`) || !strings.Contains(metrics.body, `# {trace_id="`+traceID+`"}`) {
		t.Errorf("no exemplar is among the metrics")
	}
	if plain := g.get(t, g.admin, "/metrics"); strings.Contains(plain.body, traceID) {
		t.Error("an exemplar is in the form that has none")
	}
}

// TestTraceOfStrangers: who is no trusted proxy does not decide which trace a terminal belongs to, or whether it is sampled; and
// what is no request id or no trace is left out.
func TestTraceOfStrangers(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	received := receiveSpans(t)
	g := p.serve(t, slices.Concat(environ, received.environ())...)
	for _, flags := range []string{"00", "01"} {
		session := open(t, g, http.Header{"Traceparent": {"00-" + traceID + "-" + parentID + "-" + flags}})
		root, _ := received.opening(t, session)
		if id := hex.EncodeToString(root.GetTraceId()); id == traceID || len(root.GetParentSpanId()) > 0 || len(root.GetLinks()) != 1 || hex.EncodeToString(root.GetLinks()[0].GetTraceId()) != traceID {
			t.Errorf("flags %s: the trace is %v", flags, root)
		} else if line := g.linesOf(session)[0]; line["trace_id"] != id {
			t.Errorf("its lines have the trace %v, want %s", line["trace_id"], id)
		}
	}
	for _, test := range []struct {
		name   string
		header http.Header
		id     any
	}{
		{"two ids", http.Header{"X-Request-Id": {"a", "b"}}, nil},
		{"an empty id", http.Header{"X-Request-Id": {""}}, nil},
		{"blanks", http.Header{"X-Request-Id": {"a b"}}, nil},
		{"quotes", http.Header{"X-Request-Id": {`a","level":"ERROR`}}, nil},
		{"an escape", http.Header{"X-Request-Id": {"a\x9b2J"}}, nil},
		{"129 characters", http.Header{"X-Request-Id": {strings.Repeat("a", 129)}}, nil},
		{"128 characters", http.Header{"X-Request-Id": {strings.Repeat("a", 128)}}, strings.Repeat("a", 128)},
		{"a ticket", http.Header{"X-Request-Id": {p.ticket(t, "ws")}}, nil},
		{"two traces", http.Header{"Traceparent": {traceparent, traceparent}}, nil},
		{"no trace", http.Header{"Traceparent": {"00-" + strings.Repeat("0", 32) + "-" + parentID + "-01"}}, nil},
		{"a long trace", http.Header{"Traceparent": {traceparent + strings.Repeat("0", 4000)}}, nil},
	} {
		session := open(t, g, test.header)
		root, _ := received.opening(t, session)
		if len(root.GetLinks()) > 0 || len(root.GetParentSpanId()) > 0 {
			t.Errorf("%s: the trace is %v", test.name, root)
		}
		for _, line := range g.linesOf(session) {
			if line["request_id"] != test.id || line["trace_id"] != hex.EncodeToString(root.GetTraceId()) {
				t.Errorf("%s: %v", test.name, line)
			}
		}
	}
}

// open opens a terminal with a header, waits for its prompt and returns its session's id.
func open(tb testing.TB, g *served, header http.Header) (session string) {
	tb.Helper()
	c := g.dial(tb, "ws", g.ticket(tb, "ws"), dialing{header: header})
	c.wait(tb, "a prompt", func() bool { return len(c.output) > 0 })
	session = c.message(tb, "ready").Session
	g.lineOf(tb, "session started", func(line map[string]any) bool { return line["session"] == session })
	return session
}

// TestTraceOfRefusals: the step that failed has the code that the client is told, and no span has the ticket.
func TestTraceOfRefusals(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	received := receiveSpans(t)
	g := p.serve(t, slices.Concat(environ, received.environ())...)
	once := p.ticket(t, "ws")
	g.dial(t, "ws", once, dialing{}).message(t, "ready")
	for _, test := range []struct{ code, step, raw string }{
		{"ticket_missing", "ticket", ""},
		{"ticket_expired", "ticket", p.ticket(t, "ws", func(c *ticket.Claims) {
			c.IssuedAt, c.Expires = time.Now().Add(-time.Hour), time.Now().Add(-time.Hour+ticketLife)
		})},
		{"ticket_mismatch", "ticket", p.ticket(t, "other")},
		{"ticket_used", "redeem", once},
	} {
		header := http.Header{"X-Request-Id": {"id-" + test.code}}
		c := g.dial(t, "ws", test.raw, dialing{header: header})
		if m := c.message(t, "error"); m.Code != test.code {
			t.Errorf("refused with %q, want %q", m.Code, test.code)
		}
		c.closed(t)
		line := g.lineOf(t, "session ended", func(line map[string]any) bool { return line["request_id"] == "id-"+test.code })
		if _, ok := line["bytes_out"]; ok || line["code"] != test.code {
			t.Errorf("%s is logged as %v", test.code, line)
		}
		root, named := received.opening(t, fmt.Sprint(line["session"]))
		for name, span := range map[string]*tracepb.Span{"open terminal": root, test.step: named[test.step]} {
			if a := attributes(span.GetAttributes()); a["termgw.code"] != test.code || span.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR {
				t.Errorf("%s: the span %s has %v, %v", test.code, name, a, span.GetStatus())
			}
		}
		if named["start"] != nil || named["first byte"] != nil {
			t.Errorf("%s: spans of what was not done: %v", test.code, named)
		}
	}
	received.mu.Lock()
	defer received.mu.Unlock()
	for _, span := range received.all {
		p.checkSecrets(t, "a span", span.String())
	}
}

// TestTraceOfContainer: the start in a container has the steps to it, and the calls of the engine.
func TestTraceOfContainer(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	p.workspace(t, "stopped", "")
	newBox(t, env.Docker(t), "ws")
	received := receiveSpans(t)
	g := p.serve(t, received.environ()...)
	session := open(t, g, nil)
	root, named := received.opening(t, session)
	wantSteps(t, root, named, map[string]string{
		"ticket": "open terminal", "redeem": "open terminal", "start": "open terminal", "first byte": "open terminal", "container": "start", "shell": "start",
	})
	calls := 0
	for name, span := range named {
		if strings.Contains(name, "/exec") && string(span.GetParentSpanId()) == string(named["shell"].GetSpanId()) {
			calls++
		}
	}
	if calls == 0 {
		t.Errorf("no call of the engine is below the shell's span: %v", named)
	}
	c := g.dial(t, "stopped", g.ticket(t, "stopped"), dialing{})
	c.closed(t)
	line := g.lineOf(t, "session ended", func(line map[string]any) bool { return line["workspace"] == "stopped" })
	root, named = received.opening(t, fmt.Sprint(line["session"]))
	for _, span := range []*tracepb.Span{root, named["start"], named["container"]} {
		if a := attributes(span.GetAttributes()); a["termgw.code"] != "container_not_running" {
			t.Errorf("the span %s has %v", span.GetName(), a)
		}
	}
}

// TestTraceOfInstance: the first terminal of an instance has the steps of its tunnel, the second, which shares it, has not.
func TestTraceOfInstance(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	c := p.newCloud(t, env.Docker(t))
	p.onInstance(t, c, "ws")
	newBox(t, env.Docker(t), "ws")
	received := receiveSpans(t)
	g := p.serve(t, slices.Concat(c.environ(t), received.environ())...)
	for _, more := range []map[string]string{{"aws": "start", "tunnel": "start"}, {}} {
		tty := g.dial(t, "ws", g.ticket(t, "ws"), dialing{})
		tty.wait(t, "a prompt", func() bool { return len(tty.output) > 0 })
		root, named := received.opening(t, tty.message(t, "ready").Session)
		want := map[string]string{"ticket": "open terminal", "redeem": "open terminal", "start": "open terminal", "first byte": "open terminal", "shell": "start"}
		for name, parent := range more {
			want[name] = parent
		}
		wantSteps(t, root, named, want)
	}
}

// TestTracePassedOn: a person who comes back by another replica has one trace over both, and both replicas' lines have it.
func TestTracePassedOn(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	received := receiveSpans(t)
	holder, asked := p.servePair(t, append(received.environ(), "TERMGW_TRUSTED_PROXIES=127.0.0.1")...)
	session, _ := holder.waiting(t, "ws", "secret=mine")
	c := asked.dial(t, "ws", p.ticket(t, "ws", waits), dialing{
		query: "resume=" + session, header: http.Header{"Traceparent": {traceparent}, "X-Request-Id": {"back"}},
	})
	c.message(t, "ready")
	resumed := holder.lineOf(t, "session resumed", any1)
	if resumed["trace_id"] != traceID || resumed["request_id"] != "back" || resumed["session"] != session {
		t.Errorf("the holder says %v", resumed)
	}
	var both []*tracepb.Span
	eventually(t, "both replicas have sent their spans", func() bool {
		received.mu.Lock()
		defer received.mu.Unlock()
		both = nil
		for _, span := range received.all {
			if span.GetName() == "open terminal" && hex.EncodeToString(span.GetTraceId()) == traceID {
				both = append(both, span)
			}
		}
		return len(both) == 2
	})
	if hex.EncodeToString(both[0].GetParentSpanId()) != parentID {
		both[0], both[1] = both[1], both[0]
	}
	if hex.EncodeToString(both[0].GetParentSpanId()) != parentID || string(both[1].GetParentSpanId()) != string(both[0].GetSpanId()) ||
		attributes(both[1].GetAttributes())["termgw.session"] != session {
		t.Errorf("the spans are %v", both)
	}
}

// TestTraceWithoutReceiver: terminals open where nobody takes the spans, the log says so, and the end does not wait for long.
func TestTraceWithoutReceiver(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	g := p.serve(t, append(environ, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+freeAddress(t), "OTEL_BSP_SCHEDULE_DELAY=20", "OTEL_EXPORTER_OTLP_TIMEOUT=100")...)
	open(t, g, nil)
	g.lineOf(t, "spans were not exported", any1)
	g.stop(t)
}

// TestUntraced: without an endpoint there are no spans; a trusted proxy's trace is in the log all the same.
func TestUntraced(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	received := receiveSpans(t)
	g := p.serve(t, slices.Concat(environ, received.environ(), []string{"OTEL_SDK_DISABLED=true", "TERMGW_TRUSTED_PROXIES=127.0.0.1"})...)
	session := open(t, g, http.Header{"Traceparent": {traceparent}})
	if line := g.linesOf(session)[0]; line["trace_id"] != traceID {
		t.Errorf("%v", line)
	}
	g.stop(t)
	received.mu.Lock()
	defer received.mu.Unlock()
	if len(received.all) > 0 {
		t.Errorf("spans are exported: %v", received.all)
	}
}

func TestTracingVariables(t *testing.T) {
	t.Parallel()
	const endpoint, traces = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	for _, test := range []struct {
		environ map[string]string
		on      bool
		fault   string
	}{
		{nil, false, ""},
		{map[string]string{endpoint: "http://c:4318"}, true, ""},
		{map[string]string{traces: "https://c/v1/traces"}, true, ""},
		{map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, true, ""},
		{map[string]string{endpoint: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, false, ""},
		{map[string]string{endpoint: "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, false, ""},
		{map[string]string{"OTEL_SERVICE_NAME": "x"}, false, ""},
		{map[string]string{endpoint: "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, true, ""},
		{map[string]string{endpoint: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, "OTEL_EXPORTER_OTLP_PROTOCOL"},
		{map[string]string{endpoint: "c:4318"}, false, endpoint},
		{map[string]string{endpoint: "ftp://u:hunter2@c"}, false, endpoint},
		{map[string]string{"OTEL_TRACES_EXPORTER": "jaeger"}, false, "OTEL_TRACES_EXPORTER"},
	} {
		on, err := tracing(func(name string) string { return test.environ[name] })
		if on != test.on || (err != nil) != (test.fault != "") || err != nil && (!strings.Contains(err.Error(), test.fault) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%v: %v, %v", test.environ, on, err)
		}
	}
}
