package tracing

import (
	"context"
	"errors"
	"strings"

	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnproject/kiln"
)

// begins says whether a piece of work is the beginning of a trace where it is
// not part of another. Others are then nothing that anybody looks for.
func begins(name string) bool {
	switch name {
	case "kiln up", "kiln bake", "kiln rollback", "rollout":
		return true
	}
	return false
}

// Begin begins a span for a piece of work. About has names and values in turn.
// The function that it returns ends the span.
func (t *Tracer) Begin(ctx context.Context, name string, about ...string) (context.Context, func(error, ...string)) {
	p := t.current.Load()
	if p == nil || !begins(name) && !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, func(error, ...string) {}
	}
	ctx, span := p.tracer.Start(ctx, spanName(name, about), trace.WithAttributes(attributes(about)...))
	return ctx, func(err error, about ...string) {
		span.SetAttributes(attributes(about)...)
		fail(span, err)
		span.End()
	}
}

// spanName is the work's; that of a rollout's step has which one it is.
func spanName(name string, about []string) string {
	if name == "rollout step" && len(about) > 1 && about[0] == "step" {
		return "rollout " + about[1]
	}
	return name
}

// fail marks a span as failed, with what a user is shown.
func fail(span trace.Span, err error) {
	if err == nil {
		return
	}
	code := kiln.CodeInternal
	if shown := (*kiln.Error)(nil); errors.As(err, &shown) {
		code = shown.Code
	}
	span.SetAttributes(semconv.ErrorTypeKey.String(string(code)))
	span.SetStatus(codes.Error, clip(err.Error()))
}

// clip bounds a text in the way that attributes are.
func clip(text string) string {
	if len(text) <= longest {
		return text
	}
	return strings.ToValidUTF8(text[:longest], "") + "..."
}
