package router

import (
	"context"
	"net/http"
	"regexp"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// opening is what a request for a terminal is known by to those before the gateway, and the trace of its way
// to the first byte of the shell: its span is "open terminal", and each step has a span below that. A span
// has a code for a failure, and the log has the reason.
type opening struct {
	requestID string
	remote    trace.SpanContext // of the request's traceparent
	trusted   bool              // a trusted proxy, or another replica, sent the traceparent
	own       trace.SpanContext // of the opening's span; zero: there is none
	trace     atomic.Pointer[openingTrace]
}

// openingTrace is the trace of an opening that is not over: a session of hours does not keep it.
type openingTrace struct {
	ctx       context.Context // of the span
	firstByte func(error)     // ends the last step; nil: it has not begun
}

// requestIDForm is the form of an X-Request-Id that is taken over: a UUID, or what proxies make. A ticket is longer.
var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._:/+=@-]{1,128}$`)

// identify reads the X-Request-Id and the traceparent (W3C Trace Context) of a request. Either may be anybody's
// word: a stranger's traceparent is logged, and its span is linked, but it decides neither the trace of
// the gateway's spans nor whether they are sampled.
func (req *request) identify(r *http.Request, passed bool) {
	if ids := r.Header.Values("X-Request-Id"); len(ids) == 1 && requestIDForm.MatchString(ids[0]) {
		req.opening.requestID = ids[0]
	}
	if len(r.Header.Values("Traceparent")) == 1 {
		ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(r.Header))
		req.opening.remote = trace.SpanContextFromContext(ctx)
	}
	req.opening.trusted = passed || req.Trusts(peerAddr(r))
}

// beginOpening begins the trace of a request that is a handshake.
func (req *request) beginOpening() {
	if req.Tracer == nil {
		return
	}
	o := &req.opening
	options := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(req.started),
		trace.WithAttributes(attribute.String("termgw.session", req.id), attribute.String("termgw.workspace", req.workspaceID)),
	}
	if o.requestID != "" {
		options = append(options, trace.WithAttributes(attribute.String("termgw.request_id", o.requestID)))
	}
	ctx := context.Background()
	switch {
	case !o.remote.IsValid():
	case o.trusted:
		ctx = trace.ContextWithRemoteSpanContext(ctx, o.remote)
	default:
		options = append(options, trace.WithLinks(trace.Link{SpanContext: o.remote}))
	}
	ctx, span := req.Tracer.Start(ctx, "open terminal", options...)
	o.own = span.SpanContext()
	o.trace.Store(&openingTrace{ctx: ctx})
	req.log = req.logger()
}

// passOn has the replica that a request is passed on to know it by the same names, and its spans be below this one's.
func (o *opening) passOn(header http.Header) {
	header.Del("Traceparent")
	header.Del("Tracestate")
	if span := o.span(); o.own.IsValid() || o.trusted {
		ctx := trace.ContextWithSpanContext(context.Background(), span)
		propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(header))
	}
}

// resumes notes that the request goes on with a session.
func (o *opening) resumes(session string) {
	if t := o.trace.Load(); t != nil {
		trace.SpanFromContext(t.ctx).SetAttributes(attribute.String("termgw.session", session), attribute.Bool("termgw.resumed", true))
	}
}

// span returns the context of the opening's span: that of the request, if the gateway does not trace.
func (o *opening) span() trace.SpanContext {
	if o.own.IsValid() {
		return o.own
	}
	return o.remote
}

// logAttrs are what the lines of the request have of it.
func (o *opening) logAttrs() (attrs []any) {
	if o.requestID != "" {
		attrs = append(attrs, "request_id", o.requestID)
	}
	if span := o.span(); span.IsValid() {
		attrs = append(attrs, "trace_id", span.TraceID().String())
	}
	return attrs
}

// exemplar returns the trace that an observation belongs to, if that is sampled.
func (o *opening) exemplar() string {
	if span := o.span(); span.IsSampled() {
		return span.TraceID().String()
	}
	return ""
}

// step begins a step of the opening, and end ends it.
func (req *request) step(name string) (end func(error)) {
	t := req.opening.trace.Load()
	if t == nil {
		return func(error) {}
	}
	_, ended := req.observe(t.ctx, name, time.Now())
	return func(err error) { ended(time.Now(), err) }
}

// observe is the runner.Observer of a start.
func (req *request) observe(ctx context.Context, name string, began time.Time) (inner context.Context, ended func(time.Time, error)) {
	ctx, span := req.Tracer.Start(ctx, name, trace.WithTimestamp(began))
	return ctx, func(at time.Time, err error) {
		spanError(span, err)
		span.End(trace.WithTimestamp(at))
	}
}

// startContext returns the context of a start, whose steps are observed, and the function that ends its span.
func (req *request) startContext(ctx context.Context) (inner context.Context, end func(error)) {
	t := req.opening.trace.Load()
	if t == nil {
		return ctx, func(error) {}
	}
	inner, ended := req.observe(trace.ContextWithSpan(ctx, trace.SpanFromContext(t.ctx)), "start", time.Now())
	return runner.WithObserver(inner, req.observe), func(err error) { ended(time.Now(), err) }
}

// endOpening ends the trace, once: at the shell's first byte, or when there will be none.
func (req *request) endOpening(err error) {
	t := req.opening.trace.Swap(nil)
	if t == nil {
		return
	}
	if t.firstByte != nil {
		t.firstByte(err)
	}
	span := trace.SpanFromContext(t.ctx)
	span.SetAttributes(attribute.String("termgw.target", req.target))
	spanError(span, err)
	span.End()
}

// spanError notes a failure by its code and step, as clients are told them. The text for operators stays in the log.
func spanError(span trace.Span, err error) {
	if err == nil {
		return
	}
	code, detail := outcomeOf(err).code, runner.StepOf(err)
	span.SetAttributes(attribute.String("termgw.code", code))
	if detail != "" {
		span.SetAttributes(attribute.String("termgw.detail", detail))
		code += ": " + detail
	}
	span.SetStatus(codes.Error, code)
}

// countFirst returns the Count of a session: the metrics', and until the shell's first byte the trace's, too.
func (req *request) countFirst() func(in, out int) {
	t := req.opening.trace.Load()
	if t == nil {
		return req.Metrics.carried
	}
	t.firstByte = req.step("first byte")
	return func(in, out int) {
		if out > 0 && req.opening.trace.Load() != nil {
			req.endOpening(nil)
		}
		req.Metrics.carried(in, out)
	}
}
