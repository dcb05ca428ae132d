package gateway

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr/funcr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/molecule-ai/termgw/internal/logline"
)

// exportTime bounds the export of the last spans, at the end.
const exportTime = 5 * time.Second

// openTracing sets the Tracer. The SDK takes its settings from the standard OTEL_* variables.
func (g *gateway) openTracing(ctx context.Context) error {
	own, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "termgw"), attribute.String("service.version", g.Version), attribute.String("service.instance.id", g.Replica),
	), resource.WithFromEnv()) // the last counts: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
	if err != nil {
		return fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return fmt.Errorf("OTEL_EXPORTER_OTLP_*: %w", err)
	}
	// The SDK has one place for its faults, and would print them in lines of its own.
	lines := logline.NewBound(g.Log)
	otel.SetLogger(funcr.New(func(_, said string) {
		lines.Do("tracing", func() { g.Log.Warn("OpenTelemetry says", "said", said) })
	}, funcr.Options{Verbosity: 1})) // warnings
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		lines.Do("tracing", func() { g.Log.Warn("spans were not exported", "err", err) })
	}))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(own))
	g.closers = append(g.closers, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), exportTime)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			g.Log.Warn("the last spans were not exported", "err", err)
		}
		return nil
	})
	g.Tracer = provider.Tracer("github.com/molecule-ai/termgw")
	return nil
}
